package main

import (
	"github.com/kekd/kekd/hierarchy"
	"github.com/kekd/kekd/hierarchy/capacity"
	"github.com/kekd/kekd/hierarchy/reconcile"
	"github.com/kekd/kekd/hierarchy/state"
	"github.com/kekd/kekd/unix-socket-api/kekdv1"
)

// room is the gate as the socket sees it.
type room struct{ *capacity.Gate }

func (n *node) newRoom() room {
	return room{capacity.NewGate(n.self.RegionID, n.raft.State, func() capacity.Token { return n.inventory().Token })}
}

// inventory is what the reconciler knows of the token: nothing, until this node is up.
func (n *node) inventory() reconcile.Inventory {
	if !n.up.Load() || n.reconciler == nil {
		return reconcile.Inventory{}
	}
	return n.reconciler.Inventory()
}

func (r room) Objects(s *state.State, tenant hierarchy.TenantID) (used, left uint64) {
	return r.OfTenant(s, tenant).Held, r.Room().Left()
}

// tellRoom fills in how full the token is.
func tellRoom(h *kekdv1.HSMStatus, r capacity.Room) {
	h.ObjectsUsed, h.ObjectsLeft, h.ObjectsReserved, h.ObjectsMax = r.Used(), r.Left(), r.Rotations, r.Max
}
