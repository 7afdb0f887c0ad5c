package client_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/kekd/kekd/hierarchy"
	"github.com/kekd/kekd/unix-socket-api/apierr"
	"github.com/kekd/kekd/unix-socket-api/client"
	"github.com/kekd/kekd/unix-socket-api/kekdv1"
	"google.golang.org/grpc"
)

// daemon is a KeyService that echoes what it is to unwrap, or does what a test says.
type daemon struct {
	kekdv1.UnimplementedKeyServiceServer
	messages atomic.Int64
	ops      atomic.Int64
	streams  atomic.Int64
	answer   func(context.Context, *kekdv1.BatchRequest) *kekdv1.BatchResponse
	stop     func()
}

func echo(m *kekdv1.BatchRequest) *kekdv1.BatchResponse {
	resp := &kekdv1.BatchResponse{Id: m.Id}
	for _, op := range m.Operations {
		resp.Results = append(resp.Results, &kekdv1.OperationResult{Result: &kekdv1.OperationResult_Unwrap{
			Unwrap: &kekdv1.UnwrapResponse{Plaintext: op.GetUnwrap().GetEnvelope(), Key: "acme/orders", KeyVersion: 3},
		}})
	}
	return resp
}

func (d *daemon) Batch(ctx context.Context, m *kekdv1.BatchRequest) (*kekdv1.BatchResponse, error) {
	if d.answer != nil {
		return d.answer(ctx, m), nil
	}
	return echo(m), nil
}

func (d *daemon) Stream(s grpc.BidiStreamingServer[kekdv1.BatchRequest, kekdv1.BatchResponse]) error {
	d.streams.Add(1)
	var send sync.Mutex
	var work sync.WaitGroup
	defer work.Wait()
	for {
		m, err := s.Recv()
		if err != nil {
			return nil
		}
		d.messages.Add(1)
		d.ops.Add(int64(len(m.Operations)))
		work.Go(func() {
			resp := echo(m)
			if d.answer != nil {
				resp = d.answer(s.Context(), m)
			}
			if resp == nil {
				return
			}
			send.Lock()
			defer send.Unlock()
			_ = s.Send(resp)
		})
	}
}

func socketDir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "kekd")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

func start(t testing.TB, path string, d *daemon) *daemon {
	t.Helper()
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	s := grpc.NewServer()
	kekdv1.RegisterKeyServiceServer(s, d)
	go s.Serve(l)
	d.stop = func() {
		s.Stop()
		l.Close() // Serve may not have begun
	}
	t.Cleanup(d.stop)
	return d
}

func dial(t testing.TB, sockets ...string) *client.Client {
	t.Helper()
	c, err := client.Dial(sockets...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func soon(t testing.TB) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	t.Cleanup(cancel)
	return ctx
}

func unwrap(ctx context.Context, c *client.Client, envelope string) (string, error) {
	r, err := c.Unwrap(ctx, []byte(envelope), client.Options{})
	return string(r.Plaintext), err
}

func code(err error) string {
	if err == nil {
		return "OK"
	}
	if e, ok := errors.AsType[*client.Error](err); ok {
		return e.Code
	}
	return fmt.Sprintf("%T", err)
}

// TestCallersTravelTogether: each gets its own answer, on one stream, in few messages.
func TestCallersTravelTogether(t *testing.T) {
	path := filepath.Join(socketDir(t), "s")
	release := make(chan struct{})
	first := make(chan struct{}, 1000)
	d := start(t, path, &daemon{answer: func(_ context.Context, m *kekdv1.BatchRequest) *kekdv1.BatchResponse {
		first <- struct{}{}
		<-release
		return echo(m)
	}})
	c := dial(t, path)
	const n = 500
	var calls sync.WaitGroup
	call := func(i int) {
		calls.Go(func() {
			if got, err := unwrap(soon(t), c, fmt.Sprint(i)); err != nil || got != fmt.Sprint(i) {
				t.Errorf("call %d: %q, %v", i, got, err)
			}
		})
	}
	call(0)
	<-first // a lone call waits for nobody
	if d.ops.Load() != 1 {
		t.Errorf("the first message has %d operations", d.ops.Load())
	}
	for i := 1; i < n; i++ {
		call(i)
	}
	// Until the daemon answers, few messages are sent: how many depends on how fast calls come.
	for end := time.Now().Add(10 * time.Second); d.messages.Load() < 4 && d.ops.Load() < n; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%d operations in %d messages have come", d.ops.Load(), d.messages.Load())
		}
	}
	time.Sleep(50 * time.Millisecond) // for what must not come
	if m := d.messages.Load(); m > 4 {
		t.Errorf("%d messages are under way", m)
	}
	close(release)
	calls.Wait()
	if d.streams.Load() != 1 || d.ops.Load() != n || d.messages.Load() > n/2 {
		t.Errorf("%d operations in %d messages on %d streams", d.ops.Load(), d.messages.Load(), d.streams.Load())
	}
}

// TestLargeOperationsAreSplit: however much has gathered, no message is over the daemon's limit.
func TestLargeOperationsAreSplit(t *testing.T) {
	path := filepath.Join(socketDir(t), "s")
	var largest atomic.Int64
	start(t, path, &daemon{answer: func(_ context.Context, m *kekdv1.BatchRequest) *kekdv1.BatchResponse {
		if n := int64(m.SizeVT()); n > largest.Load() {
			largest.Store(n)
		}
		return echo(m)
	}})
	c := dial(t, path)
	var calls sync.WaitGroup
	for range 300 {
		calls.Go(func() {
			if _, err := unwrap(soon(t), c, string(make([]byte, 16<<10))); err != nil {
				t.Error(err)
			}
		})
	}
	calls.Wait()
	if n := largest.Load(); n > 600<<10 {
		t.Errorf("a message had %d bytes", n)
	}
}

// TestOneCallerLeaves: the others of its message are served.
func TestOneCallerLeaves(t *testing.T) {
	path := filepath.Join(socketDir(t), "s")
	release := make(chan struct{})
	arrived := make(chan struct{}, 100)
	start(t, path, &daemon{answer: func(_ context.Context, m *kekdv1.BatchRequest) *kekdv1.BatchResponse {
		arrived <- struct{}{}
		<-release
		return echo(m)
	}})
	c := dial(t, path)
	ctx, cancel := context.WithCancel(soon(t))
	left, stayed := make(chan error, 1), make(chan error, 1)
	go func() { _, err := unwrap(ctx, c, "a"); left <- err }()
	<-arrived
	go func() { _, err := unwrap(soon(t), c, "b"); stayed <- err }()
	<-arrived
	cancel()
	if err := <-left; !errors.Is(err, context.Canceled) || code(err) != "CANCELLED" {
		t.Errorf("the one that left: %v", err)
	}
	close(release)
	if err := <-stayed; err != nil {
		t.Errorf("the one that stayed: %v", err)
	}
	if got, err := unwrap(soon(t), c, "c"); err != nil || got != "c" {
		t.Errorf("the next: %q, %v", got, err)
	}
}

// TestSlowBatchHoldsUpNobody: while a message is stuck, later calls go on.
func TestSlowBatchHoldsUpNobody(t *testing.T) {
	path := filepath.Join(socketDir(t), "s")
	arrived := make(chan struct{}, 1)
	start(t, path, &daemon{answer: func(ctx context.Context, m *kekdv1.BatchRequest) *kekdv1.BatchResponse {
		if string(m.Operations[0].GetUnwrap().Envelope) == "stuck" {
			arrived <- struct{}{}
			<-ctx.Done()
		}
		return echo(m)
	}})
	c := dial(t, path)
	ctx, cancel := context.WithCancel(soon(t))
	stuck := make(chan error, 1)
	go func() { _, err := unwrap(ctx, c, "stuck"); stuck <- err }()
	<-arrived
	for range 100 {
		if _, err := unwrap(soon(t), c, "x"); err != nil {
			t.Fatal(err)
		}
	}
	cancel()
	<-stuck
}

// TestItemErrors: an item's error is its own, a refused message's that of all in it.
func TestItemErrors(t *testing.T) {
	path := filepath.Join(socketDir(t), "s")
	disabled := &kekdv1.Error{Code: "TENANT_DISABLED", Message: "tenant is disabled: acme", Hint: "enable it"}
	limited := &kekdv1.Error{Code: "RATE_LIMITED", Message: "over the limit"}
	start(t, path, &daemon{answer: func(_ context.Context, m *kekdv1.BatchRequest) *kekdv1.BatchResponse {
		switch string(m.Operations[0].GetUnwrap().Envelope) {
		case "disabled":
			return &kekdv1.BatchResponse{Id: m.Id, Results: []*kekdv1.OperationResult{{Result: &kekdv1.OperationResult_Error{Error: disabled}}}}
		case "limited":
			return &kekdv1.BatchResponse{Id: m.Id, Error: limited}
		case "short":
			return &kekdv1.BatchResponse{Id: m.Id}
		}
		return &kekdv1.BatchResponse{Id: m.Id, Results: []*kekdv1.OperationResult{{}}}
	}})
	c := dial(t, path)
	_, err := unwrap(soon(t), c, "disabled")
	e, ok := errors.AsType[*client.Error](err)
	if !ok || !errors.Is(err, hierarchy.ErrTenantDisabled) {
		t.Fatalf("got %v", err)
	}
	if diff := cmp.Diff(&client.Error{Code: "TENANT_DISABLED", Message: disabled.Message, Hint: disabled.Hint}, e, cmpopts.IgnoreUnexported(client.Error{})); diff != "" {
		t.Error(diff)
	}
	for envelope, want := range map[string]string{"limited": "RATE_LIMITED", "short": "INTERNAL", "empty": "INTERNAL"} {
		if _, err := unwrap(soon(t), c, envelope); code(err) != want {
			t.Errorf("%s: %v", envelope, err)
		}
		if _, err := c.Batch(soon(t), []client.Operation{{Op: hierarchy.OpUnwrap, Envelope: []byte(envelope)}}); envelope != "empty" && code(err) != want {
			t.Errorf("%s, in a batch: %v", envelope, err)
		}
	}
}

// TestRestart: calls under way are tried again, once, where there is somebody; a daemon that is
// back is found.
func TestRestart(t *testing.T) {
	dir := socketDir(t)
	path := filepath.Join(dir, "s")
	arrived := make(chan struct{}, 1)
	d := start(t, path, &daemon{answer: func(ctx context.Context, _ *kekdv1.BatchRequest) *kekdv1.BatchResponse {
		arrived <- struct{}{}
		<-ctx.Done()
		return nil
	}})
	c := dial(t, path)
	failed := make(chan error, 1)
	go func() { _, err := unwrap(soon(t), c, "x"); failed <- err }()
	<-arrived
	d.stop()
	err := <-failed
	if !errors.Is(err, client.ErrUnavailable) || code(err) != "UNAVAILABLE" {
		t.Errorf("nobody is there: %v", err)
	}
	start(t, path, &daemon{})
	for {
		got, err := unwrap(soon(t), c, "back")
		if err == nil {
			if got != "back" {
				t.Errorf("got %q", got)
			}
			break
		}
		if !errors.Is(err, client.ErrUnavailable) {
			t.Fatal(err)
		}
	}
}

// TestFailover: the first socket's daemon dies with a call in its hands; the second answers it.
func TestFailover(t *testing.T) {
	dir := socketDir(t)
	arrived := make(chan struct{}, 1)
	dying := start(t, filepath.Join(dir, "1"), &daemon{answer: func(ctx context.Context, _ *kekdv1.BatchRequest) *kekdv1.BatchResponse {
		arrived <- struct{}{}
		<-ctx.Done()
		return nil
	}})
	second := start(t, filepath.Join(dir, "2"), &daemon{})
	c := dial(t, filepath.Join(dir, "1"), filepath.Join(dir, "2"))
	done := make(chan error, 1)
	go func() {
		got, err := unwrap(soon(t), c, "x")
		if err == nil && got != "x" {
			err = fmt.Errorf("got %q", got)
		}
		done <- err
	}()
	<-arrived
	if second.streams.Load() != 0 {
		t.Error("the second was asked first")
	}
	dying.stop()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// TestTwiceIsEnough: a daemon that dies of a call is not fed with it for ever.
func TestTwiceIsEnough(t *testing.T) {
	path := filepath.Join(socketDir(t), "s")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	s := grpc.NewServer()
	tries := new(atomic.Int64)
	kekdv1.RegisterKeyServiceServer(s, &breaking{tries: tries})
	go s.Serve(l)
	defer s.Stop()
	if _, err := unwrap(soon(t), dial(t, path), "x"); !errors.Is(err, client.ErrUnavailable) {
		t.Errorf("got %v", err)
	}
	if n := tries.Load(); n != 2 {
		t.Errorf("%d tries", n)
	}
}

// breaking ends each stream at its first message.
type breaking struct {
	kekdv1.UnimplementedKeyServiceServer
	tries *atomic.Int64
}

func (b *breaking) Stream(s grpc.BidiStreamingServer[kekdv1.BatchRequest, kekdv1.BatchResponse]) error {
	if _, err := s.Recv(); err != nil {
		return err
	}
	b.tries.Add(1)
	return apierr.From(apierr.ErrUnavailable)
}

// TestWhyItCannotBeReached names the path, the reason, and what to do.
func TestWhyItCannotBeReached(t *testing.T) {
	dir := socketDir(t)
	stale := filepath.Join(dir, "stale")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: stale})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	l.Close()
	for path, want := range map[string][2]string{
		filepath.Join(dir, "none"): {"no such file or directory", "$KEKD_SOCKET"},
		stale:                      {"connection refused", "start it"},
	} {
		keys, closer, err := client.DialKeys(path)
		if err != nil {
			t.Fatal(err)
		}
		defer closer.Close()
		admin, closer, err := client.DialAdmin(path)
		if err != nil {
			t.Fatal(err)
		}
		defer closer.Close()
		_, one := keys.Unwrap(soon(t), &kekdv1.UnwrapRequest{})
		_, two := unwrap(soon(t), dial(t, path), "x")
		_, three := admin.GetStatus(soon(t), &kekdv1.GetStatusRequest{})
		_, four := dial(t, path).Batch(soon(t), []client.Operation{{Op: hierarchy.OpUnwrap}})
		for i, err := range []error{one, two, three, four} {
			e, ok := errors.AsType[*client.Error](err)
			if !ok || e.Code != "UNAVAILABLE" || !errors.Is(err, client.ErrUnavailable) {
				t.Errorf("%s, %d: %v", path, i, err)
				continue
			}
			if !strings.Contains(e.Message, path) || !strings.Contains(e.Message, want[0]) || !strings.Contains(e.Hint, want[1]) {
				t.Errorf("%s, %d: %q, hint %q", path, i, e.Message, e.Hint)
			}
		}
	}
}

// TestReachedAfterAll: what kept it from being reached once is not the reason of later failures.
func TestReachedAfterAll(t *testing.T) {
	path := filepath.Join(socketDir(t), "s")
	c := dial(t, path)
	if _, err := unwrap(soon(t), c, "x"); err == nil || !strings.Contains(err.Error(), "cannot reach") {
		t.Fatalf("nobody is there: %v", err)
	}
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	s := grpc.NewServer()
	tries := new(atomic.Int64)
	kekdv1.RegisterKeyServiceServer(s, &breaking{tries: tries})
	go s.Serve(l)
	defer s.Stop()
	for tries.Load() == 0 {
		_, err = unwrap(soon(t), c, "x")
	}
	if !errors.Is(err, client.ErrUnavailable) || strings.Contains(err.Error(), "cannot reach") {
		t.Errorf("somebody is there: %v", err)
	}
}

func TestSocketFromTheEnvironment(t *testing.T) {
	path := filepath.Join(socketDir(t), "s")
	start(t, path, &daemon{})
	t.Setenv("KEKD_SOCKET", path)
	if _, err := unwrap(soon(t), dial(t), "x"); err != nil {
		t.Error(err)
	}
}

func TestClose(t *testing.T) {
	path := filepath.Join(socketDir(t), "s")
	arrived := make(chan struct{}, 1)
	start(t, path, &daemon{answer: func(ctx context.Context, _ *kekdv1.BatchRequest) *kekdv1.BatchResponse {
		arrived <- struct{}{}
		<-ctx.Done()
		return nil
	}})
	c := dial(t, path)
	failed := make(chan error, 1)
	go func() { _, err := unwrap(soon(t), c, "x"); failed <- err }()
	<-arrived
	c.Close()
	if err := <-failed; code(err) != "CANCELLED" {
		t.Errorf("under way: %v", err)
	}
	if _, err := unwrap(soon(t), c, "x"); code(err) != "CANCELLED" {
		t.Errorf("afterwards: %v", err)
	}
}

func TestStream(t *testing.T) {
	path := filepath.Join(socketDir(t), "s")
	start(t, path, &daemon{answer: func(_ context.Context, m *kekdv1.BatchRequest) *kekdv1.BatchResponse {
		if m.Id == 2 {
			return &kekdv1.BatchResponse{Id: 2, Error: &kekdv1.Error{Code: "RATE_LIMITED"}}
		}
		return echo(m)
	}})
	s, err := dial(t, path).OpenStream(soon(t))
	if err != nil {
		t.Fatal(err)
	}
	for id := range uint64(3) {
		if err := s.Send(id+1, []client.Operation{{Op: hierarchy.OpUnwrap, Envelope: []byte{byte(id + 1)}}}); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Send(9, nil); code(err) != "INVALID_ARGUMENT" {
		t.Errorf("nothing: %v", err)
	}
	if err := s.CloseSend(); err != nil {
		t.Fatal(err)
	}
	got := make(map[uint64]string)
	for {
		id, rs, refused, err := s.Recv()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if refused != nil {
			got[id] = code(refused)
			continue
		}
		got[id] = string(rs[0].Plaintext)
	}
	if diff := cmp.Diff(map[uint64]string{1: "\x01", 2: "RATE_LIMITED", 3: "\x03"}, got); diff != "" {
		t.Error(diff)
	}
}

func TestBatch(t *testing.T) {
	path := filepath.Join(socketDir(t), "s")
	start(t, path, &daemon{})
	c := dial(t, path)
	rs, err := c.Batch(soon(t), []client.Operation{{Op: hierarchy.OpUnwrap, Envelope: []byte("a")}, {Op: hierarchy.OpUnwrap, Envelope: []byte("b")}})
	if err != nil || len(rs) != 2 || !bytes.Equal(rs[1].Plaintext, []byte("b")) || rs[1].Key != "acme/orders" {
		t.Errorf("got %v, %v", rs, err)
	}
	for what, ops := range map[string][]client.Operation{"none": nil, "too many": make([]client.Operation, client.MaxBatch+1), "no operation": {{}}} {
		if _, err := c.Batch(soon(t), ops); code(err) != "INVALID_ARGUMENT" {
			t.Errorf("%s: %v", what, err)
		}
	}
}
