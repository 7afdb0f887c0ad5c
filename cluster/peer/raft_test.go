package peer_test

import (
	"context"
	"errors"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/hashicorp/raft"
	"golang.org/x/sys/unix"

	"github.com/kekd/kekd/cluster/peer"
	"github.com/kekd/kekd/hierarchy"
)

func serverID(id hierarchy.NodeID) raft.ServerID { return raft.ServerID(id.String()) }

// header is what a node says of itself in its messages.
func header(id hierarchy.NodeID) raft.RPCHeader {
	return raft.RPCHeader{ProtocolVersion: 3, ID: []byte(id.String()), Addr: []byte(id.String())}
}

// messages are one of each kind, sent by hand.
var messages = map[string]func(t raft.Transport, to raft.ServerID, h raft.RPCHeader) error{
	"heartbeat": func(t raft.Transport, to raft.ServerID, h raft.RPCHeader) error {
		return t.AppendEntries(to, "", &raft.AppendEntriesRequest{RPCHeader: h, Term: 1}, new(raft.AppendEntriesResponse))
	},
	"AppendEntries": func(t raft.Transport, to raft.ServerID, h raft.RPCHeader) error {
		return t.AppendEntries(to, "", &raft.AppendEntriesRequest{RPCHeader: h, Term: 1, PrevLogEntry: 1}, new(raft.AppendEntriesResponse))
	},
	"RequestVote": func(t raft.Transport, to raft.ServerID, h raft.RPCHeader) error {
		return t.RequestVote(to, "", &raft.RequestVoteRequest{RPCHeader: h, Term: 1}, new(raft.RequestVoteResponse))
	},
	"RequestPreVote": func(t raft.Transport, to raft.ServerID, h raft.RPCHeader) error {
		return t.(raft.WithPreVote).RequestPreVote(to, "", &raft.RequestPreVoteRequest{RPCHeader: h, Term: 1}, new(raft.RequestPreVoteResponse))
	},
	"TimeoutNow": func(t raft.Transport, to raft.ServerID, h raft.RPCHeader) error {
		return t.TimeoutNow(to, "", &raft.TimeoutNowRequest{RPCHeader: h}, new(raft.TimeoutNowResponse))
	},
	"InstallSnapshot": func(t raft.Transport, to raft.ServerID, h raft.RPCHeader) error {
		return t.InstallSnapshot(to, "", &raft.InstallSnapshotRequest{RPCHeader: h, Term: 1, Size: 4}, new(raft.InstallSnapshotResponse), strings.NewReader("data"))
	},
}

// take answers the messages that get to a node, and counts them.
func (n *node) take(t *testing.T) *atomic.Int64 {
	t.Helper()
	taken := new(atomic.Int64)
	answer := func(rpc raft.RPC) {
		taken.Add(1)
		switch rpc.Command.(type) {
		case *raft.AppendEntriesRequest:
			rpc.Respond(&raft.AppendEntriesResponse{Success: true}, nil)
		case *raft.RequestVoteRequest:
			rpc.Respond(&raft.RequestVoteResponse{Granted: true}, nil)
		case *raft.RequestPreVoteRequest:
			rpc.Respond(&raft.RequestPreVoteResponse{Granted: true}, nil)
		case *raft.TimeoutNowRequest:
			rpc.Respond(&raft.TimeoutNowResponse{}, nil)
		case *raft.InstallSnapshotRequest:
			b := make([]byte, 10)
			if k, _ := rpc.Reader.Read(b); string(b[:k]) != "data" {
				t.Errorf("the snapshot is %q", b[:k])
			}
			rpc.Respond(&raft.InstallSnapshotResponse{Success: true}, nil)
		}
	}
	transport := n.Transport()
	transport.SetHeartbeatHandler(func(raft.RPC) { t.Error("a heartbeat is handled beside raft's queue") })
	stop := make(chan struct{})
	t.Cleanup(func() { close(stop) })
	go func() {
		for {
			select {
			case rpc := <-transport.Consumer():
				answer(rpc)
			case <-stop:
				return
			}
		}
	}()
	return taken
}

func TestMessagesOfVoters(t *testing.T) {
	t.Parallel()
	nodes := openNodes(t, authority(t), "a", "b")
	a, b := nodes[0], nodes[1]
	taken := b.take(t)
	for name, send := range messages {
		before := taken.Load()
		if err := send(a.Transport(), serverID(b.id), header(a.id)); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if got := taken.Load() - before; got != 1 {
			t.Errorf("%s: taken %d times", name, got)
		}
	}
	if got, want := a.Transport().LocalAddr(), raft.ServerAddress(a.id.String()); got != want {
		t.Errorf("its address is %s, want its ID", got)
	}
	if got := string(a.Transport().EncodePeer(serverID(a.id), "anything")); got != a.id.String() {
		t.Errorf("in messages its address is %s, want its ID", got)
	}
}

// Who has no vote is not let in to send messages of Raft, and says so to itself.
func TestNonVotersSendNoMessages(t *testing.T) {
	t.Parallel()
	nodes := openNodes(t, authority(t), "a", "b")
	a, b := nodes[0], nodes[1]
	taken := b.take(t)
	b.serve(t)
	b.dir.change(func(d *directory) { d.voters[a.id] = false })
	for name, send := range messages {
		err := send(a.Transport(), serverID(b.id), header(a.id))
		if !errors.Is(err, peer.ErrNotVoter) {
			t.Errorf("%s: %v", name, err)
		}
		checkRefused(t, name, a, b.id, true, peer.ErrNotVoter)
	}
	if n := taken.Load(); n != 0 {
		t.Errorf("%d messages got through", n)
	}
	if err := a.call(t, b.id); err != nil { // other calls are for all members
		t.Error(err)
	}
}

// What changes under an open connection counts for the next message on it, and the connection ends.
func TestEachMessageIsLookedAt(t *testing.T) {
	t.Parallel()
	ca := authority(t)
	liar := func(id hierarchy.NodeID, addr string) func(hierarchy.NodeID) raft.RPCHeader {
		return func(own hierarchy.NodeID) raft.RPCHeader {
			h := header(own)
			if !id.IsZero() {
				h.ID = []byte(id.String())
			}
			if addr != "" {
				h.Addr = []byte(addr)
			}
			return h
		}
	}
	for name, c := range map[string]struct {
		change func(b *directory, a *node)
		header func(hierarchy.NodeID) raft.RPCHeader
		words  string
	}{
		"it loses its vote":          {func(d *directory, a *node) { d.voters[a.id] = false }, header, "not a voter"},
		"it is removed":              {func(d *directory, a *node) { delete(d.members, a.id) }, header, "not a member of the cluster any more"},
		"the epoch is raised":        {func(d *directory, a *node) { d.epoch.Number = 1 }, header, "of another epoch"},
		"it claims another's ID":     {nil, liar(nodeID("b"), ""), "another node than expected"},
		"it names another's address": {nil, liar(hierarchy.NodeID{}, nodeID("b").String()), "another node than expected"},
		"it names no sender":         {nil, func(hierarchy.NodeID) raft.RPCHeader { return raft.RPCHeader{ProtocolVersion: 3} }, "another node than expected"},
	} {
		for message, send := range messages {
			t.Run(name+", "+message, func(t *testing.T) {
				t.Parallel()
				nodes := openNodes(t, ca, "a", "b")
				a, b := nodes[0], nodes[1]
				taken := b.take(t)
				if err := messages["heartbeat"](a.Transport(), serverID(b.id), header(a.id)); err != nil {
					t.Fatal(err)
				}
				if b.Conns() != 1 {
					t.Fatalf("%d connections", b.Conns())
				}
				if c.change != nil {
					b.dir.change(func(d *directory) { c.change(d, a) })
				}
				err := send(a.Transport(), serverID(b.id), c.header(a.id))
				// What is left of a snapshot in the connection may reset it before the answer is read.
				if err == nil || message != "InstallSnapshot" && !strings.Contains(err.Error(), c.words) {
					t.Errorf("got %v, want an error that says %q", err, c.words)
				}
				if n := taken.Load(); n != 1 {
					t.Errorf("%d messages got through", n)
				}
				b.log.says(t, "a message of Raft was refused")
				eventually(t, "the connection is closed", func() bool { return b.Conns() == 0 })
				if n := b.log.count("a message of Raft was refused"); n != 1 {
					t.Errorf("said %d times:\n%s", n, b.log)
				}
			})
		}
	}
}

// A node whose own copy is old asks before it refuses, and not for each message.
func TestUnknownPeersAreAskedFor(t *testing.T) {
	t.Parallel()
	ca := authority(t)
	_, a := config(t, ca, "a")
	_, b := config(t, ca, "b")
	a.open(t)
	var asked atomic.Int64
	var learn atomic.Bool
	b.cfg.Unknown = func(_ context.Context, id hierarchy.NodeID) bool {
		asked.Add(1)
		if id != a.id {
			t.Errorf("asked for %s", id)
		}
		if learn.Load() {
			b.dir.change(func(d *directory) { d.members[a.id] = a.member() })
		}
		return learn.Load()
	}
	b.open(t)
	taken := b.take(t)
	a.dir.change(func(d *directory) { d.members[b.id] = b.member() })
	send := func() error { return messages["heartbeat"](a.Transport(), serverID(b.id), header(a.id)) }
	for range 3 {
		if err := send(); !errors.Is(err, peer.ErrNotMember) {
			t.Fatalf("nobody knows it: %v", err)
		}
	}
	if n := asked.Load(); n != 1 {
		t.Errorf("asked %d times", n)
	}
	learn.Store(true)
	eventually(t, "the answer that others do not know it either is forgotten", func() bool { return send() == nil })
	const more = 20
	for range more {
		if err := send(); err != nil {
			t.Fatal(err)
		}
	}
	if n := taken.Load(); n != more+1 {
		t.Errorf("%d messages got through", n)
	}
	if n := asked.Load(); n > 4 {
		t.Errorf("asked %d times", n)
	}
}

// A question that is not answered holds nobody up for longer than a second.
func TestUnknownThatHangs(t *testing.T) {
	t.Parallel()
	ca := authority(t)
	_, a := config(t, ca, "a")
	_, b := config(t, ca, "b")
	b.cfg.Unknown = func(ctx context.Context, _ hierarchy.NodeID) bool { <-ctx.Done(); return false }
	a.open(t)
	b.open(t).take(t)
	introduce(a, b)
	if err := messages["heartbeat"](a.Transport(), serverID(b.id), header(a.id)); err != nil {
		t.Fatal(err)
	}
	b.dir.change(func(d *directory) { d.voters[a.id] = false })
	began := time.Now()
	if err := messages["heartbeat"](a.Transport(), serverID(b.id), header(a.id)); err == nil {
		t.Error("it is let through")
	}
	if took := time.Since(began); took > 2*time.Second {
		t.Errorf("it took %v", took)
	}
}

// After a restart of a peer each connection to it that was kept is dead. None costs a message.
func TestFirstMessageAfterARestart(t *testing.T) {
	t.Parallel()
	nodes := openNodes(t, authority(t), "a", "b")
	a, b := nodes[0], nodes[1]
	b.take(t)
	var all sync.WaitGroup
	for range 3 { // as many as are kept
		for _, name := range []string{"heartbeat", "AppendEntries", "RequestVote", "RequestPreVote"} {
			all.Go(func() {
				if err := messages[name](a.Transport(), serverID(b.id), header(a.id)); err != nil {
					t.Error(err)
				}
			})
		}
	}
	all.Wait()
	if b.Conns() < 2 {
		t.Fatalf("b has %d connections: too few to tell", b.Conns())
	}
	b.cfg.Listen = b.Addr().String()
	closePort(t, b.Port)
	b.open(t).take(t)
	if err := messages["RequestVote"](a.Transport(), serverID(b.id), header(a.id)); err != nil {
		t.Error(err)
	}
	closePort(t, a.Port)
	if err := messages["RequestVote"](a.Transport(), serverID(b.id), header(a.id)); !errors.Is(err, peer.ErrClosed) {
		t.Errorf("by a closed port: %v", err)
	}
}

// Replication to a peer that heartbeats do not reach waits, and for no longer than there is a reason.
func TestReplicationWaits(t *testing.T) {
	t.Parallel()
	ca := authority(t)
	for name, c := range map[string]struct {
		end  func(t *testing.T, a, b *node)
		want error // nil: it gets through
	}{
		"until the peer is back": {func(t *testing.T, a, b *node) {
			b.cfg.Listen = b.Addr().String()
			b.open(t).take(t)
			if err := messages["heartbeat"](a.Transport(), serverID(b.id), header(a.id)); err != nil {
				t.Error(err)
			}
		}, nil},
		"until the lead is over":   {func(_ *testing.T, a, _ *node) { a.Lead(false) }, syscall.ECONNREFUSED},
		"until it is removed":      {func(_ *testing.T, a, b *node) { a.dir.change(func(d *directory) { delete(d.members, b.id) }) }, peer.ErrNotMember},
		"until the port is closed": {func(t *testing.T, a, _ *node) { closePort(t, a.Port) }, peer.ErrClosed},
	} {
		for _, message := range []string{"AppendEntries", "InstallSnapshot"} {
			t.Run(name+", "+message, func(t *testing.T) {
				t.Parallel()
				nodes := openNodes(t, ca, "a", "b")
				a, b := nodes[0], nodes[1]
				closePort(t, b.Port)
				send := func() error { return messages[message](a.Transport(), serverID(b.id), header(a.id)) }
				if err := messages["heartbeat"](a.Transport(), serverID(b.id), header(a.id)); !errors.Is(err, syscall.ECONNREFUSED) {
					t.Fatal(err)
				}
				if err := send(); !errors.Is(err, syscall.ECONNREFUSED) { // it does not lead: nobody waits
					t.Fatal(err)
				}
				a.Lead(true)
				if err := messages["heartbeat"](a.Transport(), serverID(b.id), header(a.id)); err == nil {
					t.Fatal("a peer that is away answers")
				}
				done := make(chan error, 1)
				go func() { done <- send() }()
				select {
				case err := <-done:
					t.Fatalf("it did not wait: %v", err)
				case <-time.After(50 * time.Millisecond):
				}
				c.end(t, a, b)
				select {
				case err := <-done:
					if !errors.Is(err, c.want) {
						t.Errorf("got %v, want %v", err, c.want)
					}
				case <-patience(t).Done():
					t.Error("it waits on")
				}
			})
		}
	}
}

// The kernel gives up a peer that is gone, on both ends of a connection.
func TestDeadPeersAreNoticedByTheKernel(t *testing.T) {
	t.Parallel()
	ca := authority(t)
	for name, c := range map[string]struct {
		use              func(a, b *node) error
		dialled, reached time.Duration
	}{
		"raft": {func(a, b *node) error { return messages["heartbeat"](a.Transport(), serverID(b.id), header(a.id)) },
			peer.RaftSilence, peer.RaftSilence},
		"calls": {func(a, b *node) error { return a.call(t, b.id) }, peer.CallSilence, peer.RaftSilence},
	} {
		nodes := openNodes(t, ca, "a", "b")
		a, b := nodes[0], nodes[1]
		b.take(t)
		b.serve(t)
		if err := c.use(a, b); err != nil {
			t.Fatal(err)
		}
		checkSocket(t, name+", who dialled", a.Sockets(), c.dialled)
		checkSocket(t, name+", who was dialled", b.Sockets(), c.reached)
	}
}

func checkSocket(t *testing.T, name string, sockets []net.Conn, silence time.Duration) {
	t.Helper()
	if len(sockets) != 1 {
		t.Fatalf("%s: %d sockets", name, len(sockets))
	}
	want := map[string]int{"SO_KEEPALIVE": 1, "TCP_USER_TIMEOUT": int(silence.Milliseconds()), "TCP_KEEPIDLE": 1, "TCP_KEEPINTVL": 1}
	got := map[string]int{}
	raw, err := sockets[0].(syscall.Conn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	raw.Control(func(fd uintptr) {
		for option, number := range map[string]int{
			"TCP_USER_TIMEOUT": unix.TCP_USER_TIMEOUT, "TCP_KEEPIDLE": unix.TCP_KEEPIDLE, "TCP_KEEPINTVL": unix.TCP_KEEPINTVL,
		} {
			if got[option], err = unix.GetsockoptInt(int(fd), unix.IPPROTO_TCP, number); err != nil {
				t.Error(err)
			}
		}
		got["SO_KEEPALIVE"], err = unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_KEEPALIVE)
	})
	if diff := cmp.Diff(want, got); diff != "" || err != nil {
		t.Errorf("%s: -want +got:\n%s%v", name, diff, err)
	}
}
