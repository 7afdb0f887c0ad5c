package socketapi_test

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/kekd/kekd/hierarchy"
	"github.com/kekd/kekd/hierarchy/custody"
	socketapi "github.com/kekd/kekd/unix-socket-api"
	"github.com/kekd/kekd/unix-socket-api/client"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
)

func TestMain(m *testing.M) {
	if call := os.Getenv(childCall); call != "" {
		os.Exit(child(call))
	}
	os.Exit(m.Run())
}

// fakeCustody echoes: a wrap's envelope is its plaintext, an unwrap's plaintext its envelope.
// A test may do something else first.
type fakeCustody struct {
	before func(ctx context.Context, who hierarchy.Principal, reqs []custody.Request)
	after  func(reqs []custody.Request, resps []custody.Response)
	turn   func(reqs []custody.Request) // has the turn
	look   func(resps []custody.Response)
}

func (f *fakeCustody) DoInTurn(ctx context.Context, who hierarchy.Principal, reqs []custody.Request, resps []custody.Response, turn sync.Locker) func(ctx context.Context, from, to int) {
	f.Do(ctx, who, reqs, resps)
	turn.Lock()
	if f.turn != nil {
		f.turn(reqs)
	}
	return func(_ context.Context, from, to int) {
		if f.look != nil {
			f.look(resps[from:to])
		}
	}
}

func (f *fakeCustody) Do(ctx context.Context, who hierarchy.Principal, reqs []custody.Request, resps []custody.Response) {
	if f.before != nil {
		f.before(ctx, who, reqs)
	}
	for i, r := range reqs {
		resps[i] = echo(r)
		if err := ctx.Err(); err != nil {
			resps[i] = custody.Response{Err: err}
		}
	}
	if f.after != nil {
		f.after(reqs, resps)
	}
}

func echo(r custody.Request) custody.Response {
	resp := custody.Response{Key: hierarchy.KeyName{Tenant: "acme", Key: "orders"}, Version: 3}
	switch r.Op {
	case hierarchy.OpWrap:
		resp.Envelope = bytes.Clone(r.Plaintext)
	case hierarchy.OpUnwrap:
		resp.Plaintext, resp.NeedsRewrap = bytes.Clone(r.Envelope), true
	case hierarchy.OpDataKey:
		resp.Envelope, resp.Plaintext = []byte("sealed"), bytes.Repeat([]byte{7}, r.Bytes)
	case hierarchy.OpRewrap:
		resp.Envelope = append([]byte("again:"), r.Envelope...)
	default:
		return custody.Response{Err: hierarchy.ErrInvalidArgument}
	}
	return resp
}

// socketDir is a short path that other users reach: that of a test may be longer than a socket's
// may be.
func socketDir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "kekd")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	return dir
}

// logs is a log that can be read while it is written.
type logs struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (l *logs) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(b)
}

func (l *logs) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.String()
}

type running struct {
	*socketapi.Server
	path string
	log  *logs
}

// serve runs a server until the test ends.
func serve(t testing.TB, s *socketapi.Server, log *logs) *running {
	t.Helper()
	path := filepath.Join(socketDir(t), "kekd.sock")
	l, err := socketapi.Listen(path, 0o666, -1)
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- s.Serve(l) }()
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
		defer cancel()
		s.Shutdown(ctx)
		if err := <-served; err != nil {
			t.Errorf("Serve: %v", err)
		}
		if _, err := os.Lstat(path); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("the socket is left behind: %v", err)
		}
	})
	return &running{s, path, log}
}

func startKeys(t testing.TB, c socketapi.Custody, change func(*socketapi.Limits)) *running {
	t.Helper()
	limits := socketapi.DefaultLimits()
	if change != nil {
		change(&limits)
	}
	log := new(logs)
	s, err := socketapi.NewKeyServer(c, limits, slog.New(slog.NewTextHandler(log, nil)))
	if err != nil {
		t.Fatal(err)
	}
	return serve(t, s, log)
}

// raw is a connection of plain gRPC, as another language's client would have.
func raw(t testing.TB, path string) *grpc.ClientConn {
	t.Helper()
	c, err := grpc.NewClient("unix:"+path, grpc.WithTransportCredentials(insecureCredentials),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(8<<20)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

var insecureCredentials = insecure.NewCredentials()

func dial(t testing.TB, path string) *client.Client {
	t.Helper()
	c, err := client.Dial(path)
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

// eventually waits for a condition that another goroutine brings about.
func eventually(t testing.TB, what string, f func() bool) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); !f(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not within 10 s: %s", what)
		}
	}
}

func code(err error) string {
	if err == nil {
		return "OK"
	}
	if e, ok := errors.AsType[*client.Error](client.FromError(err)); ok {
		return e.Code
	}
	return "?"
}
