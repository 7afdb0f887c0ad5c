package socketapi_test

import (
	"bufio"
	"bytes"
	"context"
	"io"
	"testing"
	"time"

	"github.com/kekd/kekd/hierarchy"
	"github.com/kekd/kekd/hierarchy/custody"
	socketapi "github.com/kekd/kekd/unix-socket-api"
	"github.com/kekd/kekd/unix-socket-api/kekdv1"
	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// TestGivenUpCalls: who opens calls only to give them up is not read for a while; others are.
func TestGivenUpCalls(t *testing.T) {
	s := startKeys(t, &fakeCustody{}, func(l *socketapi.Limits) { l.GivenUpPerSecond = 100 })
	c := connect(t, s.path)
	w := bufio.NewWriter(c)
	io.WriteString(w, http2.ClientPreface)
	f := http2.NewFramer(w, c)
	f.WriteSettings()

	ping := func() time.Duration {
		start := time.Now()
		c.SetDeadline(start.Add(20 * time.Second))
		f.WritePing(false, [8]byte{})
		w.Flush()
		for {
			got, err := f.ReadFrame()
			if err != nil {
				t.Fatal(err)
			}
			if p, ok := got.(*http2.PingFrame); ok && p.IsAck() {
				return time.Since(start)
			}
		}
	}
	var block bytes.Buffer
	headers := hpack.NewEncoder(&block)
	const calls = 400 // three seconds more than a second's worth
	for i := range calls {
		block.Reset()
		for _, h := range [][2]string{
			{":method", "POST"}, {":scheme", "http"}, {":path", kekdv1.KeyService_Stream_FullMethodName},
			{":authority", "localhost"}, {"content-type", "application/grpc"}, {"te", "trailers"},
		} {
			headers.WriteField(hpack.HeaderField{Name: h[0], Value: h[1]})
		}
		id := uint32(2*i + 1)
		f.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: block.Bytes(), EndHeaders: true})
		f.WriteRSTStream(id, http2.ErrCodeCancel)
	}
	longest := ping()
	for range 100 { // the calls end a little after they were read
		if longest = max(longest, ping()); longest > time.Second {
			break
		}
	}
	if longest < time.Second {
		t.Errorf("after %d calls that were given up, the connection was read within %v", calls, longest)
	}
	if _, result := callAs(t, "unwrap", s.path, aStranger, aStranger); result != "OK" {
		t.Errorf("another uid: %s", result)
	}
}

// TestCancellingNowAndThen: calls that end without an answer are a part of life.
func TestCancellingNowAndThen(t *testing.T) {
	s := startKeys(t, holding("held"), nil)
	conn := kekdv1.NewKeyServiceClient(raw(t, s.path))
	for range 200 {
		ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
		if _, err := conn.Unwrap(ctx, &kekdv1.UnwrapRequest{Envelope: []byte("held")}); err == nil {
			t.Error("a call that should not end has")
		}
		cancel()
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	if _, err := conn.Unwrap(ctx, &kekdv1.UnwrapRequest{Envelope: []byte("free")}); err != nil {
		t.Error(err)
	}
}

// TestStrangersCalls: uids that no service names get few calls, and the others all theirs.
func TestStrangersCalls(t *testing.T) {
	for name, change := range map[string]func(*socketapi.Limits){
		"of one uid": func(l *socketapi.Limits) { l.StrangerCallsPerUID = 2 },
		"of all":     func(l *socketapi.Limits) { l.StrangerCalls = 2 },
	} {
		t.Run(name, func(t *testing.T) {
			h := holding("held")
			s := startKeys(t, h, func(l *socketapi.Limits) { l.Known = onlyAService; change(l) })
			conn := kekdv1.NewKeyServiceClient(raw(t, s.path)) // this process is a stranger
			ended := make(chan error, 2)
			for range 2 {
				go func() {
					_, err := conn.Unwrap(soon(t), &kekdv1.UnwrapRequest{Envelope: []byte("held")})
					ended <- err
				}()
				<-h.arrived
			}
			if _, err := conn.Unwrap(soon(t), &kekdv1.UnwrapRequest{}); code(err) != "RATE_LIMITED" {
				t.Errorf("a third call: %v", err)
			}
			if _, result := callAs(t, "unwrap", s.path, aService, aService); result != "OK" {
				t.Errorf("a service: %s", result)
			}
			close(h.release)
			for range 2 {
				if err := <-ended; err != nil {
					t.Error(err)
				}
			}
			eventually(t, "the calls that ended make room", func() bool {
				_, err := conn.Unwrap(soon(t), &kekdv1.UnwrapRequest{})
				return err == nil
			})
		})
	}
}

// TestBytesPerUID: over what a uid may have in flight its calls are refused, and its streams wait.
func TestBytesPerUID(t *testing.T) {
	arrived, release := make(chan string, 10), make(chan struct{})
	s := startKeys(t, &fakeCustody{before: func(_ context.Context, _ hierarchy.Principal, reqs []custody.Request) {
		arrived <- string(reqs[0].Envelope[:1])
		<-release
	}}, func(l *socketapi.Limits) { l.BytesPerUID = 1 << 20 })
	stop := func() { close(release) }
	defer func() { stop() }()
	conn := kekdv1.NewKeyServiceClient(raw(t, s.path))
	large := func(name string) *kekdv1.BatchRequest { return unwraps(1, name+string(make([]byte, 600<<10))) }

	ended := make(chan error, 1)
	go func() { _, err := conn.Batch(soon(t), large("1")); ended <- err }()
	<-arrived
	if _, err := conn.Batch(soon(t), large("2")); code(err) != "RATE_LIMITED" {
		t.Errorf("a second call: %v", err)
	}
	stream := openStream(t, s.path)
	if err := stream.Send(large("3")); err != nil {
		t.Fatal(err)
	}
	select {
	case name := <-arrived:
		t.Errorf("%s is served while the uid has too much in flight", name)
	case <-time.After(100 * time.Millisecond):
	}
	stop()
	stop = func() {}
	if err := <-ended; err != nil {
		t.Error(err)
	}
	if got := receive(t, stream); len(got.Results) != 1 || got.Error != nil {
		t.Error("the stream has not had its turn")
	}
	if _, err := conn.Batch(soon(t), large("4")); err != nil {
		eventually(t, "what was answered makes room", func() bool {
			_, err := conn.Batch(soon(t), large("5"))
			return err == nil
		})
	}
}
