package pkcs11

import (
	"bytes"
	"errors"
	"fmt"

	"github.com/miekg/pkcs11"

	"github.com/kekd/kekd/hierarchy"
	"github.com/kekd/kekd/hsm"
)

// A slot is one session and what works through it. It belongs to one goroutine, which is not
// locked to its thread: PKCS#11 binds nothing to threads, and the switches would make a single
// unwrap cost 55 us of processor time instead of 20, and take 200 us instead of 30.
type slot struct {
	t       *Token
	flags   uint // of its session
	session pkcs11.SessionHandle
	m       *machine
	ivs     []byte // random, not used yet

	// What one chunk needs, kept to be used again.
	pieces  []piece
	flights []flight
	uses    []use
	cold    []coldPiece
	missing []piece
	hot     []*entry
	trouble []trouble
}

func (t *Token) newSlot(flags uint) (*slot, error) {
	s := &slot{t: t, flags: pkcs11.CKF_SERIAL_SESSION | flags, m: newMachine(t.m.fns)}
	if err := s.reopen(); err != nil {
		s.m.free()
		return nil, err
	}
	return s, nil
}

// reopen gives the slot a new session, after the old one turned out to be of no use.
func (s *slot) reopen() error {
	ctx := s.t.m.ctx
	if s.session != 0 {
		_ = ctx.CloseSession(s.session) // it may be gone already
	}
	session, err := ctx.OpenSession(s.t.slotID, s.flags)
	if err != nil {
		s.session = 0
		return failure("open a session", err)
	}
	s.session = session
	return nil
}

func (s *slot) close() {
	if s.session != 0 {
		_ = s.t.m.ctx.CloseSession(s.session)
	}
	s.m.free()
}

// ivBatch is how many IVs are fetched at once: for a network HSM each fetch is a round trip.
const ivBatch = 2 * machineSteps

// refill sees to it that a chunk finds enough IVs.
func (s *slot) refill() error {
	if len(s.ivs) >= machineSteps*hsm.IVSize {
		return nil
	}
	b, err := s.t.m.ctx.GenerateRandom(s.session, ivBatch*hsm.IVSize)
	if err != nil {
		return failure("draw IVs", err)
	}
	s.ivs = b
	return nil
}

// iv gives 96 random bits that were not given before.
func (s *slot) iv() []byte {
	iv := s.ivs[:hsm.IVSize]
	s.ivs = s.ivs[hsm.IVSize:]
	return iv
}

// checkValue recomputes CKA_CHECK_VALUE: the beginning of a zero block in ECB.
func (s *slot) checkValue(key pkcs11.ObjectHandle) (v hierarchy.CheckValue, err error) {
	ctx := s.t.m.ctx
	mechanism := []*pkcs11.Mechanism{pkcs11.NewMechanism(pkcs11.CKM_AES_ECB, nil)}
	if err := ctx.EncryptInit(s.session, mechanism, key); err != nil {
		return v, failure("compute a check value", err)
	}
	block, err := ctx.Encrypt(s.session, make([]byte, 16))
	if err != nil {
		return v, failure("compute a check value", err)
	}
	if len(block) != 16 {
		return v, fmt.Errorf("%w: a block in ECB has %d bytes", hsm.ErrUnavailable, len(block))
	}
	return hierarchy.CheckValue(block[:len(v)]), nil
}

var (
	testPlaintext = []byte("kekd known-answer test plaintext")
	testAAD       = []byte("kekd known-answer test")
)

// test is the known-answer test of a key: the check value is that of the key, what it seals it
// opens, and it opens neither with an altered tag nor with another AAD. twins are handles that
// must be the same key. What fails the test is [hsm.ErrKeyRefused] or [hsm.ErrAmbiguous]; any
// other error is the token's.
//
// The check value of a bridge is not recomputed: SoftHSM 2.6.1 gives derived keys the first
// bytes of their SHA-1 instead (AESKey's method is called on a SymmetricKey).
func (s *slot) test(key pkcs11.ObjectHandle, obj hsm.Object, twins ...pkcs11.ObjectHandle) error {
	if err := s.refill(); err != nil {
		return err
	}
	if !obj.Bridge {
		if v, err := s.checkValue(key); err != nil {
			return err
		} else if v != obj.Check {
			return fmt.Errorf("%w: its check value is %s, the key's is %s", hsm.ErrKeyRefused, obj.Check, v)
		}
	}
	sealed, err := s.sealTest(key)
	if err != nil {
		return err
	}
	if err := s.openTest(key, sealed); err != nil {
		return err
	}
	for _, twin := range twins {
		other, err := s.sealTest(twin)
		if err == nil {
			err = errors.Join(s.opens(key, other, testAAD), s.opens(twin, sealed, testAAD))
		}
		switch {
		case errors.Is(err, hsm.ErrKeyNotFound): // that handle is gone: one less
		case errors.Is(err, hsm.ErrKeyRefused):
			return fmt.Errorf("%w: two keys answer to it, with one check value", hsm.ErrAmbiguous)
		case err != nil:
			return err
		}
	}
	return nil
}

func (s *slot) sealTest(key pkcs11.ObjectHandle) (hsm.Sealed, error) {
	s.m.reset()
	i := s.m.seal(key, s.iv(), testAAD, s.m.given(testPlaintext), len(testPlaintext))
	s.m.run(s.session)
	if code, _ := s.m.rv(i); code != 0 {
		return hsm.Sealed{}, failure("known-answer test", code)
	}
	sealed := hsm.Sealed{IV: bytes.Clone(s.m.iv(i)), Ciphertext: bytes.Clone(s.m.out(i))}
	if len(sealed.Ciphertext) != len(testPlaintext)+hsm.TagSize || bytes.Contains(sealed.Ciphertext, testPlaintext) {
		return hsm.Sealed{}, fmt.Errorf("%w: known-answer test: it does not seal", hsm.ErrKeyRefused)
	}
	return sealed, nil
}

// openTest opens what was sealed, and must not open what was altered.
func (s *slot) openTest(key pkcs11.ObjectHandle, sealed hsm.Sealed) error {
	if err := s.opens(key, sealed, testAAD); err != nil {
		return err
	}
	altered := hsm.Sealed{IV: sealed.IV, Ciphertext: bytes.Clone(sealed.Ciphertext)}
	altered.Ciphertext[len(altered.Ciphertext)-1] ^= 1
	if err := s.refuses(key, altered, testAAD); err != nil {
		return err
	}
	return s.refuses(key, sealed, testAAD[1:])
}

// opens opens a sealed test plaintext. One that does not open is [hsm.ErrKeyRefused]. It is asked twice: some codes mean a
// wrong tag with one module and passing trouble with another, and a key that is refused stays so.
func (s *slot) opens(key pkcs11.ObjectHandle, sealed hsm.Sealed, aad []byte) error {
	err := s.opensOnce(key, sealed, aad)
	if errors.Is(err, hsm.ErrKeyRefused) {
		err = s.opensOnce(key, sealed, aad)
	}
	return err
}

func (s *slot) opensOnce(key pkcs11.ObjectHandle, sealed hsm.Sealed, aad []byte) error {
	s.m.reset()
	i := s.m.open(key, sealed.IV, aad, sealed.Ciphertext)
	s.m.run(s.session)
	code, atInit := s.m.rv(i)
	switch {
	case code == 0 && bytes.Equal(s.m.out(i), testPlaintext):
		return nil
	case code != 0 && (atInit || !isTag(code)):
		return failure("known-answer test", code)
	}
	return fmt.Errorf("%w: known-answer test: it does not open what was sealed", hsm.ErrKeyRefused)
}

func (s *slot) refuses(key pkcs11.ObjectHandle, sealed hsm.Sealed, aad []byte) error {
	s.m.reset()
	i := s.m.open(key, sealed.IV, aad, sealed.Ciphertext)
	s.m.run(s.session)
	code, atInit := s.m.rv(i)
	switch {
	case code == 0:
		return fmt.Errorf("%w: known-answer test: it opens what was altered", hsm.ErrKeyRefused)
	case atInit || !isTag(code):
		return failure("known-answer test", code)
	}
	return nil
}

func isTag(code pkcs11.Error) bool {
	return perhapsTag(code) || errors.Is(sentinels[code], hsm.ErrTagMismatch)
}

// canaryTries is how often the canary is asked, a millisecond apart and more, before the token
// is called sick: another process may be writing in its directory.
const canaryTries = 4

// canary asks the token whether it is alive, by a key object on the token: session copies go
// on working after the token is gone.
func (s *slot) canary() error {
	var err error
	for try := range canaryTries {
		var v hierarchy.CheckValue
		v, err = s.checkValue(s.t.canary.handle)
		if err == nil {
			if v != s.t.canary.obj.Check {
				return fmt.Errorf("%w: the canary's check value is %s, it was %s", hsm.ErrUnavailable, v, s.t.canary.obj.Check)
			}
			return nil
		}
		var code pkcs11.Error
		if errors.As(err, &code) && sessionLost(code) {
			if err := s.reopen(); err != nil {
				return err
			}
		}
		pause(try)
	}
	return fmt.Errorf("%w: the canary does not answer: %w", hsm.ErrUnavailable, err)
}
