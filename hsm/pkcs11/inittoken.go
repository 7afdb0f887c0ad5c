package pkcs11

import (
	"errors"
	"fmt"
	"strings"

	"github.com/miekg/pkcs11"

	"github.com/kekd/kekd/hsm"
)

// ErrTokenExists is what [InitToken] answers rather than making a second token of a label.
var ErrTokenExists = errors.New("a token with this label exists already")

// InitToken initialises a fresh token in the first free slot: label (1 to 32 bytes), the
// security officer's PIN, the user's PIN. Nothing is wiped: only a slot whose token was never
// initialised is taken. It is for SoftHSM, where a free slot is always there; an HSM's
// partition is initialised by its owner's tools.
//
// Call it before anything else in the process uses the module: SoftHSM moves a new token to
// another slot when it is next initialised.
func InitToken(modulePath, label string, soPIN, userPIN PIN) (Selected, error) {
	if label == "" || len(label) > 32 || strings.TrimSpace(label) != label {
		return Selected{}, fmt.Errorf("%w: a token's label has 1 to 32 bytes and no blanks around it", hsm.ErrInvalidInput)
	}
	m, err := acquire(modulePath)
	if err != nil {
		return Selected{}, err
	}
	err = m.initToken(label, soPIN, userPIN)
	if rerr := m.release(false); err == nil {
		err = rerr
	}
	if err != nil {
		return Selected{}, err
	}
	return Probe(URI{Token: label}, modulePath)
}

func (m *module) initToken(label string, soPIN, userPIN PIN) error {
	m.changes.Lock()
	defer m.changes.Unlock()
	slots, err := m.ctx.GetSlotList(true)
	if err != nil {
		return failure("list the slots", err)
	}
	free, found := uint(0), false
	for _, slot := range slots {
		t, err := m.ctx.GetTokenInfo(slot)
		if err != nil {
			continue
		}
		if t.Flags&pkcs11.CKF_TOKEN_INITIALIZED == 0 {
			if !found {
				free, found = slot, true
			}
		} else if fits(label, t.Label) {
			return fmt.Errorf("%w: %q, serial %q", ErrTokenExists, t.Label, t.SerialNumber)
		}
	}
	if !found {
		return fmt.Errorf("%w: module %s has no slot with an uninitialised token", hsm.ErrNoToken, m.path)
	}
	if err := m.ctx.InitToken(free, string(soPIN.b), label); err != nil {
		return failure("initialise the token", err)
	}
	session, err := m.ctx.OpenSession(free, pkcs11.CKF_SERIAL_SESSION|pkcs11.CKF_RW_SESSION)
	if err != nil {
		return failure("open a session", err)
	}
	defer m.ctx.CloseSession(session)
	if err := m.ctx.Login(session, pkcs11.CKU_SO, string(soPIN.b)); err != nil {
		return failure("log in as security officer", err)
	}
	defer m.ctx.Logout(session)
	if err := m.ctx.InitPIN(session, string(userPIN.b)); err != nil {
		return failure("set the user's PIN", err)
	}
	return nil
}
