package peer_test

import (
	"errors"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/kekd/kekd/cluster/peer"
	"github.com/kekd/kekd/hierarchy"
)

func TestMembersCallEachOther(t *testing.T) {
	t.Parallel()
	nodes := openNodes(t, authority(t), "a", "b")
	a, b := nodes[0], nodes[1]
	served := b.serve(t)
	if err := a.call(t, b.id); err != nil {
		t.Fatal(err)
	}
	want := peer.Peer{ID: a.id, Name: "a", Service: peer.Calls}
	if diff := cmp.Diff(want, <-served.called); diff != "" {
		t.Errorf("who called: -want +got:\n%s", diff)
	}
	one, err := a.Conn(b.id)
	if err != nil {
		t.Fatal(err)
	}
	if two, _ := a.Conn(b.id); one != two {
		t.Error("a second connection for the same member")
	}
	if _, err := a.Conn(nodeID("nobody")); !errors.Is(err, peer.ErrNotMember) {
		t.Errorf("a connection to nobody: %v", err)
	}
	closePort(t, a.Port)
	if _, err := a.Conn(b.id); !errors.Is(err, peer.ErrClosed) {
		t.Errorf("a connection by a closed port: %v", err)
	}
	eventually(t, "b has no connection left", func() bool { return b.Conns() == 0 })
}

// A refused pair: what changes, with what both are to say.
type refusedCase struct {
	change   func(t *testing.T, a, b *node) // before a dials b
	want     error                          // to a, who dials
	words    string                         // in a's error: what to do
	refused  bool                           // whether a is told by Refused
	accepter string                         // in b's log
	met      error                          // what b is told by Refused; nil: nothing
}

func TestRefusedPeersLearnWhy(t *testing.T) {
	t.Parallel()
	ca := authority(t)
	for name, c := range map[string]refusedCase{
		"foreign CA": {
			change: func(t *testing.T, a, b *node) {
				a.cfg.Files = filesFor(t, authority(t), "a")
				own, err := readAll(a.cfg.CA, ca.Path()) // it takes b's certificate, but b does not take a's
				if err != nil {
					t.Fatal(err)
				}
				writeFile(t, a.cfg.CA, own, 0o644)
			},
			want: peer.ErrCertificate, words: "same CA file",
			accepter: "the certificate is not accepted",
		},
		"foreign CA of who is dialled": {
			change: func(t *testing.T, a, b *node) { a.cfg.Files = filesFor(t, authority(t), "a") },
			want:   peer.ErrCertificate, words: "unknown authority",
			accepter: "does not take this node's",
		},
		"another node is at the address": {
			change: func(t *testing.T, a, b *node) {
				a.dir.change(func(d *directory) {
					d.members[b.id] = peer.Member{ID: b.id, Name: "c", Address: b.Addr().String()}
				})
			},
			want: peer.ErrWrongName, words: `the node is called "c"`,
			accepter: "does not take this node's",
		},
		"a name that its certificate has not": {
			change: func(t *testing.T, a, b *node) {
				b.dir.change(func(d *directory) { d.members[a.id] = peer.Member{ID: a.id, Name: "z"} })
			},
			want: peer.ErrWrongName, words: "see the peer's log", refused: true,
			accepter: `the member with its ID is called`,
		},
		"the ID has joined anew": {
			change: func(t *testing.T, a, b *node) {
				a.dir.change(func(d *directory) {
					old := nodeID("old b")
					d.members[old] = peer.Member{ID: old, Name: "b", Address: b.Addr().String()}
				})
			},
			want: peer.ErrWrongNode, words: "joined anew", refused: true,
		},
		"another cluster": {
			change: func(t *testing.T, a, b *node) { a.cfg.Self.Cluster = hierarchy.ClusterID{ID: idOf("other")} },
			want:   peer.ErrForeignCluster, words: "look whether the address is right", refused: true,
			accepter: "look which addresses it was given",
		},
		"removed": {
			change: func(t *testing.T, a, b *node) { b.dir.change(func(d *directory) { delete(d.members, a.id) }) },
			want:   peer.ErrNotMember, words: "join again under a new ID", refused: true,
			accepter: "it has to join again",
		},
		"older epoch": {
			change: func(t *testing.T, a, b *node) {
				b.dir.change(func(d *directory) { d.epoch = peer.Epoch{Number: 2, Statement: [32]byte{1}} })
			},
			want: peer.ErrEpoch, words: "the cluster went on without this node", refused: true,
			accepter: "the peer is still in epoch 0",
		},
		"newer epoch": {
			change: func(t *testing.T, a, b *node) {
				a.dir.change(func(d *directory) { d.epoch = peer.Epoch{Number: 2, Statement: [32]byte{1}} })
			},
			want: peer.ErrEpoch, words: "without the peer", refused: true,
			accepter: "without this node", met: peer.ErrEpoch,
		},
		"same epoch by another statement": {
			change: func(t *testing.T, a, b *node) {
				a.dir.change(func(d *directory) { d.epoch = peer.Epoch{Number: 2, Statement: [32]byte{1}} })
				b.dir.change(func(d *directory) { d.epoch = peer.Epoch{Number: 2, Statement: [32]byte{2}} })
			},
			want: peer.ErrEpoch, words: "only one of them may go on", refused: true,
			accepter: "only one of them may go on", met: peer.ErrEpoch,
		},
		"this node itself": {
			change: func(t *testing.T, a, b *node) {
				a.cfg.Self.Node, a.cfg.Self.Name = b.id, "b"
				a.cfg.Files = b.cfg.Files
			},
			want: peer.ErrWrongNode, words: "leads to this node itself", refused: true,
			accepter: "a copy of this node's",
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, a := config(t, ca, "a")
			_, b := config(t, ca, "b")
			b.open(t)
			b.serve(t)
			for _, n := range []*node{a, b} {
				n.dir.change(func(d *directory) {
					d.members[a.id] = peer.Member{ID: a.id, Name: "a"}
					d.members[b.id] = b.member()
				})
			}
			c.change(t, a, b)
			a.open(t)

			to := b.id
			if c.want == peer.ErrWrongNode && name != "this node itself" {
				to = nodeID("old b")
			}
			_, err := a.Dial(patience(t), to, peer.Calls)
			if !errors.Is(err, c.want) || !strings.Contains(err.Error(), c.words) {
				t.Errorf("got %v\nwant %v that says %q", err, c.want, c.words)
			}
			checkRefused(t, "the dialler", a, to, c.refused, c.want)
			if c.accepter != "" {
				b.log.says(t, c.accepter)
			}
			if c.met != nil {
				eventually(t, "b is told", func() bool { return len(b.refused) > 0 })
			}
			checkRefused(t, "the acceptor", b, a.id, c.met != nil, c.met)
			eventually(t, "no connection is left", func() bool { return a.Conns()+b.Conns()+b.Waiting() == 0 })
		})
	}
}

// A member cannot pass for another by saying so: the certificate has its own name.
func TestCertificateOfAnotherMember(t *testing.T) {
	t.Parallel()
	nodes := openNodes(t, authority(t), "a", "b", "c")
	a, b, c := nodes[0], nodes[1], nodes[2]
	joining := peer.Self{Cluster: ourCluster, Name: "node-d"}
	for name, hello := range map[string][]byte{
		"ID and name of a":                peer.HelloOf(a.cfg.Self, peer.Epoch{}, peer.Raft),
		"ID of a":                         peer.HelloOf(peer.Self{Cluster: ourCluster, Node: a.id, Name: "c"}, peer.Epoch{}, peer.Raft),
		"name of a":                       peer.HelloOf(peer.Self{Cluster: ourCluster, Node: c.id, Name: "a"}, peer.Epoch{}, peer.Calls),
		"a name that nobody has, to join": peer.HelloOf(joining, peer.Epoch{}, peer.Join),
	} {
		raw, err := net.Dial("tcp", b.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer raw.Close()
		tc := asNode(t, c, raw, "kekd-peer/1")
		tc.Write(hello)
		answer := make([]byte, 6)
		if _, err := io.ReadFull(tc, answer); err != nil || answer[5] != 5 { // another name
			t.Errorf("%s: answered %x, %v", name, answer, err)
		}
		if n := b.Conns(); n != 0 {
			t.Errorf("%s: it is let in", name)
		}
	}
}

func checkRefused(t *testing.T, who string, n *node, id hierarchy.NodeID, want bool, sentinel error) {
	t.Helper()
	select {
	case r := <-n.refused:
		if !want || r.id != id || !errors.Is(r.err, sentinel) {
			t.Errorf("%s is told of %s: %v", who, r.id, r.err)
		}
		var e *peer.EpochError
		if errors.As(r.err, &e) && e.Own != n.dir.Epoch() {
			t.Errorf("%s: the epochs are mixed up: %v", who, e)
		}
	default:
		if want {
			t.Errorf("%s is not told", who)
		}
	}
}

func TestEpochErrorTellsWhoIsSuperseded(t *testing.T) {
	two := func(b byte) peer.Epoch { return peer.Epoch{Number: 2, Statement: [32]byte{b}} }
	for _, c := range []struct {
		own, peer peer.Epoch
		want      bool
	}{
		{peer.Epoch{Number: 1}, two(1), true},
		{two(1), peer.Epoch{Number: 1}, false},
		{two(1), two(2), true},
	} {
		if got := (&peer.EpochError{Own: c.own, Peer: c.peer}).Superseded(); got != c.want {
			t.Errorf("own %v, peer %v: %v", c.own, c.peer, got)
		}
	}
}

// A refusal that goes on is one line in each log, and another one after it has gone well in between.
func TestRefusalsAreLoggedOnce(t *testing.T) {
	t.Parallel()
	nodes := openNodes(t, authority(t), "a", "b")
	a, b := nodes[0], nodes[1]
	try := func() error {
		c, err := a.Dial(patience(t), b.id, peer.Calls)
		if err == nil {
			c.Close()
		}
		return err
	}
	forget := func(gone bool) {
		b.dir.change(func(d *directory) {
			if delete(d.members, a.id); !gone {
				d.members[a.id] = a.member()
			}
		})
	}
	forget(true)
	for range 3 {
		if err := try(); !errors.Is(err, peer.ErrNotMember) {
			t.Fatal(err)
		}
	}
	forget(false)
	if err := try(); err != nil {
		t.Fatal(err)
	}
	forget(true)
	if err := try(); !errors.Is(err, peer.ErrNotMember) {
		t.Fatal(err)
	}
	eventually(t, "b has handled all", func() bool { return b.Waiting() == 0 })
	if n := b.log.count("a peer that connected was refused"); n != 2 {
		t.Errorf("the acceptor says it %d times:\n%s", n, b.log)
	}
	if n := a.log.count("a peer cannot be talked to"); n != 2 {
		t.Errorf("the dialler says it %d times:\n%s", n, a.log)
	}
}

// What a connection was let in for may end under it.
func TestConnectionsEndWithWhatTheyWereLetInFor(t *testing.T) {
	t.Parallel()
	ca := authority(t)
	for name, change := range map[string]func(b *directory, a *node){
		"removed":   func(b *directory, a *node) { delete(b.members, a.id) },
		"new epoch": func(b *directory, a *node) { b.epoch.Number++ },
		"renamed":   func(b *directory, a *node) { b.members[a.id] = peer.Member{ID: a.id, Name: "z"} },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			nodes := openNodes(t, ca, "a", "b")
			a, b := nodes[0], nodes[1]
			b.serve(t)
			if err := a.call(t, b.id); err != nil {
				t.Fatal(err)
			}
			b.dir.change(func(d *directory) { change(d, a) })
			eventually(t, "b has ended the connection", func() bool { return b.Conns() == 0 })
			if err := a.call(t, b.id); err == nil {
				t.Error("a is let in again")
			}
			b.log.says(t, "a connection with a peer was ended")
		})
	}
}

// A member that moves is found again, and one that is removed is not called any more.
func TestConnFollowsTheDirectory(t *testing.T) {
	t.Parallel()
	ca := authority(t)
	nodes := openNodes(t, ca, "a", "b")
	a, b := nodes[0], nodes[1]
	b.serve(t)
	if err := a.call(t, b.id); err != nil {
		t.Fatal(err)
	}
	_, moved := config(t, ca, "b")
	moved.open(t).serve(t)
	introduce(a, moved)
	old, err := a.Conn(b.id)
	if err != nil {
		t.Fatal(err)
	}
	if err := a.call(t, b.id); err != nil {
		t.Fatal(err)
	}
	if moved.Conns() != 1 {
		t.Errorf("the moved node has %d connections", moved.Conns())
	}
	eventually(t, "the connection to the old address is gone", func() bool { return b.Conns() == 0 })

	a.dir.change(func(d *directory) { delete(d.members, b.id) })
	if _, err := a.Conn(b.id); !errors.Is(err, peer.ErrNotMember) {
		t.Errorf("after it was removed: %v", err)
	}
	eventually(t, "what leads to a removed node is closed", func() bool { return moved.Conns() == 0 && old.GetState().String() == "SHUTDOWN" })
}

// After a peer's restart, calls get through as soon as it listens, however often it was tried before.
func TestConnReconnects(t *testing.T) {
	t.Parallel()
	nodes := openNodes(t, authority(t), "a", "b")
	a, b := nodes[0], nodes[1]
	b.serve(t)
	if err := a.call(t, b.id); err != nil {
		t.Fatal(err)
	}
	b.cfg.Listen = b.Addr().String()
	closePort(t, b.Port)
	// For so long gRPC's own back-off grows beyond what is allowed below. A call has it try again.
	for down := time.Now(); time.Since(down) < 4*time.Second; time.Sleep(50 * time.Millisecond) {
		if err := a.call(t, b.id); err == nil {
			t.Fatal("a call to a node that is down succeeds")
		}
	}
	b.open(t).serve(t)
	began := time.Now()
	eventually(t, "a call gets through", func() bool { return a.call(t, b.id) == nil })
	if took := time.Since(began); took > time.Second {
		t.Errorf("it took %v", took)
	}
}
