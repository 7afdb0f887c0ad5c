package socketapi

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/kekd/kekd/hierarchy"
	"github.com/kekd/kekd/hierarchy/commandpb"
	"github.com/kekd/kekd/hierarchy/custody"
	"github.com/kekd/kekd/hierarchy/state"
	"github.com/kekd/kekd/unix-socket-api/apierr"
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
	c, err := connOf(ctx)
	if err != nil {
		return committed{}, err
	}
	id, err := commandID(idempotencyID)
	if err != nil {
		return committed{}, err
	}
	if len(r.Reason) > custody.MaxReason || !utf8.ValidString(r.Reason) {
		return committed{}, fmt.Errorf("%w: the reason has to be UTF-8 of at most %d bytes", hierarchy.ErrInvalidArgument, custody.MaxReason)
	}
	r.Caller, r.Command, r.Outcome = c.principal, id, AdminRequested
	if t, ok := a.Hierarchy.State().TenantByName(r.TenantName); ok {
		r.Tenant = t.ID
	}
	sequence, err := a.Audit.Append(ctx, r)
	if err != nil {
		return committed{}, a.named(r, id, fmt.Errorf("%w: %w", hierarchy.ErrAuditUnavailable, err))
	}

	result, err := a.propose(ctx, c.principal, id, build)
	index := result.Index
	if result.Replayed {
		r.Detail = strings.TrimPrefix(fmt.Sprintf("%s; done before, at index %d", r.Detail, index), "; ")
	}

	r.Of, r.Outcome = sequence, AdminOK
	if err != nil {
		r.Outcome, r.Code = AdminFailed, apierr.From(err).Code
	}
	// Who hung up meanwhile does not keep the outcome out of the journal.
	recording, cancel := context.WithTimeout(context.WithoutCancel(ctx), recordTimeout)
	defer cancel()
	if _, recordErr := a.Audit.Append(recording, r); recordErr != nil && err == nil {
		a.Log.Error("the outcome of a change is not in the audit journal", "kind", r.Kind, "index", index, "error", recordErr)
		err = apierr.WithHint(fmt.Errorf("%w: it took effect, at index %d, and the audit journal has the request, but not the outcome", hierarchy.ErrOutcomeUnknown, index),
			"see that the journal's disk is writable and has room")
	}
	if err != nil {
		return committed{}, a.named(r, id, err)
	}
	return committed{a.Hierarchy.State(), index, id}, nil
}

// committed is a change that took effect.
type committed struct {
	state *state.State // has the command in it
	index uint64
	id    hierarchy.CommandID
}

func (a *adminService) propose(ctx context.Context, who hierarchy.Principal, id hierarchy.CommandID, build func(*state.State) (*commandpb.Command, error)) (state.Result, error) {
	cmd, err := build(a.Hierarchy.State())
	if err != nil {
		return state.Result{}, err
	}
	cmd.Format, cmd.Id = state.Format, id.ID[:]
	cmd.Actor = &commandpb.Actor{NodeId: a.Self.ID[:], Uid: who.UID, Gid: who.GID, Pid: who.PID}
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

// waitServable waits for a change to be of use on this node. Its error says that the change
// itself stands, and so is [hierarchy.ErrOutcomeUnknown] also where the key is lost: a refusal would
// say that nothing was done.
func (a *adminService) waitServable(ctx context.Context, c committed, name hierarchy.KeyName, key *state.Key, versions ...uint32) error {
	ctx, cancel := early(ctx)
	defer cancel()
	for _, v := range versions {
		err := a.Minting.WaitServable(ctx, key.Tenant, key.ID, v)
		if err == nil {
			continue
		}
		version := hierarchy.VersionName{KeyName: name, Version: v}
		yet, hint := " yet", fmt.Sprintf("it goes on by itself; `kekctl key show %s` shows what is lacking", name)
		if _, lost := errors.AsType[*hierarchy.KeyLost](err); lost {
			yet, hint = "", fmt.Sprintf("it does not come back by itself: put the token back from a backup that has the key; where there is none, what was sealed under %s stays closed, and `kekctl key rotate %s` makes a version that works; `kekctl status` names every key that is lost", version, name)
		}
		e := apierr.From(apierr.WithHint(
			fmt.Errorf("%w: it took effect, at index %d, but this node cannot serve %s%s: %w", hierarchy.ErrOutcomeUnknown, c.index, version, yet, err), hint))
		e.IdempotencyID = c.id
		return e
	}
	return nil
}

// early ends a little before the call does, so that the caller still hears what is lacking.
func early(ctx context.Context) (context.Context, context.CancelFunc) {
	d, ok := ctx.Deadline()
	if !ok {
		return context.WithCancel(ctx)
	}
	return context.WithDeadline(ctx, d.Add(-min(time.Second, time.Until(d)/10)))
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
