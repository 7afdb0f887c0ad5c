package worker

// What the tests look at from outside.

var (
	ServeConn = serve
	ErrGone   = errGone
)
