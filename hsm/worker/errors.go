package worker

import (
	"errors"

	"github.com/kekd/kekd/hsm"
)

// sentinels are the errors that keep their meaning between two processes, by the bit that
// stands for each. New ones go to the end.
var sentinels = [...]error{
	hsm.ErrTagMismatch, hsm.ErrKeyNotFound, hsm.ErrAmbiguous, hsm.ErrKeyRefused, hsm.ErrKeyLatched,
	hsm.ErrInvalidInput, hsm.ErrUnsupported, hsm.ErrCapacity, hsm.ErrDeadline, hsm.ErrUnavailable,
	hsm.ErrNoModule, hsm.ErrNoToken, hsm.ErrTwoTokens, hsm.ErrPINMissing, hsm.ErrPINIncorrect, hsm.ErrPINLocked,
	hsm.ErrBusy, hsm.ErrMarkUnreadable,
}

// A tokenError is an error that a worker told: the text that it had there, and every sentinel
// that it wraps.
type tokenError struct {
	text string
	is   []error
}

func (e *tokenError) Error() string   { return e.text }
func (e *tokenError) Unwrap() []error { return e.is }

func appendError(b []byte, err error) []byte {
	var set uint32
	for i, s := range sentinels {
		if errors.Is(err, s) {
			set |= 1 << i
		}
	}
	return appendText(le.AppendUint32(b, set), err.Error())
}

// error takes an error. One that is none of package hsm's is [hsm.ErrUnavailable].
func (d *decoder) error() error {
	set, text := d.u32(), d.text()
	if d.bad || set>>len(sentinels) != 0 {
		d.bad = true
		return errGarbage
	}
	e := &tokenError{text: text}
	for i, s := range sentinels {
		if set&(1<<i) != 0 {
			e.is = append(e.is, s)
		}
	}
	if set == 0 {
		e.is = []error{hsm.ErrUnavailable}
	}
	return e
}
