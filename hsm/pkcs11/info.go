package pkcs11

import (
	"context"
	"errors"
	"fmt"

	"github.com/miekg/pkcs11"

	"github.com/kekd/kekd/hsm"
)

// capabilities is what a token turned out to be able to do.
type capabilities struct {
	copy  bool
	latch bool
}

// tryCapabilities tries on a session key, which leaves nothing on the token. That a token has
// no such function is no error.
func (s *slot) tryCapabilities() (can capabilities, err error) {
	ctx := s.t.m.ctx
	mechanism := []*pkcs11.Mechanism{pkcs11.NewMechanism(pkcs11.CKM_AES_KEY_GEN, nil)}
	key, err := ctx.GenerateKey(s.session, mechanism, probeTemplate())
	if err != nil {
		if err = failure("generate a session key", err); lost(err) {
			return can, err
		}
		return can, nil
	}
	defer ctx.DestroyObject(s.session, key)
	if made, err := ctx.CopyObject(s.session, key, copyTemplate()); err == nil {
		can.copy = true
		_ = ctx.DestroyObject(s.session, made)
	}
	can.latch = ctx.SetAttributeValue(s.session, key, latchTemplate(false)) == nil &&
		ctx.SetAttributeValue(s.session, key, latchTemplate(true)) == nil
	return can, nil
}

// Info is [hsm.Manager]'s.
func (t *Token) Info(ctx context.Context) (hsm.Info, error) {
	return change(ctx, t, func(s *slot) (hsm.Info, error) {
		i, err := t.m.ctx.GetTokenInfo(t.slotID)
		if err != nil {
			return hsm.Info{}, failure("describe the token", err)
		}
		kdfs, err := t.tryKDFs(s)
		if err != nil {
			return hsm.Info{}, err
		}
		free := uint64(i.FreePrivateMemory)
		if i.FreePrivateMemory == pkcs11.CK_UNAVAILABLE_INFORMATION {
			free = ^uint64(0)
		}
		return hsm.Info{
			Label: i.Label, Manufacturer: i.ManufacturerID, Model: i.Model, Serial: i.SerialNumber,
			Firmware: version(i.FirmwareVersion),
			KDFs:     kdfs,
			CanCopy:  t.can.copy, CanLatch: t.can.latch,
			FreeBytes: free, FreeObjects: t.freeObjects(s, free),
			MaxObjects: Selected{Manufacturer: i.ManufacturerID, Model: i.Model}.MaxObjects(),
			Others:     t.others,
		}, nil
	})
}

// MaxObjects is how many objects a token of this model is to hold, where nobody knows better: no
// token says it in a way that all do. SoftHSM has no bound of its own: each object costs 10 kB in
// each worker (10,000: 106 MB), and 32,768 still start within some seconds. Of HSMs "some
// thousands" is what vendors promise; who has more says so in the configuration.
func (s Selected) MaxObjects() uint64 {
	if s.IsSoftHSM() {
		return 32_768
	}
	return 4_096
}

// objectBytes is what one key is taken to need where the token does not tell. The values of its
// attributes have some 200 bytes; the rest is for what a token adds to them.
const objectBytes = 1024

// freeObjects is how many more keys fit into the memory that is free.
func (t *Token) freeObjects(s *slot, free uint64) uint64 {
	if free == ^uint64(0) {
		return free
	}
	size, err := t.m.ctx.GetObjectSize(s.session, t.canary.handle)
	if err != nil || size == 0 || size == pkcs11.CK_UNAVAILABLE_INFORMATION {
		size = objectBytes
	}
	return free / uint64(size)
}

// tryKDFs tries each way to agree a key, once for the life of the token.
func (t *Token) tryKDFs(s *slot) ([]hsm.KDF, error) {
	if known := t.kdfs.Load(); known != nil {
		return *known, nil
	}
	kdfs, err := t.listKDFs(s)
	if err == nil {
		t.kdfs.Store(&kdfs)
	}
	return kdfs, err
}

// listKDFs tries each way to agree a key: a token lists CKM_ECDH1_DERIVE and does not say with which
// KDF.
func (t *Token) listKDFs(s *slot) ([]hsm.KDF, error) {
	kdfs := []hsm.KDF{}
	mine, err := t.newPair(s)
	if err != nil {
		return kdfs, unlessLost(err)
	}
	defer t.destroyPair(s, mine)
	theirs, err := t.newPair(s)
	if err != nil {
		return nil, err
	}
	defer t.destroyPair(s, theirs)
	for _, kdf := range []hsm.KDF{hsm.KDFX963SHA256, hsm.KDFECDHAESCBC} {
		key, err := t.deriveBridge(s, mine.private, theirs.public, kdf, []byte("kekd KDF test"), twinTemplate())
		if err == nil {
			_ = t.m.ctx.DestroyObject(s.session, key)
			kdfs = append(kdfs, kdf)
		} else if lost(err) {
			return nil, err
		}
	}
	return kdfs, nil
}

// lost tells an error that says nothing about what the token can do.
func lost(err error) bool {
	var code pkcs11.Error
	return errors.As(err, &code) && (sessionLost(code) || moduleLost(code))
}

func version(v pkcs11.Version) string { return fmt.Sprintf("%d.%d", v.Major, v.Minor) }
