package state

import (
	"fmt"

	"github.com/kekd/kekd/hierarchy"
	"github.com/kekd/kekd/hierarchy/commandpb"
)

// Proves is the index up to which everything was committed when a command was proposed: its proposer had applied it. 0
// if the command says nothing of that. It holds whether or not the command itself was committed, in a log that has it.
func Proves(c *commandpb.Command) uint64 {
	switch b := c.GetBody().(type) {
	case *commandpb.Command_Tick:
		return b.Tick.GetStateIndex()
	case *commandpb.Command_CompleteFence:
		return b.CompleteFence.GetIndex()
	}
	return 0
}

// ApplyClosing is [Apply] for a command that is in a log and not known to have been committed. Whoever proposed it may have
// been told that it took effect, or that it failed; so what it closes is closed, and what it opens is not opened. took
// tells whether it did anything. An error is one that is [Fatal].
func ApplyClosing(s *State, m Meta, c *commandpb.Command) (next *State, took bool, err error) {
	if err := known(c); err != nil {
		return s, false, err
	}
	if unprovedOnlyCloses() && !mayClose(c) {
		return s, false, nil
	}
	after, res := Apply(s, m, c)
	if Fatal(res.Err) {
		return s, false, res.Err
	}
	if res.Err != nil {
		return s, false, nil
	}
	if !unprovedOnlyCloses() {
		return after, true, nil
	}
	next = withoutOpening(s, after, c)
	return next, next != s, nil
}

// mayClose tells whether there is anything in a command of a kind that closes, or counts what is used up. A kind
// that is not known here does not.
func mayClose(c *commandpb.Command) bool {
	switch b := c.GetBody().(type) {
	case *commandpb.Command_InitCluster: // the only voter there is has it
		return true
	case *commandpb.Command_SetTenantState:
		return b.SetTenantState.GetState() != commandpb.TenantState_TENANT_STATE_ENABLED
	case *commandpb.Command_SetVersionState:
		return b.SetVersionState.GetAction() != commandpb.VersionAction_VERSION_ACTION_RESUME
	case *commandpb.Command_SetTenant, *commandpb.Command_SetKey,
		*commandpb.Command_AllowPolicy, *commandpb.Command_RevokePolicy, *commandpb.Command_DeleteService, *commandpb.Command_RestoreRecords,
		*commandpb.Command_RemoveNode, *commandpb.Command_RegisterIncarnation, *commandpb.Command_ReserveWraps, *commandpb.Command_ReserveUses:
		return true
	case *commandpb.Command_AnchorAudit:
		return b.AnchorAudit.GetAcceptedLoss() == ""
	}
	return false
}

// withoutOpening is the later state, tightened by the earlier one as by a restore; or the earlier one, if the later has
// a rule that is new: a restore says nothing of what it does not have. A command that did not take effect in full has
// no outcome: who repeats it asks anew.
func withoutOpening(before, after *State, c *commandpb.Command) *State {
	if !before.Initialised() {
		return after
	}
	for _, rule := range after.Rules("") {
		if _, ok := before.Rule(rule.Service, rule.Pattern); !ok {
			return before
		}
	}
	r := restorer{draft: after.draft()}
	for rec := range before.snapshotRecords {
		if !restorable(rec) {
			continue
		}
		if r.take(rec) != nil {
			return before // never: a state's own records can be read
		}
	}
	r.compile()
	if *r.sum == *after.sum {
		return after
	}
	if id, err := hierarchy.IDFromBytes(c.GetId()); err == nil {
		if o, ok := r.outcomeByID.get(hierarchy.CommandID{ID: id}); ok {
			r.deleteOutcome(o)
		}
	}
	return r.State
}

// Recovery is what raises the epoch of a cluster that has lost its majority.
type Recovery struct {
	// Node is the one that goes on, as the only member.
	Node hierarchy.NodeID
	// Index is that of the state that comes out.
	Index uint64
	// Statement is the hash of what was decided.
	Statement [32]byte
	// CloseAll has every tenant disabled: it is not known what was closed.
	CloseAll bool
	Reason   string
}

// Recover makes a node the only member of the next epoch, and its only voter. The others are members no longer, and their IDs
// never again; what leases they hold stays behind as tombstones. Nobody is invited any more.
func Recover(s *State, r Recovery) (*State, error) {
	d := s.draft()
	if r.Index <= d.index {
		return nil, fmt.Errorf("%w: a recovery at index %d, of a state at %d", hierarchy.ErrInvalidArgument, r.Index, d.index)
	}
	n, ok := d.Node(r.Node)
	if !ok {
		return nil, fmt.Errorf("%w: node %s is no member", hierarchy.ErrNotFound, r.Node)
	}
	if region, _ := d.Region(n.Region); region.Role == hierarchy.RoleReplica {
		return nil, fmt.Errorf("%w: node %s is of %s, a replica region, and never had a vote: recover a voter", hierarchy.ErrFailedPrecondition, n.Name, region.Name)
	}
	d.index, d.revision = r.Index, r.Index
	d.epoch++
	d.raisedBy = r.Statement
	for other := range s.Nodes() {
		if other.ID == n.ID {
			continue
		}
		d.deleteNode(other)
		d.bury(other)
		d.putRemoved(&RemovedNode{ID: other.ID, Name: other.Name, Region: other.Region, RemovedAt: d.now()})
	}
	for region := range s.Regions() {
		if _, stays := d.Node(region.MintingNode); !stays && !region.MintingNode.IsZero() {
			d.handMintingOver(region, d.firstOf(region))
		}
	}
	if !n.Voter {
		next := *n
		next.Voter = true
		d.putNode(&next)
	}
	for i := range s.Invitations() {
		d.deleteInvitation(i)
	}
	if r.CloseAll {
		d.disableAll(r.Reason)
	}
	d.putUpFenceOf("recovery")
	return d.State, nil
}

func (d *draft) disableAll(reason string) {
	for t := range d.State.Tenants() {
		if t.State >= hierarchy.TenantDisabled {
			continue
		}
		next := *t
		next.State, next.StateReason, next.StateAt = hierarchy.TenantDisabled, reason, d.now()
		d.putTenant(&next)
	}
}
