package state

import (
	"errors"
	"fmt"
	"time"

	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/kekd/kekd/hierarchy"
	"github.com/kekd/kekd/hierarchy/commandpb"
)

// Format is the format of commands and snapshots that this package reads and writes.
const Format = 1

// A node that meets one of these must stop: it can no longer be what the others are. Skipping a
// command is no way out, since it may have been the one that disables a tenant.
var (
	ErrUnknownCommand = errors.New("the log holds a command that this version of kekd does not know")
	ErrDiverged       = errors.New("this node's state is not that of the cluster")
)

// Fatal tells whether an error of [Apply] or [Decode] means that the node must stop.
func Fatal(err error) bool { return errors.Is(err, ErrUnknownCommand) || errors.Is(err, ErrDiverged) }

// Meta is what the log knows of a command.
type Meta struct {
	Index uint64
}

// Result is what became of a command.
type Result struct {
	// Index of the command; for a retry, that of the one which took effect.
	Index uint64
	// Err is why it was refused, wrapping one of the hierarchy's errors. If it is [Fatal], the
	// state did not change at all.
	Err error
	// Replayed tells that a command with this ID was here before, and that this is its outcome.
	// What it created then stands under the name that it asked for, but not necessarily under
	// the ID that the retry drew.
	Replayed bool
}

// Decode reads a command as it stands in the log. One of a higher format, of an unknown kind, or
// with a field that is not known is [ErrUnknownCommand]: what the field asks for would be skipped.
func Decode(data []byte) (*commandpb.Command, error) {
	c := new(commandpb.Command)
	if err := c.UnmarshalVT(data); err != nil {
		return nil, fmt.Errorf("%w: it cannot be read: %v", ErrUnknownCommand, err)
	}
	if err := known(c); err != nil {
		return nil, err
	}
	if hasUnknown(c.ProtoReflect()) {
		return nil, fmt.Errorf("%w: a field of it is not known", ErrUnknownCommand)
	}
	return c, nil
}

func known(c *commandpb.Command) error {
	if c.GetFormat() != Format {
		return fmt.Errorf("%w: format %d, this version reads %d", ErrUnknownCommand, c.GetFormat(), Format)
	}
	if c.GetBody() == nil {
		return fmt.Errorf("%w: it has no body", ErrUnknownCommand)
	}
	return nil
}

func hasUnknown(m protoreflect.Message) bool {
	if len(m.GetUnknown()) > 0 {
		return true
	}
	found := false
	m.Range(func(fd protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		switch {
		case fd.Message() == nil:
		case fd.IsList():
			for i := range v.List().Len() {
				found = found || hasUnknown(v.List().Get(i).Message())
			}
		default:
			found = found || hasUnknown(v.Message())
		}
		return !found
	})
	return found
}

// maxForgotten bounds what one command drops of what has had its time, outcomes and counts each: a
// midnight at which those of 100,000 tenants end, or a first tick after a night without a leader, would
// else stop everybody for a second and more.
const maxForgotten = 256

// Apply returns the state after a command. The command is not kept and the state that was handed
// in does not change. A refused command changes the index, cluster time and what is remembered of
// outcomes.
func Apply(s *State, m Meta, c *commandpb.Command) (*State, Result) {
	if err := known(c); err != nil {
		return s, Result{Index: m.Index, Err: err}
	}
	if m.Index <= s.index {
		return s, Result{Index: m.Index, Err: fmt.Errorf("%w: command %d was given to a state that is at %d", ErrDiverged, m.Index, s.index)}
	}
	if err := diverged(s, c.GetTick()); err != nil {
		return s, Result{Index: m.Index, Err: err}
	}

	d := s.draft()
	d.index = m.Index
	d.stamp = max(d.stamp, c.GetStamp())
	d.forget()
	d.forgetUses()
	d.forgetInvitations()

	id, err := idOf("idempotency ID of the command", c.GetId())
	if err != nil {
		return d.State, Result{Index: m.Index, Err: err}
	}
	if !remembered(c) {
		next, err := d.attempt(c)
		if Fatal(err) {
			return s, Result{Index: m.Index, Err: err}
		}
		return next.State, Result{Index: m.Index, Err: err}
	}

	asked := intent(c)
	if o, ok := d.outcomeByID.get(hierarchy.CommandID{ID: id}); ok {
		if o.intent != asked {
			err := fmt.Errorf("%w: the idempotency ID %s was used for another command", hierarchy.ErrInvalidArgument, id)
			return d.State, Result{Index: m.Index, Err: err}
		}
		return d.State, Result{Index: o.index, Err: o.err(), Replayed: true}
	}
	next, err := d.attempt(c)
	if Fatal(err) {
		return s, Result{Index: m.Index, Err: err}
	}
	next.remember(&outcome{id: hierarchy.CommandID{ID: id}, intent: asked, stamp: next.stamp, index: next.index}, err)
	return next.State, Result{Index: m.Index, Err: err}
}

// attempt runs a command on a copy of the draft. If it is refused, the draft is returned as it was.
func (d *draft) attempt(c *commandpb.Command) (*draft, error) {
	next := d.State.draft()
	if err := next.run(c); err != nil {
		return d, err
	}
	next.putUpFence(c)
	if wakes(d.State, next.State, c) {
		next.revision = next.index
	}
	return next, nil
}

// run dispatches. What it refuses wraps one of the hierarchy's errors.
func (d *draft) run(c *commandpb.Command) error {
	if init := c.GetInitCluster(); init != nil {
		return d.initCluster(init)
	}
	if !d.Initialised() {
		return fmt.Errorf("%w: the cluster is not initialised", hierarchy.ErrFailedPrecondition)
	}
	if level := LevelOf(c); level > d.level {
		return fmt.Errorf("%w: %T is of feature level %d, the cluster is at %d until each member knows more: upgrade them all",
			hierarchy.ErrFailedPrecondition, c.GetBody(), level, d.level)
	}
	switch b := c.GetBody().(type) {
	case *commandpb.Command_Tick:
		return nil // it has been compared, and its stamp is taken
	case *commandpb.Command_CreateTenant:
		return d.createTenant(b.CreateTenant)
	case *commandpb.Command_SetTenantState:
		return d.setTenantState(b.SetTenantState)
	case *commandpb.Command_SetTenant:
		return d.setTenant(b.SetTenant)
	case *commandpb.Command_CreateKey:
		return d.createKey(b.CreateKey)
	case *commandpb.Command_RotateKey:
		return d.rotateKey(b.RotateKey)
	case *commandpb.Command_SetKey:
		return d.setKey(b.SetKey)
	case *commandpb.Command_SetVersionState:
		return d.setVersionState(b.SetVersionState)
	case *commandpb.Command_RecordMinted:
		return d.recordMinted(b.RecordMinted)
	case *commandpb.Command_RestartMinting:
		return d.restartMinting(b.RestartMinting)
	case *commandpb.Command_CreateService:
		return d.createService(b.CreateService)
	case *commandpb.Command_DeleteService:
		return d.dropService(b.DeleteService)
	case *commandpb.Command_AllowPolicy:
		return d.allowPolicy(b.AllowPolicy)
	case *commandpb.Command_RevokePolicy:
		return d.revokePolicy(b.RevokePolicy)
	case *commandpb.Command_ReserveWraps:
		return d.reserveWraps(b.ReserveWraps)
	case *commandpb.Command_ReturnWraps:
		return d.returnWraps(b.ReturnWraps)
	case *commandpb.Command_AnchorAudit:
		return d.anchorAudit(b.AnchorAudit)
	case *commandpb.Command_ReserveUses:
		return d.reserveUses(b.ReserveUses)
	case *commandpb.Command_InviteNode:
		return d.inviteNode(b.InviteNode)
	case *commandpb.Command_JoinNode:
		return d.joinNode(b.JoinNode)
	case *commandpb.Command_SetNode:
		return d.setNode(b.SetNode)
	case *commandpb.Command_RemoveNode:
		return d.removeNode(b.RemoveNode)
	case *commandpb.Command_SetMintingNode:
		return d.setMintingNode(b.SetMintingNode)
	case *commandpb.Command_RaiseFeatureLevel:
		return d.raiseFeatureLevel(b.RaiseFeatureLevel)
	case *commandpb.Command_RestoreRecords:
		return d.restoreRecords(b.RestoreRecords)
	case *commandpb.Command_RegisterIncarnation:
		return d.registerIncarnation(b.RegisterIncarnation)
	case *commandpb.Command_RetireTombstone:
		return d.retireTombstone(b.RetireTombstone)
	case *commandpb.Command_CompleteFence:
		return d.completeFence(b.CompleteFence)
	}
	return fmt.Errorf("%w: %T", ErrUnknownCommand, c.GetBody())
}

// wakes tells whether the command may have made work for those who follow [State.Revision].
func wakes(before, after *State, c *commandpb.Command) bool {
	switch b := c.GetBody().(type) {
	case *commandpb.Command_Tick, *commandpb.Command_ReturnWraps, *commandpb.Command_AnchorAudit, *commandpb.Command_ReserveUses:
		return false
	case *commandpb.Command_ReserveWraps:
		// Only the block that uses up half of a version: it is to be rotated.
		r := b.ReserveWraps
		return wrapsReserved(before, r) < RotateAtWraps && wrapsReserved(after, r) >= RotateAtWraps
	}
	return true
}

// diverged compares the state with what a tick says that it was on the leader.
func diverged(s *State, t *commandpb.Tick) error {
	if len(t.GetStateHash()) == 0 || t.GetStateIndex() != s.index {
		return nil
	}
	if hash := s.Hash(); string(hash[:]) != string(t.GetStateHash()) {
		return fmt.Errorf("%w: at index %d it has the hash %x, the leader's has %x", ErrDiverged, s.index, hash, t.GetStateHash())
	}
	return nil
}

// now is cluster time as of the command that is being applied.
func (d *draft) now() time.Time { return timeOf(d.stamp) }
