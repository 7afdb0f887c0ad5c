package cluster

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/hashicorp/raft"

	"github.com/kekd/kekd/cluster/lease"
	"github.com/kekd/kekd/hierarchy"
	"github.com/kekd/kekd/hierarchy/commandpb"
	"github.com/kekd/kekd/hierarchy/state"
)

// Config is what a node needs from its surroundings.
type Config struct {
	// Dir is the node's own directory; nothing else lives in it.
	Dir string
	// Peers says how nodes reach each other; nil: this one is alone, and has no port.
	Peers *Peers
	// Forwarded is asked by a leader before it proposes what another node brings: it authorises the
	// command, and keeps a durable record that it was asked for. done is told what became of it, and makes
	// that durable as well. Nil: everything is allowed, and nothing recorded.
	Forwarded func(ctx context.Context, origin state.Node, c *commandpb.Command) (done func(state.Result, error) error, err error)
	// TokenHealthy tells whether this node's token answers, so that it may be asked to mint; nil: it has none.
	// It must be quick.
	TokenHealthy func() bool
	// Healthy says why this node must not serve: its lease is not renewed then. Nil: it always may. It must be
	// quick.
	Healthy func() error
	// Drained returns when whoever began to act on a state that this node had before the call is done. Nil: there
	// is nobody.
	Drained func(ctx context.Context) error
	// Marks keeps this node's mark; nil: it has none.
	Marks Marks
	// Clock measures leases, and time between wall clocks; lease.AgeClock if nil.
	Clock lease.Clock
	// Wall is the wall clock; time.Now if nil.
	Wall func() time.Time
	// Logger takes what happens; slog.Default() if nil. Commands are never logged.
	Logger *slog.Logger

	// wrapLog and wrapStable put something between the stores and their guards. Tests break disks
	// with them.
	wrapLog    func(raft.LogStore) raft.LogStore
	wrapStable func(raft.StableStore) raft.StableStore
	// adjust changes raft's settings for tests that cannot wait.
	adjust func(*raft.Config)
	// diskPatience is how long a store may take; [diskPatience] if 0.
	diskPatience time.Duration
	// transport and calls take the place of the port, in tests that have many nodes in one process. The node
	// closes the transport.
	transport raft.Transport
	calls     calls
	// release, when it is closed, ends what has failed. Without it that never ends.
	release <-chan struct{}
}

func (c Config) withDefaults() Config {
	if c.Clock == nil {
		c.Clock = lease.AgeClock{}
	}
	if c.Wall == nil {
		c.Wall = time.Now
	}
	if c.Logger == nil {
		c.Logger = slog.Default()
	}
	if c.diskPatience == 0 {
		c.diskPatience = diskPatience
	}
	return c
}

func (c Config) check() error {
	if c.Dir == "" {
		return fmt.Errorf("%w: no directory for the cluster's data", hierarchy.ErrInvalidArgument)
	}
	return nil
}

// mustPreVote refuses a transport that cannot ask for pre-votes. Raft would do without, silently: a node
// that was cut off would then raise the term and depose the leader each time that it comes back.
func mustPreVote(t raft.Transport) (preVoting, error) {
	asking, ok := t.(preVoting)
	if !ok {
		return nil, errors.New("the transport cannot ask for pre-votes")
	}
	return asking, nil
}

const (
	// electionTimeout is how long a follower does without its leader, a candidate without a majority,
	// and a leader without its followers. With raft's default of 1 s the first commit after a leader
	// was killed took up to 2.4 s, longer than the default max_staleness of 2 s lets a lease last.
	electionTimeout = 250 * time.Millisecond
	// commitTimeout is how soon an idle leader tells its followers what is committed.
	commitTimeout = 20 * time.Millisecond

	// Ticks come four times a second, or eight where a tenant wants a second. Every 8192 entries, that
	// is each 17 to 34 minutes, a snapshot takes the place of the log but for 4096 entries, with which
	// a node that was away for a few minutes can catch up. The log's file so stays at some 4 MB.
	snapshotThreshold = 8192
	trailingLogs      = 4096
	snapshotInterval  = 30 * time.Second // raft looks whether it is time after one to two of these
	keptSnapshots     = 2
)

func (c Config) raft(id hierarchy.NodeID, notify chan<- bool) *raft.Config {
	r := raft.DefaultConfig()
	r.LocalID = serverID(id)
	r.HeartbeatTimeout = electionTimeout
	r.ElectionTimeout = electionTimeout
	r.LeaderLeaseTimeout = electionTimeout
	r.CommitTimeout = commitTimeout
	r.SnapshotThreshold = snapshotThreshold
	r.SnapshotInterval = snapshotInterval
	r.TrailingLogs = trailingLogs
	r.NoSnapshotRestoreOnStart = true // the state machine has it already
	r.PreVoteDisabled = false
	r.NoLegacyTelemetry = true
	r.NotifyCh = notify
	r.Logger = raftLogger(c.Logger)
	if c.adjust != nil {
		c.adjust(r)
	}
	return r
}

// serverID is a node's name in raft's configuration.
func serverID(id hierarchy.NodeID) raft.ServerID { return raft.ServerID(id.String()) }

// serverAddress is a node's address in raft's configuration: its ID again. Where it really is says the
// hierarchy, so that a node which moves changes no configuration.
func serverAddress(id hierarchy.NodeID) raft.ServerAddress { return raft.ServerAddress(id.String()) }
