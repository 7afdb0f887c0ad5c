package peer

import (
	"net"
	"net/netip"
	"slices"
	"sync"
)

// Connections that have not said hello yet. Each costs a goroutine and what TLS keeps of it.
const (
	maxWaiting        = 256
	maxWaitingAddress = 32
)

// waiting bounds them. Where there are too many, the one that has waited longest goes, and not the
// one that comes: a node's handshake takes milliseconds, so it is among the youngest, however many
// silent ones its own address has.
type waiting struct {
	mu   sync.Mutex
	list []*slot // oldest first
}

type slot struct {
	conn net.Conn
	from netip.Addr
}

// enter takes a connection in. What it returns has to leave.
func (w *waiting) enter(c net.Conn) *slot {
	s := &slot{conn: c, from: source(c)}
	w.mu.Lock()
	defer w.mu.Unlock()
	switch {
	case w.count(s.from) >= maxWaitingAddress:
		w.drop(s.from)
	case len(w.list) >= maxWaiting:
		w.drop(w.busiest())
	}
	w.list = append(w.list, s)
	return s
}

// leave is for who has said hello, or will not.
func (w *waiting) leave(s *slot) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if i := slices.Index(w.list, s); i >= 0 {
		w.list = slices.Delete(w.list, i, i+1)
	}
}

// closeAll ends what waits.
func (w *waiting) closeAll() {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, s := range w.list {
		s.conn.Close()
	}
	w.list = nil
}

func (w *waiting) count(from netip.Addr) (n int) {
	for _, s := range w.list {
		if s.from == from {
			n++
		}
	}
	return n
}

func (w *waiting) busiest() netip.Addr {
	counts := map[netip.Addr]int{}
	busiest := w.list[0].from
	for _, s := range w.list {
		counts[s.from]++
		if counts[s.from] > counts[busiest] {
			busiest = s.from
		}
	}
	return busiest
}

// drop closes the oldest of an address.
func (w *waiting) drop(from netip.Addr) {
	i := slices.IndexFunc(w.list, func(s *slot) bool { return s.from == from })
	w.list[i].conn.Close()
	w.list = slices.Delete(w.list, i, i+1)
}

// source is the address that a connection counts for: in IPv6 its network, since a host has all of it.
func source(c net.Conn) netip.Addr {
	tcp, ok := c.RemoteAddr().(*net.TCPAddr)
	if !ok {
		return netip.Addr{}
	}
	addr := tcp.AddrPort().Addr().Unmap().WithZone("")
	if addr.Is6() {
		if net, err := addr.Prefix(64); err == nil {
			return net.Addr()
		}
	}
	return addr
}
