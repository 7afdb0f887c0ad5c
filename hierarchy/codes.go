package hierarchy

import "errors"

// codes are the stable names of the refusals: in the API, in the audit and in the replicated
// outcomes of commands. A name is never changed or given to another refusal.
var codes = []struct {
	err  error
	code string
}{
	// First, since these may wrap the reason why the outcome is not known.
	{ErrOutcomeUnknown, "OUTCOME_UNKNOWN"},
	{ErrDRPending, "DR_PENDING"},
	{ErrTenantDisabled, "TENANT_DISABLED"},
	{ErrTenantSuspended, "TENANT_SUSPENDED"},
	{ErrVersionDisabled, "KEY_VERSION_DISABLED"},
	{ErrPermissionDenied, "PERMISSION_DENIED"},
	{ErrContextMismatch, "CONTEXT_MISMATCH"},
	{ErrEnvelopeInvalid, "ENVELOPE_INVALID"},
	{ErrInvalidArgument, "INVALID_ARGUMENT"},
	{ErrNotFound, "NOT_FOUND"},
	{ErrAlreadyExists, "ALREADY_EXISTS"},
	{ErrFailedPrecondition, "FAILED_PRECONDITION"},
	{ErrStale, "STALE"},
	{ErrCapacity, "CAPACITY"},
	{ErrHSMUnavailable, "HSM_UNAVAILABLE"},
	{ErrAuditUnavailable, "AUDIT_UNAVAILABLE"},
	{ErrQuorumRequired, "QUORUM_REQUIRED"},
	{ErrRateLimited, "RATE_LIMITED"},
}

// CodeInternal names an error that is none of the refusals: a fault of the daemon.
const CodeInternal = "INTERNAL"

// Code is the stable name of the refusal that err wraps: "" for nil, CodeInternal for none of
// them.
func Code(err error) string {
	if err == nil {
		return ""
	}
	for _, c := range codes {
		if errors.Is(err, c.err) {
			return c.code
		}
	}
	return CodeInternal
}

// Codes are all that [Code] gives for an error.
func Codes() []string {
	names := make([]string, 0, len(codes)+1)
	for _, c := range codes {
		names = append(names, c.code)
	}
	return append(names, CodeInternal)
}

// ErrorOfCode is the refusal with a stable name; false if there is none.
func ErrorOfCode(code string) (error, bool) {
	for _, c := range codes {
		if c.code == code {
			return c.err, true
		}
	}
	return nil, false
}
