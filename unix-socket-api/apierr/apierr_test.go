package apierr_test

import (
	"context"
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/kekd/kekd/hierarchy"
	"github.com/kekd/kekd/unix-socket-api/apierr"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	spb "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
)

// promised are the codes that scripts rely on: an entry here is never changed.
var promised = []struct {
	sentinel string // its name in package hierarchy
	err      error
	code     string
	grpc     codes.Code
}{
	{"ErrTenantDisabled", hierarchy.ErrTenantDisabled, "TENANT_DISABLED", codes.FailedPrecondition},
	{"ErrTenantSuspended", hierarchy.ErrTenantSuspended, "TENANT_SUSPENDED", codes.FailedPrecondition},
	{"ErrVersionDisabled", hierarchy.ErrVersionDisabled, "KEY_VERSION_DISABLED", codes.FailedPrecondition},
	{"ErrPermissionDenied", hierarchy.ErrPermissionDenied, "PERMISSION_DENIED", codes.PermissionDenied},
	{"ErrContextMismatch", hierarchy.ErrContextMismatch, "CONTEXT_MISMATCH", codes.InvalidArgument},
	{"ErrEnvelopeInvalid", hierarchy.ErrEnvelopeInvalid, "ENVELOPE_INVALID", codes.InvalidArgument},
	{"ErrInvalidArgument", hierarchy.ErrInvalidArgument, "INVALID_ARGUMENT", codes.InvalidArgument},
	{"ErrNotFound", hierarchy.ErrNotFound, "NOT_FOUND", codes.NotFound},
	{"ErrAlreadyExists", hierarchy.ErrAlreadyExists, "ALREADY_EXISTS", codes.AlreadyExists},
	{"ErrFailedPrecondition", hierarchy.ErrFailedPrecondition, "FAILED_PRECONDITION", codes.FailedPrecondition},
	{"ErrStale", hierarchy.ErrStale, "STALE", codes.Unavailable},
	{"ErrCapacity", hierarchy.ErrCapacity, "CAPACITY", codes.ResourceExhausted},
	{"ErrHSMUnavailable", hierarchy.ErrHSMUnavailable, "HSM_UNAVAILABLE", codes.Unavailable},
	{"ErrAuditUnavailable", hierarchy.ErrAuditUnavailable, "AUDIT_UNAVAILABLE", codes.Unavailable},
	{"ErrOutcomeUnknown", hierarchy.ErrOutcomeUnknown, "OUTCOME_UNKNOWN", codes.Unknown},
	{"ErrDRPending", hierarchy.ErrDRPending, "DR_PENDING", codes.Unknown},
	{"ErrQuorumRequired", hierarchy.ErrQuorumRequired, "QUORUM_REQUIRED", codes.FailedPrecondition},
	{"ErrRateLimited", hierarchy.ErrRateLimited, "RATE_LIMITED", codes.ResourceExhausted},
	{"", context.DeadlineExceeded, "DEADLINE_EXCEEDED", codes.DeadlineExceeded},
	{"", context.Canceled, "CANCELLED", codes.Canceled},
	{"", apierr.ErrUnavailable, "UNAVAILABLE", codes.Unavailable},
}

// sentinels reads the names of the hierarchy's errors from its source.
func sentinels(t *testing.T) []string {
	t.Helper()
	file, err := parser.ParseFile(token.NewFileSet(), filepath.Join("..", "..", "hierarchy", "errors.go"), nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, d := range file.Decls {
		g, ok := d.(*ast.GenDecl)
		if !ok || g.Tok != token.VAR {
			continue
		}
		for _, s := range g.Specs {
			for _, n := range s.(*ast.ValueSpec).Names {
				if strings.HasPrefix(n.Name, "Err") {
					names = append(names, n.Name)
				}
			}
		}
	}
	if len(names) == 0 {
		t.Fatal("hierarchy/errors.go has no errors")
	}
	return names
}

func TestEverySentinelHasACode(t *testing.T) {
	have := make(map[string]bool)
	for _, p := range promised {
		have[p.sentinel] = true
	}
	for _, name := range sentinels(t) {
		if !have[name] {
			t.Errorf("hierarchy.%s has no code", name)
		}
	}
}

// TestCrossing sends each error, wrapped as a caller would, over a status and over a batch's
// result, and wants the same on the other side.
func TestCrossing(t *testing.T) {
	seen := make(map[string]bool)
	for _, p := range promised {
		t.Run(p.code, func(t *testing.T) {
			if seen[p.code] {
				t.Fatal("two errors have this code")
			}
			seen[p.code] = true
			sent := apierr.From(fmt.Errorf("acme/orders: %w: so it is", p.err))
			if got := status.Code(sent); got != p.grpc {
				t.Errorf("gRPC code %v, want %v", got, p.grpc)
			}
			for how, got := range map[string]error{
				"status": apierr.FromStatus(sent.GRPCStatus().Err()),
				"batch":  apierr.FromProto(sent.Proto()),
			} {
				var e *apierr.Error
				if !errors.As(got, &e) {
					t.Fatalf("%s: %T is no *Error", how, got)
				}
				if e.Code != p.code || e.Message != sent.Message || e.Hint != sent.Hint {
					t.Errorf("%s: got %q %q %q, sent %q %q %q", how, e.Code, e.Message, e.Hint, sent.Code, sent.Message, sent.Hint)
				}
				for _, q := range promised {
					if is := errors.Is(got, q.err); is != (q.code == p.code) {
						t.Errorf("%s: errors.Is(%v) is %v", how, q.err, is)
					}
				}
				if status.Code(got) != p.grpc && how == "status" {
					t.Errorf("%s: on its way further it has the code %v", how, status.Code(got))
				}
			}
			if sent.Hint == "" && p.err != context.Canceled {
				t.Error("no hint")
			}
		})
	}
}

func TestOutcomeUnknownBeforeItsCause(t *testing.T) {
	err := fmt.Errorf("%w: %w", hierarchy.ErrOutcomeUnknown, context.DeadlineExceeded)
	if got := apierr.From(err).Code; got != "OUTCOME_UNKNOWN" {
		t.Errorf("got %s", got)
	}
}

func TestInternalTellsNothing(t *testing.T) {
	e := apierr.From(fmt.Errorf("open %s: %w", "/secret/path", io.ErrUnexpectedEOF))
	all := fmt.Sprint(e, e.Hint, e.GRPCStatus(), e.Proto())
	if e.Code != "INTERNAL" || strings.Contains(all, "secret") || strings.Contains(all, "EOF") {
		t.Errorf("got %s", all)
	}
}

// TestHostileText: what a caller sent may stand in an error, and must not cost the details.
func TestHostileText(t *testing.T) {
	for _, text := range []string{"\xff\xfe", strings.Repeat("x", 1<<20), strings.Repeat("\xc3\xa9", 1<<10), "a\x00b\r\n"} {
		sent := apierr.From(fmt.Errorf("%w: %s", hierarchy.ErrInvalidArgument, text))
		wire, err := proto.Marshal(sent.GRPCStatus().Proto()) // it refuses what is not UTF-8
		if err != nil {
			t.Errorf("%.20q: %v", text, err)
			continue
		}
		received := new(spb.Status)
		if err := proto.Unmarshal(wire, received); err != nil {
			t.Fatal(err)
		}
		var got *apierr.Error
		if !errors.As(apierr.FromStatus(status.ErrorProto(received)), &got) || got.Code != "INVALID_ARGUMENT" || got.Hint == "" {
			t.Errorf("%.20q: details are lost: %v", text, got)
		}
		if len(got.Message) > 2<<10 {
			t.Errorf("%.20q: the message has %d bytes", text, len(got.Message))
		}
	}
}

func TestHintAndIdempotencyID(t *testing.T) {
	sent := *apierr.From(apierr.WithHint(hierarchy.ErrNotFound, "look elsewhere"))
	sent.IdempotencyID = hierarchy.CommandID{ID: hierarchy.NewID()}
	var got *apierr.Error
	if !errors.As(apierr.FromStatus(sent.GRPCStatus().Err()), &got) {
		t.Fatal("no *Error")
	}
	if diff := cmp.Diff(
		[]any{sent.Code, sent.Message, sent.Hint, sent.IdempotencyID},
		[]any{got.Code, got.Message, got.Hint, got.IdempotencyID}); diff != "" {
		t.Error(diff)
	}
}

// TestRetryAfter: how long to wait crosses both ways, and what every gRPC client understands says it.
func TestRetryAfter(t *testing.T) {
	over := &hierarchy.OverLimit{Limit: "tenant acme allows 10/d", Wait: 312 * time.Millisecond, Detail: "for the audit alone"}
	sent := apierr.From(fmt.Errorf("item 3: %w", over))
	if sent.Code != "RATE_LIMITED" || sent.RetryAfter != over.Wait || !strings.Contains(sent.Message, "tenant acme allows 10/d; wait 312ms") {
		t.Errorf("sent: %+v", sent)
	}
	for how, err := range map[string]error{"status": apierr.FromStatus(sent.GRPCStatus().Err()), "batch": apierr.FromProto(sent.Proto())} {
		var got *apierr.Error
		if !errors.As(err, &got) || got.RetryAfter != over.Wait || !errors.Is(got, hierarchy.ErrRateLimited) {
			t.Errorf("%s: got %+v", how, err)
		}
	}
	for _, d := range sent.GRPCStatus().Details() {
		if info, ok := d.(*errdetails.RetryInfo); ok && info.RetryDelay.AsDuration() == over.Wait {
			return
		}
	}
	t.Errorf("there is no RetryInfo in %v", sent.GRPCStatus().Details())
}

// TestOthersErrors: what gRPC says by itself, on either side.
func TestOthersErrors(t *testing.T) {
	for _, test := range []struct {
		err  error
		code string
		is   error
	}{
		{status.Error(codes.Unavailable, "transport is closing"), "UNAVAILABLE", apierr.ErrUnavailable},
		{status.Error(codes.ResourceExhausted, "grpc: received message larger than max"), "INVALID_ARGUMENT", hierarchy.ErrInvalidArgument},
		{status.Error(codes.DeadlineExceeded, ""), "DEADLINE_EXCEEDED", context.DeadlineExceeded},
		{status.Error(codes.Unimplemented, "unknown method"), "UNIMPLEMENTED", nil},
		{context.Canceled, "CANCELLED", context.Canceled},
		{io.ErrUnexpectedEOF, "UNKNOWN", nil},
	} {
		var e *apierr.Error
		if !errors.As(apierr.FromStatus(test.err), &e) || e.Code != test.code {
			t.Errorf("%v: got %v", test.err, e)
		}
		if test.is != nil && !errors.Is(e, test.is) {
			t.Errorf("%v: is not %v", test.err, test.is)
		}
	}
	if err := apierr.FromStatus(nil); err != nil {
		t.Errorf("of no error it made %v", err)
	}
}
