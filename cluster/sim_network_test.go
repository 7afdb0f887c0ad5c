package cluster_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"sync"
	"time"

	"github.com/hashicorp/raft"
	"google.golang.org/grpc"

	"github.com/kekd/kekd/cluster/peerpb"
	"github.com/kekd/kekd/hierarchy"
)

// simNet carries messages between the nodes of a simulation, and loses, delays, reorders and repeats them. Each
// direction of a pair has its own faults. All time is the bubble's.
type simNet struct {
	dice  *simDice
	mu    sync.Mutex
	links map[simLink]simFaults
	usual simFaults
	runs  map[hierarchy.NodeID]*simRun // what answers for a node now
}

// simLink is one direction.
type simLink struct{ from, to hierarchy.NodeID }

// simKind is what a message is about.
type simKind string

const (
	simOfRaft  simKind = "raft"
	simEntries simKind = "entries" // of the log, and their acknowledgement
	simOfPeer  simKind = "peer"    // and of no kind below
	simRenew   simKind = "RenewLease"
	simPropose simKind = "Propose"
)

// simFaults are those of one direction.
type simFaults struct {
	cut    bool
	only   simKind       // what it is about; empty: all
	least  time.Duration // each message takes so long
	delay  time.Duration // and up to so much more; reorders, since each draws its own
	lose   float64       // how many of all
	repeat float64       // how many come again, up to two seconds later
}

var (
	errSimLost = errors.New("the message was lost")
	errSimGone = errors.New("nobody answers there")
)

// simCallTimeout is how long a call of raft waits for its answer.
const simCallTimeout = time.Second

func newSimNet(dice *simDice) *simNet {
	return &simNet{
		dice: dice, links: map[simLink]simFaults{}, runs: map[hierarchy.NodeID]*simRun{},
		usual: simFaults{delay: 2 * time.Millisecond},
	}
}

func (n *simNet) set(l simLink, f simFaults) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.links[l] = f
}

// heal makes all as it usually is.
func (n *simNet) heal() {
	n.mu.Lock()
	defer n.mu.Unlock()
	clear(n.links)
	n.usual = simFaults{delay: 2 * time.Millisecond}
}

func (n *simNet) answers(id hierarchy.NodeID) *simRun {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.runs[id]
}

// answered says which run answers for a node from now on; nil: none.
func (n *simNet) answered(id hierarchy.NodeID, r *simRun) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.runs[id] = r
}

// fate draws what happens to one message.
func (n *simNet) fate(l simLink, kind simKind) (after time.Duration, arrives, again bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	f, special := n.links[l]
	if !special || f.only != "" && f.only != kind {
		f = n.usual
	}
	if f.cut {
		return 0, false, false
	}
	after = 100*time.Microsecond + f.least + n.dice.between(0, f.delay+1)
	return after, !n.dice.chance(f.lose), n.dice.chance(f.repeat)
}

// carry takes one message of a run to the run that answers for a node when it arrives.
func (n *simNet) carry(from *simRun, to hierarchy.NodeID, kind simKind) (target *simRun, again bool, err error) {
	from.awake()
	if from.cutOff() {
		return nil, false, errSimLost
	}
	after, arrives, again := n.fate(simLink{from.id, to}, kind)
	if !arrives {
		return nil, false, errSimLost
	}
	time.Sleep(after)
	target = n.answers(to)
	if target == nil || target.cutOff() {
		return nil, false, errSimGone
	}
	target.awake()
	return target, again, nil
}

// exchange is a question and its answer, either of which may be lost. What has no answer ends with ctx.
func simExchange[A any](ctx context.Context, n *simNet, from *simRun, to hierarchy.NodeID, kind simKind, ask func(context.Context, *simRun) (A, error)) (A, error) {
	type answer struct {
		a   A
		err error
	}
	done := make(chan answer, 1)
	defer from.awake()
	go func() {
		target, again, err := n.carry(from, to, kind)
		if errors.Is(err, errSimLost) {
			return // nobody tells
		}
		if err != nil {
			done <- answer{err: err}
			return
		}
		if again {
			late := n.dice.between(0, 2*time.Second)
			go func() {
				time.Sleep(late)
				if target := n.answers(to); target != nil && !target.cutOff() && !from.cutOff() {
					target.awake()
					_, _ = ask(target.ctx, target)
				}
			}()
		}
		var a answer
		a.a, a.err = ask(target.ctx, target)
		if _, _, err := n.carry(target, from.id, kind); err == nil {
			from.awake()
			done <- a
		}
	}()
	select {
	case a := <-done:
		return a.a, a.err
	case <-ctx.Done():
		return *new(A), ctx.Err()
	case <-from.ctx.Done():
		return *new(A), errSimGone
	}
}

// simTransport is raft's part of the network, for one run of one node.
type simTransport struct {
	net  *simNet
	run  *simRun
	rpcs chan raft.RPC
}

func (t *simTransport) Consumer() <-chan raft.RPC     { return t.rpcs }
func (t *simTransport) LocalAddr() raft.ServerAddress { return raft.ServerAddress(t.run.id.String()) }
func (t *simTransport) EncodePeer(_ raft.ServerID, a raft.ServerAddress) []byte {
	return []byte(a)
}
func (t *simTransport) DecodePeer(b []byte) raft.ServerAddress { return raft.ServerAddress(b) }

// SetHeartbeatHandler does nothing, as the real port's.
func (t *simTransport) SetHeartbeatHandler(func(raft.RPC)) {}

func (t *simTransport) AppendEntriesPipeline(raft.ServerID, raft.ServerAddress) (raft.AppendPipeline, error) {
	return nil, raft.ErrPipelineReplicationNotSupported
}

func (t *simTransport) AppendEntries(id raft.ServerID, _ raft.ServerAddress, q *raft.AppendEntriesRequest, a *raft.AppendEntriesResponse) error {
	return simRaft(t, id, q, nil, a)
}

func (t *simTransport) RequestVote(id raft.ServerID, _ raft.ServerAddress, q *raft.RequestVoteRequest, a *raft.RequestVoteResponse) error {
	return simRaft(t, id, q, nil, a)
}

func (t *simTransport) RequestPreVote(id raft.ServerID, _ raft.ServerAddress, q *raft.RequestPreVoteRequest, a *raft.RequestPreVoteResponse) error {
	return simRaft(t, id, q, nil, a)
}

func (t *simTransport) TimeoutNow(id raft.ServerID, _ raft.ServerAddress, q *raft.TimeoutNowRequest, a *raft.TimeoutNowResponse) error {
	return simRaft(t, id, q, nil, a)
}

func (t *simTransport) InstallSnapshot(id raft.ServerID, _ raft.ServerAddress, q *raft.InstallSnapshotRequest, a *raft.InstallSnapshotResponse, data io.Reader) error {
	b, err := io.ReadAll(data)
	if err != nil {
		return err
	}
	return simRaft(t, id, q, b, a)
}

func simRaft[A any](t *simTransport, id raft.ServerID, q any, data []byte, into *A) error {
	to, err := hierarchy.ParseID(string(id))
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(t.run.ctx, simCallTimeout)
	defer cancel()
	kind := simOfRaft
	if m, ok := q.(*raft.AppendEntriesRequest); ok {
		if len(m.Entries) > 0 {
			kind = simEntries
		}
		sent := *m // raft fills in the next one in the same place, while this may still be on its way
		q = &sent
	}
	a, err := simExchange(ctx, t.net, t.run, hierarchy.NodeID{ID: to}, kind, func(ctx context.Context, target *simRun) (*A, error) {
		// As the port does: see peer.Port.
		if node := target.node.Load(); node == nil || !node.Admits(t.run.id) {
			return nil, errSimGone
		}
		return simHandle[A](ctx, target.transport, q, data)
	})
	if err == nil {
		*into = *a
	}
	return err
}

// simHandle has raft answer on the other side.
func simHandle[A any](ctx context.Context, t *simTransport, q any, data []byte) (*A, error) {
	answer := make(chan raft.RPCResponse, 1)
	rpc := raft.RPC{Command: q, RespChan: answer}
	if data != nil {
		rpc.Reader = bytes.NewReader(data)
	}
	select {
	case t.rpcs <- rpc:
		return simAnswer[A](ctx, answer)
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func simAnswer[A any](ctx context.Context, answer <-chan raft.RPCResponse) (*A, error) {
	select {
	case a := <-answer:
		if a.Error != nil {
			return nil, a.Error
		}
		return a.Response.(*A), nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// simPeer calls another node, as the real port's client does.
type simPeer struct {
	net *simNet
	run *simRun
	to  hierarchy.NodeID
}

// reach connects: the other side is there, and has answered once.
func (n *simNet) reach(ctx context.Context, from *simRun, to hierarchy.NodeID) (peerpb.PeerClient, error) {
	_, err := simExchange(ctx, n, from, to, simOfPeer, func(context.Context, *simRun) (struct{}, error) { return struct{}{}, nil })
	if err != nil {
		return nil, err
	}
	return simPeer{n, from, to}, nil
}

func simCall[A any](ctx context.Context, p simPeer, kind simKind, ask func(context.Context, peerpb.PeerServer) (A, error)) (A, error) {
	return simExchange(ctx, p.net, p.run, p.to, kind, func(ctx context.Context, target *simRun) (A, error) {
		// The caller's end is not always heard of.
		ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
		defer cancel()
		node := target.node.Load()
		if node == nil {
			return *new(A), errSimGone
		}
		return ask(ctx, node.Answers(p.run.id))
	})
}

func (p simPeer) RenewLease(ctx context.Context, m *peerpb.RenewLeaseRequest, _ ...grpc.CallOption) (*peerpb.RenewLeaseResponse, error) {
	return simCall(ctx, p, simRenew, func(ctx context.Context, s peerpb.PeerServer) (*peerpb.RenewLeaseResponse, error) {
		return s.RenewLease(ctx, m)
	})
}

func (p simPeer) Propose(ctx context.Context, m *peerpb.ProposeRequest, _ ...grpc.CallOption) (*peerpb.ProposeResponse, error) {
	return simCall(ctx, p, simPropose, func(ctx context.Context, s peerpb.PeerServer) (*peerpb.ProposeResponse, error) {
		return s.Propose(ctx, m)
	})
}

func (p simPeer) Members(ctx context.Context, m *peerpb.MembersRequest, _ ...grpc.CallOption) (*peerpb.MembersResponse, error) {
	return simCall(ctx, p, simOfPeer, func(ctx context.Context, s peerpb.PeerServer) (*peerpb.MembersResponse, error) {
		return s.Members(ctx, m)
	})
}

func (p simPeer) TransferLeadership(ctx context.Context, m *peerpb.TransferLeadershipRequest, _ ...grpc.CallOption) (*peerpb.TransferLeadershipResponse, error) {
	return simCall(ctx, p, simOfPeer, func(ctx context.Context, s peerpb.PeerServer) (*peerpb.TransferLeadershipResponse, error) {
		return s.TransferLeadership(ctx, m)
	})
}

func (p simPeer) AwaitFence(ctx context.Context, m *peerpb.AwaitFenceRequest, _ ...grpc.CallOption) (*peerpb.AwaitFenceResponse, error) {
	return simCall(ctx, p, simOfPeer, func(ctx context.Context, s peerpb.PeerServer) (*peerpb.AwaitFenceResponse, error) {
		return s.AwaitFence(ctx, m)
	})
}

func (p simPeer) Join(context.Context, *peerpb.JoinRequest, ...grpc.CallOption) (*peerpb.JoinResponse, error) {
	return nil, errSimGone // who joins is no member: see simCluster.join
}
