package client

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/kekd/kekd/unix-socket-api/apierr"
	"github.com/kekd/kekd/unix-socket-api/kekdv1"
	"github.com/kekd/kekd/unix-socket-api/vtcodec"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/resolver"
	"google.golang.org/grpc/resolver/manual"
	"google.golang.org/grpc/status"
)

const (
	// maxReceive has room for 1,024 results with the largest data keys, 4 KiB each.
	maxReceive = 16 << 20
	// As on the daemon's side, windows are fixed: a Unix socket needs no estimate.
	streamWindow = 1 << 20
	connWindow   = 4 << 20
	// connectTimeout is how long a daemon may take to answer who connects. One that is short of time
	// lets callers who connect too often wait for half of it.
	connectTimeout = 5 * time.Second
)

// target is one socket, and what is known of it. gRPC keeps the connection, and lets go of one whose
// daemon drains once the last call on it is answered; but it is connected here, so that a call learns
// at once that nobody is there, and why, with nothing sent.
type target struct {
	path  string
	cc    *grpc.ClientConn
	api   kekdv1.KeyServiceClient // on this socket alone
	calls *coalescer

	connecting chan struct{} // of size 1: held by who connects
	offered    chan net.Conn // of size 1: what gRPC is to take for its next connection

	mu    sync.Mutex
	fails int          // one after the other
	aside atomic.Int64 // until when others are asked first, in nanoseconds since the process began
}

var began = time.Now()

func newTarget(path string) (*target, error) {
	t := &target{path: path, connecting: make(chan struct{}, 1), offered: make(chan net.Conn, 1)}
	r := manual.NewBuilderWithScheme("kekd")
	r.InitialState(resolver.State{Endpoints: []resolver.Endpoint{{Addresses: []resolver.Address{{Addr: path}}}}})
	var err error
	t.cc, err = grpc.NewClient("kekd:///",
		grpc.WithResolvers(r),
		grpc.WithContextDialer(t.take),
		grpc.WithTransportCredentials(insecure.NewCredentials()), // the kernel says who connects to whom
		grpc.WithAuthority("localhost"),
		grpc.WithDisableServiceConfig(),
		grpc.WithDefaultCallOptions(grpc.ForceCodecV2(vtcodec.Codec{}), grpc.MaxCallRecvMsgSize(maxReceive)),
		grpc.WithStaticStreamWindowSize(streamWindow),
		grpc.WithStaticConnWindowSize(connWindow),
		grpc.WithIdleTimeout(0), // a connection costs nothing; connecting again does
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: 50 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: time.Minute},
			MinConnectTimeout: connectTimeout,
		}),
	)
	if err != nil {
		return nil, err
	}
	t.api = kekdv1.NewKeyServiceClient(t)
	t.calls = newCoalescer(t.api)
	return t, nil
}

func (t *target) close() error {
	if t.calls != nil {
		t.calls.close()
	}
	err := t.cc.Close()
	t.withdraw()
	return err
}

// Invoke and NewStream make a target a connection for the generated clients.

func (t *target) Invoke(ctx context.Context, method string, args, reply any, opts ...grpc.CallOption) error {
	return t.connected(ctx, func() error { return t.cc.Invoke(ctx, method, args, reply, opts...) })
}

func (t *target) NewStream(ctx context.Context, desc *grpc.StreamDesc, method string, opts ...grpc.CallOption) (s grpc.ClientStream, err error) {
	err = t.connected(ctx, func() (err error) {
		s, err = t.cc.NewStream(ctx, desc, method, opts...)
		return err
	})
	if err != nil {
		return nil, err
	}
	return &decodedStream{s, t}, nil
}

// connected calls on a connection, and on a new one where the old one was lost unnoticed just before.
func (t *target) connected(ctx context.Context, call func() error) error {
	for range 2 {
		if err := t.connect(ctx); err != nil {
			return err
		}
		if err := call(); !unsent(err) {
			return apierr.FromStatus(err)
		}
	}
	return unreachable(t.path, errNoConnection)
}

type decodedStream struct {
	grpc.ClientStream
	target *target
}

func (s *decodedStream) RecvMsg(m any) error {
	err := s.ClientStream.RecvMsg(m)
	if err == nil || err == io.EOF {
		return err
	}
	return s.target.decode(err)
}

// decode gives the error of a call its form.
func (t *target) decode(err error) error {
	if unsent(err) {
		return unreachable(t.path, errNoConnection)
	}
	return apierr.FromStatus(err)
}

// unsent tells of a call whose connection was lost before it began: gRPC asks for another in vain, and
// says so in words only. No daemon has seen that call.
func unsent(err error) bool {
	return status.Code(err) == codes.Unavailable && strings.Contains(err.Error(), errNotOffered.Error())
}

// connect returns when there is a connection, or with an error: then nothing was sent.
func (t *target) connect(ctx context.Context) error {
	err := t.reach(ctx)
	switch {
	case err == nil:
		return nil
	case ctx.Err() != nil:
		return apierr.From(ctx.Err())
	}
	return unreachable(t.path, err)
}

// reach is connect, with the system's error, or errNoConnection.
func (t *target) reach(ctx context.Context) error {
	if t.cc.GetState() == connectivity.Ready {
		return nil
	}
	select {
	case t.connecting <- struct{}{}:
		defer func() { <-t.connecting }()
	case <-ctx.Done():
		return ctx.Err()
	}
	if t.cc.GetState() == connectivity.Ready {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, connectTimeout)
	defer cancel()
	c, err := new(net.Dialer).DialContext(ctx, "unix", t.path)
	if err != nil {
		return err
	}
	return t.establish(ctx, c)
}

// establishLook is how long gRPC may miss that it is to try again.
const establishLook = 20 * time.Millisecond

var (
	errNoConnection = errors.New("it takes no connection")
	errNotOffered   = errors.New("kekd's client has offered no connection")
)

// establish has gRPC take a connection, and waits until the daemon has answered on it.
func (t *target) establish(ctx context.Context, c net.Conn) error {
	ctx, broken := context.WithCancel(ctx)
	defer broken()
	t.offered <- &watchedConn{Conn: c, closed: broken}
	defer t.withdraw()
	for ctx.Err() == nil {
		state := t.cc.GetState()
		switch state {
		case connectivity.Ready:
			return nil
		case connectivity.Shutdown:
			return errNoConnection
		case connectivity.Idle:
			t.cc.Connect()
		case connectivity.TransientFailure:
			if len(t.offered) > 0 { // it has not tried again
				t.cc.ResetConnectBackoff()
			}
		}
		look, cancel := context.WithTimeout(ctx, establishLook)
		t.cc.WaitForStateChange(look, state)
		cancel()
	}
	if t.cc.GetState() == connectivity.Ready {
		return nil
	}
	return errNoConnection
}

// take is gRPC's dialer. What gRPC dials by itself finds nothing.
func (t *target) take(context.Context, string) (net.Conn, error) {
	select {
	case c := <-t.offered:
		return c, nil
	default:
		return nil, errNotOffered
	}
}

func (t *target) withdraw() {
	if c, err := t.take(context.Background(), ""); err == nil {
		c.Close()
	}
}

// watchedConn tells when it is closed.
type watchedConn struct {
	net.Conn
	closed func()
}

func (c *watchedConn) Close() error {
	c.closed()
	return c.Conn.Close()
}

// How long a target that has failed is asked after the others: at first the one, and twice as long
// each time, up to the other. Whoever is alone is asked at once.
const (
	firstAside = 250 * time.Millisecond
	maxAside   = 16 * time.Second
)

func (t *target) failed() {
	t.mu.Lock()
	defer t.mu.Unlock()
	now := time.Since(began)
	if now < time.Duration(t.aside.Load()) {
		return // one failure that many calls have met
	}
	t.aside.Store(int64(now + min(maxAside, firstAside<<min(t.fails, 16))))
	t.fails++
}

func (t *target) worked() {
	if t.aside.Load() == 0 || t.isAside() { // of a call that began before
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.fails = 0
	t.aside.Store(0)
}

func (t *target) isAside() bool {
	until := t.aside.Load()
	return until != 0 && time.Since(began) < time.Duration(until)
}

func unreachable(path string, cause error) error {
	hint := ""
	switch {
	case errors.Is(cause, fs.ErrNotExist):
		hint = "is kekd running? --socket, or $KEKD_SOCKET, says where its socket is ($KEKD_ADMIN_SOCKET for administration)"
	case errors.Is(cause, syscall.ECONNREFUSED):
		hint = "kekd is not running, and left its socket behind; start it"
	case errors.Is(cause, fs.ErrPermission):
		hint = "the socket's mode and group say who may open it; see `ls -l " + path + "`"
	default:
		hint = "its process may hang, or have as many connections as it allows: see its log, and try again"
	}
	return apierr.Unreachable(fmt.Sprintf("cannot reach kekd at %s: %v", path, root(cause)), hint)
}

// root is the system's own word for what happened, since the path is said already.
func root(err error) error {
	if errno, ok := errors.AsType[syscall.Errno](err); ok {
		return errno
	}
	if errors.Is(err, context.DeadlineExceeded) {
		return errNoConnection
	}
	return err
}
