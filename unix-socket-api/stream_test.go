package socketapi_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/kekd/kekd/hierarchy"
	"github.com/kekd/kekd/hierarchy/custody"
	socketapi "github.com/kekd/kekd/unix-socket-api"
	"github.com/kekd/kekd/unix-socket-api/client"
	"github.com/kekd/kekd/unix-socket-api/kekdv1"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"
)

// held is a custody in which operations on some envelopes wait until they are let go.
type held struct {
	fakeCustody
	arrived chan string
	release chan struct{}
}

func holding(envelope string) *held {
	h := &held{arrived: make(chan string, 10_000), release: make(chan struct{})}
	h.before = func(ctx context.Context, _ hierarchy.Principal, reqs []custody.Request) {
		if string(reqs[0].Envelope) == envelope {
			h.arrived <- envelope
			select {
			case <-h.release:
			case <-ctx.Done():
			}
		}
	}
	return h
}

func openStream(t testing.TB, path string) kekdv1.KeyService_StreamClient {
	t.Helper()
	s, err := kekdv1.NewKeyServiceClient(raw(t, path)).Stream(soon(t))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func send(t testing.TB, s kekdv1.KeyService_StreamClient, id uint64, n int, envelope string) {
	t.Helper()
	m := unwraps(n, envelope)
	m.Id = id
	if err := s.Send(m); err != nil {
		t.Fatal(err)
	}
}

func receive(t testing.TB, s kekdv1.KeyService_StreamClient) *kekdv1.BatchResponse {
	t.Helper()
	m, err := s.Recv()
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func TestAnswersComeAsTheyAreDone(t *testing.T) {
	h := holding("slow")
	s := openStream(t, startKeys(t, h, nil).path)
	send(t, s, 1, 2, "slow")
	<-h.arrived
	send(t, s, 2, 1, "fast")
	if m := receive(t, s); m.Id != 2 || len(m.Results) != 1 {
		t.Fatalf("first came %d with %d results", m.Id, len(m.Results))
	}
	close(h.release)
	if m := receive(t, s); m.Id != 1 || len(m.Results) != 2 {
		t.Fatalf("then came %d with %d results", m.Id, len(m.Results))
	}
	if err := s.CloseSend(); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Recv(); !errors.Is(err, io.EOF) {
		t.Errorf("at the end: %v", err)
	}
}

// TestManySmallMessages: however they are gathered on the way, each gets its own answer.
func TestManySmallMessages(t *testing.T) {
	largest := 0
	c := &fakeCustody{}
	gate := make(chan struct{}, 1)
	c.before = func(_ context.Context, _ hierarchy.Principal, reqs []custody.Request) {
		gate <- struct{}{}
		largest = max(largest, len(reqs))
		<-gate
	}
	server := startKeys(t, c, nil)
	s := openStream(t, server.path)
	const n = 5000
	go func() {
		for i := range n {
			m := unwraps(1+i%3, fmt.Sprint(i))
			m.Id = uint64(i)
			if s.Send(m) != nil {
				return
			}
		}
		s.CloseSend()
	}()
	seen := make(map[uint64]bool)
	for range n {
		m := receive(t, s)
		if seen[m.Id] || len(m.Results) != 1+int(m.Id)%3 {
			t.Fatalf("answer %d, seen before: %v, with %d results", m.Id, seen[m.Id], len(m.Results))
		}
		seen[m.Id] = true
		for _, r := range m.Results {
			if got := string(r.GetUnwrap().GetPlaintext()); got != fmt.Sprint(m.Id) {
				t.Fatalf("answer %d is that of %s", m.Id, got)
			}
		}
	}
	if _, err := s.Recv(); !errors.Is(err, io.EOF) {
		t.Errorf("at the end: %v", err)
	}
	if largest < 2 || largest > custody.MaxBatch {
		t.Errorf("at most %d operations went together", largest)
	}
}

// TestBadMessageOnAStream: the stream goes on.
func TestBadMessageOnAStream(t *testing.T) {
	s := openStream(t, startKeys(t, &fakeCustody{}, nil).path)
	var got []string
	for i, n := range []int{0, custody.MaxBatch + 1, custody.MaxBatch} {
		send(t, s, uint64(i), n, "x")
		m := receive(t, s)
		if m.Id != uint64(i) {
			t.Fatalf("answer %d to %d", m.Id, i)
		}
		got = append(got, fmt.Sprintf("%s %d", m.Error.GetCode(), len(m.Results)))
	}
	if diff := cmp.Diff([]string{"INVALID_ARGUMENT 0", "INVALID_ARGUMENT 0", " 1024"}, got); diff != "" {
		t.Error(diff)
	}
}

// TestStreamIsBounded: over its limit the stream is not read from, and its sender waits.
func TestStreamIsBounded(t *testing.T) {
	const limit = 8
	// What is not read waits in flow control, which has room for some messages of this size.
	const padding = 60 << 10
	h := holding("slow")
	s := openStream(t, startKeys(t, h, func(l *socketapi.Limits) { l.MaxMessage, l.StreamBytes = 100<<10, limit*padding }).path)
	m := unwraps(1, "slow")
	m.Operations[0].GetUnwrap().Reason = string(make([]byte, padding))
	sent := make(chan struct{}, 1000)
	go func() {
		for range cap(sent) {
			if s.Send(m) != nil {
				return
			}
			sent <- struct{}{}
		}
	}()
	// It is stuck when nothing more was sent for a while.
	for last := -1; last != len(sent); {
		last = len(sent)
		select {
		case <-time.After(200 * time.Millisecond):
		case <-s.Context().Done():
			t.Fatal("the time is over, and it still sends")
		}
	}
	if n := len(sent); n < limit || n > 4*limit {
		t.Errorf("%d messages were sent", n)
	}
	close(h.release)
	for range cap(sent) {
		receive(t, s)
	}
}

// TestUnreadStream: who does not read its answers is cut off after a while, with what it holds
// given back.
func TestUnreadStream(t *testing.T) {
	server := startKeys(t, &fakeCustody{}, func(l *socketapi.Limits) {
		l.SendTimeout = time.Second
		l.OpsPerUID, l.StreamOps = custody.MaxBatch, custody.MaxBatch // one message holds it all
	})
	s := openStream(t, server.path)
	go func() {
		for i := range uint64(100_000) {
			m := dataKeys(custody.MaxBatch)
			m.Id = i
			if s.Send(m) != nil {
				return
			}
		}
	}()
	other, alone := dial(t, server.path), kekdv1.NewKeyServiceClient(raw(t, server.path))
	all := make([]client.Operation, custody.MaxBatch)
	for i := range all {
		all[i] = client.Operation{Op: hierarchy.OpUnwrap, Envelope: []byte("x")}
	}
	// For some time: between two messages that are still answered it holds nothing.
	eventually(t, "the stream holds its uid's whole allowance", func() bool {
		for from := time.Now(); time.Since(from) < 200*time.Millisecond; {
			if code(second(alone.Unwrap(soon(t), &kekdv1.UnwrapRequest{}))) != "RATE_LIMITED" {
				return false
			}
		}
		return true
	})
	eventually(t, "what it held is free again", func() bool { return second(other.Batch(soon(t), all)) == nil })
	// The reason waits behind the answers.
	err := error(nil)
	for err == nil {
		_, err = s.Recv()
	}
	if code(err) != "RATE_LIMITED" {
		t.Errorf("the stream ended with %v", err)
	}
}

func TestShutdown(t *testing.T) {
	h := holding("slow")
	server := startKeys(t, h, nil)
	server.SetServing(true)
	s := openStream(t, server.path)
	send(t, s, 1, 1, "slow")
	<-h.arrived
	watch, err := grpc_health_v1.NewHealthClient(raw(t, server.path)).Watch(soon(t), &grpc_health_v1.HealthCheckRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if m, err := watch.Recv(); err != nil || m.Status != grpc_health_v1.HealthCheckResponse_SERVING {
		t.Fatalf("health: %v, %v", m, err)
	}

	down := make(chan struct{})
	go func() {
		server.Shutdown(soon(t))
		close(down)
	}()
	if m, err := watch.Recv(); err != nil || m.Status != grpc_health_v1.HealthCheckResponse_NOT_SERVING {
		t.Errorf("health: %v, %v", m, err)
	}
	select {
	case <-down:
		t.Fatal("it did not wait for what is in flight")
	case <-time.After(50 * time.Millisecond):
	}
	close(h.release)
	if m := receive(t, s); m.Id != 1 || m.Error != nil {
		t.Errorf("what was in flight got %v", m)
	}
	if _, err := s.Recv(); status.Code(err) != codes.Unavailable || code(err) != "UNAVAILABLE" {
		t.Errorf("the stream ended with %v", err)
	}
	<-down
}

// TestShutdownIsBounded: custody does not come back, until its context ends.
func TestShutdownIsBounded(t *testing.T) {
	h := holding("slow")
	server := startKeys(t, h, nil)
	failed := make(chan error, 1)
	api := kekdv1.NewKeyServiceClient(raw(t, server.path))
	go func() { failed <- second(api.Unwrap(soon(t), &kekdv1.UnwrapRequest{Envelope: []byte("slow")})) }()
	<-h.arrived
	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	server.Shutdown(ctx)
	if err := <-failed; code(err) != "UNAVAILABLE" {
		t.Errorf("the call ended with %v", err)
	}
}

// TestAnswersHaveTheirTurn: a message is looked at for the last time when nothing is ahead of it
// any more, so its answer waits for no other one after that.
func TestAnswersHaveTheirTurn(t *testing.T) {
	entered, release := make(chan string, 2), make(chan struct{})
	arrived := make(chan string, 2)
	s := startKeys(t, &fakeCustody{
		before: func(_ context.Context, _ hierarchy.Principal, reqs []custody.Request) {
			arrived <- string(reqs[0].Envelope)
		},
		turn: func(reqs []custody.Request) {
			entered <- string(reqs[0].Envelope)
			if string(reqs[0].Envelope) == "first" {
				<-release
			}
		},
	}, nil)
	stream := openStream(t, s.path)
	send(t, stream, 1, 1, "first")
	<-arrived
	<-entered
	send(t, stream, 2, 1, "second")
	<-arrived
	select {
	case <-entered:
		t.Error("the second is past its last look while the first has not left")
	case <-time.After(50 * time.Millisecond):
	}
	close(release)
	if got := receive(t, stream).Id; got != 1 {
		t.Errorf("the first answer is of message %d", got)
	}
	if got := <-entered; got != "second" {
		t.Errorf("%s has the next turn", got)
	}
	if got := receive(t, stream).Id; got != 2 {
		t.Errorf("the second answer is of message %d", got)
	}
}

// TestEachMessageIsLookedAt: of messages that were served together, one that leaves after another is
// looked at again just before, and what is forbidden by then does not leave.
func TestEachMessageIsLookedAt(t *testing.T) {
	h := holding("held")
	looked := make(chan int, 10)
	h.look = func(resps []custody.Response) {
		looked <- len(resps)
		for i := range resps {
			resps[i] = custody.Response{Err: hierarchy.ErrTenantDisabled}
		}
	}
	stream := openStream(t, startKeys(t, h, nil).path)
	const runners = 4
	for i := range runners {
		send(t, stream, uint64(i), 1, "held")
		<-h.arrived
	}
	send(t, stream, 10, 1, "first")
	send(t, stream, 11, 3, "second")
	send(t, stream, 12, 0, "")
	if got := receive(t, stream); got.Id != 12 || got.Error == nil { // those before it are queued
		t.Fatalf("got %v", got)
	}
	close(h.release)
	for range runners + 2 {
		m := receive(t, stream)
		for _, r := range m.Results {
			if got, want := r.GetError().GetCode() == "TENANT_DISABLED", m.Id == 11; got != want {
				t.Errorf("message %d: %v", m.Id, r.GetError())
			}
		}
	}
	if n := <-looked; n != 3 || len(looked) > 0 {
		t.Errorf("looked at %d responses, and %d times more", n, len(looked))
	}
}
