package hierarchy

import (
	"errors"
	"fmt"
	"time"
)

// What a refusal can be. Wrap them with what was asked and what to do about it; compare with
// [errors.Is]. The socket API has the one table that maps each to its stable code.
var (
	ErrTenantDisabled     = errors.New("tenant is disabled")
	ErrTenantSuspended    = errors.New("tenant is suspended")
	ErrVersionDisabled    = errors.New("key version may not be used for this")
	ErrPermissionDenied   = errors.New("permission denied")
	ErrContextMismatch    = errors.New("the envelope does not open: wrong encryption context, or altered bytes")
	ErrEnvelopeInvalid    = errors.New("not a valid envelope")
	ErrInvalidArgument    = errors.New("invalid argument")
	ErrNotFound           = errors.New("not found")
	ErrAlreadyExists      = errors.New("already exists")
	ErrFailedPrecondition = errors.New("not possible in the present state")
	ErrStale              = errors.New("this node's copy of the hierarchy is too old to serve from")
	ErrCapacity           = errors.New("no room left")
	ErrHSMUnavailable     = errors.New("the HSM cannot serve this")
	ErrAuditUnavailable   = errors.New("the audit journal cannot be written")
	ErrOutcomeUnknown     = errors.New("the command is not known to be complete")
	ErrDRPending          = errors.New("done, but not yet acknowledged by the promotable region")
	ErrQuorumRequired     = errors.New("needs signatures of a quorum of operators")
	ErrRateLimited        = errors.New("over the limit")
)

// OverLimit is an [ErrRateLimited] that says which limit, and when to come back.
type OverLimit struct {
	Limit string        // in words: "the rule of saas for */orders allows 100/s"
	Wait  time.Duration // until the next window begins, more than 0
	// Detail is for the audit. It is set for the first refusal of a window, which alone is
	// recorded.
	Detail string
}

func (e *OverLimit) Error() string {
	return fmt.Sprintf("%v: %s; wait %v", ErrRateLimited, e.Limit, e.Wait)
}

func (e *OverLimit) Unwrap() error { return ErrRateLimited }

// KeyLost is an [ErrHSMUnavailable] that does not pass by itself: the token does not have the key of
// a version, or not as it was.
type KeyLost struct {
	Version VersionName
	Why     error
}

func (e *KeyLost) Error() string { return fmt.Sprintf("the key of %s is lost: %v", e.Version, e.Why) }

func (e *KeyLost) Unwrap() []error { return []error{ErrHSMUnavailable, e.Why} }
