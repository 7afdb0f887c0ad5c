package custody

import "github.com/kekd/kekd/hierarchy"

// Limits of one call.
const (
	MaxBatch       = 1024
	MaxReason      = 256 // bytes
	DefaultDataKey = 32  // bytes
	MinDataKey     = 16  // bytes
)

// Request is one operation as the caller sent it: nothing in it has been checked.
type Request struct {
	Op hierarchy.Op

	Key       string // wrap, data key: TENANT/KEY
	Plaintext []byte // wrap: the data key
	Bytes     int    // data key: its length; 0 means DefaultDataKey
	// WrappedOnly makes a data key that nobody sees yet.
	WrappedOnly bool

	Envelope []byte // unwrap, rewrap: binary or text form

	Context []hierarchy.ContextEntry
	Reason  string // the caller's words, for the audit
}

// Response is what became of one Request. If Err is set, everything else is zero.
type Response struct {
	Err error // wraps one of the hierarchy's errors

	Envelope    []byte // wrap, data key, rewrap: binary form
	Plaintext   []byte // unwrap, data key: whoever takes it wipes it
	Key         hierarchy.KeyName
	Version     uint32
	NeedsRewrap bool // unwrap: a newer version is active
}
