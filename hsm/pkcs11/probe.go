package pkcs11

import (
	"errors"
	"fmt"
	"strings"

	"github.com/miekg/pkcs11"

	"github.com/kekd/kekd/hsm"
)

// Selected is the one token that a URI names.
type Selected struct {
	Module       string // path
	Label        string
	Serial       string // how the token is found again
	Manufacturer string
	Model        string
}

// Probe finds the token that the URI names, without logging in, and lets go of the module
// again, so that crypto11 can initialise it. modulePath is used when the URI has none.
//
// A token with one PIN try left, or none, is [hsm.ErrPINLocked]: the last try belongs to a
// person.
func Probe(u URI, modulePath string) (Selected, error) {
	s, leave, err := Enter(u, modulePath)
	if err != nil {
		return Selected{}, err
	}
	if err := leave(); err != nil {
		return Selected{}, err
	}
	return s, nil
}

// Enter is [Probe] for who opens the token next, without crypto11: the module stays initialised until leave is
// called. SoftHSM reads all objects of a token when it is initialised.
func Enter(u URI, modulePath string) (s Selected, leave func() error, err error) {
	if u.ModulePath != "" {
		modulePath = u.ModulePath
	}
	if modulePath == "" {
		return s, nil, fmt.Errorf("%w: give module-path=/path/to/module.so in the token's URI, or in the configuration", hsm.ErrNoModule)
	}
	m, err := acquire(modulePath)
	if err != nil {
		return s, nil, err
	}
	_, info, err := m.find(u)
	if err == nil {
		err = mayLogIn(info)
	}
	leave = func() error { return m.release(false) }
	if err != nil {
		return s, nil, errors.Join(err, leave())
	}
	s = Selected{modulePath, info.Label, info.SerialNumber, info.ManufacturerID, info.Model}
	return s, leave, nil
}

// find returns the slot of the one token that fits.
func (m *module) find(u URI) (uint, pkcs11.TokenInfo, error) {
	m.changes.Lock()
	defer m.changes.Unlock()
	slots, err := m.ctx.GetSlotList(true)
	if err != nil {
		return 0, pkcs11.TokenInfo{}, failure("list the slots", err)
	}
	var (
		fits []uint
		info pkcs11.TokenInfo
		seen []string
	)
	for _, slot := range slots {
		t, err := m.ctx.GetTokenInfo(slot)
		if err != nil || t.Flags&pkcs11.CKF_TOKEN_INITIALIZED == 0 {
			continue // another token's trouble is not ours
		}
		seen = append(seen, fmt.Sprintf("label %q serial %q", t.Label, t.SerialNumber))
		if u.fits(t) {
			fits, info = append(fits, slot), t
		}
	}
	have := "it shows no initialised token"
	if len(seen) > 0 {
		have = "it shows " + strings.Join(seen, ", ")
	}
	switch len(fits) {
	case 0:
		return 0, info, fmt.Errorf("%w: module %s: %s; set token= or serial= to the one that the keys are in (a new token opens nothing that was sealed)", hsm.ErrNoToken, m.path, have)
	case 1:
		return fits[0], info, nil
	}
	return 0, info, fmt.Errorf("%w: module %s: %s; add serial= to the URI", hsm.ErrTwoTokens, m.path, have)
}

// fits compares what the URI gives. Fields of a token are padded with blanks.
func (u URI) fits(t pkcs11.TokenInfo) bool {
	return fits(u.Token, t.Label) && fits(u.Serial, t.SerialNumber) &&
		fits(u.Manufacturer, t.ManufacturerID) && fits(u.Model, t.Model)
}

func fits(want, have string) bool {
	return want == "" || strings.TrimRight(want, " ") == strings.TrimRight(have, " \x00")
}

// mayLogIn refuses what would cost the user's last PIN try. CKF_USER_PIN_COUNT_LOW, which
// SoftHSM sets after one wrong try, is no reason.
func mayLogIn(t pkcs11.TokenInfo) error {
	switch {
	case t.Flags&pkcs11.CKF_USER_PIN_LOCKED != 0:
		return fmt.Errorf("%w: the PIN of token %q is locked; its security officer can set a new one", hsm.ErrPINLocked, t.Label)
	case t.Flags&pkcs11.CKF_USER_PIN_FINAL_TRY != 0:
		return fmt.Errorf("%w: token %q would lock at the next wrong PIN; log in once by hand with the right one", hsm.ErrPINLocked, t.Label)
	case t.Flags&pkcs11.CKF_USER_PIN_INITIALIZED == 0:
		return fmt.Errorf("%w: token %q has no user PIN yet", hsm.ErrPINMissing, t.Label)
	}
	return nil
}
