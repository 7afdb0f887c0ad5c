package socketapi

import (
	"errors"
	"net"
	"sync"
	"time"
)

// split gives the connections of one listener to two servers: those that begin as HTTP/2 does to
// one, all others to the other. Who sends nothing in time is hung up on.
//
// How many wait to be told apart is bounded by the listener, which counts its connections.
type split struct {
	net.Listener
	http1, http2 *half
	timeout      time.Duration
	done         chan struct{}

	mu     sync.Mutex
	closed bool
	silent map[*conn]struct{} // that are not told apart yet
}

// half is one of the two listeners. Closing one closes both: they end together.
type half struct {
	*split
	conns  chan net.Conn
	failed chan error // of size 1: why there will be no more connections
}

func newSplit(l net.Listener, timeout time.Duration) *split {
	s := &split{Listener: l, timeout: timeout, done: make(chan struct{}), silent: make(map[*conn]struct{})}
	s.http1, s.http2 = s.half(), s.half()
	go s.run()
	return s
}

func (s *split) half() *half {
	return &half{split: s, conns: make(chan net.Conn), failed: make(chan error, 1)}
}

func (h *half) Accept() (net.Conn, error) {
	select {
	case c := <-h.conns:
		return c, nil
	case err := <-h.failed:
		return nil, err
	case <-h.done:
		return nil, net.ErrClosed
	}
}

// run takes connections until the listener ends. Without a descriptor left it waits, as servers do.
func (s *split) run() {
	const longest = time.Second
	for wait := time.Duration(0); ; {
		c, err := s.Listener.Accept()
		if err == nil {
			wait = 0
			s.take(c)
			continue
		}
		if temporary, ok := errors.AsType[interface {
			error
			Temporary() bool
		}](err); !ok || !temporary.Temporary() {
			s.http1.failed <- err
			s.http2.failed <- err
			return
		}
		wait = min(longest, max(5*time.Millisecond, 2*wait))
		select {
		case <-time.After(wait):
		case <-s.done:
		}
	}
}

func (s *split) take(nc net.Conn) {
	c := nc.(*conn) // of guarded
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		c.Close()
		return
	}
	s.silent[c] = struct{}{}
	go s.tell(c)
}

// tell gives a connection to whose it is.
func (s *split) tell(c *conn) {
	c.pause()
	to := s.http1
	is2, err := c.peek(s.timeout)
	if is2 {
		to = s.http2
	}
	s.mu.Lock()
	delete(s.silent, c)
	s.mu.Unlock()
	if err != nil {
		c.Close()
		return
	}
	select {
	case to.conns <- c:
	case <-s.done:
		c.Close()
	}
}

// Close ends both halves, and hangs up on who has not said yet what he speaks.
func (s *split) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil
	}
	s.closed = true
	close(s.done)
	for c := range s.silent {
		c.Close()
	}
	return s.Listener.Close()
}

// preface is how every connection of HTTP/2 begins, and no request of HTTP/1.1 (RFC 9113, section 3.4).
const preface = "PRI * HTTP/2.0\r\n"

// peek reads as much of a connection as tells what it speaks, to be read again.
func (c *conn) peek(timeout time.Duration) (is2 bool, err error) {
	if err := c.SetReadDeadline(time.Now().Add(timeout)); err != nil {
		return false, err
	}
	begin := make([]byte, len(preface))
	n := 0
	for n < len(preface) && string(begin[:n]) == preface[:n] {
		m, err := c.UnixConn.Read(begin[n:])
		if n += m; err != nil {
			return false, err
		}
	}
	c.peeked = begin[:n]
	return string(c.peeked) == preface, c.SetReadDeadline(time.Time{})
}
