package peer_test

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/kekd/kekd/cluster/peer"
)

// silent connects from an address of loopback's, and says nothing.
func silent(t *testing.T, to net.Addr, from string) net.Conn {
	t.Helper()
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}}
	c, err := d.Dial("tcp", to.String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// Connections that say nothing hold up no peer, whether from its own address or from many.
func TestHalfOpenConnectionsByTheThousand(t *testing.T) {
	t.Parallel()
	nodes := openNodes(t, authority(t), "a", "b")
	a, b := nodes[0], nodes[1]
	b.serve(t)
	for i := range 1000 {
		from := net.IPv4(127, 0, byte(1+i%250), 1).String()
		if i%2 == 0 {
			from = "127.0.0.1"
		}
		silent(t, b.Addr(), from)
		if i%100 == 99 {
			began := time.Now()
			c, err := a.Dial(patience(t), b.id, peer.Calls)
			if err != nil {
				t.Fatalf("after %d: %v", i+1, err)
			}
			c.Close()
			if took := time.Since(began); took > peer.HelloTime/2 {
				t.Errorf("after %d a peer had to wait for %v", i+1, took)
			}
		}
		if n := b.Waiting(); n > peer.MaxWaiting {
			t.Fatalf("%d connections wait", n)
		}
	}
	began := time.Now()
	eventually(t, "the silent ones are given up", func() bool { return b.Waiting() == 0 })
	if took := time.Since(began); took > peer.HelloTime+2*time.Second {
		t.Errorf("it took %v", took)
	}
}

// One address has its share, and no more.
func TestOneAddressHasItsShare(t *testing.T) {
	t.Parallel()
	b := openNodes(t, authority(t), "b")[0]
	patient := silent(t, b.Addr(), "127.0.0.2")
	var first net.Conn
	for i := range peer.MaxWaitingAddress + 1 {
		c := silent(t, b.Addr(), "127.0.0.1")
		if i == 0 {
			first = c
		}
		eventually(t, "it is taken", func() bool { return b.Waiting() >= min(i+2, peer.MaxWaitingAddress+1) })
	}
	first.SetReadDeadline(time.Now().Add(peer.HelloTime / 2))
	if _, err := first.Read(make([]byte, 1)); err == nil || errors.Is(err, context.DeadlineExceeded) || isTimeout(err) {
		t.Errorf("the oldest of the address is not closed: %v", err)
	}
	patient.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
	if _, err := patient.Read(make([]byte, 1)); !isTimeout(err) {
		t.Errorf("one of another address: %v", err)
	}
}

func isTimeout(err error) bool {
	n, ok := errors.AsType[net.Error](err)
	return ok && n.Timeout()
}

// Whatever is sent, the connection ends in time, and the next peer is let in.
func TestGarbage(t *testing.T) {
	t.Parallel()
	ca := authority(t)
	nodes := openNodes(t, ca, "a", "b")
	a, b := nodes[0], nodes[1]
	b.serve(t)
	random := make([]byte, 4096)
	rand.Read(random)
	hello := func(s peer.Self, service peer.Service) []byte { return peer.HelloOf(s, peer.Epoch{}, service) }
	self := a.cfg.Self
	nameless := self
	nameless.Name = "A!"
	var all sync.WaitGroup // and no tests of their own, of which few run at a time
	for name, say := range map[string]func(t *testing.T, c net.Conn){
		"random bytes": func(_ *testing.T, c net.Conn) { c.Write(random) },
		"HTTP":         func(_ *testing.T, c net.Conn) { io.WriteString(c, "GET / HTTP/1.1\r\nHost: b\r\n\r\n") },
		"a record without end": func(_ *testing.T, c net.Conn) {
			c.Write([]byte{0x16, 3, 1, 0x40, 0})
			for range 100 {
				if _, err := c.Write(random); err != nil {
					return
				}
			}
		},
		"one byte a time": func(_ *testing.T, c net.Conn) {
			for _, octet := range []byte{0x16, 3, 1, 0, 200} {
				c.Write([]byte{octet})
				time.Sleep(10 * time.Millisecond)
			}
		},
		"TLS, then nothing":          func(t *testing.T, c net.Conn) { asNode(t, a, c, "kekd-peer/1") },
		"TLS, then random bytes":     func(t *testing.T, c net.Conn) { asNode(t, a, c, "kekd-peer/1").Write(random) },
		"TLS without the protocol":   func(t *testing.T, c net.Conn) { asNode(t, a, c).Write(hello(self, peer.Calls)) },
		"TLS of another protocol":    func(t *testing.T, c net.Conn) { asNode(t, a, c, "h2").Write(hello(self, peer.Calls)) },
		"a service that is not":      func(t *testing.T, c net.Conn) { asNode(t, a, c, "kekd-peer/1").Write(hello(self, "x")) },
		"a node that joins":          func(t *testing.T, c net.Conn) { asNode(t, a, c, "kekd-peer/1").Write(hello(self, peer.Join)) },
		"a name that is none":        func(t *testing.T, c net.Conn) { asNode(t, a, c, "kekd-peer/1").Write(hello(nameless, peer.Calls)) },
		"half of a hello":            func(t *testing.T, c net.Conn) { asNode(t, a, c, "kekd-peer/1").Write(hello(self, peer.Calls)[:50]) },
		"a hello of another version": func(t *testing.T, c net.Conn) { asNode(t, a, c, "kekd-peer/1").Write([]byte("kekp\x02")) },
		"no certificate": func(t *testing.T, c net.Conn) {
			tls.Client(c, &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"kekd-peer/1"}}).Write(hello(self, peer.Calls))
		},
		"TLS 1.2": func(t *testing.T, c net.Conn) {
			err := tls.Client(c, &tls.Config{InsecureSkipVerify: true, MaxVersion: tls.VersionTLS12}).Handshake()
			if err == nil {
				t.Error("TLS 1.2 is spoken")
			}
		},
	} {
		all.Go(func() {
			c, err := net.Dial("tcp", b.Addr().String())
			if err != nil {
				t.Errorf("%s: %v", name, err)
				return
			}
			defer c.Close()
			began := time.Now()
			say(t, c)
			c.SetReadDeadline(began.Add(3 * peer.HelloTime))
			if _, err := io.Copy(io.Discard, c); isTimeout(err) {
				t.Errorf("%s: the connection stays", name)
			}
			if took := time.Since(began); took > peer.HelloTime+time.Second {
				t.Errorf("%s: it ended after %v", name, took)
			}
		})
	}
	all.Wait()
	c, err := a.Dial(patience(t), b.id, peer.Calls)
	if err != nil {
		t.Fatal(err)
	}
	c.Close()
	eventually(t, "nothing is left", func() bool { return b.Waiting()+b.Conns() == 0 })
}

// asNode is TLS with the certificate of a node.
func asNode(t *testing.T, n *node, c net.Conn, protocols ...string) *tls.Conn {
	t.Helper()
	pair, err := tls.LoadX509KeyPair(n.cfg.Certificate, n.cfg.Key)
	if err != nil {
		t.Error(err)
	}
	tc := tls.Client(c, &tls.Config{InsecureSkipVerify: true, NextProtos: protocols, Certificates: []tls.Certificate{pair}})
	tc.Handshake() // whatever comes of it, the test sees by what it says next
	return tc
}

// A peer of a later version, which may say less, is told that it is one.
func TestAnotherVersionIsAnswered(t *testing.T) {
	t.Parallel()
	nodes := openNodes(t, authority(t), "a", "b")
	a, b := nodes[0], nodes[1]
	c, err := net.Dial("tcp", b.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	tc := asNode(t, a, c, "kekd-peer/1")
	tc.Write([]byte("kekp\x02"))
	got := make([]byte, 5)
	if _, err := io.ReadFull(tc, got); err != nil || string(got) != "kekp\x01" {
		t.Errorf("answered %q, %v", got, err)
	}
	b.log.says(t, "the peer speaks version 2 of it, this node version 1")
}

// The server of another protocol with a certificate of the CA is not spoken to.
func TestAnotherServiceIsNoPeer(t *testing.T) {
	t.Parallel()
	ca := authority(t)
	a := openNodes(t, ca, "a")[0]
	dir := t.TempDir()
	if err := ca.Issue(dir, "b"); err != nil {
		t.Fatal(err)
	}
	f := filesIn(dir)
	pair, err := tls.LoadX509KeyPair(f.Certificate, f.Key)
	if err != nil {
		t.Fatal(err)
	}
	l, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: []tls.Certificate{pair}})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	received := make(chan int, 1)
	go func() {
		c, err := l.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		n, _ := c.Read(make([]byte, 100))
		received <- n
	}()
	id := nodeID("b")
	a.dir.change(func(d *directory) { d.members[id] = peer.Member{ID: id, Name: "b", Address: l.Addr().String()} })
	if _, err := a.Dial(patience(t), id, peer.Calls); !errors.Is(err, peer.ErrProtocol) {
		t.Errorf("got %v", err)
	}
	if n := <-received; n != 0 {
		t.Errorf("it was sent %d bytes", n)
	}
}

// A node that does not answer holds a dial up for a second, and no longer.
func TestSilentServer(t *testing.T) {
	t.Parallel()
	a := openNodes(t, authority(t), "a")[0]
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	id := nodeID("b")
	a.dir.change(func(d *directory) { d.members[id] = peer.Member{ID: id, Name: "b", Address: l.Addr().String()} })
	began := time.Now()
	if _, err := a.Dial(patience(t), id, peer.Calls); !isTimeout(err) {
		t.Errorf("got %v", err)
	}
	if took := time.Since(began); took < 900*time.Millisecond || took > 1500*time.Millisecond {
		t.Errorf("it took %v", took)
	}
	ctx, cancel := context.WithCancel(context.Background())
	time.AfterFunc(50*time.Millisecond, cancel)
	began = time.Now()
	if _, err := a.Dial(ctx, id, peer.Calls); err == nil || time.Since(began) > 500*time.Millisecond {
		t.Errorf("a cancelled dial took %v: %v", time.Since(began), err)
	}
}

// A peer that leaves connections behind gets new ones; the oldest go.
func TestConnectionsOfOnePeerAreBounded(t *testing.T) {
	t.Parallel()
	ca := authority(t)
	nodes := openNodes(t, ca, "a", "b")
	a, b := nodes[0], nodes[1]
	b.serve(t)
	var conns []net.Conn
	for range peer.MaxOfPeer + 3 {
		c, err := a.Dial(patience(t), b.id, peer.Calls)
		if err != nil {
			t.Fatal(err)
		}
		conns = append(conns, c)
	}
	for _, c := range conns[:3] {
		if _, err := io.Copy(io.Discard, c); isTimeout(err) { // ends
			t.Error(err)
		}
	}
	if n := b.Conns(); n != peer.MaxOfPeer {
		t.Errorf("b has %d connections", n)
	}
	// Others have their own.
	_, other := config(t, ca, "c")
	introduce(a, b, other.open(t))
	if err := other.call(t, b.id); err != nil {
		t.Error(err)
	}
	if n := b.Conns(); n != peer.MaxOfPeer+1 {
		t.Errorf("b has %d connections", n)
	}
}

// What a handshake may send is bounded, though TLS itself would take more.
func TestEndlessChain(t *testing.T) {
	t.Parallel()
	nodes := openNodes(t, authority(t), "a", "b")
	a, b := nodes[0], nodes[1]
	pair, err := tls.LoadX509KeyPair(a.cfg.Certificate, a.cfg.Key)
	if err != nil {
		t.Fatal(err)
	}
	for size := 0; size < 2*peer.MaxBeforeHello; size += len(pair.Certificate[0]) {
		pair.Certificate = append(pair.Certificate, pair.Certificate[0])
	}
	c, err := tls.Dial("tcp", b.Addr().String(), &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"kekd-peer/1"}, Certificates: []tls.Certificate{pair}})
	if err == nil {
		defer c.Close()
	}
	b.log.says(t, "bytes before a hello")
}

// tickets counts the sessions that could be resumed.
type tickets struct{ given atomic.Int64 }

func (*tickets) Get(string) (*tls.ClientSessionState, bool) { return nil, false }

func (c *tickets) Put(string, *tls.ClientSessionState) { c.given.Add(1) }

// Nobody resumes a session: the certificate would not be looked at.
func TestNoSessionCanBeResumed(t *testing.T) {
	t.Parallel()
	nodes := openNodes(t, authority(t), "a", "b")
	a, b := nodes[0], nodes[1]
	b.serve(t)
	pair, err := tls.LoadX509KeyPair(a.cfg.Certificate, a.cfg.Key)
	if err != nil {
		t.Fatal(err)
	}
	var cache tickets
	c, err := tls.Dial("tcp", b.Addr().String(), &tls.Config{
		InsecureSkipVerify: true, NextProtos: []string{"kekd-peer/1"}, Certificates: []tls.Certificate{pair},
		ServerName: "b", ClientSessionCache: &cache,
	})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	hello := peer.HelloOf(a.cfg.Self, peer.Epoch{}, peer.Calls)
	c.Write(hello)
	// A ticket comes before the answer, if one comes.
	if _, err := io.ReadFull(c, make([]byte, len(hello))); err != nil {
		t.Fatal(err)
	}
	if n := cache.given.Load(); n != 0 {
		t.Errorf("%d tickets were given", n)
	}
}
