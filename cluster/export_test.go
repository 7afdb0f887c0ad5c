package cluster

import (
	"log/slog"
	"time"

	"github.com/hashicorp/raft"

	"github.com/kekd/kekd/cluster/lease"
	"github.com/kekd/kekd/hierarchy"
)

// What tests outside of the package may reach into: disks that break, and the pieces whose faults no
// public call brings about.

func (c *Config) WrapLog(f func(raft.LogStore) raft.LogStore)          { c.wrapLog = f }
func (c *Config) WrapStable(f func(raft.StableStore) raft.StableStore) { c.wrapStable = f }
func (c *Config) Adjust(f func(*raft.Config))                          { c.adjust = f }

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

func NewClusterClock(age lease.Clock, wall func() time.Time, log *slog.Logger) func(floor time.Time) time.Time {
	c := &clusterClock{age: age, wall: wall, log: log}
	return c.stamp
}

// NewFSM is what raft has of a node of a cluster.
func NewFSM(of hierarchy.ClusterID) raft.FSM { return newFSM(of, newFailure()) }

// Raft gives what raft itself offers, to bring about what a peer would.
func (n *Node) Raft() *raft.Raft { return n.raft }

// OutcomeOf maps an error of raft.
var OutcomeOf = outcomeOf

// How an entry of the log is kept.
var (
	EncodeEntry = encodeEntry
	DecodeEntry = decodeEntry
)
