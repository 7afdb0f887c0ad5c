package netfault

import (
	"io"
	"net"
	"sync"
	"time"
)

// conn is a connection that a client has made to a server, in two halves.
type conn struct {
	network        *Network
	way            way // from the client to the server
	client, server *net.TCPConn

	end   sync.Once
	ended chan struct{} // closed with both halves

	mu   sync.Mutex
	lost map[way]bool // something that was sent this way
}

const (
	// chunk is how much is read at once, in bytes.
	chunk = 32 << 10
	// pipelined is how many chunks are under way in one direction.
	pipelined = 64
)

// part is what was read at once. Without bytes it is the end of what is sent.
type part struct {
	bytes []byte
	at    time.Time
	err   error // why it is the end; io.EOF: in order
}

// run returns when the connection has ended.
func (c *conn) run() {
	if c.isClosed() {
		c.reset() // the network was closed while it was made
		return
	}
	var running sync.WaitGroup
	running.Go(func() { c.pipe(c.client, c.server, c.way) })
	running.Go(func() { c.pipe(c.server, c.client, c.way.back()) })
	done := make(chan struct{})
	go func() {
		running.Wait()
		close(done)
	}()
	if c.watch(done) {
		_ = c.client.Close()
		_ = c.server.Close()
		return
	}
	c.reset()
	<-done
}

func (c *conn) isClosed() bool {
	select {
	case <-c.network.closed:
		return true
	default:
		return false
	}
}

// watch returns when both directions are done in order, or, with false, when the connection can have no
// future.
func (c *conn) watch(done <-chan struct{}) (inOrder bool) {
	for {
		there, back, changed := c.network.look(c.way)
		if there.refused || c.hasLost(c.way) && !there.cut || c.hasLost(c.way.back()) && !back.cut {
			return false
		}
		select {
		case <-changed:
		case <-c.ended:
			return false
		case <-done:
			return true
		}
	}
}

func (c *conn) reset() {
	c.end.Do(func() {
		close(c.ended)
		reset(c.client)
		reset(c.server)
	})
}

func (c *conn) hasLost(w way) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.lost[w]
}

func (c *conn) lose(w way) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.lost[w] = true
}

// pipe carries one direction until its end.
func (c *conn) pipe(from, to *net.TCPConn, w way) {
	parts := make(chan part, pipelined)
	var reading sync.WaitGroup
	reading.Go(func() { c.read(from, parts) })
	defer reading.Wait()
	for p := range parts {
		switch c.arrives(p, w) {
		case lost:
			c.lose(w)
			continue
		case never:
			c.reset()
			return
		}
		if p.err == io.EOF {
			_ = to.CloseWrite()
			continue
		}
		if p.err != nil {
			c.reset()
			return
		}
		if _, err := to.Write(p.bytes); err != nil {
			c.reset()
			return
		}
	}
}

// read ends parts when nothing more comes. Who is not read any more is blocked by TCP in the end.
func (c *conn) read(from *net.TCPConn, parts chan<- part) {
	defer close(parts)
	for {
		b := make([]byte, chunk)
		n, err := from.Read(b)
		p := part{bytes: b[:n], at: time.Now()}
		if n == 0 {
			p.err = err
		}
		select {
		case parts <- p:
		case <-c.ended:
			return
		}
		if p.err != nil {
			return
		}
	}
}

type fate int

const (
	arrived fate = iota
	lost
	never // the connection has ended, or has to: something before it was lost
)

// arrives waits until a part is at the other end.
func (c *conn) arrives(p part, w way) fate {
	for {
		f, _, changed := c.network.look(w)
		if f.cut {
			return lost
		}
		if c.hasLost(w) {
			return never
		}
		var wait <-chan time.Time
		if !f.held {
			left := time.Until(p.at.Add(f.delay))
			if left <= 0 {
				return arrived
			}
			wait = time.After(left)
		}
		select {
		case <-wait:
		case <-changed:
		case <-c.ended:
			return never
		}
	}
}
