package pkcs11

import (
	"bytes"
	"context"
	"crypto/ecdh"
	"crypto/sha256"
	"encoding/asn1"
	"errors"
	"fmt"

	"github.com/miekg/pkcs11"

	"github.com/kekd/kekd/hierarchy"
	"github.com/kekd/kekd/hsm"
)

// A pair is an ephemeral EC P-256 pair: the private half in the manager's session, the public
// half here.
type pair struct {
	private pkcs11.ObjectHandle
	public  []byte // uncompressed point
	session pkcs11.SessionHandle
}

// agreement is a pair on its way through a minting.
type agreement struct {
	t    *Token
	pair pair
}

// BeginAgreement is [hsm.Agreer]'s.
func (t *Token) BeginAgreement(ctx context.Context) (hsm.Agreement, error) {
	return change(ctx, t, func(s *slot) (hsm.Agreement, error) {
		p, err := t.newPair(s)
		if err != nil {
			return nil, err
		}
		return &agreement{t, p}, nil
	})
}

// Public is [hsm.Agreement]'s.
func (a *agreement) Public() []byte { return bytes.Clone(a.pair.public) }

// Derive is [hsm.Agreement]'s.
func (a *agreement) Derive(ctx context.Context, peer []byte, kdf hsm.KDF, info []byte, id hierarchy.ObjectID, label string) (hsm.Object, error) {
	// A point off the curve would give away the private half piece by piece (invalid curve
	// attack), and tokens do not all check.
	if _, err := ecdh.P256().NewPublicKey(peer); err != nil {
		return hsm.Object{}, fmt.Errorf("%w: the peer's point is not one of P-256", hsm.ErrInvalidInput)
	}
	if bytes.Equal(peer, a.pair.public) {
		return hsm.Object{}, fmt.Errorf("%w: the peer's point is our own", hsm.ErrInvalidInput)
	}
	if len(info) == 0 {
		return hsm.Object{}, fmt.Errorf("%w: a bridge is derived without saying which", hsm.ErrInvalidInput)
	}
	if kdf != hsm.KDFX963SHA256 && kdf != hsm.KDFECDHAESCBC {
		return hsm.Object{}, fmt.Errorf("%w: KDF %q", hsm.ErrUnsupported, kdf)
	}
	peer, info = bytes.Clone(peer), bytes.Clone(info) // ctx may end before the token is done
	return change(ctx, a.t, func(s *slot) (hsm.Object, error) {
		return a.derive(ctx, s, peer, kdf, info, id, label)
	})
}

func (a *agreement) derive(ctx context.Context, s *slot, peer []byte, kdf hsm.KDF, info []byte, id hierarchy.ObjectID, label string) (hsm.Object, error) {
	t := a.t
	if a.pair.private == 0 || a.pair.session != s.session {
		return hsm.Object{}, fmt.Errorf("%w: the pair is gone with its session; begin again", hsm.ErrKeyNotFound)
	}
	r, err := t.create(ctx, s, id, func(found []record) ([]record, error) {
		if len(found) > 0 {
			return found, a.same(s, peer, kdf, info, found)
		}
		h, err := t.deriveBridge(s, a.pair.private, peer, kdf, info, kekTemplate(id, label))
		if err != nil {
			return nil, err
		}
		r, err := t.readChecked(s, h)
		if err != nil {
			return nil, err
		}
		if !r.obj.Bridge && r.obj.Fault == nil {
			r.obj.Fault = fmt.Errorf("%w: the token says that a derived key was generated", hsm.ErrKeyRefused)
		}
		return []record{r}, nil
	})
	return r.obj, err
}

// same tells whether what answers to the ID already is what would be derived: then an earlier
// try of this very agreement made it.
func (a *agreement) same(s *slot, peer []byte, kdf hsm.KDF, info []byte, found []record) error {
	first, _ := group(found)
	if first.obj.Fault != nil {
		return first.obj.Fault
	}
	if !first.obj.Usable {
		return fmt.Errorf("%w: %s", hsm.ErrKeyLatched, first.obj.ID)
	}
	twin, err := a.t.deriveBridge(s, a.pair.private, peer, kdf, info, twinTemplate())
	if err != nil {
		return err
	}
	defer a.t.m.ctx.DestroyObject(s.session, twin)
	err = s.test(twin, first.obj, first.handle)
	if errors.Is(err, hsm.ErrKeyRefused) || errors.Is(err, hsm.ErrAmbiguous) {
		return fmt.Errorf("%w: another key has the ID %s already", hsm.ErrAmbiguous, first.obj.ID)
	}
	return err
}

// End is [hsm.Agreement]'s.
func (a *agreement) End(ctx context.Context) error {
	_, err := change(ctx, a.t, func(s *slot) (struct{}, error) {
		err := a.t.destroyPair(s, a.pair)
		if err == nil {
			a.pair.private = 0
		}
		return struct{}{}, err
	})
	return err
}

// newPair makes a pair that can do nothing but derive, and that ends with the session.
func (t *Token) newPair(s *slot) (pair, error) {
	ctx := t.m.ctx
	mechanism := []*pkcs11.Mechanism{pkcs11.NewMechanism(pkcs11.CKM_EC_KEY_PAIR_GEN, nil)}
	public, private, err := ctx.GenerateKeyPair(s.session, mechanism, pairPublicTemplate(), pairPrivateTemplate())
	if err != nil {
		return pair{}, failure("make an agreement pair", err)
	}
	p := pair{private: private, session: s.session}
	p.public, err = t.readPair(s, public, private)
	if derr := ctx.DestroyObject(s.session, public); err == nil && derr != nil {
		err = failure("destroy the public half of a pair", derr)
	}
	if err != nil {
		return pair{}, errors.Join(err, t.destroyPair(s, p))
	}
	return p, nil
}

// readPair reads the public point, and what the private half may do.
func (t *Token) readPair(s *slot, public, private pkcs11.ObjectHandle) ([]byte, error) {
	got, err := t.m.ctx.GetAttributeValue(s.session, public, attributes{attr(pkcs11.CKA_EC_POINT, nil)})
	if err != nil {
		return nil, failure("read an agreement pair", err)
	}
	point := got[0].Value
	var inner []byte // the point in an OCTET STRING (PKCS#11 v2.40, section 2.3.3); some give it bare
	if rest, err := asn1.Unmarshal(point, &inner); err == nil && len(rest) == 0 {
		point = inner
	}
	if _, err := ecdh.P256().NewPublicKey(point); err != nil {
		return nil, fmt.Errorf("%w: the token made a pair whose point is not one of P-256", hsm.ErrKeyRefused)
	}
	want := attributes{
		attr(pkcs11.CKA_TOKEN, false), attr(pkcs11.CKA_PRIVATE, true), attr(pkcs11.CKA_SENSITIVE, true),
		attr(pkcs11.CKA_EXTRACTABLE, false), attr(pkcs11.CKA_ALWAYS_SENSITIVE, true), attr(pkcs11.CKA_NEVER_EXTRACTABLE, true),
		attr(pkcs11.CKA_LOCAL, true), attr(pkcs11.CKA_DERIVE, true),
		attr(pkcs11.CKA_SIGN, false), attr(pkcs11.CKA_DECRYPT, false), attr(pkcs11.CKA_UNWRAP, false),
	}
	got, err = t.m.ctx.GetAttributeValue(s.session, private, want)
	if err != nil {
		return nil, failure("read an agreement pair", err)
	}
	for i, a := range got {
		if !bytes.Equal(a.Value, want[i].Value) {
			return nil, fmt.Errorf("%w: attribute 0x%X of an agreement pair is not what was asked for", hsm.ErrKeyRefused, a.Type)
		}
	}
	return point, nil
}

func (t *Token) destroyPair(s *slot, p pair) error {
	if p.private == 0 || p.session != s.session {
		return nil // gone with its session
	}
	err := t.m.ctx.DestroyObject(s.session, p.private)
	var code pkcs11.Error
	if err == nil || errors.As(err, &code) && transient(code) {
		return nil // destroyed, or gone already
	}
	return failure("destroy an agreement pair", err)
}

// deriveBridge derives an AES-256 key with the peer, by the KDF, and leaves nothing else behind.
func (t *Token) deriveBridge(s *slot, private pkcs11.ObjectHandle, peer []byte, kdf hsm.KDF, info []byte, template attributes) (pkcs11.ObjectHandle, error) {
	ctx := t.m.ctx
	if kdf == hsm.KDFX963SHA256 {
		ecdh := pkcs11.NewMechanism(pkcs11.CKM_ECDH1_DERIVE, pkcs11.NewECDH1DeriveParams(pkcs11.CKD_SHA256_KDF, info, peer))
		key, err := ctx.DeriveKey(s.session, []*pkcs11.Mechanism{ecdh}, private, template)
		if err != nil {
			return 0, failure("derive a bridge", err)
		}
		return key, nil
	}
	ecdh := pkcs11.NewMechanism(pkcs11.CKM_ECDH1_DERIVE, pkcs11.NewECDH1DeriveParams(pkcs11.CKD_NULL, nil, peer))
	agreed, err := ctx.DeriveKey(s.session, []*pkcs11.Mechanism{ecdh}, private, intermediateTemplate())
	if err != nil {
		return 0, failure("agree a secret", err)
	}
	key, err := t.expand(s, agreed, info, template)
	if derr := ctx.DestroyObject(s.session, agreed); derr != nil && err == nil {
		_ = ctx.DestroyObject(s.session, key)
		return 0, failure("destroy an agreed secret", derr)
	}
	return key, err
}

// expand makes the bridge of the agreed secret: SHA-256 of info, encrypted with it in CBC with
// a zero IV. Two blocks, so 32 bytes in and 32 bytes out.
func (t *Token) expand(s *slot, agreed pkcs11.ObjectHandle, info []byte, template attributes) (pkcs11.ObjectHandle, error) {
	// Deriving from a key without a value is a SIGSEGV in SoftHSM 2.6.1.
	got, err := t.m.ctx.GetAttributeValue(s.session, agreed, attributes{attr(pkcs11.CKA_CHECK_VALUE, nil)})
	if err == nil && len(got[0].Value) == 0 {
		return 0, fmt.Errorf("%w: the agreed secret has no value", hsm.ErrKeyRefused)
	}
	if err != nil && lost(err) {
		return 0, failure("read an agreed secret", err)
	}
	sum := sha256.Sum256(info)
	parameter, free := cbcEncryptData(sum[:])
	defer free()
	cbc := pkcs11.NewMechanism(pkcs11.CKM_AES_CBC_ENCRYPT_DATA, parameter)
	key, err := t.m.ctx.DeriveKey(s.session, []*pkcs11.Mechanism{cbc}, agreed, template)
	if err != nil {
		return 0, failure("derive a bridge", err)
	}
	return key, nil
}
