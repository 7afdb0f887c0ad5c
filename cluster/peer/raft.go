package peer

import (
	"context"
	"errors"
	"io"
	"net"
	"sync"
	"syscall"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"

	"github.com/kekd/kekd/hierarchy"
)

const (
	// raftPool is how many idle connections to one peer are kept: for a heartbeat, a vote and an entry
	// that are sent at the same time.
	raftPool = 3
	// raftTime is how long a peer may take to answer a message; for a snapshot, for each 256 KiB of it.
	// What it holds up is that peer's replication alone. A peer whose machine is gone is given up sooner,
	// see raftSilence; one whose disk is slow has to be waited for.
	raftTime = 5 * time.Second
	// raftInFlight is how many messages to one peer may be on their way at once. When a peer answers that this node leads
	// no longer, raft stops reading answers, and goes on sending until it looks up; with its default of 2 there
	// is then no room for what is on its way, and raft waits for ever, also when it is to stop.
	raftInFlight = 16
)

// transport is Raft's, merged of one for what this node sends and one for each connection of a peer.
type transport struct {
	port  *Port
	out   *raft.NetworkTransport
	reach reach

	// rpcs are the messages of all peers that were let in.
	rpcs chan raft.RPC

	closing sync.Once
	closed  chan struct{}
}

var (
	_ raft.Transport   = (*transport)(nil)
	_ raft.WithPreVote = (*transport)(nil)
	_ raft.WithClose   = (*transport)(nil)
)

func newTransport(p *Port) *transport {
	t := &transport{port: p, rpcs: make(chan raft.RPC), closed: make(chan struct{})}
	t.out = raft.NewNetworkTransportWithConfig(&raft.NetworkTransportConfig{
		Stream:                &dialler{t},
		ServerAddressProvider: byID{},
		MaxPool:               raftPool,
		MaxRPCsInFlight:       raftInFlight,
		Timeout:               raftTime,
		Logger:                hclog.NewNullLogger(),
	})
	return t
}

// byID makes a server's ID its address, and this node's own in what it sends.
type byID struct{}

func (byID) ServerAddr(id raft.ServerID) (raft.ServerAddress, error) {
	return raft.ServerAddress(id), nil
}

// dialler is what the sending half has of the port. Nobody connects to it.
type dialler struct{ t *transport }

func (d *dialler) Dial(server raft.ServerAddress, _ time.Duration) (net.Conn, error) {
	id, err := hierarchy.ParseID(string(server))
	if err != nil {
		return nil, err
	}
	c, err := d.t.port.dial(d.t.port.ctx, nodeID{ID: id}, forRaft)
	if err != nil {
		return nil, err
	}
	return c, nil
}

func (d *dialler) Accept() (net.Conn, error) {
	<-d.t.closed
	return nil, ErrClosed
}

func (d *dialler) Addr() net.Addr { return serverAddr(d.t.port.cfg.Node.String()) }
func (d *dialler) Close() error   { return nil }

type serverAddr string

func (serverAddr) Network() string  { return "raft" }
func (a serverAddr) String() string { return string(a) }

// Close sends and takes no more. Connections are the port's to close.
func (t *transport) Close() error {
	t.closing.Do(func() { close(t.closed) })
	return t.out.Close()
}

func (t *transport) Consumer() <-chan raft.RPC { return t.rpcs }

// SetHeartbeatHandler does nothing: heartbeats wait in Raft's queue like all else. Raft would have them handled beside its own
// goroutine, and one of a new leader then raises the term of an old one in the middle of its loop. What that appends
// next has the new term at an index at which the new leader has another entry, which Raft never finds out.
func (t *transport) SetHeartbeatHandler(func(raft.RPC)) {}

func (t *transport) LocalAddr() raft.ServerAddress { return t.out.LocalAddr() }

func (t *transport) EncodePeer(id raft.ServerID, addr raft.ServerAddress) []byte {
	return t.out.EncodePeer(id, addr)
}

func (t *transport) DecodePeer(b []byte) raft.ServerAddress { return t.out.DecodePeer(b) }

func (t *transport) AppendEntriesPipeline(id raft.ServerID, target raft.ServerAddress) (raft.AppendPipeline, error) {
	return t.out.AppendEntriesPipeline(id, target)
}

// await holds replication to a peer back that heartbeats do not reach.
func (t *transport) await(id raft.ServerID) {
	t.reach.await(id, func() bool { return t.isMember(id) }, t.closed)
}

func (t *transport) isMember(id raft.ServerID) bool {
	node, err := hierarchy.ParseID(string(id))
	if err != nil {
		return false
	}
	_, ok := t.port.cfg.Directory.Member(nodeID{ID: node})
	return ok
}

func (t *transport) AppendEntries(id raft.ServerID, target raft.ServerAddress, req *raft.AppendEntriesRequest, resp *raft.AppendEntriesResponse) error {
	send := func() error { return again(func() error { return t.out.AppendEntries(id, target, req, resp) }) }
	if isHeartbeat(req) {
		err := send()
		t.reach.beat(id, err)
		return err
	}
	t.await(id)
	return send()
}

func (t *transport) RequestVote(id raft.ServerID, target raft.ServerAddress, req *raft.RequestVoteRequest, resp *raft.RequestVoteResponse) error {
	return again(func() error { return t.out.RequestVote(id, target, req, resp) })
}

func (t *transport) RequestPreVote(id raft.ServerID, target raft.ServerAddress, req *raft.RequestPreVoteRequest, resp *raft.RequestPreVoteResponse) error {
	return again(func() error { return t.out.RequestPreVote(id, target, req, resp) })
}

func (t *transport) TimeoutNow(id raft.ServerID, target raft.ServerAddress, req *raft.TimeoutNowRequest, resp *raft.TimeoutNowResponse) error {
	return again(func() error { return t.out.TimeoutNow(id, target, req, resp) })
}

func (t *transport) InstallSnapshot(id raft.ServerID, target raft.ServerAddress, req *raft.InstallSnapshotRequest, resp *raft.InstallSnapshotResponse, data io.Reader) error {
	t.await(id)
	return t.out.InstallSnapshot(id, target, req, resp, data) // not twice: data is read
}

// again sends a message once more if the connection that it was sent on has ended. After a peer's
// restart that is so for each that was kept, and a vote that is lost costs an election. Raft's
// messages may be received twice.
func again(send func() error) error {
	for range raftPool {
		err := send()
		if !broken(err) {
			return err
		}
	}
	return send()
}

// broken tells a connection that has ended from one that cannot be made, and from an error that the
// peer has answered.
func broken(err error) bool {
	for _, end := range []error{io.EOF, io.ErrUnexpectedEOF, net.ErrClosed, syscall.EPIPE, syscall.ECONNRESET} {
		if errors.Is(err, end) {
			return !saysNo(err)
		}
	}
	return false
}

// isHeartbeat is how Raft's own transport tells one.
func isHeartbeat(a *raft.AppendEntriesRequest) bool {
	return a.Term != 0 && a.PrevLogEntry == 0 && a.PrevLogTerm == 0 && len(a.Entries) == 0 && a.LeaderCommitIndex == 0
}

// admit says why a message must not get to Raft.
func (t *transport) admit(c *conn, rpc raft.RPC) error {
	if err := t.port.known(c); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(t.port.ctx, askTime)
	defer cancel()
	if !t.port.mayVote(ctx, c.peer.ID) {
		return notVoter()
	}
	return checkSender(c.peer.ID, rpc)
}
