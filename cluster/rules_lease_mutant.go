//go:build cluster_mutant

package cluster

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"

	"github.com/kekd/kekd/hierarchy/commandpb"
	"github.com/kekd/kekd/hierarchy/state"
)

var (
	batchEndsFirst        = mutant != "joined-tick"
	remembersAcknowledged = mutant != "acknowledgement-forgotten"
	awaitsInFlight        = mutant != "in-flight"
)

func (n *Node) registerFirst(ctx context.Context) error {
	if mutant != "unregistered" {
		return n.register(ctx)
	}
	go func() {
		ctx, cancel := context.WithTimeout(context.Background(), tickTimeout)
		defer cancel()
		_ = n.register(ctx)
	}()
	return nil
}

func (n *Node) proveLead(ctx context.Context) (uint64, error) {
	switch mutant {
	case "verify-leader":
		if n.over() {
			return 0, raft.ErrRaftShutdown
		}
		n.running.Add(1) // raft forgets whom it has to answer when it stops
		defer n.running.Done()
		if err := n.raft.VerifyLeader().Error(); err != nil {
			return 0, outcomeOf(err, nil)
		}
		return n.State().Index(), nil
	case "before-applied":
		return n.appendTick()
	}
	return n.proposeTick(ctx)
}

// appendTick answers as soon as a Tick stands in this node's own log.
func (n *Node) appendTick() (uint64, error) {
	c := &commandpb.Command{Format: state.Format, Id: newCommandID(), Stamp: n.State().Stamp().UnixNano(), Body: &commandpb.Command_Tick{Tick: &commandpb.Tick{}}}
	data, err := c.MarshalVT()
	if err != nil {
		return 0, err
	}
	if n.raft.State() != raft.Leader {
		return 0, ErrNotLeader
	}
	n.raft.ApplyLog(raft.Log{Data: data}, enqueueTimeout)
	return n.raft.LastIndex() + 1, nil
}

// timers are those of a clock that a test has: one that fires late, as those of a process do that was stopped.
type timers interface{ Sleep(time.Duration) }

var noted sync.Map // by node: what its timer has read last

func (n *Node) readClock() time.Duration {
	t, ok := n.cfg.Clock.(timers)
	if mutant != "timer" || !ok {
		return n.cfg.Clock.Now()
	}
	read, known := noted.LoadOrStore(n, new(atomic.Int64))
	last := read.(*atomic.Int64)
	if !known {
		last.Store(int64(n.cfg.Clock.Now()))
		go func() {
			for n.Fault() == nil && !n.over() {
				t.Sleep(10 * time.Millisecond)
				last.Store(int64(n.cfg.Clock.Now()))
			}
			noted.Delete(n)
		}()
	}
	return time.Duration(last.Load())
}

func (n *Node) over() bool {
	select {
	case <-n.stopped:
		return true
	default:
		return false
	}
}

func (n *Node) waitsFor(f *state.Fence) []state.Holder {
	if mutant != "raft-members" {
		return f.Holders
	}
	var holders []state.Holder
	servers, _ := n.votes()
	for id := range servers {
		if m, ok := n.State().Node(id); ok && !m.Incarnation.IsZero() {
			holders = append(holders, state.Holder{Node: id, Incarnation: m.Incarnation})
		}
	}
	return holders
}

func speaksFor(by, other state.Holder) bool {
	return by == other || mutant == "another-incarnation" && by.Node == other.Node
}

func mayRenew(member *state.Node, incarnation []byte) bool {
	return string(member.Incarnation[:]) == string(incarnation) || mutant == "unregistered"
}
