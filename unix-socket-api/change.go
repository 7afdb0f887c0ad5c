package socketapi

import (
	"context"
	"fmt"
	"time"
	"unicode/utf8"

	"github.com/kekd/kekd/hierarchy"
	"github.com/kekd/kekd/hierarchy/commandpb"
	"github.com/kekd/kekd/hierarchy/custody"
	"github.com/kekd/kekd/hierarchy/state"
	"github.com/kekd/kekd/unix-socket-api/apierr"
	"github.com/kekd/kekd/unix-socket-api/kekdv1"
)

// recordTimeout is how long the record of an outcome may take, whatever became of the caller.
const recordTimeout = 10 * time.Second

// change takes one change of the hierarchy along the one path that there is: a durable record
// that it was asked for, the command, a durable record of what became of it.
//
// The command is built from the state after the request was recorded, so that a refusal for an
// unknown name is in the journal as well. New identifiers in it may differ between a call and
// its retry: the state machine compares what was asked for, and not what was drawn. So what
// was created is found by its name, which is never given twice.
//
// Errors carry the idempotency ID.
func (a *adminService) change(ctx context.Context, idempotencyID []byte, r AdminRecord, build func(*state.State) (*commandpb.Command, error)) (committed, error) {
	id, err := commandID(idempotencyID)
	if err != nil {
		return committed{}, err
	}
	done := committed{id: id}
	err = a.recorded(ctx, id, r, func(who hierarchy.Principal, r *AdminRecord) (string, error) {
		cmd, err := build(a.Hierarchy.State())
		if err != nil {
			return "", err
		}
		a.address(cmd, who, id)
		result, err := a.submit(ctx, cmd)
		done.index = result.Index
		r.noteReplay(result)
		return fmt.Sprintf("it took effect, at index %d", result.Index), err
	})
	if err != nil {
		return committed{}, err
	}
	done.state = a.Hierarchy.State()
	return done, nil
}

// recorded does something between its two records. What do returns without an error is what has
// happened, in case that this cannot be recorded; it may add to the record. The ID is that of a
// command; zero: there is none.
func (a *adminService) recorded(ctx context.Context, id hierarchy.CommandID, r AdminRecord, do func(who hierarchy.Principal, r *AdminRecord) (happened string, err error)) error {
	c, err := connOf(ctx)
	if err != nil {
		return err
	}
	if len(r.Reason) > custody.MaxReason || !utf8.ValidString(r.Reason) {
		return fmt.Errorf("%w: the reason has to be UTF-8 of at most %d bytes", hierarchy.ErrInvalidArgument, custody.MaxReason)
	}
	r.Caller, r.Command, r.Outcome = c.principal, id, AdminRequested
	if t, ok := a.Hierarchy.State().TenantByName(r.TenantName); ok {
		r.Tenant = t.ID
	}
	sequence, err := a.Audit.Append(ctx, r)
	if err != nil {
		return a.named(r, id, fmt.Errorf("%w: %w", hierarchy.ErrAuditUnavailable, err))
	}

	happened, err := do(c.principal, &r)
	r.Of, r.Outcome = sequence, AdminOK
	if err != nil {
		r.Outcome, r.Code = AdminFailed, apierr.From(err).Code
	}
	// Who hung up meanwhile does not keep the outcome out of the journal.
	recording, cancel := context.WithTimeout(context.WithoutCancel(ctx), recordTimeout)
	defer cancel()
	if _, recordErr := a.Audit.Append(recording, r); recordErr != nil && err == nil {
		a.Log.Error("the outcome of a change is not in the audit journal", "kind", r.Kind, "outcome", happened, "error", recordErr)
		err = apierr.WithHint(fmt.Errorf("%w: %s, and the audit journal has the request, but not the outcome", hierarchy.ErrOutcomeUnknown, happened),
			"see that the journal's disk is writable and has room")
	}
	if err != nil {
		return a.named(r, id, err)
	}
	return nil
}

// committed is a change that took effect.
type committed struct {
	state *state.State // has the command in it
	index uint64
	id    hierarchy.CommandID
	fence *kekdv1.Fence // nil: it has closed nothing
}

// submit proposes a command. A refusal by the state machine is an error here as well, and so is that what it did once
// was undone since.
func (a *adminService) submit(ctx context.Context, cmd *commandpb.Command) (state.Result, error) {
	result, err := a.Hierarchy.Propose(ctx, cmd)
	if err == nil {
		err = result.Err
	}
	if err == nil && result.Replayed && !a.Hierarchy.State().Holds(cmd) {
		err = apierr.WithHint(fmt.Errorf("%w: this was done before, at index %d, and was undone since", hierarchy.ErrFailedPrecondition, result.Index),
			"an idempotency ID is for trying one and the same change again: give none, or a new one, to do it anew")
	}
	return result, err
}

// address fills in under which ID a command is proposed, and for whom.
func (a *adminService) address(cmd *commandpb.Command, who hierarchy.Principal, id hierarchy.CommandID) {
	cmd.Format, cmd.Id = state.Format, id.ID[:]
	cmd.Actor = &commandpb.Actor{NodeId: a.Self.ID[:], Uid: who.UID, Gid: who.GID, Pid: who.PID}
}

// named gives an error its form for the caller, with the command's ID in it.
func (a *adminService) named(r AdminRecord, id hierarchy.CommandID, err error) error {
	e := *a.refusal(r.Kind, err)
	e.IdempotencyID = id
	return &e
}

func commandID(b []byte) (hierarchy.CommandID, error) {
	if len(b) == 0 {
		return hierarchy.CommandID{ID: hierarchy.NewID()}, nil
	}
	id, err := hierarchy.IDFromBytes(b)
	if err != nil {
		return hierarchy.CommandID{}, fmt.Errorf("idempotency ID: %w", err)
	}
	return hierarchy.CommandID{ID: id}, nil
}

func tenantByName(s *state.State, name string) (*state.Tenant, error) {
	t, ok := s.TenantByName(name)
	if !ok {
		if err := hierarchy.ValidateName(name); err != nil {
			return nil, err
		}
		return nil, fmt.Errorf("%w: tenant %s", hierarchy.ErrNotFound, name)
	}
	return t, nil
}

func keyByName(s *state.State, name hierarchy.KeyName) (*state.Key, error) {
	t, err := tenantByName(s, name.Tenant)
	if err != nil {
		return nil, err
	}
	k, ok := s.KeyByName(t.ID, name.Key)
	if !ok {
		return nil, fmt.Errorf("%w: key %s", hierarchy.ErrNotFound, name)
	}
	return k, nil
}
