package main

import (
	"context"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/kekd/kekd/unix-socket-api/apierr"
	"github.com/kekd/kekd/unix-socket-api/kekdv1"
)

// fakeDaemon answers as kekd does, out of maps, and does on command what kekd cannot be brought to: lose
// an answer, give none, or give one that makes no sense. That it answers as kekd does is held by the
// scripts in testdata/daemon, which both have to pass.
type fakeDaemon struct {
	socket, adminSocket string
	metricsSocket       string // kekd has them on the admin socket; a fake has them alone
	servers             []*grpc.Server

	mu     sync.Mutex
	conns  map[net.Conn]struct{}
	faults map[string]fakeFault // by method, for its next call

	hanging chan struct{} // gets one for each call that began to hang

	*fakeHierarchy
}

// fakeFault replaces, or follows, one call.
type fakeFault struct {
	kind string // see fakeCommand
	code string
}

func startFake(t testing.TB) *fakeDaemon {
	t.Helper()
	// Not t.TempDir: the path of a socket has at most 107 bytes.
	dir, err := os.MkdirTemp("", "kekctl")
	if err != nil {
		t.Fatal(err)
	}
	f := &fakeDaemon{
		socket:        filepath.Join(dir, "k"),
		adminSocket:   filepath.Join(dir, "a"),
		metricsSocket: filepath.Join(dir, "m"),
		conns:         make(map[net.Conn]struct{}),
		faults:        make(map[string]fakeFault),
		hanging:       make(chan struct{}, 16),
		fakeHierarchy: newFakeHierarchy(),
	}
	keys, admin := f.server(), f.server()
	kekdv1.RegisterKeyServiceServer(keys, &fakeKeys{h: f.fakeHierarchy})
	kekdv1.RegisterAdminServiceServer(admin, &fakeAdmin{h: f.fakeHierarchy})
	f.serve(t, keys, f.socket)
	f.serve(t, admin, f.adminSocket)
	f.serveMetrics(t)
	t.Cleanup(func() {
		f.stop()
		os.RemoveAll(dir)
	})
	return f
}

func (f *fakeDaemon) server() *grpc.Server {
	s := grpc.NewServer(grpc.UnaryInterceptor(f.unary), grpc.StreamInterceptor(f.stream))
	f.servers = append(f.servers, s)
	return s
}

func (f *fakeDaemon) serve(t testing.TB, s *grpc.Server, path string) {
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	go s.Serve(&countingListener{l, f})
}

func (f *fakeDaemon) serveMetrics(t testing.TB) {
	l, err := net.Listen("unix", f.metricsSocket)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go http.Serve(l, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		switch f.take("/metrics").kind {
		case "fail":
			http.Error(w, "no", http.StatusForbidden)
		case "blank":
			http.NotFound(w, nil)
		default:
			io.WriteString(w, "# TYPE kekd_unwrap_total counter\nkekd_unwrap_total 7\n")
		}
	}))
}

func (f *fakeDaemon) stop() {
	for _, s := range f.servers {
		s.Stop()
	}
}

// countingListener knows its connections, so that they can be cut.
type countingListener struct {
	net.Listener
	f *fakeDaemon
}

func (l *countingListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err == nil {
		l.f.mu.Lock()
		l.f.conns[c] = struct{}{}
		l.f.mu.Unlock()
	}
	return c, err
}

func (f *fakeDaemon) cut() {
	f.mu.Lock()
	defer f.mu.Unlock()
	for c := range f.conns {
		c.Close()
	}
	clear(f.conns)
}

func (f *fakeDaemon) inject(method string, fault fakeFault) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.faults[method] = fault
}

func (f *fakeDaemon) take(fullMethod string) fakeFault {
	f.mu.Lock()
	defer f.mu.Unlock()
	method := filepath.Base(fullMethod)
	fault := f.faults[method]
	if fault.kind != "losing" {
		delete(f.faults, method)
	}
	return fault
}

// waitHanging waits for the next call that hangs.
func (f *fakeDaemon) waitHanging(ts *testscript.TestScript) {
	select {
	case <-f.hanging:
	case <-time.After(10 * time.Second):
		ts.Fatalf("no call hangs")
	}
}

// before does what stands instead of a call.
func (f *fakeDaemon) before(ctx context.Context, fault fakeFault) error {
	switch fault.kind {
	case "fail":
		return apierr.FromProto(&kekdv1.Error{Code: fault.code, Message: "as the script has it", Hint: "do as the script says"})
	case "grpc":
		var c codes.Code
		if err := c.UnmarshalJSON([]byte(`"` + fault.code + `"`)); err != nil {
			return err
		}
		return status.Error(c, "not in the daemon's words")
	case "hang":
		f.hanging <- struct{}{}
		<-ctx.Done()
		return ctx.Err()
	}
	return nil
}

func (f *fakeDaemon) unary(ctx context.Context, req any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
	fault := f.take(info.FullMethod)
	if err := f.before(ctx, fault); err != nil {
		return nil, err
	}
	resp, err := handler(ctx, req)
	switch fault.kind {
	case "lose", "losing":
		f.cut()
	case "blank":
		proto.Reset(resp.(proto.Message))
	case "ail":
		resp.(*kekdv1.DoctorResponse).Checks[0].Status = fault.code
	case "short":
		m := resp.(*kekdv1.GenerateDataKeyResponse)
		m.Plaintext = m.Plaintext[:len(m.Plaintext)-1]
	}
	if err != nil {
		return nil, apierr.From(err)
	}
	return resp, nil
}

func (f *fakeDaemon) stream(srv any, ss grpc.ServerStream, info *grpc.StreamServerInfo, handler grpc.StreamHandler) error {
	fault := f.take(info.FullMethod)
	if err := f.before(ss.Context(), fault); err != nil {
		return err
	}
	switch fault.kind {
	case "slow":
		ss = slowStream{ss}
	case "spoil":
		ss = spoiledStream{ss}
	}
	if err := handler(srv, ss); err != nil {
		return apierr.From(err)
	}
	if fault.kind == "lose" {
		f.cut()
	}
	return nil
}

// slowStream takes its time for each message.
type slowStream struct{ grpc.ServerStream }

func (s slowStream) SendMsg(m any) error {
	time.Sleep(400 * time.Millisecond)
	return s.ServerStream.SendMsg(m)
}
