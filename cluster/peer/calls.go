package peer

import (
	"context"
	"fmt"
	"net"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials"
	grpcpeer "google.golang.org/grpc/peer"
)

// Listener is for the gRPC server of the service Peer, with [Port.ServerCredentials]. Closing it
// leaves the rest of the port open. A connection that then says nothing of gRPC holds up the server's
// end for its ConnectionTimeout, by default for two minutes, unless the port is closed first.
func (p *Port) Listener() net.Listener { return p.calls }

// ServerCredentials takes connections as [Port.Listener] gives them.
func (p *Port) ServerCredentials() credentials.TransportCredentials { return asItIs{} }

// FromContext tells who calls, and on a connection for which service.
func FromContext(ctx context.Context) (Peer, bool) {
	if p, ok := grpcpeer.FromContext(ctx); ok {
		if info, ok := p.AuthInfo.(authInfo); ok {
			return info.peer, true
		}
	}
	return Peer{}, false
}

// callListener gives gRPC the connections that are for it.
type callListener struct {
	addr    net.Addr
	conns   chan *conn
	closing sync.Once
	closed  chan struct{}
}

func newCallListener(addr net.Addr) *callListener {
	return &callListener{addr: addr, conns: make(chan *conn), closed: make(chan struct{})}
}

// handTime is how long a connection waits for a server to take it.
const handTime = 5 * time.Second

// hand is false if no server takes the connection.
func (l *callListener) hand(ctx context.Context, c *conn) bool {
	patience := time.NewTimer(handTime)
	defer patience.Stop()
	select {
	case l.conns <- c:
		return true
	case <-c.ended:
	case <-l.closed:
	case <-ctx.Done():
	case <-patience.C:
	}
	return false
}

func (l *callListener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

func (l *callListener) Addr() net.Addr { return l.addr }

func (l *callListener) Close() error {
	l.closing.Do(func() { close(l.closed) })
	return nil
}

// asItIs is gRPC's handshake on a connection that has had TLS and hello.
type asItIs struct{}

type authInfo struct {
	credentials.CommonAuthInfo
	peer Peer
}

func (authInfo) AuthType() string { return protocol }

func (asItIs) take(c net.Conn) (net.Conn, credentials.AuthInfo, error) {
	pc, ok := c.(*conn)
	if !ok {
		return nil, nil, fmt.Errorf("a connection of type %T has had no hello", c)
	}
	return pc, authInfo{credentials.CommonAuthInfo{SecurityLevel: credentials.PrivacyAndIntegrity}, pc.peer}, nil
}

func (a asItIs) ServerHandshake(c net.Conn) (net.Conn, credentials.AuthInfo, error) { return a.take(c) }

func (a asItIs) ClientHandshake(_ context.Context, _ string, c net.Conn) (net.Conn, credentials.AuthInfo, error) {
	return a.take(c)
}

func (asItIs) Info() credentials.ProtocolInfo {
	return credentials.ProtocolInfo{SecurityProtocol: protocol}
}

func (a asItIs) Clone() credentials.TransportCredentials { return a }

func (asItIs) OverrideServerName(string) error { return nil }

// callers are the connections for calls to members.
type callers struct {
	mu     sync.Mutex
	of     map[nodeID]caller
	closed bool
}

type caller struct {
	member Member
	conn   *grpc.ClientConn
}

// Conn is for calls to a member. It returns at once; gRPC connects, and connects again after a
// failure, while the caller waits as its call options say. There is one for each member, and it is
// the port's to close: when the member is removed, or has another address, whose calls then fail as
// unavailable; ask for it again for each call.
func (p *Port) Conn(id nodeID) (*grpc.ClientConn, error) {
	m, ok := p.cfg.Directory.Member(id)
	if !ok {
		return nil, fmt.Errorf("%w: node %s", ErrNotMember, id)
	}
	s := &p.callers
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil, ErrClosed
	}
	if c, ok := s.of[id]; ok {
		if c.member == m {
			return c.conn, nil
		}
		c.conn.Close()
		delete(s.of, id)
	}
	c, err := newClient(m.Name, func(ctx context.Context, _ string) (net.Conn, error) {
		c, err := p.dial(ctx, id, forCalls)
		if err != nil {
			return nil, err
		}
		return c, nil
	})
	if err != nil {
		return nil, err
	}
	if s.of == nil {
		s.of = map[nodeID]caller{}
	}
	s.of[id] = caller{m, c}
	return c, nil
}

// prune closes what leads to nobody any more.
func (s *callers) prune(d Directory) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for id, c := range s.of {
		if m, ok := d.Member(id); !ok || m != c.member {
			c.conn.Close()
			delete(s.of, id)
		}
	}
}

func (s *callers) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	for _, c := range s.of {
		c.conn.Close()
	}
	s.of = nil
}

// newClient is gRPC over connections that dial makes.
func newClient(name string, dial func(context.Context, string) (net.Conn, error)) (*grpc.ClientConn, error) {
	return grpc.NewClient("passthrough:///"+name,
		grpc.WithTransportCredentials(asItIs{}),
		grpc.WithContextDialer(dial),
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: 50 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: 500 * time.Millisecond},
			MinConnectTimeout: dialTime,
		}),
		grpc.WithIdleTimeout(0), // a call would have to wait for a handshake
		grpc.WithDisableServiceConfig(),
	)
}
