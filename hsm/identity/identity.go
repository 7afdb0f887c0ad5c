// Package identity is the token's signing identity: an ECDSA P-256 key that never leaves the
// token and may sign and do nothing else, as a [crypto.Signer] through crypto11.
//
// crypto11 initialises the PKCS#11 module and logs in, and a failure of it finalises the
// module under everybody in the process. So an identity is opened before any other package
// opens the token (see package pkcs11 for the order), after pkcs11.Probe has found that the
// token is there and that its PIN may be tried; and it is closed last.
package identity

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/ThalesIgnite/crypto11"
	"github.com/miekg/pkcs11"

	"github.com/kekd/kekd/hsm"
)

// ErrExists is what [Create] answers on a token that has an identity.
var ErrExists = errors.New("the token has an identity already")

// Label is the CKA_LABEL of both halves. The CKA_ID is drawn anew for each pair, so that
// halves that a crash has left can never be taken for halves of a later pair.
const Label = "kekd/identity"

// Config says where the identity is.
type Config struct {
	Module string // path of the PKCS#11 module
	Serial string // of the token
	PIN    []byte // the user's; tried once
}

// Identity is an open identity. Sign may be called by several goroutines.
type Identity struct {
	conn   *Connection
	signer crypto11.Signer
	public *ecdsa.PublicKey
}

var _ crypto.Signer = (*Identity)(nil)

// signTimeout bounds the wait for one of crypto11's sessions.
const signTimeout = 10 * time.Second

// A Connection is a module that is initialised and logged in to its token.
type Connection struct{ ctx *crypto11.Context }

// Connect initialises the module and logs in.
func Connect(cfg Config) (*Connection, error) {
	ctx, err := crypto11.Configure(&crypto11.Config{
		Path:            cfg.Module,
		TokenSerial:     cfg.Serial,
		Pin:             string(cfg.PIN),
		MaxSessions:     4,
		PoolWaitTimeout: signTimeout,
	})
	if err != nil {
		return nil, failure("open the token", err)
	}
	return &Connection{ctx}, nil
}

// Identity is the one that [Create] made: it lives as long as the connection. None is [hsm.ErrKeyNotFound], more
// than one is [hsm.ErrAmbiguous], and one that may do more than sign is [hsm.ErrKeyRefused].
//
// It searches the token three times, which takes SoftHSM a second with 10,000 objects, and changes nothing.
func (c *Connection) Identity() (*Identity, error) {
	signers, err := find(c.ctx)
	switch {
	case err != nil:
		return nil, err
	case len(signers) == 0:
		return nil, fmt.Errorf("%w: the token has no identity; kekd init makes one", hsm.ErrKeyNotFound)
	case len(signers) > 1:
		return nil, fmt.Errorf("%w: %d key pairs with the label %s; destroy those that are not pinned", hsm.ErrAmbiguous, len(signers), Label)
	}
	return c.verified(signers[0])
}

func (c *Connection) verified(signer crypto11.Signer) (*Identity, error) {
	if err := verify(c.ctx, signer); err != nil {
		return nil, err
	}
	return &Identity{c, signer, signer.Public().(*ecdsa.PublicKey)}, nil
}

// Close lets go of the token. If nobody else of crypto11 holds the module, it is finalised.
func (c *Connection) Close() error {
	if err := c.ctx.Close(); err != nil {
		return failure("close the token", err)
	}
	return nil
}

// Open connects and finds the identity.
func Open(cfg Config) (*Identity, error) {
	return with(cfg, (*Connection).Identity)
}

// Create makes the identity, and opens it.
func Create(cfg Config) (*Identity, error) {
	return with(cfg, func(c *Connection) (*Identity, error) {
		signers, err := find(c.ctx)
		if err != nil {
			return nil, err
		}
		if len(signers) > 0 {
			return nil, ErrExists
		}
		public, private, err := templates()
		if err != nil {
			return nil, err
		}
		signer, err := c.ctx.GenerateECDSAKeyPairWithAttributes(public, private, elliptic.P256())
		if err != nil {
			return nil, failure("make the identity", err)
		}
		return c.verified(signer)
	})
}

func with(cfg Config, get func(*Connection) (*Identity, error)) (*Identity, error) {
	c, err := Connect(cfg)
	if err != nil {
		return nil, err
	}
	id, err := get(c)
	if err != nil {
		return nil, errors.Join(err, c.Close())
	}
	return id, nil
}

// Public is the identity's *ecdsa.PublicKey.
func (i *Identity) Public() crypto.PublicKey { return i.public }

// Sign signs a digest; the signature is ASN.1, as of crypto/ecdsa. The randomness is the
// token's.
func (i *Identity) Sign(_ io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	if opts == nil || opts.HashFunc() == 0 || len(digest) != opts.HashFunc().Size() {
		return nil, fmt.Errorf("%w: what is signed is not a digest of the hash named", hsm.ErrInvalidInput)
	}
	sig, err := i.signer.Sign(rand.Reader, digest, opts)
	if err != nil {
		return nil, failure("sign", err)
	}
	return sig, nil
}

// Close closes the connection.
func (i *Identity) Close() error { return i.conn.Close() }

// find gives the pairs that are ours and were generated in the token. A half without the
// other, one that a crash left half-made, and a pair that was imported are not among them.
func find(ctx *crypto11.Context) ([]crypto11.Signer, error) {
	all, err := ctx.FindKeyPairs(nil, []byte(Label))
	if err != nil {
		return nil, failure("look for the identity", err)
	}
	var ours []crypto11.Signer
	for _, s := range all {
		local, err := ctx.GetAttribute(s, crypto11.CkaLocal)
		if err != nil {
			return nil, failure("look for the identity", err)
		}
		if isTrue(local) {
			ours = append(ours, s)
		}
	}
	return ours, nil
}

// may is what the private half may do and what it must be. Whatever it could do besides
// signing would be a way to use it for something that nobody agreed to.
var may = []struct {
	typ   crypto11.AttributeType
	name  string
	value bool
}{
	{crypto11.CkaToken, "CKA_TOKEN", true},
	{crypto11.CkaPrivate, "CKA_PRIVATE", true},
	{crypto11.CkaSensitive, "CKA_SENSITIVE", true},
	{crypto11.CkaExtractable, "CKA_EXTRACTABLE", false},
	{crypto11.CkaSign, "CKA_SIGN", true},
	{crypto11.CkaSignRecover, "CKA_SIGN_RECOVER", false},
	{crypto11.CkaDecrypt, "CKA_DECRYPT", false},
	{crypto11.CkaUnwrap, "CKA_UNWRAP", false},
	{crypto11.CkaDerive, "CKA_DERIVE", false},
}

// became is what the token says about how the private half came to be.
var became = []struct {
	typ  crypto11.AttributeType
	name string
}{
	{crypto11.CkaAlwaysSensitive, "CKA_ALWAYS_SENSITIVE"},
	{crypto11.CkaNeverExtractable, "CKA_NEVER_EXTRACTABLE"},
	{crypto11.CkaLocal, "CKA_LOCAL"},
}

func templates() (public, private crypto11.AttributeSet, err error) {
	id := make([]byte, 20)
	rand.Read(id)
	if public, err = crypto11.NewAttributeSetWithIDAndLabel(id, []byte(Label)); err != nil {
		return nil, nil, err
	}
	private = public.Copy()
	for _, m := range may {
		err = errors.Join(err, private.Set(m.typ, m.value))
	}
	for _, typ := range []crypto11.AttributeType{crypto11.CkaEncrypt, crypto11.CkaWrap, crypto11.CkaVerifyRecover, crypto11.CkaDerive} {
		err = errors.Join(err, public.Set(typ, false))
	}
	return public, private, err
}

// verify reads back what the private half may do, and has it sign something that the public
// half verifies: the two are found by their label and ID, which anybody can write.
func verify(ctx *crypto11.Context, s crypto11.Signer) error {
	for _, m := range may {
		a, err := ctx.GetAttribute(s, m.typ)
		if err != nil {
			return failure("read "+m.name+" of the identity", err)
		}
		if isTrue(a) != m.value {
			return fmt.Errorf("%w: %s of the identity is %t", hsm.ErrKeyRefused, m.name, !m.value)
		}
	}
	for _, b := range became {
		a, err := ctx.GetAttribute(s, b.typ)
		if err != nil {
			return failure("read "+b.name+" of the identity", err)
		}
		if !isTrue(a) {
			return fmt.Errorf("%w: %s of the identity is false", hsm.ErrKeyRefused, b.name)
		}
	}
	public, ok := s.Public().(*ecdsa.PublicKey)
	if !ok || public.Curve != elliptic.P256() {
		return fmt.Errorf("%w: the identity is not an ECDSA key on P-256", hsm.ErrKeyRefused)
	}
	digest := sha256.Sum256([]byte("kekd identity self-test"))
	sig, err := s.Sign(rand.Reader, digest[:], crypto.SHA256)
	if err != nil {
		return failure("sign", err)
	}
	if !ecdsa.VerifyASN1(public, digest[:], sig) {
		return fmt.Errorf("%w: the identity's halves do not belong together", hsm.ErrKeyRefused)
	}
	return nil
}

func isTrue(a *crypto11.Attribute) bool { return a != nil && len(a.Value) == 1 && a.Value[0] == 1 }

// failure wraps an error of crypto11 with what it means.
func failure(what string, err error) error {
	meaning := hsm.ErrUnavailable
	var code pkcs11.Error
	if errors.As(err, &code) {
		switch code {
		case pkcs11.CKR_PIN_INCORRECT, pkcs11.CKR_PIN_INVALID, pkcs11.CKR_PIN_LEN_RANGE:
			meaning = hsm.ErrPINIncorrect
		case pkcs11.CKR_PIN_LOCKED, pkcs11.CKR_PIN_EXPIRED:
			meaning = hsm.ErrPINLocked
		case pkcs11.CKR_ATTRIBUTE_VALUE_INVALID, pkcs11.CKR_TEMPLATE_INCONSISTENT, pkcs11.CKR_MECHANISM_INVALID:
			meaning = hsm.ErrUnsupported
		}
	}
	return fmt.Errorf("%w: %s: %w", meaning, what, err)
}
