package reconcile

import (
	"context"
	"fmt"
	"strings"
	"sync"

	"github.com/kekd/kekd/hierarchy"
	"github.com/kekd/kekd/hierarchy/capacity"
	"github.com/kekd/kekd/hierarchy/state"
	"github.com/kekd/kekd/hsm"
)

// Inventory is what was found when the token was first listed.
type Inventory struct {
	Objects uint64 // key objects, those included that were made or destroyed since
	// Missing are key versions whose object the token does not have, or has in a state in
	// which it may not be used.
	Missing []string
	// Orphans are labels of key objects of ours that the hierarchy does not know.
	Orphans []string
	// Token is how much the token holds, as of the last listing or minting.
	Token capacity.Token
}

// progress is what others may know of the reconciler's work.
type progress struct {
	mu      sync.Mutex
	index   uint64                       // log index up to which a pass has looked
	open    map[hierarchy.TenantID]error // what that pass left undone, with the last failure
	fault   error                        // why nothing can be done at all
	found   Inventory
	changed chan struct{} // closed at the next change
}

func newProgress() progress { return progress{changed: make(chan struct{})} }

func (p *progress) update(f func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	f()
	close(p.changed)
	p.changed = make(chan struct{})
}

func (p *progress) done(index uint64, open map[hierarchy.TenantID]error, objects int) {
	p.update(func() { p.index, p.open, p.fault, p.found.Objects = index, open, nil, uint64(objects) })
}

func (p *progress) stuck(err error)         { p.update(func() { p.fault = err }) }
func (p *progress) inventory(inv Inventory) { p.update(func() { p.found = inv }) }
func (p *progress) limit(objects uint64)    { p.update(func() { p.found.Token.Max = objects }) }
func (p *progress) full(full bool)          { p.update(func() { p.found.Token.Full = full }) }

// Inventory returns what was found at the start.
func (r *Reconciler) Inventory() Inventory {
	r.progress.mu.Lock()
	defer r.progress.mu.Unlock()
	return r.progress.found
}

// Settled waits until the token has all that the hierarchy says of a tenant at a log index or
// later. When ctx ends first, the error says what is still lacking.
func (r *Reconciler) Settled(ctx context.Context, index uint64, tenant hierarchy.TenantID) error {
	p := &r.progress
	for {
		p.mu.Lock()
		lacking, open := p.open[tenant]
		seen, fault, changed := p.index, p.fault, p.changed
		p.mu.Unlock()
		if seen >= index && !open {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			switch {
			case fault != nil:
				return fmt.Errorf("%w: %w", ctx.Err(), fault)
			case lacking != nil:
				return fmt.Errorf("%w: %w", ctx.Err(), lacking)
			default:
				return fmt.Errorf("%w: the token does not have it yet", ctx.Err())
			}
		}
	}
}

// inventory compares a token's list with the hierarchy.
func inventory(s *state.State, region hierarchy.RegionID, objects []hsm.Object) Inventory {
	var inv Inventory
	byID := make(map[hierarchy.ObjectID]hsm.Object, len(objects))
	for _, o := range objects {
		byID[o.ID] = o
	}
	known := map[hierarchy.ObjectID]bool{}
	for t := range s.Tenants() {
		for k := range s.Keys(t.ID) {
			for _, v := range k.Versions {
				for a := uint32(1); a <= v.Attempt; a++ {
					known[hierarchy.KEKObjectID(s.ClusterID(), t.ID, k.ID, v.Number, region, a)] = true
				}
				rk, ok := v.Region(region)
				if !ok || !rk.Minted || v.State == hierarchy.Destroyed {
					continue
				}
				o, there := byID[rk.Object]
				name := fmt.Sprintf("%s/%s@%d", t.Name, k.Name, v.Number)
				switch {
				case !there:
					inv.Missing = append(inv.Missing, name+": not in the token")
				case o.Fault != nil:
					inv.Missing = append(inv.Missing, fmt.Sprintf("%s: %v", name, o.Fault))
				case o.Check != rk.Check:
					inv.Missing = append(inv.Missing, name+": another key stands in its place")
				}
			}
		}
	}
	for _, o := range objects {
		if known[o.ID] {
			continue
		}
		inv.Token.Foreign++
		if strings.HasPrefix(o.Label, "kekd/") && strings.Count(o.Label, "/") == 4 {
			inv.Orphans = append(inv.Orphans, o.Label)
		}
	}
	return inv
}
