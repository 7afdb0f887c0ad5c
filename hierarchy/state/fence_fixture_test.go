package state_test

import (
	"slices"
	"testing"

	"github.com/kekd/kekd/hierarchy"
	"github.com/kekd/kekd/hierarchy/commandpb"
	"github.com/kekd/kekd/hierarchy/state"
)

func incarnation(name string) hierarchy.ID { return hierarchy.ID(id("incarnation " + name)) }

func holder(node hierarchy.NodeID, name string) state.Holder {
	return state.Holder{Node: node, Incarnation: incarnation(name)}
}

// register has a node register an incarnation, and say that another is over; empty: none.
func register(node hierarchy.NodeID, name, dead string) *commandpb.Command {
	inc := incarnation(name)
	m := &commandpb.RegisterIncarnation{NodeId: node.ID[:], Incarnation: inc[:]}
	if dead != "" {
		over := incarnation(dead)
		m.Dead = over[:]
	}
	return &commandpb.Command{Body: &commandpb.Command_RegisterIncarnation{RegisterIncarnation: m}}
}

func complete(index uint64) *commandpb.Command {
	return &commandpb.Command{Body: &commandpb.Command_CompleteFence{CompleteFence: &commandpb.CompleteFence{Index: index}}}
}

func retire(h state.Holder, index uint64) *commandpb.Command {
	return &commandpb.Command{Body: &commandpb.Command_RetireTombstone{RetireTombstone: &commandpb.RetireTombstone{
		NodeId: h.Node.ID[:], Incarnation: h.Incarnation[:], Index: index,
	}}}
}

// leases makes some who may hold leases: a tombstone and a member of each of two nodes. And it closes
// something, which is not known to be effective.
func leases() []*commandpb.Command {
	return []*commandpb.Command{
		register(nodeID, "a1", ""), register(nodeB, "b1", ""), register(nodeB, "b2", ""),
		allow("billing", "acme/notes"), revoke("billing", "acme/notes"),
	}
}

var (
	getRegister = (*commandpb.Command).GetRegisterIncarnation
	getRetire   = (*commandpb.Command).GetRetireTombstone
)

var registerSteps = []step{
	{name: "ok", c: register(nodeC, "c1", "")},
	{name: "the same again", c: register(nodeB, "b2", "")},
	{name: "replaces", c: register(nodeB, "b3", "")},
	{name: "replaces a dead one", c: register(nodeB, "b3", "b2")},
	{name: "another is dead", c: register(nodeB, "b3", "b1")},
	{name: "one that was replaced", c: register(nodeB, "b1", ""), want: hierarchy.ErrFailedPrecondition, words: "was replaced"},
	{name: "over itself", c: register(nodeB, "b3", "b3"), want: hierarchy.ErrInvalidArgument},
	{name: "no member", c: register(gone, "g1", ""), want: hierarchy.ErrNotFound, words: "no member"},
	{name: "bad incarnation", c: with(register(nodeB, "b3", ""), getRegister, func(m *commandpb.RegisterIncarnation) { m.Incarnation = badID }), want: hierarchy.ErrInvalidArgument},
	{name: "bad dead one", c: with(register(nodeB, "b3", ""), getRegister, func(m *commandpb.RegisterIncarnation) { m.Dead = badID }), want: hierarchy.ErrInvalidArgument},
	{name: "bad node", c: with(register(nodeB, "b3", ""), getRegister, func(m *commandpb.RegisterIncarnation) { m.NodeId = badID }), want: hierarchy.ErrInvalidArgument},
}

var completeSteps = []step{
	{name: "unknown", c: complete(1)},
	{name: "none", c: complete(0), want: hierarchy.ErrInvalidArgument},
	{name: "to come", c: complete(1000), want: hierarchy.ErrInvalidArgument},
}

var retireSteps = []step{
	{name: "unknown", c: retire(holder(nodeC, "c1"), 1)},
	{name: "at another index", c: retire(holder(nodeB, "b1"), 1)},
	{name: "at none", c: retire(holder(nodeB, "b1"), 0), want: hierarchy.ErrInvalidArgument, words: "index"},
	{name: "bad node", c: with(retire(holder(nodeB, "b1"), 1), getRetire, func(m *commandpb.RetireTombstone) { m.NodeId = badID }), want: hierarchy.ErrInvalidArgument},
	{name: "bad incarnation", c: with(retire(holder(nodeB, "b1"), 1), getRetire, func(m *commandpb.RetireTombstone) { m.Incarnation = badID }), want: hierarchy.ErrInvalidArgument},
}

// tombstone finds one.
func tombstone(s *state.State, h state.Holder) *state.Tombstone {
	for t := range s.Tombstones() {
		if t.Holder == h {
			return t
		}
	}
	return nil
}

// served is a cluster with leases in which nothing is pending.
func served(t testing.TB) *machine {
	t.Helper()
	m := populated(t)
	for _, f := range slices.Collect(m.s.Fences()) {
		m.do(t, complete(f.Index))
	}
	return m
}
