package netfault_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/kekd/kekd/softhsm-tests/netfault"
)

// soon is far more than loopback takes, and long is more than a test waits for what does not come.
const (
	soon = 10 * time.Second
	long = 150 * time.Millisecond
)

// places are where nodes connect from, by which this process's connections are told apart.
var places = map[string]string{"a": "127.77.0.1", "b": "127.77.0.2", "c": "127.77.0.3"}

func byPlace(client, _ net.Addr) string {
	for name, ip := range places {
		if client.(*net.TCPAddr).IP.String() == ip {
			return name
		}
	}
	return ""
}

// world is nodes that answer each line by the same line.
type world struct {
	t       *testing.T
	net     *netfault.Network
	address map[string]string
}

func newWorld(t *testing.T) *world {
	t.Helper()
	w := &world{t: t, address: map[string]string{}}
	var nodes []netfault.Node
	for name := range places {
		l := listen(t)
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				go func() {
					defer c.Close()
					_, _ = io.Copy(c, c)
				}()
			}
		}()
		front := listen(t) // an address that is free
		w.address[name] = front.Addr().String()
		front.Close()
		nodes = append(nodes, netfault.Node{Name: name, Address: w.address[name], Listens: l.Addr().String()})
	}
	var err error
	if w.net, err = netfault.Listen(byPlace, nodes...); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := w.net.Close(); err != nil {
			t.Error(err)
		}
	})
	return w
}

func listen(t *testing.T) net.Listener {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

// peer is a connection of one node to another.
type peer struct {
	*net.TCPConn
	t     *testing.T
	lines *bufio.Reader
}

func (w *world) dial(from, to string) *peer {
	w.t.Helper()
	p, err := w.tryDial(from, to)
	if err != nil {
		w.t.Fatal(err)
	}
	return p
}

func (w *world) tryDial(from, to string) (*peer, error) {
	w.t.Helper()
	d := net.Dialer{Timeout: soon}
	if ip := places[from]; ip != "" {
		d.LocalAddr = &net.TCPAddr{IP: net.ParseIP(ip)}
	}
	c, err := d.DialContext(context.Background(), "tcp", w.address[to])
	if err != nil {
		return nil, err
	}
	w.t.Cleanup(func() { c.Close() })
	return &peer{c.(*net.TCPConn), w.t, bufio.NewReader(c)}, nil
}

// refuses wants no connection: it is reset, while it is made or at once.
func (w *world) refuses(from, to string) {
	w.t.Helper()
	p, err := w.tryDial(from, to)
	switch {
	case err == nil:
		p.isReset()
	case !errors.Is(err, syscall.ECONNRESET):
		w.t.Fatal(err)
	}
}

func (p *peer) say(line string) {
	p.t.Helper()
	if _, err := fmt.Fprintln(p, line); err != nil {
		p.t.Fatal(err)
	}
}

// hears wants a line.
func (p *peer) hears(want string) {
	p.t.Helper()
	p.SetReadDeadline(time.Now().Add(soon))
	got, err := p.lines.ReadString('\n')
	if err != nil || got != want+"\n" {
		p.t.Fatalf("heard %q (%v), want %q", got, err, want)
	}
}

// hearsNothing wants nothing, and a connection that lives.
func (p *peer) hearsNothing() {
	p.t.Helper()
	p.SetReadDeadline(time.Now().Add(long))
	if b, err := p.lines.ReadByte(); !errors.Is(err, os.ErrDeadlineExceeded) {
		p.t.Fatalf("heard %q (%v), want nothing", b, err)
	}
}

// isReset wants the connection to end, and not in order.
func (p *peer) isReset() {
	p.t.Helper()
	p.SetReadDeadline(time.Now().Add(soon))
	if b, err := p.lines.ReadByte(); !errors.Is(err, syscall.ECONNRESET) {
		p.t.Fatalf("heard %q (%v), want a reset", b, err)
	}
}

func (p *peer) works(line string) {
	p.t.Helper()
	p.say(line)
	p.hears(line)
}

func TestNothingIsWrong(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	for from := range places {
		for to := range places {
			w.dial(from, to).works(from + to)
		}
	}
	w.dial("nobody", "a").works("hello")
}

// Bytes arrive all and in order, and the end of what one side sends is no end of the other's.
func TestMuchAndTheEnd(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.net.Delay("a", "b", time.Millisecond)
	p := w.dial("a", "b")
	data := make([]byte, 8<<20)
	rand.Read(data)
	go func() {
		_, _ = p.Write(data)
		_ = p.CloseWrite()
	}()
	p.SetReadDeadline(time.Now().Add(soon))
	got, err := io.ReadAll(p)
	if err != nil || sha256.Sum256(got) != sha256.Sum256(data) {
		t.Fatalf("%d of %d bytes, the same: %v; %v", len(got), len(data), bytes.Equal(got, data), err)
	}
}

func TestCut(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	sends, silent, other := w.dial("a", "b"), w.dial("b", "a"), w.dial("a", "c")
	sends.works("before")
	silent.works("before")
	w.net.Cut("a", "b")
	sends.say("lost")
	sends.hearsNothing()
	late := w.dial("b", "a")
	late.say("lost")
	late.hearsNothing()
	other.works("others hear each other")

	w.net.Heal()
	sends.isReset() // what it sent cannot come any more
	late.isReset()
	silent.works("after")
	w.dial("a", "b").works("after")
}

// What the other side says still arrives, on connections of both.
func TestCutOneWay(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	p := w.dial("a", "b")
	p.works("before")
	w.net.CutOneWay("b", "a")
	p.say("its echo is lost")
	p.hearsNothing()
	w.net.Heal()
	p.isReset()

	p = w.dial("a", "b")
	p.works("before")
	w.net.CutOneWay("a", "b")
	p.say("does not arrive")
	p.hearsNothing()
	w.net.Heal()
	p.isReset()
	w.dial("a", "b").works("after")
}

func TestHold(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	p := w.dial("a", "b")
	p.works("before")
	w.net.Hold("a", "b")
	p.say("held")
	p.say("held, too")
	late := w.dial("a", "b")
	late.say("dialled meanwhile")
	p.hearsNothing()
	late.hearsNothing()
	w.net.Heal()
	p.hears("held")
	p.hears("held, too")
	late.hears("dialled meanwhile")
	p.works("after")
}

// Held, then cut: it is lost after all.
func TestHeldAndLost(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	p := w.dial("a", "b")
	p.works("before")
	w.net.Hold("a", "b")
	p.say("held")
	p.hearsNothing()
	w.net.Cut("a", "b")
	p.hearsNothing()
	w.net.Heal()
	p.isReset()
}

func TestDelay(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	p := w.dial("a", "b")
	p.works("before")
	w.net.Delay("a", "b", long)
	begun := time.Now()
	for i := range 5 {
		p.say(fmt.Sprint(i)) // they are under way at the same time
	}
	for i := range 5 {
		p.hears(fmt.Sprint(i))
	}
	if took := time.Since(begun); took < long || took > 5*long {
		t.Errorf("five lines, each delayed by %v, took %v", long, took)
	}
	w.net.Heal()
	begun = time.Now()
	p.works("after")
	if took := time.Since(begun); took >= long {
		t.Errorf("without a delay it took %v", took)
	}
}

func TestRefuse(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	p, back := w.dial("a", "b"), w.dial("b", "a")
	p.works("before")
	w.net.Refuse("a", "b")
	p.isReset()
	w.refuses("a", "b")
	back.works("the other may connect")
	w.net.Heal()
	w.dial("a", "b").works("after")
}

func TestIsolate(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.net.Isolate("a")
	for _, p := range []*peer{w.dial("a", "b"), w.dial("c", "a")} {
		p.say("lost")
		p.hearsNothing()
	}
	w.dial("b", "c").works("together")
	w.dial("nobody", "a").works("no node")
}

// A node that has ended refuses connections; when it listens again they are made.
func TestNobodyListens(t *testing.T) {
	t.Parallel()
	node, front := listen(t), listen(t)
	front.Close()
	node.Close()
	n, err := netfault.Listen(byPlace, netfault.Node{Name: "a", Address: front.Addr().String(), Listens: node.Addr().String()})
	if err != nil {
		t.Fatal(err)
	}
	defer n.Close()
	w := &world{t: t, address: map[string]string{"a": front.Addr().String()}}
	w.refuses("b", "a")
	again, err := net.Listen("tcp", node.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	go func() {
		c, err := again.Accept()
		if err == nil {
			_, _ = io.Copy(c, c)
		}
	}()
	w.dial("b", "a").works("again")
}

func TestAnAddressThatIsTaken(t *testing.T) {
	t.Parallel()
	taken := listen(t)
	_, err := netfault.Listen(byPlace, netfault.Node{Name: "a", Address: taken.Addr().String()})
	if err == nil || !strings.Contains(err.Error(), "in front of a") {
		t.Fatal(err)
	}
}

const envClient = "KEKD_TEST_NETFAULT_DIAL"

// TestMain is a client of its own if told so: it connects, and holds the connection until its input ends.
func TestMain(m *testing.M) {
	address := os.Getenv(envClient)
	if address == "" {
		os.Exit(m.Run())
	}
	c, err := net.Dial("tcp", address)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	_, _ = io.Copy(io.Discard, os.Stdin)
	c.Close()
}

func TestOwners(t *testing.T) {
	t.Parallel()
	l := listen(t)
	child := exec.Command(os.Args[0])
	child.Env = append(os.Environ(), envClient+"="+l.Addr().String())
	stdin, err := child.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	ofChild, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer ofChild.Close()
	dialled, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer dialled.Close()
	own, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer own.Close()

	processes := map[string]int{"child": child.Process.Pid, "me": os.Getpid(), "ended": 0}
	who := netfault.Owners(func() map[string]int { return processes })
	for _, tc := range []struct {
		c    net.Conn
		want string
	}{{ofChild, "child"}, {own, "me"}} {
		if got := who(tc.c.RemoteAddr(), tc.c.LocalAddr()); got != tc.want {
			t.Errorf("a connection of %s is said to be of %q", tc.want, got)
		}
	}
	delete(processes, "child")
	if got := who(ofChild.RemoteAddr(), ofChild.LocalAddr()); got != "" {
		t.Errorf("a connection of somebody else is said to be of %q", got)
	}
	stdin.Close()
	if err := child.Wait(); err != nil {
		t.Fatal(err)
	}
	processes["child"] = child.Process.Pid
	if got := who(ofChild.RemoteAddr(), ofChild.LocalAddr()); got != "" {
		t.Errorf("a connection that has ended is said to be of %q", got)
	}
}
