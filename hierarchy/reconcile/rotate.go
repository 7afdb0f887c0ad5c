package reconcile

import (
	"cmp"
	"context"
	"slices"
	"time"

	"github.com/kekd/kekd/hierarchy"
	"github.com/kekd/kekd/hierarchy/capacity"
	"github.com/kekd/kekd/hierarchy/commandpb"
	"github.com/kekd/kekd/hierarchy/state"
)

const (
	rotationEvery = 5 * time.Second        // how often due rotations are looked for
	rotationAgain = 250 * time.Millisecond // while there are more than are made at once
	// rotationsAtOnce are so few that who wants a key made waits for no more than a blink: 8 keys are
	// a tenth of a second of SoftHSM's time. After a long stop thousands may be due.
	rotationsAtOnce = 8
	// underWay is how long a version that is being made counts as one of them. What a token cannot
	// make at all does not keep the others waiting for ever.
	underWay = time.Minute
)

// rotate proposes some of what is due, and tells when to look again. Followers leave it to the leader;
// two that propose the same do it once, since a rotation names the version that it follows.
func (r *Reconciler) rotate(ctx context.Context) time.Duration {
	if !r.raft.IsLeader() {
		return rotationEvery
	}
	s := r.raft.State()
	rotations, making := due(s)
	if len(rotations) == 0 {
		return rotationEvery
	}
	ctx, cancel := context.WithTimeout(ctx, stepTimeout)
	defer cancel()
	room := capacity.Room{Token: r.Inventory().Token, Demand: capacity.Of(s, r.self.Region)}
	cramped, first, why := 0, "", error(nil)
	for _, d := range rotations {
		n := capacity.Cost(d.tenant, r.self.Region)
		if err := room.Version(n); err != nil {
			if cramped++; cramped == 1 {
				first, why = d.name(), err
			}
			continue
		}
		if making >= rotationsAtOnce {
			return rotationAgain // what has no room is told by the look that comes to an end
		}
		making++
		room.Held += n // also if it fails: it may have been done
		err := r.raft.Propose(ctx, &commandpb.Command{Body: &commandpb.Command_RotateKey{RotateKey: &commandpb.RotateKey{
			TenantId: d.tenant.ID.ID[:], KeyId: d.key.ID.ID[:], AfterVersion: d.after, Cause: commandpb.RotationCause(d.cause),
		}}})
		if err != nil {
			r.log.Warn("a rotation that is due was not started", "key", d.name(), "error", err)
			return rotationEvery // the others would hardly fare better, and a latch may be waiting
		}
	}
	if cramped > 0 {
		r.log.Warn("rotations that are due have no room in the token", "count", cramped, "first", first, "error", why)
	}
	return rotationEvery
}

// due lists the rotations that time or use asks for, the most urgent first, and counts the versions
// that are being made already.
func due(s *state.State) (all []rotation, making int) {
	for t := range s.Tenants() {
		if t.State != hierarchy.TenantEnabled {
			continue
		}
		for k := range s.Keys(t.ID) {
			newest := k.Newest()
			if newest.State == hierarchy.PreActive {
				if s.Stamp().Sub(newest.CreatedAt) < underWay {
					making++
				}
				continue
			}
			active, ok := k.Active()
			if !ok || len(k.Versions) >= state.MaxVersions { // what is refused must not stand in front
				continue
			}
			r := rotation{tenant: t, key: k, after: newest.Number, since: active.ActivatedAt}
			switch {
			case mostWraps(active) >= state.RotateAtWraps:
				r.cause = state.CauseUse
			case k.RotateEvery > 0 && s.Stamp().Sub(active.ActivatedAt) >= k.RotateEvery:
				r.cause = state.CausePeriod
			default:
				continue
			}
			all = append(all, r)
		}
	}
	// What has sealed too much will be refused soon.
	slices.SortStableFunc(all, func(a, b rotation) int {
		return cmp.Or(cmp.Compare(b.cause, a.cause), a.since.Compare(b.since))
	})
	return all, making
}

type rotation struct {
	tenant *state.Tenant
	key    *state.Key
	after  uint32
	since  time.Time // when the present version became active
	cause  state.RotationCause
}

func (r rotation) name() string {
	return hierarchy.KeyName{Tenant: r.tenant.Name, Key: r.key.Name}.String()
}

func mostWraps(v *state.Version) uint64 {
	var most uint64
	for _, r := range v.Regions {
		most = max(most, r.WrapsReserved)
	}
	return most
}
