package softhsm

import "errors"

// How a token directory can fail. Compare with [errors.Is].
var (
	ErrExists  = errors.New("the token directory exists already")
	ErrMissing = errors.New("no token directory")
	ErrForeign = errors.New("the SoftHSM configuration does not belong to this token directory")
	ErrInUse   = errors.New("the token directory is in use")
	ErrBusy    = errors.New("another change of the token is under way")
	ErrGone    = errors.New("the token directory was removed or replaced while in use")
	ErrTorn    = errors.New("a file of the token is torn")
	ErrClosed  = errors.New("the guard is closed")
)
