package socketapi

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/kekd/kekd/hierarchy"
	"github.com/kekd/kekd/hierarchy/state"
	"github.com/kekd/kekd/unix-socket-api/apierr"
)

// waitServable waits for a change to be of use: on this node, if its region has the key, and else
// wherever the tenant is. Its error says that the change itself stands, and so is
// [hierarchy.ErrOutcomeUnknown] also where the key is lost: a refusal would say that nothing was done.
func (a *adminService) waitServable(ctx context.Context, c committed, name hierarchy.KeyName, key *state.Key, versions ...uint32) error {
	ctx, cancel := early(ctx)
	defer cancel()
	for _, number := range versions {
		version := hierarchy.VersionName{KeyName: name, Version: number}
		lacks, err := fmt.Sprintf("this node cannot serve %s", version), error(nil)
		if v, ok := key.Version(number); ok && a.hasKeyOf(v) {
			err = a.Minting.WaitServable(ctx, key.Tenant, key.ID, number)
		} else {
			lacks = fmt.Sprintf("nobody can serve %s", version)
			err = a.waitActive(ctx, key, number)
		}
		if err == nil {
			continue
		}
		yet, hint := " yet", fmt.Sprintf("it goes on by itself; `kekctl key show %s` shows what is lacking", name)
		if _, lost := errors.AsType[*hierarchy.KeyLost](err); lost {
			yet, hint = "", fmt.Sprintf("it does not come back by itself: put the token back from a backup that has the key; where there is none, what was sealed under %s stays closed, and `kekctl key rotate %s` makes a version that works; `kekctl status` names every key that is lost", version, name)
		}
		e := apierr.From(apierr.WithHint(
			fmt.Errorf("%w: it took effect, at index %d, but %s%s: %w", hierarchy.ErrOutcomeUnknown, c.index, lacks, yet, err), hint))
		e.IdempotencyID = c.id
		return e
	}
	return nil
}

// hasKeyOf tells whether this node's token is one that a version has a key in.
func (a *adminService) hasKeyOf(v *state.Version) bool {
	region, ok := a.region()
	if !ok || a.Minting == nil {
		return false
	}
	_, here := v.Region(region)
	return here
}

// region is this node's own; false if it is no member.
func (a *adminService) region() (hierarchy.RegionID, bool) {
	n, ok := a.Hierarchy.State().Node(a.Self)
	if !ok {
		return hierarchy.RegionID{}, false
	}
	return n.Region, true
}

// waitActive waits for the regions of a version, which are others than this node's. That they can use
// it is theirs to say: here it is known that they have recorded what they made.
func (a *adminService) waitActive(ctx context.Context, key *state.Key, number uint32) error {
	for {
		changed := a.Hierarchy.Changed() // before the state is read, so that no change is missed
		s := a.Hierarchy.State()
		k, ok := s.Key(key.Tenant, key.ID)
		if !ok {
			return fmt.Errorf("%w: the key", hierarchy.ErrNotFound)
		}
		v, ok := k.Version(number)
		if !ok {
			return fmt.Errorf("%w: version %d", hierarchy.ErrNotFound, number)
		}
		if v.State != hierarchy.PreActive {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return fmt.Errorf("%w: it is not minted in %s", ctx.Err(), strings.Join(unminted(s, v), ", "))
		}
	}
}

func unminted(s *state.State, v *state.Version) (names []string) {
	for i := range v.Regions {
		if r := &v.Regions[i]; !r.Minted {
			names = append(names, regionName(s, r.Region))
		}
	}
	return names
}

// early ends a little before the call does, so that the caller still hears what is lacking.
func early(ctx context.Context) (context.Context, context.CancelFunc) {
	d, ok := ctx.Deadline()
	if !ok {
		return context.WithCancel(ctx)
	}
	return context.WithDeadline(ctx, d.Add(-min(time.Second, time.Until(d)/10)))
}
