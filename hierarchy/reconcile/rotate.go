package reconcile

import (
	"context"
	"time"

	"github.com/kekd/kekd/hierarchy"
	"github.com/kekd/kekd/hierarchy/capacity"
	"github.com/kekd/kekd/hierarchy/commandpb"
	"github.com/kekd/kekd/hierarchy/state"
)

const rotationEvery = 5 * time.Second // how often due rotations are looked for

// rotate proposes what is due. Followers leave it to the leader; two that propose the same do
// it once, since a rotation names the version that it follows.
func (r *Reconciler) rotate(ctx context.Context) {
	if !r.raft.IsLeader() {
		return
	}
	s := r.raft.State()
	rotations := due(s)
	if len(rotations) == 0 {
		return
	}
	room := capacity.Room{Token: r.Inventory().Token, Demand: capacity.Of(s, r.self.Region)}
	for _, d := range rotations {
		n := capacity.Cost(d.tenant, r.self.Region)
		if err := room.Version(n); err != nil {
			r.log.Warn("a rotation that is due has no room in the token", "tenant", d.tenant.Name, "key", d.key.Name, "error", err)
			continue
		}
		ctx, cancel := context.WithTimeout(ctx, stepTimeout)
		err := r.raft.Propose(ctx, &commandpb.Command{Body: &commandpb.Command_RotateKey{RotateKey: &commandpb.RotateKey{
			TenantId: d.tenant.ID.ID[:], KeyId: d.key.ID.ID[:], AfterVersion: d.after, Cause: commandpb.RotationCause(d.cause),
		}}})
		cancel()
		if err != nil {
			r.log.Warn("a rotation that is due was not started", "tenant", d.tenant.Name, "key", d.key.Name, "error", err)
		}
		room.Held += n // also if it failed: it may have been done
	}
}

// due lists the rotations that time or use asks for.
func due(s *state.State) []rotation {
	var all []rotation
	for t := range s.Tenants() {
		if t.State != hierarchy.TenantEnabled {
			continue
		}
		for k := range s.Keys(t.ID) {
			active, ok := k.Active()
			if !ok || k.Newest().State == hierarchy.PreActive {
				continue
			}
			r := rotation{tenant: t, key: k, after: k.Newest().Number}
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
	return all
}

type rotation struct {
	tenant *state.Tenant
	key    *state.Key
	after  uint32
	cause  state.RotationCause
}

func mostWraps(v *state.Version) uint64 {
	var most uint64
	for _, r := range v.Regions {
		most = max(most, r.WrapsReserved)
	}
	return most
}
