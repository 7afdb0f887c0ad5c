package socketapi_test

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/kekd/kekd/hierarchy"
	"github.com/kekd/kekd/hierarchy/custody"
	socketapi "github.com/kekd/kekd/unix-socket-api"
	"github.com/kekd/kekd/unix-socket-api/client"
	"github.com/kekd/kekd/unix-socket-api/kekdv1"
	"google.golang.org/grpc"
)

// TestCallsPerUID: a uid at its limit is refused at once, and another is served.
func TestCallsPerUID(t *testing.T) {
	h := holding("slow")
	s := startKeys(t, h, func(l *socketapi.Limits) { l.CallsPerUID = 3 })
	api := kekdv1.NewKeyServiceClient(raw(t, s.path))
	ctx := soon(t)
	var calls sync.WaitGroup
	for range 3 {
		calls.Go(func() {
			if _, err := api.Unwrap(ctx, &kekdv1.UnwrapRequest{Envelope: []byte("slow")}); err != nil {
				t.Errorf("within the limit: %v", err)
			}
		})
		<-h.arrived
	}
	if _, err := api.Unwrap(ctx, &kekdv1.UnwrapRequest{}); code(err) != "RATE_LIMITED" {
		t.Errorf("over the limit: %v", err)
	}
	stream, err := api.Stream(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := stream.Recv(); code(err) != "RATE_LIMITED" {
		t.Errorf("a stream over the limit: %v", err)
	}
	if _, result := callAs(t, "unwrap", s.path, 54321, 54321); result != "OK" {
		t.Errorf("another uid: %s", result)
	}
	close(h.release)
	calls.Wait()
	if _, err := api.Unwrap(ctx, &kekdv1.UnwrapRequest{}); err != nil {
		t.Errorf("afterwards: %v", err)
	}
}

func TestCallsOfAll(t *testing.T) {
	h := holding("slow")
	s := startKeys(t, h, func(l *socketapi.Limits) { l.Calls, l.ReservedCalls = 1, 0 })
	api := kekdv1.NewKeyServiceClient(raw(t, s.path))
	ctx := soon(t)
	first := make(chan error, 1)
	go func() { first <- second(api.Unwrap(ctx, &kekdv1.UnwrapRequest{Envelope: []byte("slow")})) }()
	<-h.arrived
	if _, result := callAs(t, "unwrap", s.path, 54321, 54321); result != "CAPACITY" {
		t.Errorf("another uid: %s", result)
	}
	close(h.release)
	if err := <-first; err != nil {
		t.Error(err)
	}
}

// TestOpsPerUID: an allowance that is used up refuses a batch, and a stream waits.
func TestOpsPerUID(t *testing.T) {
	h := holding("slow")
	s := startKeys(t, h, func(l *socketapi.Limits) { l.OpsPerUID = custody.MaxBatch })
	conn := raw(t, s.path)
	first := make(chan error, 1)
	go func() {
		first <- second(kekdv1.NewKeyServiceClient(conn).Batch(soon(t), unwraps(custody.MaxBatch, "slow")))
	}()
	<-h.arrived

	api := kekdv1.NewKeyServiceClient(raw(t, s.path))
	if _, err := api.Batch(soon(t), unwraps(1, "x")); code(err) != "RATE_LIMITED" {
		t.Errorf("a batch: %v", err)
	}
	if _, err := api.Unwrap(soon(t), &kekdv1.UnwrapRequest{}); code(err) != "RATE_LIMITED" {
		t.Errorf("alone: %v", err)
	}
	// It is refused unread: once read, this would be an invalid argument.
	err := raw(t, s.path).Invoke(soon(t), kekdv1.KeyService_Unwrap_FullMethodName, []byte{0xff, 0xff, 0xff}, new([]byte), grpc.ForceCodecV2(garbage{}))
	if code(err) != "RATE_LIMITED" {
		t.Errorf("what cannot be read: %v", err)
	}
	stream := openStream(t, s.path)
	send(t, stream, 1, 1, "x")
	if _, result := callAs(t, "unwrap", s.path, 54321, 54321); result != "OK" {
		t.Errorf("another uid: %s", result)
	}

	close(h.release)
	if err := <-first; err != nil {
		t.Error(err)
	}
	send(t, stream, 2, custody.MaxBatch, "x")
	for id := range uint64(2) {
		if m := receive(t, stream); m.Id != id+1 || m.Error != nil {
			t.Errorf("afterwards: %v", m)
		}
	}
}

// aService is a uid that a service names; aStranger none does.
const aService, aStranger = 54321, 54322

func onlyAService(p hierarchy.Principal) bool { return p.UID == aService }

// TestStrangersLockNobodyOut: uids that no service names share what they may hold.
func TestStrangersLockNobodyOut(t *testing.T) {
	s := startKeys(t, &fakeCustody{}, func(l *socketapi.Limits) {
		l.StrangerConns, l.Known, l.HandshakeTimeout = 2, onlyAService, time.Minute
	})
	var open []net.Conn
	for range 3 { // this process is a stranger
		open = append(open, connect(t, s.path))
	}
	dead(t, open[2])
	for uid, want := range map[uint32]string{aService: "OK", aStranger: "UNAVAILABLE"} {
		if _, result := callAs(t, "unwrap", s.path, uid, uid); result != want {
			t.Errorf("uid %d: %s, want %s", uid, result, want)
		}
	}
	open[0].Close()
	eventually(t, "what strangers let go of others may have", func() bool {
		_, result := callAs(t, "unwrap", s.path, aStranger, aStranger)
		return result == "OK"
	})
}

// TestReservations: whatever others hold, a uid that a service names has some of its own.
func TestReservations(t *testing.T) {
	for _, test := range []struct {
		what    string
		limit   func(l *socketapi.Limits)
		refused string
	}{
		{"connections", func(l *socketapi.Limits) { l.Conns = 1 }, "UNAVAILABLE"},
		{"calls", func(l *socketapi.Limits) { l.Calls = 1 }, "CAPACITY"},
		{"operations", func(l *socketapi.Limits) { l.Ops = custody.MaxBatch }, "CAPACITY"},
	} {
		t.Run(test.what, func(t *testing.T) {
			h := holding("slow")
			s := startKeys(t, h, func(l *socketapi.Limits) {
				l.Known = onlyAService
				test.limit(l)
			})
			first := make(chan error, 1)
			conn := raw(t, s.path)
			go func() {
				first <- second(kekdv1.NewKeyServiceClient(conn).Batch(soon(t), unwraps(custody.MaxBatch, "slow")))
			}()
			<-h.arrived
			for uid, want := range map[uint32]string{aService: "OK", aStranger: test.refused} {
				if _, result := callAs(t, "unwrap", s.path, uid, uid); result != want {
					t.Errorf("uid %d: %s, want %s", uid, result, want)
				}
			}
			close(h.release)
			if err := <-first; err != nil {
				t.Error(err)
			}
		})
	}
}

// TestConnectingOften: who connects more often than he may is served, at the pace that he may.
func TestConnectingOften(t *testing.T) {
	const burst, perSecond, more = 8, 10, 5 // as many may be open, and the server learns a little later that one is closed
	s := startKeys(t, &fakeCustody{}, func(l *socketapi.Limits) { l.ConnsPerUID, l.ConnsPerSecond = burst, perSecond })
	start := time.Now()
	for i := range burst + more {
		c, err := client.Dial(s.path)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := c.Unwrap(soon(t), []byte("x"), client.Options{}); err != nil {
			t.Errorf("connection %d: %v", i, err)
		}
		c.Close()
	}
	if took, want := time.Since(start), more*time.Second/perSecond; took < want {
		t.Errorf("%d connections in %v, want %v", burst+more, took, want)
	}
}

// TestConnectingTooOften: who connects so often that he would have to wait for long is hung up on
// before that costs anything, and may again after a while.
func TestConnectingTooOften(t *testing.T) {
	const burst = 4
	s := startKeys(t, &fakeCustody{}, func(l *socketapi.Limits) {
		l.ConnsPerUID, l.ConnsPerSecond, l.HandshakeTimeout = burst, 1, 1900*time.Millisecond
	})
	for range burst {
		c := connect(t, s.path)
		if err := c.(*net.UnixConn).CloseWrite(); err != nil {
			t.Fatal(err)
		}
		dead(t, c) // on the other side too: it is no longer one of those that are open
	}
	dead(t, connect(t, s.path))
	if _, result := callAs(t, "unwrap", s.path, aStranger, aStranger); result != "OK" {
		t.Errorf("another uid: %s", result)
	}
	eventually(t, "it may connect again", func() bool {
		c, err := client.Dial(s.path)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		return second(c.Unwrap(soon(t), []byte("x"), client.Options{})) == nil
	})
}

// TestOneBatchAtATimeInCompany: while another uid calls, a flood of batches goes through one after
// the other, and once it is alone, side by side.
func TestOneBatchAtATimeInCompany(t *testing.T) {
	const batches = 4
	for _, test := range []struct {
		name    string
		company time.Duration
		atOnce  int
	}{{"in company", time.Hour, 1}, {"alone", time.Nanosecond, batches}} {
		t.Run(test.name, func(t *testing.T) {
			h := holding("slow")
			s := startKeys(t, h, func(l *socketapi.Limits) { l.Company = test.company })
			if _, result := callAs(t, "unwrap", s.path, aService, aService); result != "OK" {
				t.Fatalf("another uid: %s", result)
			}
			var calls sync.WaitGroup
			api := kekdv1.NewKeyServiceClient(raw(t, s.path))
			for range batches {
				calls.Go(func() {
					if _, err := api.Batch(soon(t), unwraps(custody.MaxBatch, "slow")); err != nil {
						t.Error(err)
					}
				})
			}
			for range test.atOnce {
				<-h.arrived
			}
			select {
			case <-h.arrived:
				t.Errorf("more than %d batches are under way", test.atOnce)
			case <-time.After(200 * time.Millisecond):
			}
			// Single operations are no flood.
			stream := openStream(t, s.path)
			send(t, stream, 1, 1, "x")
			if _, result := callAs(t, "unwrap", s.path, aService, aService); result != "OK" {
				t.Errorf("the other uid, meanwhile: %s", result)
			}
			close(h.release)
			calls.Wait()
			if m := receive(t, stream); m.Error != nil {
				t.Errorf("the flood's own single operation: %v", m)
			}
		})
	}
}

// TestUnreadAnswersOfAUID: what is not read on one connection is held against the next, and is
// forgotten when it closes.
func TestUnreadAnswersOfAUID(t *testing.T) {
	s := startKeys(t, &fakeCustody{}, func(l *socketapi.Limits) { l.UnsentPerUID = 1 << 20 })
	conn, err := grpc.NewClient("unix:"+s.path, grpc.WithTransportCredentials(insecureCredentials), grpc.WithStaticStreamWindowSize(64<<10))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	other := kekdv1.NewKeyServiceClient(raw(t, s.path))
	for range 8 { // half a MiB each, and read
		if _, err := other.Batch(soon(t), dataKeys(128)); err != nil {
			t.Fatal(err)
		}
	}
	for range 4 { // and not read
		st, err := conn.NewStream(t.Context(), &grpc.StreamDesc{ServerStreams: true}, kekdv1.KeyService_Batch_FullMethodName)
		if err != nil {
			t.Fatal(err)
		}
		if err := st.SendMsg(dataKeys(128)); err != nil {
			t.Fatal(err)
		}
		if err := st.CloseSend(); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, "its other connection is refused", func() bool {
		_, err := other.Unwrap(soon(t), &kekdv1.UnwrapRequest{})
		return code(err) == "RATE_LIMITED"
	})
	if _, result := callAs(t, "unwrap", s.path, aStranger, aStranger); result != "OK" {
		t.Errorf("another uid: %s", result)
	}
	conn.Close()
	eventually(t, "it is served again", func() bool { return second(other.Unwrap(soon(t), &kekdv1.UnwrapRequest{})) == nil })
}

func connect(t *testing.T, path string) net.Conn {
	t.Helper()
	c, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// TestReconnectingBuysNothing: operations that outlive their connection still count, also after
// so many others came that the daemon forgot who it could.
func TestReconnectingBuysNothing(t *testing.T) {
	arrived, release := make(chan struct{}, 1), make(chan struct{})
	s := startKeys(t, &fakeCustody{before: func(_ context.Context, _ hierarchy.Principal, reqs []custody.Request) {
		if string(reqs[0].Envelope) == "slow" { // and heeds no context
			arrived <- struct{}{}
			<-release
		}
	}}, func(l *socketapi.Limits) { l.OpsPerUID, l.Conns = custody.MaxBatch, 4 })
	defer close(release)
	conn := raw(t, s.path)
	go kekdv1.NewKeyServiceClient(conn).Batch(soon(t), unwraps(custody.MaxBatch, "slow"))
	<-arrived
	conn.Close()
	for uid := range uint32(6) {
		if _, result := callAs(t, "unwrap", s.path, 54321+uid, 54321); result != "OK" {
			t.Errorf("another uid: %s", result)
		}
	}
	if _, err := kekdv1.NewKeyServiceClient(raw(t, s.path)).Unwrap(soon(t), &kekdv1.UnwrapRequest{}); code(err) != "RATE_LIMITED" {
		t.Errorf("connected again: %v", err)
	}
}

// dead waits until the server has closed a connection.
func dead(t *testing.T, c net.Conn) {
	t.Helper()
	c.SetReadDeadline(time.Now().Add(10 * time.Second))
	if _, err := io.Copy(io.Discard, c); errors.Is(err, os.ErrDeadlineExceeded) {
		t.Error("the connection is still open")
	}
}

// TestConnsPerUID: connections over the limit are closed at once, and those of others are taken.
func TestConnsPerUID(t *testing.T) {
	s := startKeys(t, &fakeCustody{}, func(l *socketapi.Limits) { l.ConnsPerUID = 2; l.HandshakeTimeout = time.Minute })
	var open []net.Conn
	for range 3 {
		c, err := net.Dial("unix", s.path)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		open = append(open, c)
	}
	dead(t, open[2])
	if _, result := callAs(t, "unwrap", s.path, 54321, 54321); result != "OK" {
		t.Errorf("another uid: %s", result)
	}
	open[0].Close()
	eventually(t, "there is room again", func() bool {
		c, err := client.Dial(s.path)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		_, err = c.Unwrap(soon(t), []byte("x"), client.Options{})
		return err == nil
	})
}

// TestHalfOpenConnections: who says nothing is hung up on, and holds up nobody meanwhile.
func TestHalfOpenConnections(t *testing.T) {
	s := startKeys(t, &fakeCustody{}, func(l *socketapi.Limits) { l.HandshakeTimeout = 300 * time.Millisecond })
	var open []net.Conn
	for range 200 {
		c, err := net.Dial("unix", s.path)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		open = append(open, c)
	}
	for i := range 100 { // half of them begin, and do not go on
		open[i].Write([]byte("PRI * HTTP/2.0\r\n"))
	}
	c := dial(t, s.path)
	for range 100 {
		if _, err := c.Unwrap(soon(t), []byte("x"), client.Options{}); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range open {
		dead(t, c)
	}
	if _, err := c.Unwrap(soon(t), []byte("x"), client.Options{}); err != nil {
		t.Errorf("the one that speaks: %v", err)
	}
}

// TestUnreadAnswers: unary calls whose answers are not read do not fill the daemon's memory. The
// connection is refused further calls, and is closed in the end.
func TestUnreadAnswers(t *testing.T) {
	s := startKeys(t, &fakeCustody{}, func(l *socketapi.Limits) { l.Unsent, l.SendTimeout = 1<<20, time.Second })
	conn, err := grpc.NewClient("unix:"+s.path, grpc.WithTransportCredentials(insecureCredentials), grpc.WithStaticStreamWindowSize(64<<10))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	// Batch, without ever receiving: each leaves half a MiB behind, of which the window has room
	// for an eighth.
	unread := func() grpc.ClientStream {
		st, err := conn.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true}, kekdv1.KeyService_Batch_FullMethodName)
		if err != nil {
			t.Fatal(err)
		}
		if err := st.SendMsg(dataKeys(128)); err != nil {
			t.Fatal(err)
		}
		st.CloseSend()
		return st
	}
	for range 4 {
		unread()
	}
	api := kekdv1.NewKeyServiceClient(conn)
	var last string
	eventually(t, "calls are refused", func() bool {
		_, err := api.Unwrap(soon(t), &kekdv1.UnwrapRequest{})
		last = code(err)
		return last == "RATE_LIMITED"
	})
	eventually(t, "the connection is closed", func() bool {
		_, err := api.Unwrap(soon(t), &kekdv1.UnwrapRequest{})
		return code(err) == "UNAVAILABLE" || err == nil // a new connection is a new start
	})
	if _, err := dial(t, s.path).Unwrap(soon(t), []byte("x"), client.Options{}); err != nil {
		t.Errorf("another connection: %v", err)
	}
}
