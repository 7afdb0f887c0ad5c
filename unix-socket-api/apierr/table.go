// Package apierr is what an error looks like on the sockets: the one table from the hierarchy's
// errors to gRPC codes, stable reason codes and hints, read in both directions.
//
// An error that is not in the table crosses as INTERNAL, with a text that says nothing: what
// went wrong inside is for the daemon's log. A reason code, once it stands here, keeps its
// meaning for ever; scripts and the exit status of kekctl rest on it.
package apierr

import (
	"context"
	"errors"

	"github.com/kekd/kekd/hierarchy"
	"google.golang.org/grpc/codes"
)

// Reason codes that no error of the hierarchy stands for.
const (
	CodeDeadlineExceeded = "DEADLINE_EXCEEDED"
	CodeCanceled         = "CANCELLED" // as google.rpc.Code spells it
	CodeInternal         = hierarchy.CodeInternal
	// CodeUnavailable means that nobody is there to ask. The daemon itself says so only while
	// it stops.
	CodeUnavailable = "UNAVAILABLE"
)

// ErrUnavailable is what a call gets that finds no daemon, or one that is about to end.
var ErrUnavailable = errors.New("kekd is not available")

type entry struct {
	sentinel error
	grpc     codes.Code
	reason   string
	hint     string // what to do next, unless the error brings a better one
}

// refusal is an entry of one of the hierarchy's errors, which have their names there.
func refusal(sentinel error, grpc codes.Code, hint string) entry {
	return entry{sentinel, grpc, hierarchy.Code(sentinel), hint}
}

// The first entry that fits counts. The hierarchy's own errors stand before those of contexts:
// a command whose outcome is unknown because the deadline passed is OUTCOME_UNKNOWN.
//
// OUTCOME_UNKNOWN and DR_PENDING are gRPC's Unknown, because every other code tells some
// client library that the call failed, or that it may be sent again as it is.
var table = []entry{
	refusal(hierarchy.ErrOutcomeUnknown, codes.Unknown, "look at the present state before going on; a retry with the same idempotency ID is safe"),
	refusal(hierarchy.ErrDRPending, codes.Unknown, "the command took effect here; look at `kekctl status` for the region that has not acknowledged it"),
	refusal(hierarchy.ErrTenantDisabled, codes.FailedPrecondition, "an operator disabled the tenant; `kekctl tenant show` says why, `kekctl tenant enable` ends it"),
	refusal(hierarchy.ErrTenantSuspended, codes.FailedPrecondition, "a forced promotion suspended the tenant; a quorum of operators releases it"),
	refusal(hierarchy.ErrVersionDisabled, codes.FailedPrecondition, "`kekctl key show` tells the state of each version"),
	refusal(hierarchy.ErrPermissionDenied, codes.PermissionDenied, "an operator can see why with `kekctl policy explain`, and allow it with `kekctl policy allow`"),
	refusal(hierarchy.ErrContextMismatch, codes.InvalidArgument, "give exactly the encryption context that the envelope was sealed with"),
	refusal(hierarchy.ErrEnvelopeInvalid, codes.InvalidArgument, "send the envelope as kekd gave it, in binary or in its text form kekd:v1:..."),
	refusal(hierarchy.ErrInvalidArgument, codes.InvalidArgument, "correct the request; it will not succeed as it is"),
	refusal(hierarchy.ErrNotFound, codes.NotFound, "check the name; `kekctl tenant`, `key`, `service` and `policy list` show what there is"),
	refusal(hierarchy.ErrAlreadyExists, codes.AlreadyExists, "choose another name; those of tenants and keys are never given twice, and `kekctl tenant`, `key` and `service list` show them"),
	refusal(hierarchy.ErrQuorumRequired, codes.FailedPrecondition, "propose it, and have the operators sign"),
	refusal(hierarchy.ErrFailedPrecondition, codes.FailedPrecondition, "`kekctl tenant show` and `kekctl key show` tell the present state, and the message what it would have to be"),
	refusal(hierarchy.ErrStale, codes.Unavailable, "retry, or ask another node; `kekctl status` says whether this one is fresh"),
	refusal(hierarchy.ErrCapacity, codes.ResourceExhausted, "make room; `kekctl status` shows what is full"),
	refusal(hierarchy.ErrRateLimited, codes.ResourceExhausted, "slow down, and retry later"),
	refusal(hierarchy.ErrHSMUnavailable, codes.Unavailable, "retry, or ask another node; `kekctl status` shows the token's fault, or the key that it lacks"),
	refusal(hierarchy.ErrAuditUnavailable, codes.Unavailable, "nothing is released without its audit record: see that the journal's disk is writable and has room"),
	{ErrUnavailable, codes.Unavailable, CodeUnavailable, "retry when it is up again, or ask another node"},
	{context.DeadlineExceeded, codes.DeadlineExceeded, CodeDeadlineExceeded, "retry with a longer deadline; if it stays so, `kekctl status` shows what is slow"},
	{context.Canceled, codes.Canceled, CodeCanceled, ""},
}

var internal = entry{grpc: codes.Internal, reason: CodeInternal, hint: "the daemon's log has the cause, with the time of this call"}

func find(err error) entry {
	for _, e := range table {
		if errors.Is(err, e.sentinel) {
			return e
		}
	}
	return internal
}

// byReason finds the entry that a reason code stands for.
func byReason(reason string) (entry, bool) {
	for _, e := range table {
		if e.reason == reason {
			return e, true
		}
	}
	return entry{}, false
}
