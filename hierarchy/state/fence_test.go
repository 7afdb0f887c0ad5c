package state_test

import (
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"

	"github.com/kekd/kekd/hierarchy"
	"github.com/kekd/kekd/hierarchy/commandpb"
	"github.com/kekd/kekd/hierarchy/state"
)

// inHours is a cluster with leases in which each tenant has a max_staleness of its own, in hours: acme 3,
// globex 5, initech 4.
func inHours(t testing.TB) *machine {
	t.Helper()
	m := served(t)
	for _, c := range []*commandpb.Command{
		createTenant("initech"), enable("globex"),
		setTenant("acme", ptr(int64(3*time.Hour))), setTenant("globex", ptr(int64(5*time.Hour))), setTenant("initech", ptr(int64(4*time.Hour))),
		allow("web", "acme/*"), allow("web", "initech/*"),
	} {
		m.do(t, c)
	}
	return m
}

// Each kind of closing leaves a fence, which says for whom and how long it is to be waited.
func TestClosingsLeaveFences(t *testing.T) {
	everybody := hierarchy.TenantID{}
	withReason := func(c *commandpb.Command, ops hierarchy.Op) *commandpb.Command {
		return with(c, getRule, func(r *commandpb.Rule) { r.Ops, r.RequireReason = uint32(ops), ops != hierarchy.OpUnwrap })
	}
	app := &commandpb.RequiredContext{Key: "app", Value: ptr("billing")}
	any := &commandpb.RequiredContext{Key: "tenant"}
	for name, c := range map[string]struct {
		before  []*commandpb.Command
		c       *commandpb.Command
		kind    string
		tenant  hierarchy.TenantID
		hours   int
		lowered int
	}{
		"disable":                          {c: disable("acme"), kind: "tenant-disable", tenant: tenantID("acme"), hours: 3},
		"suspend":                          {c: versionAction("acme", "orders", 2, suspend), kind: "key-version-suspend", tenant: tenantID("acme"), hours: 3},
		"compromise":                       {c: versionAction("acme", "orders", 1, compromise), kind: "key-version-compromise", tenant: tenantID("acme"), hours: 3},
		"compromise what was":              {before: []*commandpb.Command{versionAction("acme", "orders", 2, suspend)}, c: versionAction("acme", "orders", 2, compromise), kind: "key-version-compromise", tenant: tenantID("acme"), hours: 3},
		"suspend what was":                 {before: []*commandpb.Command{versionAction("acme", "orders", 2, compromise)}, c: versionAction("acme", "orders", 2, suspend), kind: "key-version-suspend", tenant: tenantID("acme"), hours: 3},
		"of a disabled tenant":             {before: []*commandpb.Command{disable("acme")}, c: versionAction("acme", "orders", 2, suspend), kind: "key-version-suspend", tenant: tenantID("acme"), hours: 3},
		"min_unwrap_version":               {c: setKey("acme", "orders", nil, ptr[uint32](2)), kind: "key-set", tenant: tenantID("acme"), hours: 3},
		"revoke":                           {c: revoke("web", "acme/*"), kind: "policy-revoke", tenant: tenantID("acme"), hours: 3},
		"revoke for all":                   {c: revoke("billing", "*/orders"), kind: "policy-revoke", tenant: everybody, hours: 5},
		"fewer operations":                 {c: withReason(allow("web", "initech/*"), hierarchy.OpUnwrap), kind: "policy-narrow", tenant: tenantID("initech"), hours: 4},
		"a reason":                         {c: withReason(allow("web", "initech/*"), hierarchy.OpUnwrap|hierarchy.OpWrap|hierarchy.OpRewrap), kind: "policy-narrow", tenant: tenantID("initech"), hours: 4},
		"more context":                     {c: allow("web", "initech/*", app), kind: "policy-narrow", tenant: tenantID("initech"), hours: 4},
		"another context":                  {c: allow("billing", "*/orders", &commandpb.RequiredContext{Key: "app", Value: ptr("web")}, any), kind: "policy-narrow", tenant: everybody, hours: 5},
		"a context's value":                {c: allow("billing", "*/orders", app, &commandpb.RequiredContext{Key: "tenant", Value: ptr("acme")}), kind: "policy-narrow", tenant: everybody, hours: 5},
		"a service":                        {c: deleteService("billing"), kind: "service-delete", tenant: everybody, hours: 5},
		"a service of two":                 {c: deleteService("web"), kind: "service-delete", tenant: everybody, hours: 4},
		"a service of one":                 {before: []*commandpb.Command{revoke("web", "acme/*")}, c: deleteService("web"), kind: "service-delete", tenant: tenantID("initech"), hours: 4},
		"lower":                            {c: setTenant("globex", ptr(int64(time.Hour))), kind: "max-staleness-lower", tenant: tenantID("globex"), hours: 5, lowered: 5},
		"lower again":                      {before: []*commandpb.Command{setTenant("globex", ptr(int64(2*time.Hour)))}, c: setTenant("globex", ptr(int64(time.Hour))), kind: "max-staleness-lower", tenant: tenantID("globex"), hours: 5, lowered: 5},
		"lower what was raised":            {before: []*commandpb.Command{setTenant("globex", ptr(int64(2*time.Hour))), setTenant("globex", ptr(int64(6*time.Hour)))}, c: setTenant("globex", ptr(int64(time.Hour))), kind: "max-staleness-lower", tenant: tenantID("globex"), hours: 6, lowered: 6},
		"disable what was lowered":         {before: []*commandpb.Command{setTenant("globex", ptr(int64(time.Hour)))}, c: disable("globex"), kind: "tenant-disable", tenant: tenantID("globex"), hours: 5},
		"revoke for all what was lowered":  {before: []*commandpb.Command{setTenant("globex", ptr(int64(time.Hour)))}, c: revoke("billing", "*/orders"), kind: "policy-revoke", tenant: everybody, hours: 5},
		"disable another than was lowered": {before: []*commandpb.Command{setTenant("globex", ptr(int64(time.Hour)))}, c: disable("acme"), kind: "tenant-disable", tenant: tenantID("acme"), hours: 3},
		"restore a state": {c: restoreRecords(tenantRecord("acme", func(m *commandpb.Tenant) {
			m.State, m.MaxStaleness = commandpb.TenantState_TENANT_STATE_DISABLED, int64(24*time.Hour)
		})), kind: "restore", tenant: tenantID("acme"), hours: 3},
		"restore to destroyed": {c: restoreRecords(tenantRecord("globex", func(m *commandpb.Tenant) {
			m.State, m.MaxStaleness = commandpb.TenantState_TENANT_STATE_DESTROYED, int64(24*time.Hour)
		})), kind: "restore", tenant: tenantID("globex"), hours: 5, lowered: 5},
		"restore max_staleness": {c: restoreRecords(tenantRecord("globex", nil)), kind: "restore", tenant: tenantID("globex"), hours: 5, lowered: 5},
		"restore two":           {c: restoreRecords(tenantRecord("acme", nil), tenantRecord("initech", nil)), kind: "restore", tenant: everybody, hours: 4, lowered: 4},
		"restore a version": {c: restoreRecords(keyRecord("acme", "orders", 1, 2, func(m *commandpb.Key) {
			m.Versions[0].State = commandpb.VersionState_VERSION_STATE_COMPROMISED
		})), kind: "restore", tenant: tenantID("acme"), hours: 3},
		"restore a rule": {c: restoreRecords(&commandpb.SnapshotRecord{Record: &commandpb.SnapshotRecord_Rule{Rule: allow("web", "initech/*", app).GetAllowPolicy().GetRule()}}),
			kind: "restore", tenant: tenantID("initech"), hours: 4},
	} {
		t.Run(name, func(t *testing.T) {
			m := inHours(t)
			for _, c := range c.before {
				m.do(t, proto.Clone(c).(*commandpb.Command))
			}
			want := &state.Fence{
				Index: m.s.Index() + 1, Kind: c.kind, Tenant: c.tenant, Holders: m.s.Holders(),
				Wait: time.Duration(c.hours) * time.Hour, LoweredFrom: time.Duration(c.lowered) * time.Hour,
			}
			m.do(t, c.c)
			got, _ := m.s.Fence(want.Index)
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("fence (-want +got):\n%s", diff)
			}
			check(t, m.s)
			m.do(t, complete(want.Index))
			if f, ok := m.s.Fence(want.Index); ok {
				t.Errorf("it is complete, and there is a fence %+v", f)
			}
			check(t, m.s)
		})
	}
}

// What takes nothing away leaves no fence: nobody has to wait.
func TestNoClosingNoFence(t *testing.T) {
	m := inHours(t)
	for _, c := range []*commandpb.Command{
		enable("acme"), tick(), setTenant("acme", ptr(int64(3*time.Hour))), setTenant("acme", ptr(int64(4*time.Hour))), limitTenant("acme", perDay(1)),
		setKey("acme", "orders", ptr(int64(48*time.Hour)), ptr[uint32](1)),
		rotate("acme", "orders", 2), minted("acme", "orders", 3),
		allow("web", "acme/*"), limitRule("web", "acme/*", perSecond(1)),
		with(allow("web", "acme/*"), getRule, func(r *commandpb.Rule) { r.Ops = 0xf }),
		allow("billing", "*/orders", &commandpb.RequiredContext{Key: "app"}), // any value, and no tenant
		allow("billing", "*/orders"), allow("web", "nobody/*"), revoke("web", "nobody/*"),
		createService("hr", ptr[uint32](77), nil), deleteService("hr"),
		removeNode(nodeC), restoreRecords(tenantRecord("acme", func(m *commandpb.Tenant) { m.MaxStaleness = int64(24 * time.Hour) }), tenantRecord("hooli", nil)),
		register(nodeB, "b3", ""),
	} {
		m.do(t, c)
		if f, ok := m.s.Fence(m.s.Index()); ok {
			t.Errorf("%v left %+v", c, f)
		}
	}
	// To resume what was compromised opens it for rewrap.
	m.do(t, versionAction("acme", "orders", 1, compromise))
	m.do(t, versionAction("acme", "orders", 1, suspend))
	m.do(t, versionAction("acme", "orders", 1, resume))
	if f, ok := m.s.Fence(m.s.Index()); ok {
		t.Errorf("to resume left %+v", f)
	}
	before := m.s
	if res := m.command(setTenantState("acme", commandpb.TenantState_TENANT_STATE_DISABLED, "")); res.Err == nil {
		t.Fatal("a disable without a reason is taken")
	}
	if diff := cmp.Diff(dump(before).Fences, dump(m.s).Fences); diff != "" {
		t.Errorf("a refused command changed fences (-before +after):\n%s", diff)
	}
}

// Nobody has registered, so nobody serves: there is nobody to wait for.
func TestNoHoldersNoFence(t *testing.T) {
	m := alone(t)
	m.do(t, disable("acme"))
	m.do(t, setTenant("acme", ptr(int64(time.Second))))
	if got := dump(m.s); len(got.Fences) > 0 || m.s.CountingStaleness(tenantID("acme")) != time.Second {
		t.Errorf("fences %+v, and %v counts", got.Fences, m.s.CountingStaleness(tenantID("acme")))
	}
}

// To disable what is disabled is fine and changes nothing. Who asks again waits for what the first one left
// behind, until that is recorded as complete.
func TestDisabledAgain(t *testing.T) {
	m := served(t)
	m.do(t, disable("acme"))
	first := m.s.Index()
	m.do(t, revoke("billing", "*/orders"))
	second := m.s.Index()
	m.do(t, setTenant("globex", ptr(int64(time.Second)))) // another's
	fences := slices.Collect(m.s.Fences())
	m.do(t, disable("acme"))
	if diff := cmp.Diff(fences, slices.Collect(m.s.Fences())); diff != "" {
		t.Errorf("it changed fences (-before +after):\n%s", diff)
	}
	waited := func() (indexes []uint64) {
		for _, f := range m.s.FencesOf(tenantID("acme")) {
			indexes = append(indexes, f.Index)
		}
		return indexes
	}
	if diff := cmp.Diff([]uint64{first, second}, waited()); diff != "" {
		t.Errorf("fences to wait for (-want +got):\n%s", diff)
	}
	m.do(t, complete(second))
	m.do(t, complete(second))
	m.do(t, complete(first))
	if got := waited(); got != nil {
		t.Errorf("all are complete, and %d are to be waited for", got)
	}
	// Enabled and disabled again, it is another closing.
	m.do(t, enable("acme"))
	m.do(t, disable("acme"))
	if diff := cmp.Diff([]uint64{m.s.Index()}, waited()); diff != "" {
		t.Errorf("fences to wait for (-want +got):\n%s", diff)
	}
}

// A lowering counts once it is complete, and not before. A raise counts at once.
func TestLoweringsThatOverlap(t *testing.T) {
	m := served(t)
	acme := tenantID("acme")
	set := func(d time.Duration) uint64 {
		m.do(t, setTenant("acme", ptr(int64(d))))
		return m.s.Index()
	}
	counts := func(want time.Duration) {
		t.Helper()
		if got := m.s.CountingStaleness(acme); got != want {
			t.Errorf("%v counts, want %v", got, want)
		}
	}
	counts(2 * time.Second)
	set(10 * time.Second)
	counts(10 * time.Second)
	first := set(4 * time.Second)
	counts(10 * time.Second)
	set(20 * time.Second)
	counts(20 * time.Second)
	second := set(2 * time.Second)
	counts(20 * time.Second)
	third := set(time.Second)
	counts(20 * time.Second)
	m.do(t, complete(second))
	counts(20 * time.Second) // the third has it from the second
	m.do(t, complete(third))
	counts(10 * time.Second) // the first is not recorded, though it is over
	m.do(t, complete(first))
	counts(time.Second)
	if got := m.s.CountingStaleness(tenantID("nobody")); got != 0 {
		t.Errorf("%v counts for a tenant that is not there", got)
	}
	m.do(t, restoreRecords(tenantRecord("acme", func(m *commandpb.Tenant) { m.State = commandpb.TenantState_TENANT_STATE_DESTROYED })))
	counts(time.Second)
	m.do(t, complete(m.s.Index()))
	counts(0)
}

// Who was replaced, or removed, may still serve.
func TestIncarnations(t *testing.T) {
	m := inHours(t)
	b1, b2, b3, b4 := holder(nodeB, "b1"), holder(nodeB, "b2"), holder(nodeB, "b3"), holder(nodeB, "b4")
	a1, c1 := holder(nodeID, "a1"), holder(nodeC, "c1")
	holders := func(want ...state.Holder) {
		t.Helper()
		slices.SortFunc(want, func(a, b state.Holder) int {
			return slices.Compare(append(a.Node.ID[:], a.Incarnation[:]...), append(b.Node.ID[:], b.Incarnation[:]...))
		})
		if diff := cmp.Diff(want, m.s.Holders()); diff != "" {
			t.Errorf("holders (-want +got):\n%s", diff)
		}
		check(t, m.s)
	}
	holders(a1, b1, b2)
	m.do(t, retire(b1, tombstone(m.s, b1).Index))
	holders(a1, b2)
	m.do(t, register(nodeC, "c1", ""))
	holders(a1, b2, c1)
	m.do(t, register(nodeC, "c1", "")) // a retry
	holders(a1, b2, c1)
	m.do(t, register(nodeB, "b3", "b2"))
	holders(a1, b3, c1)

	m.do(t, setTenant("globex", ptr(int64(time.Hour))))
	m.do(t, register(nodeB, "b4", "b2"))
	holders(a1, b3, b4, c1)
	if diff := cmp.Diff(&state.Tombstone{Holder: b3, Index: m.s.Index(), Wait: 5 * time.Hour}, tombstone(m.s, b3)); diff != "" {
		t.Errorf("tombstone of who was replaced (-want +got):\n%s", diff)
	}
	m.do(t, complete(m.s.Index()-1))
	m.do(t, removeNode(nodeB))
	holders(a1, b3, b4, c1)
	if diff := cmp.Diff(&state.Tombstone{Holder: b4, Index: m.s.Index(), Wait: 4 * time.Hour}, tombstone(m.s, b4)); diff != "" {
		t.Errorf("tombstone of who was removed (-want +got):\n%s", diff)
	}
	m.do(t, disable("acme"))
	if f, _ := m.s.Fence(m.s.Index()); f == nil || !slices.Contains(f.Holders, b4) {
		t.Errorf("fence %+v does not wait for a node that was removed", f)
	}
	for tomb := range m.s.Tombstones() {
		m.do(t, retire(tomb.Holder, tomb.Index))
	}
	holders(a1, c1)
	if n, _ := m.s.Node(nodeC); n.Incarnation != c1.Incarnation {
		t.Errorf("node c has registered %s, want %s", n.Incarnation, c1.Incarnation)
	}
}

// An incarnation that was waited for may register again, and be replaced again. A command that comes late
// from the first wait does not retire its second tombstone.
func TestTombstoneOfAnIncarnationThatCameBack(t *testing.T) {
	m := served(t)
	b1 := holder(nodeB, "b1")
	stone := tombstone(m.s, b1)
	if stone == nil {
		t.Fatal("an incarnation that was replaced may hold a lease and is no holder")
	}
	first := stone.Index
	m.do(t, retire(b1, first))
	m.do(t, register(nodeB, "b1", "b2"))
	m.do(t, register(nodeB, "b3", ""))
	m.do(t, retire(b1, first))
	if tombstone(m.s, b1) == nil {
		t.Error("the second tombstone was retired by a wait for an earlier one")
	}
}

// A node that starts again and again leaves no endless row of tombstones: each fence has a copy of it.
func TestTombstonesAreBounded(t *testing.T) {
	m := served(t)
	last := "b2"
	for i := 1; i < state.MaxTombstones; i++ {
		last = string(rune('a'+i%26)) + string(rune('a'+i/26))
		m.do(t, register(nodeB, last, ""))
	}
	if res := m.command(register(nodeB, "more", "")); hierarchy.Code(res.Err) != hierarchy.Code(hierarchy.ErrCapacity) {
		t.Errorf("one more: got error %v", res.Err)
	}
	m.do(t, register(nodeID, "a2", ""))    // another node
	m.do(t, register(nodeB, "more", last)) // with a proof
	b1 := holder(nodeB, "b1")
	m.do(t, retire(b1, tombstone(m.s, b1).Index))
	m.do(t, register(nodeB, "another", ""))
}

// crowded is a cluster in which so many fences are pending that the next is merged: one of acme, one of all
// tenants, and the rest of globex.
func crowded(t testing.TB) *machine {
	t.Helper()
	m := served(t)
	m.do(t, setTenant("acme", ptr(int64(time.Hour))))
	m.do(t, disable("acme"))
	m.do(t, revoke("billing", "*/orders"))
	m.do(t, enable("acme"))
	for range state.MaxFences - 2 {
		m.do(t, enable("globex"))
		m.do(t, disable("globex"))
	}
	return m
}

// Above the bound a closing goes on to be taken. It stands for the one before of the same tenant, which is
// found by either index.
func TestFencesAreBounded(t *testing.T) {
	m := crowded(t)
	if n := len(slices.Collect(m.s.Fences())); n != state.MaxFences {
		t.Fatalf("%d fences", n)
	}
	acme := tenantID("acme")
	first := m.s.FencesOf(acme)[0]
	if first.Kind != "tenant-disable" || first.Wait != time.Hour {
		t.Fatalf("the first fence is %+v", first)
	}
	m.do(t, createTenant("initech"))
	m.do(t, register(nodeB, "b3", "b2"))
	m.do(t, setTenant("acme", ptr(int64(2*time.Hour))))
	m.do(t, setTenant("acme", ptr(int64(time.Minute))))
	merged := &state.Fence{
		Index: m.s.Index(), Since: first.Index, Kind: "max-staleness-lower", Tenant: acme, Wait: 2 * time.Hour, LoweredFrom: 2 * time.Hour, Holders: m.s.Holders(),
	}
	found := func(index uint64, want *state.Fence) {
		t.Helper()
		got, _ := m.s.Fence(index)
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("fence of index %d (-want +got):\n%s", index, diff)
		}
	}
	found(first.Index, merged)
	found(merged.Index, merged)
	m.do(t, complete(first.Index)) // who has waited for the first has not waited for the second
	found(first.Index, merged)
	if n := len(slices.Collect(m.s.Fences())); n != state.MaxFences {
		t.Errorf("%d fences, want %d", n, state.MaxFences)
	}
	check(t, m.s)

	// What is lowered and what is waited of the earlier stay.
	m.do(t, disable("acme"))
	merged = &state.Fence{
		Index: m.s.Index(), Since: first.Index, Kind: "tenant-disable", Tenant: acme, Wait: 2 * time.Hour, LoweredFrom: 2 * time.Hour, Holders: m.s.Holders(),
	}
	found(first.Index, merged)
	if got := m.s.CountingStaleness(acme); got != 2*time.Hour {
		t.Errorf("%v counts", got)
	}
	// A tenant that has none gets one.
	m.do(t, disable("initech"))
	found(m.s.Index(), &state.Fence{Index: m.s.Index(), Kind: "tenant-disable", Tenant: tenantID("initech"), Wait: 2 * time.Second, Holders: m.s.Holders()})
	check(t, m.s)
	m.do(t, complete(merged.Index))
	found(first.Index, nil)
	if got := m.s.CountingStaleness(acme); got != time.Minute {
		t.Errorf("%v counts", got)
	}
}

// A node joins as one of which no run may hold a lease.
func TestWhoJoinsHasNoIncarnation(t *testing.T) {
	m := populated(t)
	c := with(join("next", "eu-west"), getJoin, func(m *commandpb.JoinNode) { m.Node.Incarnation = id("incarnation of next") })
	if res := m.command(c); hierarchy.Code(res.Err) != hierarchy.Code(hierarchy.ErrInvalidArgument) {
		t.Errorf("joined with an incarnation: got error %v", res.Err)
	}
	m = &machine{state.New(), start}
	first := initCluster()
	first.Node.Incarnation = id("incarnation of a")
	if res := m.command(&commandpb.Command{Body: &commandpb.Command_InitCluster{InitCluster: first}}); hierarchy.Code(res.Err) != hierarchy.Code(hierarchy.ErrInvalidArgument) {
		t.Errorf("initialised with an incarnation: got error %v", res.Err)
	}
}
