package cluster

import (
	"context"
	"fmt"
	"time"

	"github.com/hashicorp/raft"

	"github.com/kekd/kekd/hierarchy"
	"github.com/kekd/kekd/hierarchy/commandpb"
	"github.com/kekd/kekd/hierarchy/state"
)

const (
	// driveInterval is how often a leader looks whether something is to be done though nothing changed:
	// what it waits for is that a node is silent.
	driveInterval = 500 * time.Millisecond
	// driveTimeout bounds one step. Raft's changes of its configuration are proposals like others.
	driveTimeout = 5 * time.Second
	// silent is how long a node that mints may be unheard of before another takes over. A restart takes
	// less, mostly; taking over costs no more than that mintings which are under way begin anew.
	silent = 5 * time.Second
	// present is how recently a node must have been heard to be given something to do.
	present = time.Second
	// caughtUp is how many entries a node may be behind and be given a vote: some seconds of work.
	caughtUp = 256
)

// driver does what only the leader does, and nobody asks for: it brings raft's configuration to what the
// hierarchy says of its members, has another node mint where the present one is silent, raises the feature
// level, and hands leadership on where this node should not have it. It remembers nothing: each step follows from
// the state, raft's configuration and the roll.
type driver struct{ kick chan struct{} }

func newDriver() driver { return driver{make(chan struct{}, 1)} }

func (d driver) wake() {
	select {
	case d.kick <- struct{}{}:
	default:
	}
}

func (n *Node) drive(ctx context.Context) {
	timer := time.NewTicker(driveInterval)
	defer timer.Stop()
	leading := uint64(0) // the term in which this node has proved that it leads
	unheardOf := silences{}
	for {
		change, lead := n.Changed(), n.leadership.next()
		select {
		case <-ctx.Done():
			return
		case <-change:
		case <-lead:
		case <-timer.C:
		case <-n.driver.kick:
		}
		if n.IsLeader() {
			unheardOf.look(n, n.State(), n.roll.call())
		} else {
			clear(unheardOf)
		}
		for n.IsLeader() && ctx.Err() == nil {
			step, cancel := context.WithTimeout(ctx, driveTimeout)
			// A leader's state may lack what its predecessors have committed, and a member that it does not
			// know yet would be removed. Its own Tick proves that it has all of it.
			if term := n.raft.CurrentTerm(); term != leading {
				if _, err := n.ticks.tick(step); err != nil {
					cancel()
					break
				}
				leading = term
			}
			did, err := n.driveOnce(step)
			cancel()
			if err != nil {
				n.cfg.Logger.Warn("a step of the leader failed; it is tried again", "error", err)
			}
			if !did || err != nil {
				break
			}
		}
	}
}

// driveOnce does the most urgent thing, and tells whether there was one.
func (n *Node) driveOnce(ctx context.Context) (bool, error) {
	s, called := n.State(), n.roll.call()
	for _, step := range []func(context.Context, *state.State, call) (bool, error){n.followMembers, n.replaceMinter, n.raiseLevel, n.leaveLeadership} {
		if did, err := step(ctx, s, called); did || err != nil {
			return did, err
		}
	}
	return false, nil
}

// followMembers makes one change to raft's configuration, if it is not what the hierarchy says.
func (n *Node) followMembers(ctx context.Context, s *state.State, called call) (bool, error) {
	votes, known := n.votes()
	if !known {
		return false, nil
	}
	timeout := driveTimeout
	for m := range s.Nodes() {
		voter, there := votes[m.ID]
		var future raft.IndexFuture
		what := ""
		switch w, heard := called.heard[m.ID]; {
		case !there:
			what, future = "add", n.raft.AddNonvoter(serverID(m.ID), serverAddress(m.ID), 0, timeout)
		case m.Voter && !voter && heard && called.silence(m.ID) < present && w.applied+caughtUp >= s.Index():
			what, future = "give a vote to", n.raft.AddVoter(serverID(m.ID), serverAddress(m.ID), 0, timeout)
		case !m.Voter && voter && m.ID == n.id.Node:
			return n.handOn(ctx, s, called, "it is to vote no longer")
		case !m.Voter && voter:
			what, future = "take the vote of", n.raft.DemoteVoter(serverID(m.ID), 0, timeout)
		default:
			continue
		}
		return true, n.reconfigured(what, m.Name, future)
	}
	for id := range votes {
		if _, member := s.Node(id); member {
			continue
		}
		if id == n.id.Node {
			return n.handOn(ctx, s, called, "it was removed")
		}
		return true, n.reconfigured("remove", id.String(), n.raft.RemoveServer(serverID(id), 0, timeout))
	}
	return false, nil
}

func (n *Node) reconfigured(what, name string, future raft.IndexFuture) error {
	if err := future.Error(); err != nil {
		return fmt.Errorf("%s node %s: %w", what, name, err)
	}
	n.cfg.Logger.Info("raft's configuration follows the hierarchy", "change", what, "of", name)
	return nil
}

// replaceMinter names another node for a region whose minting node is silent, gone, or has lost its token.
func (n *Node) replaceMinter(ctx context.Context, s *state.State, called call) (bool, error) {
	for r := range s.Regions() {
		if r.Role == hierarchy.RoleWitness || n.mints(s, r, called) {
			continue
		}
		for m := range s.Nodes() {
			if m.Region != r.ID || m.ID == r.MintingNode || called.silence(m.ID) > present || !called.heard[m.ID].healthy {
				continue
			}
			_, err := n.proposeHere(ctx, &commandpb.Command{Body: &commandpb.Command_SetMintingNode{SetMintingNode: &commandpb.SetMintingNode{
				RegionId: r.ID.ID[:], FromNodeId: r.MintingNode.ID[:], NodeId: m.ID.ID[:],
			}}})
			if err == nil {
				n.cfg.Logger.Warn("another node mints for its region, since the one before is not heard of", "region", r.Name, "of", m.Name)
			}
			return true, err
		}
	}
	return false, nil
}

// mints tells whether a region's minting node may well be at work.
func (n *Node) mints(s *state.State, r *state.Region, called call) bool {
	m, member := s.Node(r.MintingNode)
	if !member || m.Region != r.ID {
		return false
	}
	if called.silence(m.ID) > silent {
		return false
	}
	well, heard := called.well[m.ID]
	return !heard || called.now-well < silent
}

// raiseLevel lets new commands be used once every member has said that it knows them.
func (n *Node) raiseLevel(ctx context.Context, s *state.State, called call) (bool, error) {
	level := uint32(state.Level)
	for m := range s.Nodes() {
		w, heard := called.heard[m.ID]
		if !heard {
			return false, nil
		}
		level = min(level, w.level)
	}
	if level <= s.FeatureLevel() {
		return false, nil
	}
	_, err := n.proposeHere(ctx, &commandpb.Command{Body: &commandpb.Command_RaiseFeatureLevel{RaiseFeatureLevel: &commandpb.RaiseFeatureLevel{Level: level}}})
	return true, err
}

// leaveLeadership has a witness hand leadership on: it has no token, and is to break ties, not to lead.
func (n *Node) leaveLeadership(ctx context.Context, s *state.State, called call) (bool, error) {
	self, ok := s.Node(n.id.Node)
	if !ok {
		return false, nil
	}
	if r, ok := s.Region(self.Region); !ok || r.Role != hierarchy.RoleWitness {
		return false, nil
	}
	return n.handOn(ctx, s, called, "it is a witness")
}

// handOn transfers leadership to a voter that can take it and has a token, if there is one.
func (n *Node) handOn(ctx context.Context, s *state.State, called call, why string) (bool, error) {
	to, ok := n.successor(s, called)
	if !ok {
		return false, nil
	}
	n.cfg.Logger.Info("this node hands leadership on", "because", why)
	return true, n.transfer(ctx, to)
}

// successor is the voter that is furthest of those which are there.
func (n *Node) successor(s *state.State, called call) (best hierarchy.NodeID, found bool) {
	votes, _ := n.votes()
	for m := range s.Nodes() {
		w, heard := called.heard[m.ID]
		if !votes[m.ID] || !m.Voter || m.ID == n.id.Node || !heard || called.silence(m.ID) > present {
			continue
		}
		if r, ok := s.Region(m.Region); !ok || r.Role == hierarchy.RoleWitness {
			continue
		}
		if !found || w.applied > called.heard[best].applied {
			best, found = m.ID, true
		}
	}
	return best, found
}
