package state

import (
	"bytes"
	"cmp"
	"fmt"
	"iter"
	"slices"

	"github.com/kekd/kekd/hierarchy"
	"github.com/kekd/kekd/hierarchy/commandpb"
)

// MaxTombstones is how many runs of one node may be tombstones before another can register: each closing
// has a copy of them all.
const MaxTombstones = 64

// Tombstones are sorted by node and incarnation.
func (s *State) Tombstones() iter.Seq[*Tombstone] { return all(s.tombs, nil) }

// Holders are all who may hold a lease: the registered incarnations of members, and tombstones. They are
// sorted by node and incarnation.
func (s *State) Holders() []Holder {
	var holders []Holder
	for n := range s.Nodes() {
		if !n.Incarnation.IsZero() {
			holders = append(holders, Holder{n.ID, n.Incarnation})
		}
	}
	for t := range s.Tombstones() {
		holders = append(holders, t.Holder)
	}
	slices.SortFunc(holders, compareHolders)
	return holders
}

func compareHolders(a, b Holder) int {
	return cmp.Or(bytes.Compare(a.Node.ID[:], b.Node.ID[:]), bytes.Compare(a.Incarnation[:], b.Incarnation[:]))
}

// registerIncarnation lets a new run of a node's process hold leases, and no other of that node. The same
// again changes nothing.
//
// One that was replaced does not come back: it may hold a lease from before, and is waited for. It has to
// draw another.
func (d *draft) registerIncarnation(m *commandpb.RegisterIncarnation) error {
	n, err := d.member(m.GetNodeId())
	if err != nil {
		return err
	}
	incarnation, err := idOf("incarnation", m.GetIncarnation())
	if err != nil {
		return err
	}
	var dead hierarchy.ID
	if len(m.GetDead()) > 0 {
		if dead, err = idOf("incarnation that is over", m.GetDead()); err != nil {
			return err
		}
	}
	switch {
	case incarnation == dead:
		return fmt.Errorf("%w: incarnation %s of node %s is to be registered, and is said to be over", hierarchy.ErrInvalidArgument, incarnation, n.Name)
	case incarnation == n.Incarnation:
		return nil
	}
	if t, ok := d.tombs.Get(holderKey(Holder{n.ID, incarnation})); ok {
		return fmt.Errorf("%w: incarnation %s of node %s was replaced at index %d: start the node again", hierarchy.ErrFailedPrecondition, incarnation, n.Name, t.Index)
	}
	if n.Incarnation != dead {
		buried := 0
		for range all(d.tombs, n.ID.ID[:]) {
			buried++
		}
		if buried >= MaxTombstones {
			return fmt.Errorf("%w: %d earlier runs of node %s may still hold leases, the most that may be: wait until they have run out", hierarchy.ErrCapacity, buried, n.Name)
		}
		d.bury(n)
	}
	next := *n
	next.Incarnation = incarnation
	d.putNode(&next)
	return nil
}

// bury leaves a tombstone of a node's registered incarnation, if it has one.
func (d *draft) bury(n *Node) {
	if !n.Incarnation.IsZero() && leavesTombstone() {
		d.putTombstone(&Tombstone{Holder: Holder{n.ID, n.Incarnation}, Index: d.index, Wait: d.LongestStaleness()})
	}
}

// retireTombstone drops a tombstone that was waited for. One that is not there, or not of that index, was
// retired by another node.
func (d *draft) retireTombstone(m *commandpb.RetireTombstone) error {
	node, err := idOf("node ID of a tombstone", m.GetNodeId())
	if err != nil {
		return err
	}
	incarnation, err := idOf("incarnation of a tombstone", m.GetIncarnation())
	if err != nil {
		return err
	}
	if m.GetIndex() == 0 {
		return fmt.Errorf("%w: it takes the index of the tombstone that was waited for", hierarchy.ErrInvalidArgument)
	}
	t, ok := d.tombs.Get(holderKey(Holder{hierarchy.NodeID{ID: node}, incarnation}))
	if ok && wasWaitedFor(t, m.GetIndex()) {
		d.deleteTombstone(t)
	}
	return nil
}

func (d *draft) putTombstone(t *Tombstone) {
	d.account(nil, record(hashTombstone, tombstoneToPB(t)))
	d.tombs, _, _ = d.tombs.Insert(holderKey(t.Holder), t)
}

func (d *draft) deleteTombstone(t *Tombstone) {
	d.account(record(hashTombstone, tombstoneToPB(t)), nil)
	d.tombs, _, _ = d.tombs.Delete(holderKey(t.Holder))
}

func holderKey(h Holder) []byte { return append(bytes.Clone(h.Node.ID[:]), h.Incarnation[:]...) }

// loadTombstone takes one of a snapshot.
func (d *draft) loadTombstone(m *commandpb.Tombstone) (*Tombstone, error) {
	t, err := tombstoneFromPB(m)
	if err != nil {
		return nil, err
	}
	if t.Index == 0 || t.Index > d.index {
		return nil, fmt.Errorf("a tombstone is of index %d, the state is of %d", t.Index, d.index)
	}
	if err := d.checkHolder(t.Holder); err != nil {
		return nil, err
	}
	if n, ok := d.Node(t.Node); ok && n.Incarnation == t.Incarnation {
		return nil, fmt.Errorf("incarnation %s of node %s is registered and a tombstone", t.Incarnation, n.Name)
	}
	d.putTombstone(t)
	return t, nil
}

func (d *draft) checkHolder(h Holder) error {
	if _, ok := d.regionOf(h.Node); !ok {
		return fmt.Errorf("a lease may be held by node %s, which was never a member", h.Node)
	}
	return nil
}
