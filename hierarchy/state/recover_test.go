package state_test

import (
	"bytes"
	"errors"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/kekd/kekd/hierarchy"
	"github.com/kekd/kekd/hierarchy/commandpb"
	"github.com/kekd/kekd/hierarchy/state"
)

// unproved applies a command that is not known to have been committed.
func (m *machine) unproved(t interface{ Fatalf(string, ...any) }, c *commandpb.Command) (took bool) {
	m.stamp = m.stamp.Add(time.Second)
	c.Format, c.Stamp = state.Format, m.stamp.UnixNano()
	if c.Id == nil {
		c.Id = number(m.s.Index() + 1<<32)
	}
	next, took, err := state.ApplyClosing(m.s, state.Meta{Index: m.s.Index() + 1}, c)
	if err != nil {
		t.Fatalf("%T: %v", c.GetBody(), err)
	}
	m.s = next
	return took
}

// What is not known to have been committed closes what it would have closed.
func TestUnprovedCloses(t *testing.T) {
	t.Parallel()
	m := populated(t)
	for _, c := range []*commandpb.Command{
		disable("acme"), setTenant("acme", ptr(int64(time.Second))), versionAction("acme", "orders", 2, commandpb.VersionAction_VERSION_ACTION_SUSPEND),
		revoke("billing", "acme/orders"),
	} {
		if !m.unproved(t, c) {
			t.Errorf("%T did nothing", c.GetBody())
		}
	}
	if acme, _ := m.s.TenantByName("acme"); acme.State != hierarchy.TenantDisabled || acme.MaxStaleness != time.Second {
		t.Errorf("%+v", acme)
	}
	wantState(t, m, 2, hierarchy.Suspended)
	for _, r := range m.s.Rules("billing") {
		if r.Pattern.String() == "acme/orders" {
			t.Errorf("it is still allowed: %+v", r)
		}
	}
	if !m.unproved(t, deleteService("billing")) {
		t.Error("a service was not deleted")
	}
	check(t, m.s)
}

// It opens nothing, and is asked for anew when somebody repeats it under its idempotency ID.
func TestUnprovedOpensNothing(t *testing.T) {
	t.Parallel()
	m := populated(t)
	m.do(t, disable("acme"))
	for _, c := range []*commandpb.Command{enable("acme"), createTenant("initech"), createService("other", ptr[uint32](77), nil), allow("billing", "acme/other")} {
		if m.unproved(t, c); m.s.Index() == 0 {
			t.Fatal("the state is gone")
		}
	}
	raise := setTenant("acme", ptr(int64(time.Hour)))
	raise.Id = id("a raise")
	m.unproved(t, raise)
	acme, _ := m.s.TenantByName("acme")
	_, initech := m.s.TenantByName("initech")
	_, other := m.s.Service("other")
	if acme.State != hierarchy.TenantDisabled || acme.MaxStaleness != 2*time.Second || initech || other {
		t.Errorf("it opens: %+v, a new tenant: %v, a new service: %v", acme, initech, other)
	}
	if res := m.command(raise); res.Err != nil || res.Replayed {
		t.Errorf("repeated: %+v", res)
	}
	if acme, _ := m.s.TenantByName("acme"); acme.MaxStaleness != time.Hour {
		t.Errorf("repeated: %+v", acme)
	}
}

// Whatever the command is, nothing is more open after it.
func TestUnprovedOfAnyKind(t *testing.T) {
	t.Parallel()
	base := populated(t)
	rapid.Check(t, func(t *rapid.T) {
		m := &machine{base.s, base.stamp}
		for range rapid.IntRange(0, 3).Draw(t, "proved") {
			m.command(anyCommand(t))
		}
		before := m.s
		c := anyCommand(t)
		if c.GetRestoreRecords() != nil {
			return // what it brings back it brings back closed: TestRestoreBringsBackClosed
		}
		m.unproved(t, c)
		for now := range m.s.Tenants() {
			was, ok := before.Tenant(now.ID)
			if !ok || now.State < was.State || now.MaxStaleness > was.MaxStaleness {
				t.Fatalf("%T opens: %+v became %+v", c.GetBody(), was, now)
			}
		}
		for now := range m.s.AllKeys() {
			was, ok := before.Key(now.Tenant, now.ID)
			if !ok || len(now.Versions) != len(was.Versions) || now.MinUnwrapVersion < was.MinUnwrapVersion {
				t.Fatalf("%T opens: %+v became %+v", c.GetBody(), was, now)
			}
			for i, v := range now.Versions {
				if w := was.Versions[i]; v.State != w.State && v.State != hierarchy.Suspended && v.State != hierarchy.Compromised && v.State != hierarchy.Destroyed ||
					w.State == hierarchy.Destroyed && v.State != w.State || w.State == hierarchy.Suspended && v.State == hierarchy.Compromised {
					t.Fatalf("%T opens: version %d was %v and is %v", c.GetBody(), v.Number, w.State, v.State)
				}
			}
		}
		for _, now := range m.s.Rules("") {
			if was, ok := before.Rule(now.Service, now.Pattern); !ok || now.Ops&^was.Ops != 0 || was.RequireReason && !now.RequireReason {
				t.Fatalf("%T opens: %+v became %+v", c.GetBody(), was, now)
			}
		}
		for now := range m.s.Services() {
			if _, ok := before.Service(now.Name); !ok {
				t.Fatalf("%T opens: %+v", c.GetBody(), now)
			}
		}
		for now := range m.s.Nodes() {
			if _, ok := before.Node(now.ID); !ok {
				t.Fatalf("%T opens: %+v", c.GetBody(), now)
			}
		}
		for now := range m.s.Invitations() {
			if _, ok := before.Invitation(now.ID); !ok {
				t.Fatalf("%T opens: %+v", c.GetBody(), now)
			}
		}
		check(t, m.s)
	})
}

// A node goes on alone in the next epoch, in a state that a snapshot can hold.
func TestRecover(t *testing.T) {
	t.Parallel()
	m := populated(t)
	statement := [32]byte{1, 2, 3}
	r := state.Recovery{Node: nodeID, Index: m.s.Index() + 5, Statement: statement, Reason: "fire", CloseAll: true}
	next, err := state.Recover(m.s, r)
	if err != nil {
		t.Fatal(err)
	}
	if next.Epoch() != 1 || next.EpochStatement() != statement || next.Index() != r.Index {
		t.Errorf("epoch %d of %x at %d", next.Epoch(), next.EpochStatement(), next.Index())
	}
	for n := range next.Nodes() {
		if n.ID != nodeID || !n.Voter {
			t.Errorf("a member: %+v", n)
		}
	}
	if _, removed := next.Removed(nodeB); !removed {
		t.Error("a lost node is not removed")
	}
	if tombstone(next, holder(nodeB, "b2")) == nil {
		t.Error("its lease is forgotten")
	}
	for i := range next.Invitations() {
		t.Errorf("still invited: %+v", i)
	}
	for tenant := range next.Tenants() {
		if tenant.State < hierarchy.TenantDisabled {
			t.Errorf("%+v", tenant)
		}
	}
	if f, ok := next.Fence(r.Index); !ok || f.Kind != "recovery" {
		t.Errorf("its fence: %+v", f)
	}
	read, err := state.Read(bytes.NewReader(snapshot(t, next)))
	if err != nil || read.Hash() != next.Hash() || read.EpochStatement() != statement {
		t.Errorf("read again: %v", err)
	}
	check(t, next)

	// Two recoveries of the same have parted.
	r.Statement[0] = 9
	if other, err := state.Recover(m.s, r); err != nil || other.Hash() == next.Hash() {
		t.Errorf("another statement gives the same state: %v", err)
	}
	// Without it, what was open stays so.
	r.CloseAll = false
	if open, err := state.Recover(m.s, r); err != nil {
		t.Error(err)
	} else if acme, _ := open.TenantByName("acme"); acme.State != hierarchy.TenantEnabled {
		t.Errorf("%+v", acme)
	}
}

func TestRecoverOfWhatCannot(t *testing.T) {
	t.Parallel()
	m := populated(t)
	index := m.s.Index() + 1
	var ofReplica hierarchy.NodeID
	for n := range m.s.Nodes() {
		if r, _ := m.s.Region(n.Region); r.Role == hierarchy.RoleReplica {
			ofReplica = n.ID
		}
	}
	for _, test := range []struct {
		name string
		r    state.Recovery
		want error
	}{
		{"no member", state.Recovery{Node: hierarchy.NodeID{ID: hierarchy.NewID()}, Index: index}, hierarchy.ErrNotFound},
		{"of a replica", state.Recovery{Node: ofReplica, Index: index}, hierarchy.ErrFailedPrecondition},
		{"an index before", state.Recovery{Node: nodeID, Index: index - 1}, hierarchy.ErrInvalidArgument},
	} {
		if _, err := state.Recover(m.s, test.r); !errors.Is(err, test.want) {
			t.Errorf("%s: got error %v", test.name, err)
		}
	}
}
