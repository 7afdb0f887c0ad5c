package pkcs11

import (
	"crypto/sha256"
	"fmt"

	"github.com/miekg/pkcs11"

	"github.com/kekd/kekd/hierarchy"
	"github.com/kekd/kekd/hsm"
)

// The templates of every object that this package makes, as pure functions: what a key may do
// is decided here and nowhere else.

// keySize is that of AES-256, in bytes.
const keySize = 32

type attributes = []*pkcs11.Attribute

func attr(typ uint, value any) *pkcs11.Attribute { return pkcs11.NewAttribute(typ, value) }

// secret is what every secret key here has in common: AES-256 that never leaves the token in
// any form, and does nothing until the rest of its template says so.
func secret(token bool) attributes {
	return attributes{
		attr(pkcs11.CKA_CLASS, pkcs11.CKO_SECRET_KEY),
		attr(pkcs11.CKA_KEY_TYPE, pkcs11.CKK_AES),
		attr(pkcs11.CKA_VALUE_LEN, keySize),
		attr(pkcs11.CKA_TOKEN, token),
		attr(pkcs11.CKA_PRIVATE, true),
		attr(pkcs11.CKA_SENSITIVE, true),
		attr(pkcs11.CKA_EXTRACTABLE, false),
		attr(pkcs11.CKA_WRAP, false),
		attr(pkcs11.CKA_UNWRAP, false),
		attr(pkcs11.CKA_SIGN, false),
		attr(pkcs11.CKA_VERIFY, false),
	}
}

// kekTemplate is that of a KEK and of a bridge: it encrypts and decrypts. It stays modifiable,
// for the latch.
func kekTemplate(id hierarchy.ObjectID, label string) attributes {
	return append(secret(true),
		attr(pkcs11.CKA_ID, id[:]),
		attr(pkcs11.CKA_LABEL, label),
		attr(pkcs11.CKA_ENCRYPT, true),
		attr(pkcs11.CKA_DECRYPT, true),
		attr(pkcs11.CKA_DERIVE, false),
	)
}

// twinTemplate is that of a bridge derived again, to compare it with one that is there.
func twinTemplate() attributes {
	return append(secret(false),
		attr(pkcs11.CKA_ENCRYPT, true),
		attr(pkcs11.CKA_DECRYPT, true),
		attr(pkcs11.CKA_DERIVE, false),
	)
}

// copyTemplate is what C_CopyObject changes: the copy lives in the session and may not be
// told to do more than its original.
func copyTemplate() attributes {
	return attributes{
		attr(pkcs11.CKA_TOKEN, false),
		attr(pkcs11.CKA_PRIVATE, true),
	}
}

// intermediateTemplate is that of the agreed secret between ECDH and the KDF: it derives, for
// as long as that takes.
func intermediateTemplate() attributes {
	return append(secret(false),
		attr(pkcs11.CKA_ENCRYPT, false),
		attr(pkcs11.CKA_DECRYPT, false),
		attr(pkcs11.CKA_DERIVE, true),
	)
}

// curveP256 is the DER of the OID prime256v1 (RFC 5480 section 2.1.1.1).
var curveP256 = []byte{0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07}

// pairPublicTemplate is that of the public half of an ephemeral agreement pair.
func pairPublicTemplate() attributes {
	return attributes{
		attr(pkcs11.CKA_CLASS, pkcs11.CKO_PUBLIC_KEY),
		attr(pkcs11.CKA_KEY_TYPE, pkcs11.CKK_EC),
		attr(pkcs11.CKA_EC_PARAMS, curveP256),
		attr(pkcs11.CKA_TOKEN, false),
		attr(pkcs11.CKA_VERIFY, false),
		attr(pkcs11.CKA_ENCRYPT, false),
		attr(pkcs11.CKA_WRAP, false),
	}
}

// pairPrivateTemplate is that of the private half: it lives in the session and derives. Who
// could use it with CKA_EXTRACTABLE true could read the bridge, so it never outlives its
// minting.
func pairPrivateTemplate() attributes {
	return attributes{
		attr(pkcs11.CKA_CLASS, pkcs11.CKO_PRIVATE_KEY),
		attr(pkcs11.CKA_KEY_TYPE, pkcs11.CKK_EC),
		attr(pkcs11.CKA_TOKEN, false),
		attr(pkcs11.CKA_PRIVATE, true),
		attr(pkcs11.CKA_SENSITIVE, true),
		attr(pkcs11.CKA_EXTRACTABLE, false),
		attr(pkcs11.CKA_DERIVE, true),
		attr(pkcs11.CKA_SIGN, false),
		attr(pkcs11.CKA_DECRYPT, false),
		attr(pkcs11.CKA_UNWRAP, false),
	}
}

// latchTemplate sets the latch, or takes it away.
func latchTemplate(usable bool) attributes {
	return attributes{
		attr(pkcs11.CKA_ENCRYPT, usable),
		attr(pkcs11.CKA_DECRYPT, usable),
	}
}

// probeTemplate is that of a session key on which is tried what the token can do.
func probeTemplate() attributes { return twinTemplate() }

// searchTemplate finds key objects on the token. It says CKA_TOKEN, since session copies
// share the ID of their original.
func searchTemplate() attributes {
	return attributes{
		attr(pkcs11.CKA_CLASS, pkcs11.CKO_SECRET_KEY),
		attr(pkcs11.CKA_TOKEN, true),
	}
}

// searchByID finds the key objects of one ID.
func searchByID(id hierarchy.ObjectID) attributes {
	return append(searchTemplate(), attr(pkcs11.CKA_ID, id[:]))
}

// The canary is a KEK of nobody. Every token that serves has one, and it is asked whether the
// token is alive when an answer could also mean that it is not.
const canaryLabel = "kekd/canary"

var canaryID = func() hierarchy.ObjectID {
	sum := sha256.Sum256([]byte("kekd canary v1"))
	return hierarchy.ObjectID(sum[:20])
}()

// markTemplate is that of a node's mark. It is found by CKA_APPLICATION; the label is for people.
func markTemplate(owner hsm.MarkOwner, m hsm.Mark) attributes {
	return append(searchMark(owner),
		attr(pkcs11.CKA_PRIVATE, true),
		attr(pkcs11.CKA_MODIFIABLE, false),
		attr(pkcs11.CKA_LABEL, markLabel(owner)),
		attr(pkcs11.CKA_VALUE, hsm.AppendMark(nil, owner, m)),
	)
}

// searchMark finds the marks of one owner.
func searchMark(owner hsm.MarkOwner) attributes {
	return attributes{
		attr(pkcs11.CKA_CLASS, pkcs11.CKO_DATA),
		attr(pkcs11.CKA_TOKEN, true),
		attr(pkcs11.CKA_APPLICATION, fmt.Sprintf("kekd/%s/%s", owner.Cluster, owner.Node)),
	}
}

func markLabel(owner hsm.MarkOwner) string { return "kekd/mark/" + owner.Node.String() }
