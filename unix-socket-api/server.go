package socketapi

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"runtime"
	"runtime/debug"
	"sync"
	"time"

	"github.com/kekd/kekd/unix-socket-api/apierr"
	"github.com/kekd/kekd/unix-socket-api/kekdv1"
	"github.com/kekd/kekd/unix-socket-api/vtcodec"
	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/reflection"
	"google.golang.org/grpc/status"
)

// Server serves one socket. It starts as NOT_SERVING in gRPC's health service.
type Server struct {
	grpc   *grpc.Server
	http   *http.Server // what speaks HTTP/1.1 on the same socket; nil: nothing does
	gate   *gate
	health *health.Server
	log    *slog.Logger
	// authorise, if set, is asked before the calls that the interceptors see.
	authorise func(ctx context.Context, c *conn, method string) error
	stopping  context.Context // done: no new work
	stop      context.CancelFunc
}

// Window sizes of flow control, in bytes. They are fixed: gRPC's estimate of what a link
// carries costs a ping for each burst, and a Unix socket needs no estimate. What one stream may
// leave unread is the window and one message more.
const (
	streamWindow = 256 << 10
	connWindow   = 4 << 20
)

// Goroutines that wait for calls. More are started when they are all busy; those that there
// are have grown their stacks already.
const workers = 128

func newServer(l Limits, log *slog.Logger) (*Server, error) {
	if err := l.validate(); err != nil {
		return nil, err
	}
	s := &Server{gate: newGate(l), health: health.NewServer(), log: log}
	s.stopping, s.stop = context.WithCancel(context.Background())
	s.grpc = grpc.NewServer(
		grpc.Creds(peerCredentials{}),
		grpc.ForceServerCodecV2(vtcodec.Codec{}),
		grpc.UnaryInterceptor(s.interceptUnary),
		grpc.StreamInterceptor(s.interceptStream),
		grpc.MaxConcurrentStreams(l.StreamsPerConn),
		grpc.MaxRecvMsgSize(l.MaxMessage),
		grpc.MaxHeaderListSize(16<<10),
		grpc.ConnectionTimeout(l.HandshakeTimeout),
		grpc.NumStreamWorkers(workers),
		grpc.StaticStreamWindowSize(streamWindow),
		grpc.StaticConnWindowSize(connWindow),
		grpc.KeepaliveParams(keepalive.ServerParameters{Time: time.Minute, Timeout: 20 * time.Second}),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: 10 * time.Second, PermitWithoutStream: true}),
	)
	s.health.SetServingStatus("", grpc_health_v1.HealthCheckResponse_NOT_SERVING)
	grpc_health_v1.RegisterHealthServer(s.grpc, s.health)
	return s, nil
}

// Serve takes connections from a Unix socket until [Server.Shutdown], and is nil then.
func (s *Server) Serve(l net.Listener) error {
	reflection.Register(s.grpc)
	l = &guarded{Listener: l, gate: s.gate, log: s.log}
	if s.http != nil {
		split := newSplit(l, s.gate.limits.HandshakeTimeout)
		go s.http.Serve(split.http1) // until the listener is closed
		l = split.http2
	}
	err := s.grpc.Serve(l)
	if s.stopping.Err() != nil || errors.Is(err, grpc.ErrServerStopped) {
		return nil
	}
	return err
}

// SetServing says in the health service whether this node serves: a balancer's question. It
// refuses nothing by itself.
func (s *Server) SetServing(yes bool) {
	status := grpc_health_v1.HealthCheckResponse_NOT_SERVING
	if yes {
		status = grpc_health_v1.HealthCheckResponse_SERVING
	}
	s.health.SetServingStatus("", status)
}

// Shutdown takes no more work and waits for what is in flight. With a quarter of the context's time
// left it breaks off the rest. It returns when the context ends at the latest; the error says that
// calls still run then.
func (s *Server) Shutdown(ctx context.Context) error {
	s.health.Shutdown() // balancers look elsewhere first
	s.stop()            // streams answer what they have, and end
	done := make(chan struct{})
	go func() {
		defer close(done)
		var both sync.WaitGroup
		if s.http != nil {
			both.Go(func() { s.http.Shutdown(ctx) })
		}
		s.grpc.GracefulStop() // no new calls; waits for those that run, also after a Stop
		both.Wait()
	}()
	patience, cancel := ctx, context.CancelFunc(func() {})
	if end, ok := ctx.Deadline(); ok {
		patience, cancel = context.WithDeadline(ctx, end.Add(-time.Until(end)/4))
	}
	defer cancel()
	select {
	case <-done:
		return nil
	case <-patience.Done():
		go s.grpc.Stop() // cancels them
		if s.http != nil {
			s.http.Close()
		}
	}
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("calls still run: %w", ctx.Err())
	}
}

var errStopping = apierr.From(fmt.Errorf("%w: it is stopping", apierr.ErrUnavailable))

// deadline gives a call the end that it has to have.
func (s *Server) deadline(ctx context.Context) (context.Context, context.CancelFunc) {
	limits := &s.gate.limits
	d, ok := ctx.Deadline()
	if !ok {
		return context.WithTimeout(ctx, limits.DefaultDeadline)
	}
	if time.Until(d) <= limits.MaxDeadline {
		return ctx, func() {}
	}
	return context.WithTimeout(ctx, limits.MaxDeadline)
}

// interceptUnary is around health checks and administration. The calls of kekd.sock do the same
// for themselves, without its cost.
func (s *Server) interceptUnary(ctx context.Context, req any, info *grpc.UnaryServerInfo, handle grpc.UnaryHandler) (resp any, err error) {
	defer s.recovered(info.FullMethod, &err)
	c, err := connOf(ctx)
	if err != nil {
		return nil, apierr.From(err)
	}
	if err := c.enter(); err != nil {
		return nil, err
	}
	defer c.leave(ctx)
	ctx, cancel := s.deadline(ctx)
	defer cancel()
	if s.authorise != nil {
		if err := s.authorise(ctx, c, info.FullMethod); err != nil {
			return nil, s.outward(info.FullMethod, err)
		}
	}
	resp, err = handle(ctx, req)
	return resp, s.outward(info.FullMethod, err)
}

func (s *Server) interceptStream(srv any, ss grpc.ServerStream, info *grpc.StreamServerInfo, handle grpc.StreamHandler) (err error) {
	defer s.recovered(info.FullMethod, &err)
	c, err := connOf(ss.Context())
	if err != nil {
		return apierr.From(err)
	}
	if err := c.enter(); err != nil {
		return err
	}
	defer c.leave(ss.Context())
	if s.authorise != nil {
		if err := s.authorise(ss.Context(), c, info.FullMethod); err != nil {
			return s.outward(info.FullMethod, err)
		}
	}
	if info.FullMethod == kekdv1.KeyService_Stream_FullMethodName {
		return handle(srv, ss) // it finishes what it has when the daemon stops
	}
	// A stream has no deadline: it ends with its caller, or when the daemon stops.
	ctx, cancel := context.WithCancel(ss.Context())
	defer cancel()
	defer context.AfterFunc(s.stopping, cancel)()
	err = handle(srv, &streamWithContext{ss, ctx})
	if s.stopping.Err() != nil && ss.Context().Err() == nil && err != nil {
		err = errStopping
	}
	return s.outward(info.FullMethod, err)
}

type streamWithContext struct {
	grpc.ServerStream
	ctx context.Context
}

func (s *streamWithContext) Context() context.Context { return s.ctx }

// outward gives an error its form for the caller, and the log what the caller is not told.
func (s *Server) outward(method string, err error) error {
	if err == nil {
		return nil
	}
	if _, ok := status.FromError(err); ok {
		return err // gRPC's own, or ours already
	}
	return s.refusal(method, err)
}

func (s *Server) refusal(method string, err error) *apierr.Error {
	e := apierr.From(err)
	if e.Code == apierr.CodeInternal {
		s.log.Error("internal error", "method", method, "error", err)
	}
	return e
}

// recovered turns a panic into the end of one call.
func (s *Server) recovered(method string, err *error) {
	if r := recover(); r != nil {
		*err = apierr.From(s.panicked(method, r))
	}
}

var errPanic = errors.New("a call panicked")

// panicked logs what a call panicked with. Only a runtime error is put in words: anything else
// may quote what the caller sent.
func (s *Server) panicked(method string, r any) error {
	what := fmt.Sprintf("%T", r)
	if e, ok := r.(runtime.Error); ok {
		what = e.Error()
	}
	s.log.Error("panic", "method", method, "what", what, "stack", string(debug.Stack()))
	return errPanic
}
