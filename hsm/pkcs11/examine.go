package pkcs11

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"strings"

	"github.com/miekg/pkcs11"

	"github.com/kekd/kekd/hierarchy"
	"github.com/kekd/kekd/hsm"
)

// Examine is [hsm.Examiner]'s.
func (t *Token) Examine(ctx context.Context) ([]hsm.Check, error) {
	return change(ctx, t, func(s *slot) ([]hsm.Check, error) {
		var checks []hsm.Check
		err := t.examine(ctx, s, func(c hsm.Check) { checks = append(checks, c) })
		return checks, err
	})
}

// trialID is that of the one key that an examination makes on the token. It is always the same, so
// that the next examination finds what one that was killed has left.
var trialID = func() hierarchy.ObjectID {
	sum := sha256.Sum256([]byte("kekd trial v1"))
	return hierarchy.ObjectID(sum[:20])
}()

const trialLabel = "kekd/trial"

// examine tries a token, in a session that can write, and tells of each check when it is done. An
// error is one of the session or the module: it says nothing about what the token can do.
func (t *Token) examine(ctx context.Context, s *slot, tell func(hsm.Check)) error {
	x := &trial{t: t, s: s, tell: tell}
	if err := x.steps(x.describe, x.mechanisms, x.sessions); err != nil {
		return err
	}
	// The key lives within one bracket, so that it is never copied to a shadow.
	_, err := guarded(ctx, t.cfg.Guard.Destroy, func() (struct{}, error) { return struct{}{}, x.tryKey() })
	if err != nil {
		return err
	}
	return x.steps(x.kdf)
}

// A trial is one examination.
type trial struct {
	t    *Token
	s    *slot
	tell func(hsm.Check)

	key pkcs11.ObjectHandle // on the token, for the time of tryKey
}

// steps takes steps one after the other.
func (x *trial) steps(steps ...func() (hsm.Check, error)) error {
	for _, step := range steps {
		c, err := step()
		if err != nil && lost(err) {
			return err
		}
		if err != nil {
			c = hsm.Failed(c.Name, fmt.Sprintf("it could not be tried: %v", err), "see what the module's own log says")
		}
		x.tell(c)
	}
	return nil
}

func (x *trial) describe() (hsm.Check, error) {
	const name = "token"
	i, err := x.t.m.ctx.GetTokenInfo(x.t.slotID)
	if err != nil {
		return hsm.Check{Name: name}, failure("describe the token", err)
	}
	return hsm.Passed(name, fmt.Sprintf("token %q (%s, serial %s, firmware %s) is open", i.Label, i.Model, i.SerialNumber, version(i.FirmwareVersion))), nil
}

// needed are the mechanisms that a token cannot do without, and what for.
var needed = []struct {
	mechanism uint
	name, use string
}{
	{pkcs11.CKM_AES_KEY_GEN, "CKM_AES_KEY_GEN", "keys cannot be made"},
	{pkcs11.CKM_AES_GCM, "CKM_AES_GCM", "data keys cannot be wrapped"},
	{pkcs11.CKM_AES_ECB, "CKM_AES_ECB", "keys cannot be told apart by their check values"},
	{pkcs11.CKM_EC_KEY_PAIR_GEN, "CKM_EC_KEY_PAIR_GEN", "the token cannot have an identity"},
	{pkcs11.CKM_ECDSA, "CKM_ECDSA", "the token's identity cannot sign the audit journal"},
}

func (x *trial) mechanisms() (hsm.Check, error) {
	const name = "mechanisms"
	list, err := x.t.m.ctx.GetMechanismList(x.t.slotID)
	if err != nil {
		return hsm.Check{Name: name}, failure("list the mechanisms", err)
	}
	has := map[uint]bool{}
	for _, m := range list {
		has[m.Mechanism] = true
	}
	var lacks []string
	for _, n := range needed {
		if !has[n.mechanism] {
			lacks = append(lacks, fmt.Sprintf("without %s %s", n.name, n.use))
		}
	}
	if _, err := x.t.m.ctx.GenerateRandom(x.s.session, hsm.IVSize); err != nil {
		if err = failure("draw random bytes", err); lost(err) {
			return hsm.Check{}, err
		}
		lacks = append(lacks, fmt.Sprintf("without random bytes no data key can be made (%v)", err))
	}
	if len(lacks) > 0 {
		return hsm.Failed(name, strings.Join(lacks, "; "), "switch them on in the token's policy, or use another token"), nil
	}
	return hsm.Passed(name, "the token makes, wraps and signs as kekd needs it"), nil
}

func (x *trial) sessions() (hsm.Check, error) {
	const name = "sessions"
	// Each process has those that serve, and one that changes objects: that is this one.
	var open []pkcs11.SessionHandle
	defer func() {
		for _, h := range open {
			_ = x.t.m.ctx.CloseSession(h)
		}
	}()
	var refused error
	for len(open) < x.t.cfg.Slots && refused == nil {
		h, err := x.t.m.ctx.OpenSession(x.t.slotID, pkcs11.CKF_SERIAL_SESSION)
		if refused = err; err == nil {
			open = append(open, h)
		}
	}
	told := "it names no limit"
	if i, err := x.t.m.ctx.GetTokenInfo(x.t.slotID); err == nil && i.MaxSessionCount != pkcs11.CK_EFFECTIVELY_INFINITE && i.MaxSessionCount != pkcs11.CK_UNAVAILABLE_INFORMATION {
		told = fmt.Sprintf("it allows %d in all", i.MaxSessionCount)
	}
	action := "set hsm.sessions to what the token allows, or end other programs' sessions"
	switch {
	case refused == nil:
		return hsm.Passed(name, fmt.Sprintf("a worker's %d sessions can be open at once; %s", x.t.cfg.Slots+1, told)), nil
	case lost(failure("open a session", refused)):
		return hsm.Check{}, failure("open a session", refused)
	case len(open) == 0:
		return hsm.Failed(name, fmt.Sprintf("no key can be used: no session can be opened to serve from; %s (%v)", told, refused), action), nil
	}
	return hsm.Lacking(name, fmt.Sprintf("only %d of the %d sessions that a worker opens can be open at once; %s (%v)", len(open)+1, x.t.cfg.Slots+1, told, refused), action), nil
}

// tryKey makes the trial's key, tries what is to be tried with it, and destroys it.
func (x *trial) tryKey() (err error) {
	if err := x.sweep(); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, x.sweep()) }()
	mechanism := []*pkcs11.Mechanism{pkcs11.NewMechanism(pkcs11.CKM_AES_KEY_GEN, nil)}
	x.key, err = x.t.m.ctx.GenerateKey(x.s.session, mechanism, kekTemplate(trialID, trialLabel))
	if err != nil {
		if err = failure("generate a key", err); lost(err) {
			return err
		}
		action := "use a token that makes AES-256 keys which are sensitive and not extractable"
		if errors.Is(err, hsm.ErrCapacity) {
			action = "make room in the token"
		}
		x.tell(hsm.Failed("attributes", fmt.Sprintf("no key can be made as kekd needs it: %v", err), action))
		for _, name := range []string{"limits", "latch", "copies"} {
			x.tell(hsm.Failed(name, "it could not be tried for want of a key", "see attributes"))
		}
		return nil
	}
	return x.steps(x.attributes, x.limits, x.latch, x.copies)
}

// sweep destroys every key of a trial.
func (x *trial) sweep() error {
	handles, err := x.t.m.search(x.s.session, searchByID(trialID))
	if err != nil {
		return err
	}
	for _, h := range handles {
		if err := x.t.m.ctx.DestroyObject(x.s.session, h); err != nil {
			return failure("destroy the key of a trial", err)
		}
	}
	return nil
}

func (x *trial) attributes() (hsm.Check, error) {
	const name = "attributes"
	action := "use a token, or a policy of it, that keeps what CKA_SENSITIVE and CKA_EXTRACTABLE were asked to be"
	r, err := x.t.readChecked(x.s, x.key)
	switch {
	case err != nil:
		return hsm.Check{Name: name}, err
	case r.obj.Fault != nil:
		return hsm.Failed(name, fmt.Sprintf("keys are not what they must be: %v", r.obj.Fault), action), nil
	case r.obj.Bridge:
		return hsm.Failed(name, "the token does not say of a key that it was generated inside: CKA_LOCAL is 0", action), nil
	}
	if value, err := x.t.m.ctx.GetAttributeValue(x.s.session, x.key, attributes{attr(pkcs11.CKA_VALUE, nil)}); err == nil {
		for _, a := range value {
			clear(a.Value)
		}
		return hsm.Failed(name, "the token gives a key's value to whoever asks", action), nil
	} else if err = failure("ask for a key's value", err); lost(err) {
		return hsm.Check{}, err
	}
	err = x.s.test(x.key, r.obj)
	if errors.Is(err, hsm.ErrKeyRefused) {
		return hsm.Failed(name, fmt.Sprintf("a key does not do what it must: %v", err), "use another token"), nil
	}
	return hsm.Passed(name, "keys are made inside, stay there, and seal and open as they must"), err
}

// limits finds the largest data key that the token seals in one call.
func (x *trial) limits() (hsm.Check, error) {
	const name = "limits"
	var refused error
	for size := hsm.MaxPlaintext; size >= 64; size /= 2 {
		if err := x.s.refill(); err != nil {
			return hsm.Check{Name: name}, err
		}
		x.s.m.reset()
		i := x.s.m.seal(x.key, x.s.iv(), testAAD, x.s.m.given(make([]byte, size)), size)
		x.s.m.run(x.s.session)
		code, _ := x.s.m.rv(i)
		sealed := len(x.s.m.out(i))
		x.s.m.reset()
		switch {
		case code == 0 && sealed == size+hsm.TagSize && size == hsm.MaxPlaintext:
			return hsm.Passed(name, fmt.Sprintf("data keys of up to %d bytes can be wrapped", size)), nil
		case code == 0 && sealed == size+hsm.TagSize:
			return hsm.Lacking(name, fmt.Sprintf("data keys of more than %d bytes cannot be wrapped, which RSA private keys have (%v)", size, refused), "wrap smaller data keys only"), nil
		}
		if refused = failure("seal", code); lost(refused) {
			return hsm.Check{}, refused
		}
	}
	return hsm.Failed(name, fmt.Sprintf("no data key of 64 bytes can be wrapped: %v", refused), "use another token"), nil
}

// latch sets the latch, and looks at it from another session.
func (x *trial) latch() (hsm.Check, error) {
	const name = "latch"
	without := func(why string) hsm.Check {
		return hsm.Lacking(name, "kekd alone enforces that a tenant is disabled: other programs with the token's PIN are not stopped, since "+why,
			"allow C_SetAttributeValue on keys in the token's policy, or keep the PIN from everybody else")
	}
	for _, usable := range []bool{false, true} {
		if err := x.t.m.ctx.SetAttributeValue(x.s.session, x.key, latchTemplate(usable)); err != nil {
			err = failure("set the latch", err)
			return without(err.Error()), unlessLost(err)
		}
		seen, err := x.elsewhere()
		if err != nil {
			return hsm.Check{Name: name}, err
		}
		if seen.obj.Usable != usable || seen.halfLatched {
			return without("the token takes it and another session does not see it"), nil
		}
		if err := x.s.refill(); err != nil {
			return hsm.Check{Name: name}, err
		}
		_, err = x.s.sealTest(x.key)
		switch {
		case err != nil && lost(err):
			return hsm.Check{}, err
		case err != nil && usable && !errors.Is(err, hsm.ErrKeyLatched):
			return hsm.Check{Name: name}, err
		case err != nil && usable:
			return hsm.Failed(name, fmt.Sprintf("a key that was latched and is not any more does not seal: who is disabled could not be enabled again (%v)", err), "use another token"), nil
		case err == nil && !usable:
			return without("the token takes it, and the key seals all the same"), nil
		}
	}
	return hsm.Passed(name, "a disabled tenant's keys are switched off in the token, too"), nil
}

// elsewhere reads the key in a session of its own.
func (x *trial) elsewhere() (record, error) {
	ctx := x.t.m.ctx
	session, err := ctx.OpenSession(x.t.slotID, pkcs11.CKF_SERIAL_SESSION)
	if err != nil {
		return record{}, failure("open a session", err)
	}
	defer ctx.CloseSession(session)
	return x.t.m.read(session, x.key)
}

func (x *trial) copies() (hsm.Check, error) {
	const name = "copies"
	without := func(why string) hsm.Check {
		return hsm.Lacking(name, "keys that are much used are read from the token each time, which can halve the rate, since "+why, "nothing; or allow C_CopyObject in the token's policy")
	}
	made, err := x.t.m.ctx.CopyObject(x.s.session, x.key, copyTemplate())
	if err != nil {
		err = failure("copy a key into the session", err)
		return without(err.Error()), unlessLost(err)
	}
	defer x.t.m.ctx.DestroyObject(x.s.session, made)
	r, err := x.t.readChecked(x.s, made)
	if err != nil {
		return hsm.Check{Name: name}, err
	}
	if r.obj.Fault != nil {
		return without(fmt.Sprintf("a copy is not what it must be: %v", r.obj.Fault)), nil
	}
	if err := x.s.test(x.key, r.obj, made); err != nil {
		return without(fmt.Sprintf("a copy is not the key: %v", err)), unlessLost(err)
	}
	return hsm.Passed(name, "keys that are much used are copied within the token, which is faster"), nil
}

func (x *trial) kdf() (hsm.Check, error) {
	const name = "kdf"
	kdfs, err := x.t.listKDFs(x.s)
	if err != nil {
		return hsm.Check{Name: name}, err
	}
	if len(kdfs) == 0 {
		return hsm.Lacking(name, "keys can live in one region only: the token can agree no bridge to another region's", "nothing with one region; for more use tokens with CKM_ECDH1_DERIVE"), nil
	}
	names := make([]string, len(kdfs))
	for i, k := range kdfs {
		names[i] = string(k)
	}
	return hsm.Passed(name, "bridges to other regions can be agreed, by "+strings.Join(names, " or ")), nil
}

// unlessLost is the error if it says nothing about what the token can do.
func unlessLost(err error) error {
	if lost(err) {
		return err
	}
	return nil
}
