package capacity

import (
	"fmt"
	"sync"
	"time"

	"github.com/kekd/kekd/hierarchy"
	"github.com/kekd/kekd/hierarchy/state"
)

// Gate lets keys and versions be asked for while a region's token has room for them. Its methods may
// be called by several goroutines.
type Gate struct {
	region hierarchy.RegionID
	state  func() *state.State
	token  func() Token

	mu    sync.Mutex
	asked Demand // what was let through, and is not in the hierarchy yet

	// 10,000 keys take milliseconds to count, so that is not done for each request.
	counted  Demand // what was counted last,
	revision uint64 // of the state of this revision,
	at       time.Time
	since    Demand // and what was let through since. At most: some of it may have failed
}

// countEvery is how old a count may be that lets a request through. What other nodes let through
// meanwhile is not in it, as what they let through at the same moment never is.
const countEvery = time.Second

// NewGate makes the gate of a region. state and token are asked for what is known at the moment.
func NewGate(region hierarchy.RegionID, state func() *state.State, token func() Token) *Gate {
	return &Gate{region: region, state: state, token: token}
}

// Room is what there is now.
func (g *Gate) Room() Room {
	g.mu.Lock()
	defer g.mu.Unlock()
	if s := g.state(); s.Revision() != g.revision || g.at.IsZero() {
		g.count(s)
	}
	return Room{g.token(), g.counted}
}

// count counts anew. The caller holds mu.
func (g *Gate) count(s *state.State) {
	g.counted, g.revision, g.at, g.since = Of(s, g.region), s.Revision(), time.Now(), g.asked
}

// OfTenant is what a tenant needs of the region's token.
func (g *Gate) OfTenant(s *state.State, tenant hierarchy.TenantID) Demand {
	return OfTenant(s, g.region, tenant)
}

// ForKey holds room for a key of a tenant until release is called: when the hierarchy has the key,
// or it is certain that it will not. Without room it is [hierarchy.ErrCapacity].
func (g *Gate) ForKey(tenant hierarchy.TenantID) (release func(), err error) {
	return g.hold(tenant, Room.Key, func(n uint64) Demand { return Demand{Held: n, Pending: n, Rotations: n} })
}

// ForVersion holds room for one more version of a key of the tenant in the same way.
func (g *Gate) ForVersion(tenant hierarchy.TenantID) (release func(), err error) {
	return g.hold(tenant, Room.Version, func(n uint64) Demand { return Demand{Held: n, Pending: n} })
}

func (g *Gate) hold(tenant hierarchy.TenantID, fits func(Room, uint64) error, needs func(objects uint64) Demand) (func(), error) {
	// The state is read under the lock: what another request has just brought into it is counted
	// there, or in asked, or in both, and never in neither.
	g.mu.Lock()
	defer g.mu.Unlock()
	s := g.state()
	t, ok := s.Tenant(tenant)
	if !ok {
		return nil, fmt.Errorf("%w: the tenant", hierarchy.ErrNotFound)
	}
	n := Cost(t, g.region)
	enough := func() error {
		room := Room{g.token(), g.counted}
		room.add(g.since)
		return fits(room, n)
	}
	if time.Since(g.at) > countEvery || enough() != nil {
		g.count(s)
		if err := enough(); err != nil {
			return nil, err
		}
	}
	asked := needs(n)
	g.asked.add(asked)
	g.since.add(asked)
	return sync.OnceFunc(func() {
		g.mu.Lock()
		defer g.mu.Unlock()
		g.asked.Held -= asked.Held
		g.asked.Pending -= asked.Pending
		g.asked.Rotations -= asked.Rotations
	}), nil
}
