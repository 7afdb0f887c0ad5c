package approval

import (
	"bytes"
	"crypto/rsa"
	"fmt"
	"slices"
	"strings"

	"golang.org/x/crypto/ssh"

	"github.com/kekd/kekd/hierarchy"
)

// Bounds of RSA keys, in bits. 3072 is what NIST SP 800-57 part 1 gives the strength of 128 bits; what is longer
// than the other bound only costs time.
const (
	minRSA = 3072
	maxRSA = 8192
	// minExponent is what everybody uses. Smaller ones have made forgeries out of lax padding checks.
	minExponent = 65537
)

// MaxKey is the length of the longest key, in bytes: RSA-8192 has 1,047.
const MaxKey = 2048

// types are the kinds of keys that an operator may have, and whether a key of that kind is in a FIDO authenticator.
var types = map[string]bool{
	ssh.KeyAlgoED25519:    false,
	ssh.KeyAlgoECDSA256:   false,
	ssh.KeyAlgoECDSA384:   false,
	ssh.KeyAlgoECDSA521:   false,
	ssh.KeyAlgoRSA:        false,
	ssh.KeyAlgoSKED25519:  true,
	ssh.KeyAlgoSKECDSA256: true,
}

// Key is an operator's public key.
type Key struct {
	wire   string // as it stands in the second field of an authorized_keys line, decoded
	public ssh.PublicKey
}

// ParseKey reads a public key in SSH's wire format (RFC 4253 section 6.6). A kind that is not known, a weak key,
// and any other bytes than those that the key is written with are [hierarchy.ErrInvalidArgument].
func ParseKey(wire []byte) (Key, error) {
	bad := func(format string, args ...any) (Key, error) {
		return Key{}, fmt.Errorf("%w: public key: %s", hierarchy.ErrInvalidArgument, fmt.Sprintf(format, args...))
	}
	if len(wire) > MaxKey {
		return bad("it has %d bytes, at most %d are allowed", len(wire), MaxKey)
	}
	r := reader{rest: wire}
	kind := string(r.string())
	if r.failed {
		return bad("it is not in SSH's wire format")
	}
	if err := checkType(kind); err != nil {
		return Key{}, err
	}
	public, err := ssh.ParsePublicKey(wire)
	if err != nil {
		return bad("%s: %v", kind, err)
	}
	if !bytes.Equal(public.Marshal(), wire) {
		return bad("%s: it is not encoded as it is to be", kind)
	}
	if weak := weakness(public); weak != "" {
		return bad("%s: %s", kind, weak)
	}
	return Key{string(wire), public}, nil
}

func checkType(kind string) error {
	if _, ok := types[kind]; ok {
		return nil
	}
	if strings.Contains(kind, "-cert-") {
		return fmt.Errorf("%w: public key: %q is a certificate: enrol the key itself", hierarchy.ErrInvalidArgument, kind)
	}
	return fmt.Errorf("%w: public key: the type %q is not known: use ed25519, ECDSA, RSA with %d bits or more, or a FIDO key (sk-)",
		hierarchy.ErrInvalidArgument, kind, minRSA)
}

// weakness is what is wrong with a key that is well formed; empty: nothing.
func weakness(public ssh.PublicKey) string {
	switch public.Type() {
	case ssh.KeyAlgoRSA:
		k := public.(ssh.CryptoPublicKey).CryptoPublicKey().(*rsa.PublicKey)
		switch bits := k.N.BitLen(); {
		case bits < minRSA || bits > maxRSA:
			return fmt.Sprintf("it has %d bits, %d to %d are allowed", bits, minRSA, maxRSA)
		case k.E < minExponent:
			return fmt.Sprintf("its exponent is %d, it must be %d or more", k.E, minExponent)
		case k.N.Bit(0) == 0:
			return "its modulus is even"
		}
	case ssh.KeyAlgoED25519:
		r := reader{rest: public.Marshal()}
		r.string()
		if smallOrder([32]byte(r.string())) {
			return "it is a point of small order, for which anybody can sign"
		}
	case ssh.KeyAlgoSKED25519:
		r := reader{rest: public.Marshal()}
		r.string()
		if smallOrder([32]byte(r.string())) {
			return "it is a point of small order, for which anybody can sign"
		}
		return wrongApplication(string(r.string()))
	case ssh.KeyAlgoSKECDSA256:
		r := reader{rest: public.Marshal()}
		r.string()
		r.string()
		r.string()
		return wrongApplication(string(r.string()))
	}
	return ""
}

// wrongApplication keeps to keys that were made for SSH: a web site may ask for signatures by those made for it.
func wrongApplication(application string) string {
	if strings.HasPrefix(application, "ssh:") {
		return ""
	}
	return fmt.Sprintf("its application is %q, it must begin with ssh:", application)
}

// Wire is the key in SSH's wire format.
func (k Key) Wire() []byte { return []byte(k.wire) }

// Type is the kind of the key, as it stands in the first field of an authorized_keys line.
func (k Key) Type() string { return k.public.Type() }

// Fingerprint is what ssh-keygen -l shows: SHA256 and base64.
func (k Key) Fingerprint() string { return ssh.FingerprintSHA256(k.public) }

// String is a line of an authorized_keys file, without a comment.
func (k Key) String() string {
	return strings.TrimSuffix(string(ssh.MarshalAuthorizedKey(k.public)), "\n")
}

// Equal tells whether two are the same key.
func (k Key) Equal(other Key) bool { return k.wire == other.wire }

// authenticator tells whether the private half is in a FIDO authenticator.
func (k Key) authenticator() bool { return types[k.Type()] }

// smallOrder tells whether an Ed25519 key is of a point of order 1, 2, 4 or 8: then a signature that verifies for
// many messages is known to everybody. These are all encodings that Go takes of their y coordinates; the
// highest bit is the sign of x.
func smallOrder(key [32]byte) bool {
	key[31] &= 0x7f
	return slices.Contains(smallOrders, key)
}

var smallOrders = [][32]byte{
	{},  // y = 0, order 4
	{1}, // y = 1, order 1
	{0x26, 0xe8, 0x95, 0x8f, 0xc2, 0xb2, 0x27, 0xb0, 0x45, 0xc3, 0xf4, 0x89, 0xf2, 0xef, 0x98, 0xf0,
		0xd5, 0xdf, 0xac, 0x05, 0xd3, 0xc6, 0x33, 0x39, 0xb1, 0x38, 0x02, 0x88, 0x6d, 0x53, 0xfc, 0x05}, // order 8
	{0xc7, 0x17, 0x6a, 0x70, 0x3d, 0x4d, 0xd8, 0x4f, 0xba, 0x3c, 0x0b, 0x76, 0x0d, 0x10, 0x67, 0x0f,
		0x2a, 0x20, 0x53, 0xfa, 0x2c, 0x39, 0xcc, 0xc6, 0x4e, 0xc7, 0xfd, 0x77, 0x92, 0xac, 0x03, 0x7a}, // order 8
	nearPrime(0xec), // y = -1, order 2
	nearPrime(0xed), // y = p, that is 0
	nearPrime(0xee), // y = p + 1, that is 1
}

// nearPrime is the encoding of p - 0xed + low, where p = 2^255 - 19.
func nearPrime(low byte) (b [32]byte) {
	for i := range b {
		b[i] = 0xff
	}
	b[0], b[31] = low, 0x7f
	return b
}
