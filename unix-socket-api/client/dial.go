package client

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/kekd/kekd/unix-socket-api/apierr"
	"github.com/kekd/kekd/unix-socket-api/kekdv1"
	"github.com/kekd/kekd/unix-socket-api/vtcodec"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/resolver"
	"google.golang.org/grpc/resolver/manual"
	"google.golang.org/grpc/status"
)

// Where the sockets are, unless something else is said.
const (
	DefaultSocket      = "/run/kekd/kekd.sock"
	DefaultAdminSocket = "/run/kekd/admin.sock"
)

// DialKeys is the generated client of kekd.sock. The sockets are as for [Dial].
func DialKeys(sockets ...string) (kekdv1.KeyServiceClient, io.Closer, error) {
	conn, err := dial(keySockets(sockets))
	if err != nil {
		return nil, nil, err
	}
	return kekdv1.NewKeyServiceClient(conn), conn, nil
}

// DialAdmin is the generated client of admin.sock. Without a socket it takes $KEKD_ADMIN_SOCKET, or
// else [DefaultAdminSocket].
func DialAdmin(sockets ...string) (kekdv1.AdminServiceClient, io.Closer, error) {
	conn, err := dial(adminSockets(sockets))
	if err != nil {
		return nil, nil, err
	}
	return kekdv1.NewAdminServiceClient(conn), conn, nil
}

func keySockets(sockets []string) []string { return paths(sockets, "KEKD_SOCKET", DefaultSocket) }

func adminSockets(sockets []string) []string {
	return paths(sockets, "KEKD_ADMIN_SOCKET", DefaultAdminSocket)
}

// paths are those that were given, each alone or in a list with commas; without any, those of the
// environment, or else the usual one.
func paths(sockets []string, env, usual string) []string {
	if list := split(sockets...); len(list) > 0 {
		return list
	}
	if list := split(os.Getenv(env)); len(list) > 0 {
		return list
	}
	return []string{usual}
}

func split(lists ...string) (paths []string) {
	for _, list := range lists {
		for path := range strings.SplitSeq(list, ",") {
			if path = strings.TrimSpace(path); path != "" && !slices.Contains(paths, path) {
				paths = append(paths, path)
			}
		}
	}
	return paths
}

const (
	// maxReceive has room for 1,024 results with the largest data keys, 4 KiB each.
	maxReceive = 16 << 20
	// As on the daemon's side, windows are fixed: a Unix socket needs no estimate.
	streamWindow = 1 << 20
	connWindow   = 4 << 20
)

// dial makes a connection that is opened at the first call, to the first of the sockets that
// takes it, and is opened again when it breaks.
func dial(sockets []string) (*grpc.ClientConn, error) {
	d := &dialer{failed: make(map[string]error)}
	r := manual.NewBuilderWithScheme("kekd")
	var state resolver.State
	for _, path := range sockets {
		state.Endpoints = append(state.Endpoints, resolver.Endpoint{Addresses: []resolver.Address{{Addr: path}}})
	}
	r.InitialState(state)
	return grpc.NewClient("kekd:///",
		grpc.WithResolvers(r),
		grpc.WithContextDialer(d.dial),
		grpc.WithTransportCredentials(insecure.NewCredentials()), // the kernel says who connects to whom
		grpc.WithAuthority("localhost"),
		grpc.WithDisableServiceConfig(),
		grpc.WithDefaultCallOptions(grpc.ForceCodecV2(vtcodec.Codec{}), grpc.MaxCallRecvMsgSize(maxReceive)),
		grpc.WithStaticStreamWindowSize(streamWindow),
		grpc.WithStaticConnWindowSize(connWindow),
		// A daemon that is started again is back within a second; gRPC's own pace is for networks.
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: 50 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: time.Second},
			MinConnectTimeout: 5 * time.Second,
		}),
		grpc.WithUnaryInterceptor(d.interceptUnary),
		grpc.WithStreamInterceptor(d.interceptStream),
	)
}

// dialer remembers why sockets could not be reached, which gRPC tells in words only.
type dialer struct {
	mu     sync.Mutex
	failed map[string]error // by path, until it is reached
	last   string           // the path that failed last
}

func (d *dialer) dial(ctx context.Context, path string) (net.Conn, error) {
	c, err := new(net.Dialer).DialContext(ctx, "unix", path)
	d.mu.Lock()
	defer d.mu.Unlock()
	if err != nil {
		d.failed[path], d.last = err, path
		return nil, err
	}
	clear(d.failed)
	return c, nil
}

// decode gives the error of a call its form, and says which socket could not be reached, and
// why, if that is what it was.
func (d *dialer) decode(err error) error {
	if err == nil {
		return nil
	}
	decoded := apierr.FromStatus(err)
	if status.Code(err) != codes.Unavailable {
		return decoded
	}
	e, ok := errors.AsType[*Error](decoded)
	if !ok || e.Code != apierr.CodeUnavailable {
		return decoded
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if cause := d.failed[d.last]; cause != nil {
		return unreachable(d.last, cause)
	}
	return decoded
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
	}
	return apierr.Unreachable(fmt.Sprintf("cannot reach kekd at %s: %v", path, root(cause)), hint)
}

// root is the system's own word for what happened, since the path is said already.
func root(err error) error {
	if errno, ok := errors.AsType[syscall.Errno](err); ok {
		return errno
	}
	return err
}

func (d *dialer) interceptUnary(ctx context.Context, method string, req, reply any, cc *grpc.ClientConn, invoke grpc.UnaryInvoker, opts ...grpc.CallOption) error {
	return d.decode(invoke(ctx, method, req, reply, cc, opts...))
}

func (d *dialer) interceptStream(ctx context.Context, desc *grpc.StreamDesc, cc *grpc.ClientConn, method string, open grpc.Streamer, opts ...grpc.CallOption) (grpc.ClientStream, error) {
	s, err := open(ctx, desc, cc, method, opts...)
	if err != nil {
		return nil, d.decode(err)
	}
	return &decodedStream{s, d}, nil
}

type decodedStream struct {
	grpc.ClientStream
	dialer *dialer
}

func (s *decodedStream) RecvMsg(m any) error {
	err := s.ClientStream.RecvMsg(m)
	if err == nil || err == io.EOF {
		return err
	}
	return s.dialer.decode(err)
}
