package reconcile

import (
	"context"
	"fmt"

	"github.com/kekd/kekd/hierarchy"
	"github.com/kekd/kekd/hierarchy/capacity"
	"github.com/kekd/kekd/hsm"
)

// used is how many objects the token has, as far as its minting node knows without listing it again.
func (r *Reconciler) used(info hsm.Info) uint64 {
	return uint64(len(r.have)) + r.unnamed + info.Others
}

// limit is how many objects a token that has used is to hold: as configured, or as suits its model,
// and no more than its memory has room for.
func (r *Reconciler) limit(info hsm.Info, used uint64) uint64 {
	limit := r.self.MaxObjects
	if limit == 0 {
		limit = info.MaxObjects
	}
	if info.FreeObjects != ^uint64(0) {
		limit = min(limit, used+info.FreeObjects)
	}
	return limit
}

// look looks again how much the token holds: others may have taken its memory, or freed it. Other
// nodes may have minted since it was listed, so what it has is what the hierarchy says.
func (r *Reconciler) look(ctx context.Context) {
	if r.have == nil {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, stepTimeout)
	defer cancel()
	info, err := r.manager.Info(ctx)
	if err != nil {
		return // whoever needs the token says so
	}
	used := uint64(0)
	if info.FreeObjects != ^uint64(0) { // else it does not matter
		d := capacity.Of(r.raft.State(), r.self.Region)
		used = r.Inventory().Token.Foreign + d.Held - d.Pending
	}
	r.progress.limit(r.limit(info, used))
}

// room looks at the token itself before a key is made in it: what the hierarchy says may have been
// decided by several nodes at once, and other people may use the token. A key that is there already
// needs none.
func (r *Reconciler) room(ctx context.Context, object hierarchy.ObjectID) error {
	if _, made := r.have[object]; made {
		return nil
	}
	info, err := r.manager.Info(ctx)
	if err != nil {
		return err
	}
	used := r.used(info)
	limit := r.limit(info, used)
	r.progress.limit(limit)
	if used >= limit {
		return fmt.Errorf("%w: it has %d objects of %d: if it has more room than that, raise hsm.max_objects", hsm.ErrCapacity, used, limit)
	}
	return nil
}
