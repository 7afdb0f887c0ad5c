package apierr

import (
	"errors"
	"strings"
	"time"

	"github.com/kekd/kekd/hierarchy"
	"github.com/kekd/kekd/unix-socket-api/kekdv1"
	"google.golang.org/genproto/googleapis/rpc/code"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/protoadapt"
	"google.golang.org/protobuf/types/known/durationpb"
)

// Domain is the domain of every ErrorInfo that kekd sends.
const Domain = "kekd"

const (
	metaHint          = "hint"
	metaIdempotencyID = "idempotency_id"
)

// maxMessage bounds an error's text, which may quote what the caller sent. gRPC sends it twice,
// in headers that many clients limit to 8 KiB.
const maxMessage = 1024

// Error is an error as it crosses a socket. It matches, by [errors.Is], the error of the
// hierarchy that its code stands for.
type Error struct {
	Code    string // stable
	Message string // for people
	Hint    string // what to do next; may be empty
	// IdempotencyID is the command's, if it was one: with it, a retry answers what the first
	// call did. Else zero.
	IdempotencyID hierarchy.CommandID
	// RetryAfter is how long to wait before it can succeed; zero: not known.
	RetryAfter time.Duration
	// Origin is who says so. It does not cross the socket.
	Origin Origin

	grpc     codes.Code
	sentinel error // nil: none stands for the code
}

// Origin is who an error is from.
type Origin uint8

const (
	FromDaemon    Origin = iota // it has looked at the call
	FromTransport               // what became of the call is not known
	FromNobody                  // nobody was reached, and nothing was sent
)

func (e *Error) Error() string { return e.Message }

func (e *Error) Unwrap() error { return e.sentinel }

// From gives an error, which is not nil, the form that crosses the socket. Only the text of
// what is in the table crosses.
func From(err error) *Error {
	if e, ok := errors.AsType[*Error](err); ok {
		return e
	}
	t := find(err)
	e := &Error{Code: t.reason, Message: text(err.Error()), Hint: t.hint, grpc: t.grpc, sentinel: t.sentinel}
	if t.sentinel == nil {
		e.Message = "internal error"
	}
	if h, ok := errors.AsType[*hinted](err); ok {
		e.Hint = h.hint
	}
	if over, ok := errors.AsType[*hierarchy.OverLimit](err); ok {
		e.RetryAfter = over.Wait
	}
	return e
}

// text makes what may quote a caller's bytes fit for a protobuf string.
func text(s string) string {
	if len(s) > maxMessage {
		s = s[:maxMessage] + "..."
	}
	return strings.ToValidUTF8(s, "\uFFFD")
}

// WithHint replaces the table's hint by one that knows more.
func WithHint(err error, hint string) error { return &hinted{err, hint} }

type hinted struct {
	error
	hint string
}

func (h *hinted) Unwrap() error { return h.error }

// GRPCStatus is what a unary call or the end of a stream says; package status looks for it.
func (e *Error) GRPCStatus() *status.Status {
	meta := make(map[string]string, 2)
	if e.Hint != "" {
		meta[metaHint] = e.Hint
	}
	if !e.IdempotencyID.IsZero() {
		meta[metaIdempotencyID] = e.IdempotencyID.String()
	}
	st := status.New(e.grpc, e.Message)
	details := []protoadapt.MessageV1{&errdetails.ErrorInfo{Reason: e.Code, Domain: Domain, Metadata: meta}}
	if e.RetryAfter > 0 {
		details = append(details, &errdetails.RetryInfo{RetryDelay: durationpb.New(e.RetryAfter)})
	}
	full, err := st.WithDetails(details...)
	if err != nil { // the status is OK, or a string is not UTF-8: both are excluded above
		return st
	}
	return full
}

// Proto is what a batch says of one operation.
func (e *Error) Proto() *kekdv1.Error {
	return &kekdv1.Error{Code: e.Code, Message: e.Message, Hint: e.Hint, RetryAfter: int64(e.RetryAfter)}
}

// FromProto reads what a batch said of one operation.
func FromProto(p *kekdv1.Error) *Error {
	e := &Error{Code: p.GetCode(), Message: p.GetMessage(), Hint: p.GetHint(), RetryAfter: time.Duration(p.GetRetryAfter()), grpc: codes.Unknown}
	if t, ok := byReason(e.Code); ok {
		e.grpc, e.sentinel = t.grpc, t.sentinel
	}
	return e
}

// FromStatus reads the error of a gRPC call. What the daemon did not say itself, but gRPC on
// either side, gets the name of its gRPC code. Other than nil it returns an [*Error].
func FromStatus(err error) error {
	if err == nil {
		return nil
	}
	if e, ok := errors.AsType[*Error](err); ok {
		return e
	}
	st, ok := status.FromError(err)
	if !ok {
		st = status.FromContextError(err)
	}
	if e := fromDetails(st); e != nil {
		return e
	}
	e := FromProto(&kekdv1.Error{Code: code.Code_name[int32(st.Code())], Message: st.Message()})
	e.grpc, e.Origin = st.Code(), FromTransport
	switch st.Code() {
	case codes.ResourceExhausted:
		// gRPC's own limit, that of a message's size: the daemon's limits carry an ErrorInfo.
		t := find(hierarchy.ErrInvalidArgument)
		e.Code, e.sentinel, e.Hint = t.reason, t.sentinel, "send fewer operations in one message"
	case codes.Unavailable:
		e.Hint = "is kekd running, and is it this socket?"
	}
	return e
}

// fromDetails reads what the daemon itself said; nil if it did not.
func fromDetails(st *status.Status) *Error {
	var (
		e     *Error
		retry time.Duration
	)
	for _, d := range st.Details() {
		switch d := d.(type) {
		case *errdetails.ErrorInfo:
			if d.Domain != Domain {
				continue
			}
			e = FromProto(&kekdv1.Error{Code: d.Reason, Message: st.Message(), Hint: d.Metadata[metaHint]})
			e.grpc = st.Code()
			if id, err := hierarchy.ParseID(d.Metadata[metaIdempotencyID]); err == nil {
				e.IdempotencyID = hierarchy.CommandID{ID: id}
			}
		case *errdetails.RetryInfo:
			retry = d.GetRetryDelay().AsDuration()
		}
	}
	if e != nil {
		e.RetryAfter = retry
	}
	return e
}

// Unreachable is a client's error: there is nobody to ask, and nothing was sent.
func Unreachable(message, hint string) *Error {
	return &Error{Origin: FromNobody, Code: CodeUnavailable, Message: message, Hint: hint, grpc: codes.Unavailable, sentinel: ErrUnavailable}
}
