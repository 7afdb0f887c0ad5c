package cluster

import (
	"context"
	"errors"
	"log/slog"
	"path/filepath"
	"time"

	"github.com/hashicorp/raft"

	"github.com/kekd/kekd/cluster/lease"
	"github.com/kekd/kekd/cluster/peerpb"
	"github.com/kekd/kekd/hierarchy"
	"github.com/kekd/kekd/hierarchy/commandpb"
	"github.com/kekd/kekd/hierarchy/state"
)

// What tests outside of the package may reach into: disks that break, and the pieces whose faults no
// public call brings about.

func (c *Config) WrapLog(f func(raft.LogStore) raft.LogStore)          { c.wrapLog = f }
func (c *Config) WrapStable(f func(raft.StableStore) raft.StableStore) { c.wrapStable = f }

// Network takes the place of the port.
func (c *Config) Network(t raft.Transport, reach func(context.Context, hierarchy.NodeID) (peerpb.PeerClient, error)) {
	c.transport = t
	if reach != nil {
		c.calls = reached(reach)
	}
}

type reached func(context.Context, hierarchy.NodeID) (peerpb.PeerClient, error)

func (r reached) Peer(ctx context.Context, id hierarchy.NodeID) (peerpb.PeerClient, error) {
	return r(ctx, id)
}

// Answers is what a node answers a peer that has proved who it is.
func (n *Node) Answers(from hierarchy.NodeID) peerpb.PeerServer { return answers{n: n, from: from} }

type answers struct {
	peerpb.UnimplementedPeerServer
	n    *Node
	from hierarchy.NodeID
}

func (a answers) RenewLease(ctx context.Context, m *peerpb.RenewLeaseRequest) (*peerpb.RenewLeaseResponse, error) {
	return a.n.renewLease(ctx, a.from, m)
}

func (a answers) Propose(ctx context.Context, m *peerpb.ProposeRequest) (*peerpb.ProposeResponse, error) {
	return a.n.propose(ctx, a.from, m), nil
}

func (a answers) Members(context.Context, *peerpb.MembersRequest) (*peerpb.MembersResponse, error) {
	return a.n.members(), nil
}

func (a answers) TransferLeadership(ctx context.Context, m *peerpb.TransferLeadershipRequest) (*peerpb.TransferLeadershipResponse, error) {
	code, text := words(a.n.transferHere(ctx, m.GetNodeId()))
	return &peerpb.TransferLeadershipResponse{ErrorCode: code, ErrorMessage: text}, nil
}

func (a answers) AwaitFence(ctx context.Context, m *peerpb.AwaitFenceRequest) (*peerpb.AwaitFenceResponse, error) {
	return a.n.awaitFence(ctx, m.GetIndex())
}

// JoinAs is the call of who has a certificate with this name.
func (n *Node) JoinAs(ctx context.Context, certified string, m *peerpb.JoinRequest) *peerpb.JoinResponse {
	return n.join(ctx, certified, m)
}

// JoinAnswered makes the directory of a node that was answered by JoinAs.
func JoinAnswered(cfg Config, of hierarchy.ClusterID, node hierarchy.NodeID, a *peerpb.JoinResponse) error {
	return Join(cfg, &Membership{Cluster: of, Node: node, told: introductionsOf(a.GetIndex(), a.GetMembers())})
}

// Votes is who votes by raft's configuration here.
func (n *Node) Votes() map[hierarchy.NodeID]bool {
	votes, _ := n.votes()
	return votes
}

// Admits tells whether this node's port would let raft's messages of another through.
func (n *Node) Admits(from hierarchy.NodeID) bool { return n.directory.Voter(from) }

// Release lets goroutines of a node that has failed end when it is closed, instead of never.
func (c *Config) Release(ch <-chan struct{}) { c.release = ch }

// Bury closes what a node that has failed leaves open, once its goroutines can end.
func (n *Node) Bury() {
	n.raft.Shutdown()
	_ = n.stores.close()
	_ = n.lock.Close()
}

func (c *Config) DiskPatience(d time.Duration) { c.diskPatience = d }
func (c *Config) Adjust(f func(*raft.Config))  { c.adjust = f }

func NewLogStore(path string) (interface {
	raft.LogStore
	Close() error
}, error) {
	return openLogStore(path)
}

func NewStableStore(kv interface {
	Set(key, value []byte) error
	Get(key []byte) ([]byte, error)
}) raft.StableStore {
	return &stableStore{kv}
}

func NewClusterClock(age lease.Clock, wall func() time.Time, log *slog.Logger) func(floor time.Time, voters ...hierarchy.NodeID) time.Time {
	return NewVotedClock(hierarchy.NodeID{}, age, wall, log).Stamp
}

// VotedClock is the clock of a node of several.
type VotedClock struct{ c *clusterClock }

func NewVotedClock(self hierarchy.NodeID, age lease.Clock, wall func() time.Time, log *slog.Logger) VotedClock {
	return VotedClock{newClusterClock(self, age, wall, log)}
}

func (v VotedClock) Report(of hierarchy.NodeID, wall time.Time) { v.c.report(of, wall) }

// Stamp is with these voters; none: it is the only one.
func (v VotedClock) Stamp(floor time.Time, voters ...hierarchy.NodeID) time.Time {
	if len(voters) == 0 {
		voters = []hierarchy.NodeID{v.c.self}
	}
	return v.c.stamp(floor, voters)
}

// NewFSM is what raft has of a node of a cluster.
func NewFSM(of hierarchy.ClusterID) raft.FSM {
	return newFSM(of, state.New(), newFailure(diskPatience))
}

// Raft gives what raft itself offers, to bring about what a peer would.
func (n *Node) Raft() *raft.Raft { return n.raft }

// OutcomeOf maps an error of raft.
var OutcomeOf = outcomeOf

// How an entry of the log is kept.
var (
	EncodeEntry = encodeEntry
	DecodeEntry = decodeEntry
)

// Ticker shares ticks as a leader does.
func Ticker(propose func(context.Context) (uint64, error), spacing time.Duration) func(context.Context) (uint64, error) {
	t := &ticks{propose: propose, spacing: func() time.Duration { return spacing }}
	return t.tick
}

// Marks.
var (
	Behind       = Mark.behind
	MustBeMarked = mustBeMarked
)

// RaiseTerm is what an election of somebody else leaves on a stopped node's disk.
func RaiseTerm(cfg Config) error {
	s, err := openStores(filepath.Join(cfg.Dir, raftDir), cfg)
	if err != nil {
		return err
	}
	term, err := s.stable.GetUint64([]byte(keyCurrentTerm))
	if err == nil {
		err = s.stable.SetUint64([]byte(keyCurrentTerm), term+1)
	}
	return errors.Join(err, s.close())
}

// Replaced is what a log store remembers of entries that were replaced.
func Replaced(s raft.LogStore) (Mark, error) { return s.(*logStore).replaced() }

// RaftLogger is raft's log.
var RaftLogger = raftLogger

// AppendUnproved writes commands to a stopped node's log, as a leader that nobody has answered does.
func AppendUnproved(cfg Config, commands ...*commandpb.Command) error {
	s, err := openStores(filepath.Join(cfg.Dir, raftDir), cfg)
	if err != nil {
		return err
	}
	write := func() error {
		term, err := s.stable.GetUint64([]byte(keyCurrentTerm))
		if err != nil {
			return err
		}
		last, err := s.log.LastIndex()
		if err != nil {
			return err
		}
		for i, c := range commands {
			c.Format, c.Id = state.Format, newCommandID()
			data, err := c.MarshalVT()
			if err != nil {
				return err
			}
			if err := s.log.StoreLog(&raft.Log{Index: last + 1 + uint64(i), Term: term, Type: raft.LogCommand, Data: data}); err != nil {
				return err
			}
		}
		return nil
	}
	return errors.Join(write(), s.close())
}
