package capacity

import (
	"fmt"
	"sync"

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
}

// NewGate makes the gate of a region. state and token are asked for what is known at the moment.
func NewGate(region hierarchy.RegionID, state func() *state.State, token func() Token) *Gate {
	return &Gate{region: region, state: state, token: token}
}

// Room is what there is now.
func (g *Gate) Room() Room { return Room{g.token(), Of(g.state(), g.region)} }

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
	room := Room{g.token(), Of(s, g.region)}
	room.add(g.asked)
	if err := fits(room, n); err != nil {
		return nil, err
	}
	asked := needs(n)
	g.asked.add(asked)
	return sync.OnceFunc(func() {
		g.mu.Lock()
		defer g.mu.Unlock()
		g.asked.Held -= asked.Held
		g.asked.Pending -= asked.Pending
		g.asked.Rotations -= asked.Rotations
	}), nil
}
