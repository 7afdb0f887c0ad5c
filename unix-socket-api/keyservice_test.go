package socketapi_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/kekd/kekd/hierarchy"
	"github.com/kekd/kekd/hierarchy/custody"
	socketapi "github.com/kekd/kekd/unix-socket-api"
	"github.com/kekd/kekd/unix-socket-api/client"
	"github.com/kekd/kekd/unix-socket-api/kekdv1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/reflection/grpc_reflection_v1"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/testing/protocmp"
)

func entries(pairs ...string) (es []*kekdv1.ContextEntry) {
	for i := 0; i < len(pairs); i += 2 {
		es = append(es, &kekdv1.ContextEntry{Key: pairs[i], Value: pairs[i+1]})
	}
	return es
}

// TestEveryOperation goes through plain gRPC, alone and in a batch, and looks at both sides.
func TestEveryOperation(t *testing.T) {
	seen := make(chan custody.Request, 4)
	s := startKeys(t, &fakeCustody{before: func(_ context.Context, _ hierarchy.Principal, reqs []custody.Request) {
		for _, r := range reqs {
			r.Plaintext = bytes.Clone(r.Plaintext) // it is wiped later
			seen <- r
		}
	}}, nil)
	api := kekdv1.NewKeyServiceClient(raw(t, s.path))
	ctx := soon(t)
	duplicate := entries("app", "billing", "app", "other")
	sealed := []hierarchy.ContextEntry{{Key: "app", Value: "billing"}, {Key: "app", Value: "other"}}

	wrap := &kekdv1.WrapRequest{Key: "acme/orders", Plaintext: []byte("dek"), Context: duplicate, Reason: "why"}
	unwrap := &kekdv1.UnwrapRequest{Envelope: []byte("env"), Context: duplicate, Reason: "why"}
	dataKey := &kekdv1.GenerateDataKeyRequest{Key: "acme/orders", Bytes: 16, WrappedOnly: true, Context: duplicate, Reason: "why"}
	rewrap := &kekdv1.RewrapRequest{Envelope: []byte("env"), Context: duplicate, Reason: "why"}
	wrapped := &kekdv1.WrapResponse{Envelope: []byte("dek"), Key: "acme/orders", KeyVersion: 3}
	unwrapped := &kekdv1.UnwrapResponse{Plaintext: []byte("env"), Key: "acme/orders", KeyVersion: 3, NeedsRewrap: true}
	generated := &kekdv1.GenerateDataKeyResponse{Envelope: []byte("sealed"), Plaintext: bytes.Repeat([]byte{7}, 16), Key: "acme/orders", KeyVersion: 3}
	rewrapped := &kekdv1.RewrapResponse{Envelope: []byte("again:env"), Key: "acme/orders", KeyVersion: 3}
	requests := []custody.Request{
		{Op: hierarchy.OpWrap, Key: "acme/orders", Plaintext: []byte("dek"), Context: sealed, Reason: "why"},
		{Op: hierarchy.OpUnwrap, Envelope: []byte("env"), Context: sealed, Reason: "why"},
		{Op: hierarchy.OpDataKey, Key: "acme/orders", Bytes: 16, WrappedOnly: true, Context: sealed, Reason: "why"},
		{Op: hierarchy.OpRewrap, Envelope: []byte("env"), Context: sealed, Reason: "why"},
	}
	check := func(what string, want, got any, err error) {
		t.Helper()
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		if diff := cmp.Diff(want, got, protocmp.Transform()); diff != "" {
			t.Errorf("%s: %s", what, diff)
		}
	}
	a, err := api.Wrap(ctx, wrap)
	check("wrap", wrapped, a, err)
	b, err := api.Unwrap(ctx, unwrap)
	check("unwrap", unwrapped, b, err)
	c, err := api.GenerateDataKey(ctx, dataKey)
	check("data key", generated, c, err)
	d, err := api.Rewrap(ctx, rewrap)
	check("rewrap", rewrapped, d, err)
	for _, want := range requests {
		check("request", want, <-seen, nil)
	}

	batch, err := api.Batch(ctx, &kekdv1.BatchRequest{Id: 9, Operations: []*kekdv1.Operation{
		{Op: &kekdv1.Operation_Wrap{Wrap: wrap}}, {Op: &kekdv1.Operation_Unwrap{Unwrap: unwrap}},
		{Op: &kekdv1.Operation_GenerateDataKey{GenerateDataKey: dataKey}}, {Op: &kekdv1.Operation_Rewrap{Rewrap: rewrap}},
	}})
	check("batch", &kekdv1.BatchResponse{Id: 9, Results: []*kekdv1.OperationResult{
		{Result: &kekdv1.OperationResult_Wrap{Wrap: wrapped}}, {Result: &kekdv1.OperationResult_Unwrap{Unwrap: unwrapped}},
		{Result: &kekdv1.OperationResult_GenerateDataKey{GenerateDataKey: generated}}, {Result: &kekdv1.OperationResult_Rewrap{Rewrap: rewrapped}},
	}}, batch, err)
	for _, want := range requests {
		check("request in the batch", want, <-seen, nil)
	}
}

func unwraps(n int, envelope string) *kekdv1.BatchRequest {
	m := &kekdv1.BatchRequest{}
	for range n {
		m.Operations = append(m.Operations, &kekdv1.Operation{Op: &kekdv1.Operation_Unwrap{Unwrap: &kekdv1.UnwrapRequest{Envelope: []byte(envelope)}}})
	}
	return m
}

// dataKeys has small requests and large answers, 4 KiB each.
func dataKeys(n int) *kekdv1.BatchRequest {
	m := &kekdv1.BatchRequest{}
	for range n {
		m.Operations = append(m.Operations, &kekdv1.Operation{Op: &kekdv1.Operation_GenerateDataKey{GenerateDataKey: &kekdv1.GenerateDataKeyRequest{Bytes: 4096}}})
	}
	return m
}

func TestBatchSizes(t *testing.T) {
	s := startKeys(t, &fakeCustody{}, nil)
	api := kekdv1.NewKeyServiceClient(raw(t, s.path))
	for _, n := range []int{0, custody.MaxBatch + 1} {
		if _, err := api.Batch(soon(t), unwraps(n, "x")); code(err) != "INVALID_ARGUMENT" {
			t.Errorf("%d operations: %v", n, err)
		}
	}
	if resp, err := api.Batch(soon(t), unwraps(custody.MaxBatch, "x")); err != nil || len(resp.Results) != custody.MaxBatch {
		t.Errorf("%d operations: %d results, %v", custody.MaxBatch, len(resp.GetResults()), err)
	}
}

// TestOneFailsAlone: an item's error is its own, an empty operation's too, and what is internal
// is told to the log alone.
func TestOneFailsAlone(t *testing.T) {
	s := startKeys(t, &fakeCustody{after: func(reqs []custody.Request, resps []custody.Response) {
		switch {
		case string(reqs[0].Envelope) == "disabled":
			resps[0] = custody.Response{Err: fmt.Errorf("%w: acme", hierarchy.ErrTenantDisabled)}
		case string(reqs[0].Envelope) == "internal":
			resps[0] = custody.Response{Err: errors.New("the cause")}
		}
	}}, nil)
	api := kekdv1.NewKeyServiceClient(raw(t, s.path))
	m := unwraps(2, "x")
	m.Operations[0].GetUnwrap().Envelope = []byte("disabled")
	m.Operations = append(m.Operations, &kekdv1.Operation{})
	resp, err := api.Batch(soon(t), m)
	if err != nil {
		t.Fatal(err)
	}
	got := []string{resp.Results[0].GetError().GetCode(), string(resp.Results[1].GetUnwrap().GetPlaintext()), resp.Results[2].GetError().GetCode()}
	if diff := cmp.Diff([]string{"TENANT_DISABLED", "x", "INVALID_ARGUMENT"}, got); diff != "" {
		t.Error(diff)
	}

	if _, err := api.Unwrap(soon(t), &kekdv1.UnwrapRequest{Envelope: []byte("disabled")}); code(err) != "TENANT_DISABLED" || status.Code(err) != codes.FailedPrecondition {
		t.Errorf("alone: %v", err)
	}
	if _, err := api.Unwrap(soon(t), &kekdv1.UnwrapRequest{Envelope: []byte("internal")}); code(err) != "INTERNAL" || strings.Contains(err.Error(), "the cause") {
		t.Errorf("internal: %v", err)
	}
	if resp, err := api.Batch(soon(t), unwraps(1, "internal")); err != nil || resp.Results[0].GetError().GetCode() != "INTERNAL" {
		t.Errorf("internal, in a batch: %v, %v", resp, err)
	}
	if n := strings.Count(s.log.String(), "the cause"); n != 2 {
		t.Errorf("the log has the cause %d times, want 2", n)
	}
}

func TestPanicEndsOneCall(t *testing.T) {
	s := startKeys(t, &fakeCustody{before: func(_ context.Context, _ hierarchy.Principal, reqs []custody.Request) {
		if string(reqs[0].Envelope) == "panic" {
			panic("the plaintext")
		}
	}}, nil)
	api := kekdv1.NewKeyServiceClient(raw(t, s.path))
	if _, err := api.Unwrap(soon(t), &kekdv1.UnwrapRequest{Envelope: []byte("panic")}); code(err) != "INTERNAL" {
		t.Errorf("alone: %v", err)
	}
	if _, err := api.Batch(soon(t), unwraps(1, "panic")); code(err) != "INTERNAL" {
		t.Errorf("batch: %v", err)
	}
	stream, err := api.Stream(soon(t))
	if err != nil {
		t.Fatal(err)
	}
	for i, envelope := range []string{"panic", "fine"} {
		m := unwraps(1, envelope)
		m.Id = uint64(i)
		if err := stream.Send(m); err != nil {
			t.Fatal(err)
		}
		resp, err := stream.Recv()
		if err != nil || resp.Id != m.Id || (resp.Error.GetCode() == "INTERNAL") != (i == 0) {
			t.Errorf("stream, %s: %v, %v", envelope, resp, err)
		}
	}
	if log := s.log.String(); strings.Contains(log, "the plaintext") || !strings.Contains(log, "stack") {
		t.Errorf("log: %s", log)
	}
	// What the calls held was given back.
	if _, err := api.Batch(soon(t), unwraps(custody.MaxBatch, "x")); err != nil {
		t.Error(err)
	}
}

// TestWiped keeps what custody saw and gave, and waits until it is zero.
func TestWiped(t *testing.T) {
	var kept [][]byte // calls follow each other, and the server ends before it is read
	s := startKeys(t, &fakeCustody{after: func(reqs []custody.Request, resps []custody.Response) {
		kept = append(kept, reqs[0].Plaintext, resps[0].Plaintext)
	}}, nil)
	api := kekdv1.NewKeyServiceClient(raw(t, s.path))
	stream, err := api.Stream(soon(t))
	if err != nil {
		t.Fatal(err)
	}
	wrap := &kekdv1.WrapRequest{Plaintext: []byte("secret")}
	unwrap := &kekdv1.UnwrapRequest{Envelope: []byte("secret")}
	wraps := &kekdv1.BatchRequest{Operations: []*kekdv1.Operation{{Op: &kekdv1.Operation_Wrap{Wrap: wrap}}}}
	for name, err := range map[string]error{
		"wrap":          second(api.Wrap(soon(t), wrap)),
		"unwrap":        second(api.Unwrap(soon(t), unwrap)),
		"batch, wrap":   second(api.Batch(soon(t), wraps)),
		"batch, unwrap": second(api.Batch(soon(t), unwraps(1, "secret"))),
		"stream, wrap":  errors.Join(stream.Send(wraps), second(stream.Recv())),
	} {
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
	}
	stream.CloseSend()
	s.Shutdown(soon(t))
	secrets := 0
	for _, b := range kept {
		if len(b) == len("secret") {
			secrets++
		}
		if len(bytes.Trim(b, "\x00")) != 0 {
			t.Errorf("%q is left", b)
		}
	}
	if secrets != 5 {
		t.Errorf("custody saw %d secrets, want 5", secrets)
	}
}

func second[A any](_ A, err error) error { return err }

func TestDeadlines(t *testing.T) {
	left := make(chan time.Duration, 1)
	s := startKeys(t, &fakeCustody{before: func(ctx context.Context, _ hierarchy.Principal, _ []custody.Request) {
		d, ok := ctx.Deadline()
		if !ok {
			left <- 0
			return
		}
		left <- time.Until(d)
	}}, func(l *socketapi.Limits) { l.DefaultDeadline, l.MaxDeadline = 20*time.Second, 40*time.Second })
	api := kekdv1.NewKeyServiceClient(raw(t, s.path))
	unwrap := func(own time.Duration) error {
		ctx, cancel := context.WithTimeout(context.Background(), own)
		defer cancel()
		return second(api.Unwrap(ctx, &kekdv1.UnwrapRequest{}))
	}
	endless, cancel := context.WithCancel(context.Background())
	defer cancel()
	stream, err := api.Stream(endless)
	if err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		name string
		call func() error
		want time.Duration
	}{
		{"none", func() error { return second(api.Unwrap(endless, &kekdv1.UnwrapRequest{})) }, 20 * time.Second},
		{"short", func() error { return unwrap(10 * time.Second) }, 10 * time.Second},
		{"long", func() error { return unwrap(time.Hour) }, 40 * time.Second},
		{"stream", func() error { return errors.Join(stream.Send(unwraps(1, "x")), second(stream.Recv())) }, 20 * time.Second},
	} {
		if err := test.call(); err != nil {
			t.Fatalf("%s: %v", test.name, err)
		}
		if got := <-left; got > test.want || got < test.want-5*time.Second {
			t.Errorf("%s: %v are left, want %v", test.name, got, test.want)
		}
	}
}

// garbage is a codec that sends bytes as they are.
type garbage struct{}

func (garbage) Name() string { return "proto" }
func (garbage) Marshal(v any) (mem.BufferSlice, error) {
	return mem.BufferSlice{mem.SliceBuffer(v.([]byte))}, nil
}
func (garbage) Unmarshal(mem.BufferSlice, any) error { return nil }

func TestBadMessages(t *testing.T) {
	s := startKeys(t, &fakeCustody{}, nil)
	conn := raw(t, s.path)
	for _, method := range []string{kekdv1.KeyService_Unwrap_FullMethodName, kekdv1.KeyService_Batch_FullMethodName} {
		err := conn.Invoke(soon(t), method, []byte{0xff, 0xff, 0xff}, new([]byte), grpc.ForceCodecV2(garbage{}))
		if code(err) != "INVALID_ARGUMENT" {
			t.Errorf("%s, garbage: %v", method, err)
		}
		err = conn.Invoke(soon(t), method, make([]byte, 2<<20), new([]byte), grpc.ForceCodecV2(garbage{}))
		if code(err) != "INVALID_ARGUMENT" {
			t.Errorf("%s, 2 MiB: %v", method, err)
		}
	}
	large := unwraps(900, string(make([]byte, 1<<10))) // just below the limit
	if _, err := kekdv1.NewKeyServiceClient(conn).Batch(soon(t), large); err != nil {
		t.Errorf("afterwards, 900 KiB: %v", err)
	}
}

// TestEveryMethodIsServed asks by reflection, as grpcurl does, and compares with the generated
// description.
func TestEveryMethodIsServed(t *testing.T) {
	s := startKeys(t, &fakeCustody{}, nil)
	conn := raw(t, s.path)
	stream, err := grpc_reflection_v1.NewServerReflectionClient(conn).ServerReflectionInfo(soon(t))
	if err != nil {
		t.Fatal(err)
	}
	if err := stream.Send(&grpc_reflection_v1.ServerReflectionRequest{MessageRequest: &grpc_reflection_v1.ServerReflectionRequest_ListServices{}}); err != nil {
		t.Fatal(err)
	}
	resp, err := stream.Recv()
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, svc := range resp.GetListServicesResponse().GetService() {
		names = append(names, svc.Name)
	}
	if diff := cmp.Diff([]string{"grpc.health.v1.Health", "grpc.reflection.v1.ServerReflection", "grpc.reflection.v1alpha.ServerReflection", "kekd.v1.KeyService"}, names); diff != "" {
		t.Error(diff)
	}
	desc := kekdv1.KeyService_ServiceDesc
	var methods []string
	for _, m := range desc.Methods {
		methods = append(methods, m.MethodName)
	}
	for _, m := range desc.Streams {
		methods = append(methods, m.StreamName)
	}
	for _, m := range methods {
		// An empty message reaches every one of them, and is refused by none for not being there.
		err := conn.Invoke(soon(t), "/"+desc.ServiceName+"/"+m, []byte{}, new([]byte), grpc.ForceCodecV2(garbage{}))
		if status.Code(err) == codes.Unimplemented {
			t.Errorf("%s is not served", m)
		}
	}
}

func TestHealth(t *testing.T) {
	s := startKeys(t, &fakeCustody{}, nil)
	health := grpc_health_v1.NewHealthClient(raw(t, s.path))
	for _, yes := range []bool{false, true, false} {
		s.SetServing(yes)
		resp, err := health.Check(soon(t), &grpc_health_v1.HealthCheckRequest{})
		if err != nil {
			t.Fatal(err)
		}
		if got := resp.Status == grpc_health_v1.HealthCheckResponse_SERVING; got != yes {
			t.Errorf("got %v, want %v", got, yes)
		}
	}
}

func TestLimitsAreChecked(t *testing.T) {
	for name, change := range map[string]func(*socketapi.Limits){
		"no connections": func(l *socketapi.Limits) { l.Conns = 0 },
		"half a batch":   func(l *socketapi.Limits) { l.OpsPerUID = custody.MaxBatch / 2 },
		"no time":        func(l *socketapi.Limits) { l.SendTimeout = 0 },
		"no bytes":       func(l *socketapi.Limits) { l.MaxMessage = 0 },
	} {
		l := socketapi.DefaultLimits()
		change(&l)
		if _, err := socketapi.NewKeyServer(&fakeCustody{}, l, nil); !errors.Is(err, hierarchy.ErrInvalidArgument) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestClientGoesThroughEveryOperation(t *testing.T) {
	s := startKeys(t, &fakeCustody{}, nil)
	c := dial(t, s.path)
	ctx := soon(t)
	o := client.Options{Context: map[string]string{"app": "billing"}, Reason: "why"}
	wrapped, err := c.Wrap(ctx, "acme/orders", []byte("dek"), o)
	if err != nil || string(wrapped.Envelope) != "dek" || wrapped.Key != "acme/orders" || wrapped.Version != 3 {
		t.Errorf("wrap: %+v, %v", wrapped, err)
	}
	opened, err := c.Unwrap(ctx, []byte("env"), o)
	if err != nil || string(opened.Plaintext) != "env" || !opened.NeedsRewrap {
		t.Errorf("unwrap: %+v, %v", opened, err)
	}
	made, err := c.GenerateDataKey(ctx, "acme/orders", 24, o)
	if err != nil || len(made.Plaintext) != 24 || string(made.Envelope) != "sealed" {
		t.Errorf("data key: %+v, %v", made, err)
	}
	again, err := c.Rewrap(ctx, []byte("env"), o)
	if err != nil || string(again.Envelope) != "again:env" {
		t.Errorf("rewrap: %+v, %v", again, err)
	}
}
