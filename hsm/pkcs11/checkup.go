package pkcs11

import (
	"context"
	"errors"
	"fmt"

	"github.com/miekg/pkcs11"

	"github.com/kekd/kekd/hsm"
)

// Checkup says what a module and its token are good for, before they are relied on, and tells of each
// check when it is done: who crashes the module has told what was fine before. Without a PIN it looks
// at what the token shows to everybody. The PIN is tried once. It leaves no object in the token.
//
// It is for a process of its own: the module stays loaded if a call hangs. guard may be nil. What it
// returns says which token was looked at; its Module is empty if there was none.
func Checkup(ctx context.Context, u URI, modulePath string, pin PIN, guard Guard, tell func(hsm.Check)) Selected {
	if guard == nil {
		guard = unguarded{}
	}
	if u.ModulePath != "" {
		modulePath = u.ModulePath
	}
	c := &checkup{tell: tell, cfg: Config{PIN: pin, Guard: guard}}
	if !c.load(ctx, modulePath) {
		return Selected{}
	}
	defer func() { _ = c.t.m.release(false) }() // the process ends
	if !c.find(ctx, u) {
		return Selected{}
	}
	c.try(ctx)
	return c.selected
}

type checkup struct {
	cfg      Config
	tell     func(hsm.Check)
	t        *Token // with what an examination needs of it
	selected Selected
	info     pkcs11.TokenInfo
}

func (c *checkup) load(ctx context.Context, path string) bool {
	const name = "module"
	// In a bracket: a module that reads the token while another process rewrites it finds none.
	m, err := guarded(ctx, c.cfg.Guard.Change, func() (*module, error) { return acquire(path) })
	if err != nil {
		c.tell(hsm.Failed(name, fmt.Sprintf("%v", err), "give the path of the vendor's PKCS#11 library; on Debian SoftHSM2's is in package softhsm2"))
		return false
	}
	text := path + " loads"
	if i, err := m.ctx.GetInfo(); err == nil {
		text = fmt.Sprintf("%s loads: %s, version %s", path, i.ManufacturerID, version(i.LibraryVersion))
	}
	c.tell(hsm.Passed(name, text))
	c.t = &Token{cfg: c.cfg, m: m, index: newIndex()}
	return true
}

func (c *checkup) find(ctx context.Context, u URI) bool {
	const name = "token"
	var err error
	c.t.slotID, c.info, err = c.t.m.find(u)
	if err != nil {
		c.tell(hsm.Failed(name, err.Error(), "name one with --token-uri pkcs11:token=LABEL; for a new SoftHSM2 token kekd init makes one"))
		return false
	}
	c.selected = Selected{c.t.m.path, c.info.Label, c.info.SerialNumber, c.info.ManufacturerID, c.info.Model}
	c.t.cfg.Slots, c.t.cfg.Copies = c.selected.Profile()
	return true
}

// try does what needs a session, and what needs a login as far as there is a PIN.
func (c *checkup) try(ctx context.Context) {
	s, err := c.t.newSlot(pkcs11.CKF_RW_SESSION)
	if err != nil {
		c.tell(hsm.Failed("token", fmt.Sprintf("no session that can change anything opens: %v", err), "see that the token is not write-protected, and that it has sessions left"))
		return
	}
	defer s.close()
	x := &trial{t: c.t, s: s, tell: c.tell}
	if len(c.cfg.PIN.b) == 0 {
		_ = x.steps(x.mechanisms) // a session that is lost shows in what follows
		c.tell(hsm.Failed("login", "the token was not opened, so that no key could be tried", "give --pin-file, or pin-source in the URI"))
		return
	}
	if err := c.t.logIn(ctx, s.session, c.info); err != nil {
		c.tell(hsm.Failed("login", err.Error(), loginAction(err)))
		return
	}
	if c.info.Flags&pkcs11.CKF_USER_PIN_COUNT_LOW != 0 {
		c.tell(hsm.Lacking("login", "the PIN is right, but a wrong one was tried before: some tokens lock after three", "find out who tried"))
	} else {
		c.tell(hsm.Passed("login", "the PIN is right"))
	}
	if err := c.t.examine(ctx, s, c.tell); err != nil {
		c.tell(hsm.Failed("token", fmt.Sprintf("the token was lost while it was examined: %v", err), "see what the module's own log says"))
		return
	}
	if err := x.steps(x.room); err != nil {
		c.tell(hsm.Failed("room", err.Error(), "see what the module's own log says"))
	}
}

func loginAction(err error) string {
	switch {
	case errors.Is(err, hsm.ErrPINIncorrect):
		return "compare the PIN's file with what the token was given; it was tried once and counts as one of the tries"
	case errors.Is(err, hsm.ErrPINLocked):
		return "have the security officer set a new PIN, or log in once by hand with the right one"
	}
	return "see what the module's own log says"
}

// roomLow is how many more keys are few.
const roomLow = 100

// room is how many more keys fit. Its objects are counted once, which takes a second for 100,000.
func (x *trial) room() (hsm.Check, error) {
	const name = "room"
	i, err := x.t.m.ctx.GetTokenInfo(x.t.slotID)
	if err != nil {
		return hsm.Check{Name: name}, failure("describe the token", err)
	}
	all, err := x.t.m.search(x.s.session, attributes{attr(pkcs11.CKA_TOKEN, true)})
	if err != nil {
		return hsm.Check{Name: name}, err
	}
	limit := Selected{Manufacturer: i.ManufacturerID, Model: i.Model}.MaxObjects()
	had := fmt.Sprintf("the token has %d objects", len(all))
	action := "raise hsm.max_objects if it holds more; else enlarge the token"
	free := less(limit, uint64(len(all)))
	told := fmt.Sprintf("kekd lets it have %d", limit)
	if i.FreePrivateMemory != pkcs11.CK_UNAVAILABLE_INFORMATION && uint64(i.FreePrivateMemory)/objectBytes < free {
		free = uint64(i.FreePrivateMemory) / objectBytes
		told = fmt.Sprintf("its memory has room for about %d more", free)
		action = "enlarge the token, or delete what nobody needs"
	}
	switch {
	case free == 0:
		return hsm.Failed(name, fmt.Sprintf("no key can be made: %s, and %s", had, told), action), nil
	case free < roomLow:
		return hsm.Lacking(name, fmt.Sprintf("few keys can be made: %s, and %s", had, told), action), nil
	}
	return hsm.Passed(name, fmt.Sprintf("%s, and %s: set hsm.max_objects if that is not what it holds", had, told)), nil
}

func less(a, b uint64) uint64 { return a - min(a, b) }
