// Package netfault stands between processes that speak TCP to each other on one machine, and cuts, delays
// and holds back what they say, for each ordered pair of them.
//
// It is a proxy in front of each node: the node listens at one address, its peers know another, and there
// stands the proxy. So it needs no privilege, no namespace and no packet filter, and the nodes need to know nothing of it
// but the two addresses. What they say is bytes to it: they may speak TLS. Who has connected is found out
// from the kernel: see [Owners].
//
// It is as near to a network as what ends connections can be:
//   - what was sent during a cut is lost. A TCP connection cannot go on after that, so it is reset when the cut
//     is healed; one over which nothing was sent goes on.
//   - what was sent while a direction was held arrives once it is let go, in order, as after
//     retransmissions, however late. Some megabytes are held; then the sender is blocked, as by TCP.
//   - a connection is made only when both directions pass. Until then who dials hears nothing, as his
//     SYN, or the answer to it, is lost.
//   - what was under way when a fault began may still arrive; what is sent after the call has returned
//     does not.
package netfault

import (
	"errors"
	"fmt"
	"net"
	"sync"
	"time"
)

// Node is a process that others connect to.
type Node struct {
	Name    string
	Address string // host:port where others connect to it, which the network takes
	Listens string // host:port where it listens
}

// Who names the node whose process has made a connection, by both its ends as the one who accepted sees
// them; empty: none of them.
type Who func(client, server net.Addr) string

// Network is what the nodes are connected by. Faults are between nodes that have a name; who has none is never
// kept from anybody.
type Network struct {
	who       Who
	names     []string
	listeners []net.Listener
	running   sync.WaitGroup
	closed    chan struct{}

	mu      sync.Mutex
	faults  map[way]fault
	changed chan struct{} // closed and made anew with each change of faults
	conns   map[*conn]bool
}

// way is a direction.
type way struct{ from, to string }

func (w way) back() way { return way{w.to, w.from} }

// fault is what happens to bytes on their way. Its zero value is none.
type fault struct {
	cut, held, refused bool
	delay              time.Duration
}

func (f fault) stops() bool { return f.cut || f.held }

// Listen starts a network in which nothing is wrong.
func Listen(who Who, nodes ...Node) (*Network, error) {
	n := &Network{who: who, closed: make(chan struct{}), faults: map[way]fault{}, changed: make(chan struct{}), conns: map[*conn]bool{}}
	for _, node := range nodes {
		n.names = append(n.names, node.Name)
		l, err := net.Listen("tcp", node.Address)
		if err != nil {
			return nil, errors.Join(fmt.Errorf("in front of %s: %w", node.Name, err), n.Close())
		}
		n.listeners = append(n.listeners, l)
		n.running.Go(func() { n.accept(l, node) })
	}
	return n, nil
}

// Close ends all connections, and returns when nothing of the network runs any more.
func (n *Network) Close() error {
	var errs []error
	for _, l := range n.listeners {
		errs = append(errs, l.Close())
	}
	close(n.closed)
	n.mu.Lock()
	for c := range n.conns {
		c.reset()
	}
	n.mu.Unlock()
	n.running.Wait()
	return errors.Join(errs...)
}

// Cut loses what a and b send each other from now on.
func (n *Network) Cut(a, b string) {
	n.set(fault{cut: true}, way{a, b}, way{b, a})
}

// CutOneWay loses what from sends to to, and lets the other direction be as it is.
func (n *Network) CutOneWay(from, to string) { n.set(fault{cut: true}, way{from, to}) }

// Hold keeps back what from sends to to.
func (n *Network) Hold(from, to string) { n.set(fault{held: true}, way{from, to}) }

// Delay lets what from sends to to arrive later by d.
func (n *Network) Delay(from, to string, d time.Duration) { n.set(fault{delay: d}, way{from, to}) }

// Refuse resets the connections that from has made to to, and all that it tries to make.
func (n *Network) Refuse(from, to string) { n.set(fault{refused: true}, way{from, to}) }

// Isolate cuts a node off from all others.
func (n *Network) Isolate(name string) {
	var ways []way
	for _, o := range n.names {
		if o != name {
			ways = append(ways, way{name, o}, way{o, name})
		}
	}
	n.set(fault{cut: true}, ways...)
}

// Heal ends all faults. What was held arrives; over what was cut, nothing does any more.
func (n *Network) Heal() {
	n.mu.Lock()
	defer n.mu.Unlock()
	clear(n.faults)
	n.wake()
}

func (n *Network) set(f fault, ways ...way) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, w := range ways {
		n.faults[w] = f
	}
	n.wake()
}

// wake is for who holds the lock.
func (n *Network) wake() {
	close(n.changed)
	n.changed = make(chan struct{})
}

// look returns the faults of a direction and of its opposite, and what is closed when that changes.
func (n *Network) look(w way) (there, back fault, changed <-chan struct{}) {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.faults[w], n.faults[w.back()], n.changed
}

func (n *Network) accept(l net.Listener, node Node) {
	for {
		c, err := l.Accept()
		if err != nil {
			select {
			case <-n.closed:
				return
			case <-time.After(10 * time.Millisecond): // out of descriptors, for a moment
				continue
			}
		}
		n.running.Go(func() { n.connect(c.(*net.TCPConn), node) })
	}
}

// connect makes the other half of a connection once both directions let it.
func (n *Network) connect(client *net.TCPConn, node Node) {
	w := way{n.who(client.RemoteAddr(), client.LocalAddr()), node.Name}
	lost := false
	for {
		there, back, changed := n.look(w)
		if there.refused {
			reset(client)
			return
		}
		lost = lost || there.cut || back.cut
		if !there.stops() && !back.stops() {
			break
		}
		select {
		case <-changed:
		case <-n.closed:
			reset(client)
			return
		}
	}
	if lost {
		reset(client) // by now it would have been given up, or tried again
		return
	}
	server, err := net.DialTimeout("tcp", node.Listens, 5*time.Second)
	if err != nil {
		reset(client)
		return
	}
	c := &conn{network: n, way: w, client: client, server: server.(*net.TCPConn), ended: make(chan struct{}), lost: map[way]bool{}}
	n.mu.Lock()
	n.conns[c] = true
	n.mu.Unlock()
	c.run()
	n.mu.Lock()
	delete(n.conns, c)
	n.mu.Unlock()
}

// reset ends a connection so that its other side is told of it at once.
func reset(c *net.TCPConn) {
	_ = c.SetLinger(0)
	_ = c.Close()
}
