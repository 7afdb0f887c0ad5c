package hsm

import "errors"

// How a token fails. Compare with [errors.Is].
var (
	ErrTagMismatch  = errors.New("authentication tag does not fit")
	ErrKeyNotFound  = errors.New("no such key object in the token")
	ErrAmbiguous    = errors.New("more than one key object answers to the name")
	ErrKeyRefused   = errors.New("key object is not what it must be")
	ErrKeyLatched   = errors.New("key object is latched")
	ErrInvalidInput = errors.New("invalid input to the token")
	ErrUnsupported  = errors.New("the token cannot do this")
	ErrCapacity     = errors.New("the token is full")
	ErrDeadline     = errors.New("the token did not answer in time")
	ErrUnavailable  = errors.New("the token is unavailable")
	ErrBusy         = errors.New("too much is waiting for the token")

	ErrMarkUnreadable = errors.New("a node's mark cannot be read")

	ErrNoModule     = errors.New("the PKCS#11 module cannot be loaded")
	ErrNoToken      = errors.New("no token fits the URI")
	ErrTwoTokens    = errors.New("more than one token fits the URI")
	ErrPINMissing   = errors.New("no PIN")
	ErrPINIncorrect = errors.New("the token refuses the PIN")
	ErrPINLocked    = errors.New("the token has one PIN try left, or none: not logging in")
)
