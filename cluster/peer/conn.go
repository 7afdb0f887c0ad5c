package peer

import (
	"crypto/tls"
	"crypto/x509"
	"net"
	"sync"
	"time"
)

// conn is a connection whose hello is done.
type conn struct {
	*tls.Conn
	raw  net.Conn
	peer Peer
	// epoch is that of both sides at the hello.
	epoch Epoch
	// address is where it was dialled; empty if the peer dialled.
	address string
	since   time.Time

	// Until when the peer's certificate need not be looked at again; the watch's own.
	verifiedBy    *material
	verifiedUntil time.Time

	set    *conns // nil of a connection that is no port's
	ending sync.Once
	ended  chan struct{}
}

// Close ends the connection and waits, for a moment at most, until the peer can be told.
func (c *conn) Close() error {
	c.leave()
	return c.Conn.Close()
}

// sever ends it at once.
func (c *conn) sever() {
	c.raw.Close() // before it is counted as gone: nothing more comes by it then
	c.leave()
}

func (c *conn) leave() {
	c.ending.Do(func() {
		close(c.ended)
		if c.set != nil {
			c.set.remove(c)
		}
	})
}

func (c *conn) dialled() bool { return c.address != "" }

// verify looks at the peer's certificate as if it came now.
func (c *conn) verify(roots *x509.CertPool) error {
	usage := x509.ExtKeyUsageClientAuth
	if c.dialled() {
		usage = x509.ExtKeyUsageServerAuth
	}
	_, err := verifyChain(c.ConnectionState().PeerCertificates, roots, usage)
	return err
}

// maxOfPeer is how many connections one peer may have to this node for one service, and how many
// there are of those who want to join. Raft uses some five. A peer that loses its machine leaves as
// many behind, for as long as it takes to notice: so the oldest goes when there are too many.
const maxOfPeer = 16

// conns are the connections that there are, of both directions.
type conns struct {
	mu     sync.Mutex
	all    map[*conn]struct{}
	closed bool
}

// add is false once the port is closed.
func (s *conns) add(c *conn) bool {
	c.set, c.since, c.ended = s, time.Now(), make(chan struct{})
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return false
	}
	if s.all == nil {
		s.all = map[*conn]struct{}{}
	}
	s.all[c] = struct{}{}
	var oldest *conn
	if !c.dialled() {
		oldest = s.tooMany(c)
	}
	s.mu.Unlock()
	if oldest != nil {
		oldest.sever()
	}
	return true
}

// tooMany finds who has to go for c.
func (s *conns) tooMany(c *conn) (oldest *conn) {
	n := 0
	for other := range s.all {
		if other.dialled() || other.peer.Service != c.peer.Service || other.peer.ID != c.peer.ID {
			continue
		}
		n++
		if oldest == nil || other.since.Before(oldest.since) {
			oldest = other
		}
	}
	if n <= maxOfPeer {
		return nil
	}
	return oldest
}

func (s *conns) remove(c *conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.all, c)
}

func (s *conns) list() []*conn {
	s.mu.Lock()
	defer s.mu.Unlock()
	var all []*conn
	for c := range s.all {
		all = append(all, c)
	}
	return all
}

// close ends all, and those that come.
func (s *conns) close() {
	s.mu.Lock()
	s.closed = true
	s.mu.Unlock()
	for _, c := range s.list() {
		c.sever()
	}
}
