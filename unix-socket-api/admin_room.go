package socketapi

import (
	"slices"

	"github.com/kekd/kekd/hierarchy"
	"github.com/kekd/kekd/hierarchy/state"
)

// Room keeps this node's token from being filled.
type Room interface {
	// ForKey holds room for a new key of a tenant, and ForVersion for a version of one that it
	// has, until release is called: when State has it, or it has failed. Without room they answer
	// [hierarchy.ErrCapacity].
	ForKey(tenant hierarchy.TenantID) (release func(), err error)
	ForVersion(tenant hierarchy.TenantID) (release func(), err error)
	// Objects is how many objects of the token are a tenant's, and how many more it may still be
	// given: those that are left are left for all tenants together.
	Objects(s *state.State, tenant hierarchy.TenantID) (used, left uint64)
}

// roomFor is that of this node's token, if a tenant's keys are made in it; else nil: what room the tokens of
// other regions have is not known here.
func (a *adminService) roomFor(t *state.Tenant) Room {
	if region, ok := a.region(); !ok || !slices.Contains(t.Placement, region) {
		return nil
	}
	return a.Room
}

// hold is room that one call has asked for.
type hold struct{ release func() }

// take asks for room. What was decided before, under the idempotency ID of this call, needs none.
func (h *hold) take(room Room, s *state.State, idempotencyID []byte, ask func(Room) (func(), error)) error {
	if id, err := hierarchy.IDFromBytes(idempotencyID); room == nil || err == nil && s.Decided(hierarchy.CommandID{ID: id}) {
		return nil
	}
	release, err := ask(room)
	h.release = release
	return err
}

func (h *hold) done() {
	if h.release != nil {
		h.release()
	}
}
