package state_test

import (
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"
	"pgregory.net/rapid"

	"github.com/kekd/kekd/hierarchy"
	"github.com/kekd/kekd/hierarchy/commandpb"
	"github.com/kekd/kekd/hierarchy/policy"
	"github.com/kekd/kekd/hierarchy/state"
)

func perSecond(n uint64) *commandpb.Limit {
	return &commandpb.Limit{Count: n, Per: int64(policy.Second)}
}
func perHour(n uint64) *commandpb.Limit { return &commandpb.Limit{Count: n, Per: int64(policy.Hour)} }
func perDay(n uint64) *commandpb.Limit  { return &commandpb.Limit{Count: n, Per: int64(policy.Day)} }

func limitRule(service, pattern string, limits ...*commandpb.Limit) *commandpb.Command {
	return with(allow(service, pattern), getRule, func(r *commandpb.Rule) { r.Limits = limits })
}

func limitTenant(name string, limits ...*commandpb.Limit) *commandpb.Command {
	return &commandpb.Command{Body: &commandpb.Command_SetTenant{SetTenant: &commandpb.SetTenant{TenantId: id(name), Limits: &commandpb.Limits{Limits: limits}}}}
}

// reserveUses asks for uses in the window that a time is in.
func reserveUses(tenant, service, pattern string, per time.Duration, at time.Time, count uint64) *commandpb.Command {
	return &commandpb.Command{Body: &commandpb.Command_ReserveUses{ReserveUses: &commandpb.ReserveUses{
		TenantId: id(tenant), Service: service, Pattern: pattern, Per: int64(per), Start: policy.WindowOf(at, per).UnixNano(), NodeId: nodeID.ID[:], Count: count,
	}}}
}

func ordersOf(tenant string, count uint64) *commandpb.Command {
	return reserveUses(tenant, "billing", "*/orders", policy.Day, start, count)
}

var (
	getUses = (*commandpb.Command).GetReserveUses
	daily   = []*commandpb.Command{limitRule("billing", "*/orders", perDay(10)), limitTenant("acme", perHour(5)), enable("globex")}
)

var usesSteps = []step{
	{name: "of a rule", before: daily, c: ordersOf("acme", 10)},
	{name: "each tenant for itself", before: append(daily[:3:3], ordersOf("acme", 10)), c: ordersOf("globex", 10)},
	{name: "of a tenant", before: daily, c: reserveUses("acme", "", "", policy.Hour, start, 5)},
	{name: "to the last", before: append(daily[:3:3], ordersOf("acme", 9)), c: ordersOf("acme", 1)},
	{name: "one too many", before: append(daily[:3:3], ordersOf("acme", 10)), c: ordersOf("acme", 1), want: hierarchy.ErrRateLimited, words: "10/d of tenant acme"},
	{name: "more than are left", before: append(daily[:3:3], ordersOf("acme", 3)), c: ordersOf("acme", 8), want: hierarchy.ErrRateLimited},
	{name: "at once too many", before: daily, c: ordersOf("acme", 11), want: hierarchy.ErrRateLimited},
	{name: "lowered below", before: append(daily[:3:3], ordersOf("acme", 5), limitRule("billing", "*/orders", perDay(4))), c: ordersOf("acme", 1), want: hierarchy.ErrRateLimited},
	{name: "raised", before: append(daily[:3:3], ordersOf("acme", 10), limitRule("billing", "*/orders", perDay(20))), c: ordersOf("acme", 10)},
	{name: "raised, and the count stays", before: append(daily[:3:3], ordersOf("acme", 10), limitRule("billing", "*/orders", perDay(20))), c: ordersOf("acme", 11), want: hierarchy.ErrRateLimited},
	{name: "taken back and set again", before: append(daily[:3:3], ordersOf("acme", 10), revoke("billing", "*/orders"), daily[0]), c: ordersOf("acme", 1), want: hierarchy.ErrRateLimited},
	{name: "of a service made anew", before: append(daily[:3:3], ordersOf("acme", 10), deleteService("billing"), createService("billing", ptr[uint32](1000), nil), daily[0]), c: ordersOf("acme", 1), want: hierarchy.ErrRateLimited},
	{name: "of another length", before: append(daily[:3:3], limitRule("billing", "*/orders", perHour(10))), c: ordersOf("acme", 1), want: hierarchy.ErrNotFound, words: "24h"},
	{name: "without a limit", before: []*commandpb.Command{limitRule("billing", "*/orders", perSecond(5))}, c: ordersOf("acme", 1), want: hierarchy.ErrNotFound},
	{name: "of a tenant without", c: reserveUses("acme", "", "", policy.Day, start, 1), want: hierarchy.ErrNotFound},
	{name: "of a rule that is not there", before: daily, c: reserveUses("acme", "billing", "*/*", policy.Day, start, 1), want: hierarchy.ErrNotFound, words: "*/*"},
	{name: "of a rule about another tenant", before: []*commandpb.Command{limitRule("billing", "acme/orders", perDay(9)), enable("globex")}, c: reserveUses("globex", "billing", "acme/orders", policy.Day, start, 1), want: hierarchy.ErrInvalidArgument, words: "not about tenant globex"},
	{name: "of a pattern without a service", before: daily, c: reserveUses("acme", "", "*/orders", policy.Day, start, 1), want: hierarchy.ErrInvalidArgument},
	{name: "of a service without a pattern", before: daily, c: reserveUses("acme", "billing", "", policy.Day, start, 1), want: hierarchy.ErrInvalidArgument},
	{name: "of a short limit", before: []*commandpb.Command{limitRule("billing", "*/orders", perSecond(5))}, c: reserveUses("acme", "billing", "*/orders", policy.Second, start, 1), want: hierarchy.ErrInvalidArgument, words: "not reserved"},
	{name: "yesterday", before: daily, c: reserveUses("acme", "billing", "*/orders", policy.Day, start.Add(-1), 1), want: hierarchy.ErrFailedPrecondition, words: "is over"},
	{name: "tomorrow", before: daily, c: reserveUses("acme", "billing", "*/orders", policy.Day, start.Add(policy.Day), 1), want: hierarchy.ErrFailedPrecondition, words: "not begun"},
	{name: "in the middle of a window", before: daily, c: with(ordersOf("acme", 1), getUses, func(m *commandpb.ReserveUses) { m.Start++ }), want: hierarchy.ErrInvalidArgument, words: "no window"},
	{name: "before 1970", before: daily, c: with(ordersOf("acme", 1), getUses, func(m *commandpb.ReserveUses) { m.Start = -int64(policy.Day) }), want: hierarchy.ErrInvalidArgument},
	{name: "none", before: daily, c: ordersOf("acme", 0), want: hierarchy.ErrInvalidArgument},
	{name: "far too many", before: daily, c: ordersOf("acme", 1<<63), want: hierarchy.ErrInvalidArgument},
	{name: "disabled tenant", before: append(daily[:3:3], disable("acme")), c: ordersOf("acme", 1), want: hierarchy.ErrTenantDisabled},
	{name: "unknown tenant", before: daily, c: ordersOf("nobody", 1), want: hierarchy.ErrNotFound},
	{name: "unknown node", before: daily, c: with(ordersOf("acme", 1), getUses, func(m *commandpb.ReserveUses) { m.NodeId = id("stranger") }), want: hierarchy.ErrNotFound},
	{name: "no node", before: daily, c: with(ordersOf("acme", 1), getUses, func(m *commandpb.ReserveUses) { m.NodeId = nil }), want: hierarchy.ErrInvalidArgument},
}

// limited is the populated cluster with limits.
func limited(t testing.TB) *machine {
	t.Helper()
	m := populated(t)
	for _, c := range daily {
		m.do(t, proto.Clone(c).(*commandpb.Command))
	}
	return m
}

func ordersID(tenant string) state.LimitID {
	return state.LimitID{Tenant: tenantID(tenant), Service: "billing", Pattern: policy.Pattern{Tenant: "*", Key: "orders"}, Per: policy.Day}
}

func at(c *commandpb.Command, t time.Time) *commandpb.Command {
	c.Stamp = t.UnixNano()
	return c
}

// A node's clock runs ahead of the stamps a little: the window that it begins is begun for all.
func TestWindowBegunEarly(t *testing.T) {
	m := limited(t)
	m.do(t, ordersOf("acme", 4))
	next := start.Add(policy.Day)
	ask := func(count uint64, stamp, window time.Time) error {
		return m.command(at(reserveUses("acme", "billing", "*/orders", policy.Day, window, count), stamp)).Err
	}
	if err := ask(1, next.Add(-2*time.Second), next); !errors.Is(err, hierarchy.ErrFailedPrecondition) {
		t.Errorf("two seconds early: got %v", err)
	}
	if err := ask(1, next.Add(-time.Second), next); err != nil {
		t.Errorf("a second early: %v", err)
	}
	if err := ask(1, next.Add(-time.Second), start); !errors.Is(err, hierarchy.ErrFailedPrecondition) {
		t.Errorf("the window before, which is over: got %v", err)
	}
	if err := ask(9, next, next); err != nil {
		t.Errorf("the rest: %v", err)
	}
	if err := ask(1, next, next); !errors.Is(err, hierarchy.ErrRateLimited) {
		t.Errorf("one too many: got %v", err)
	}
	check(t, m.s)
}

func TestUsesAreForgotten(t *testing.T) {
	m := limited(t)
	m.do(t, ordersOf("acme", 3))
	m.do(t, ordersOf("acme", 2))
	m.do(t, reserveUses("acme", "", "", policy.Hour, start, 1))
	want := &state.Uses{LimitID: ordersID("acme"), Start: start, Count: 5}
	got, _ := m.s.Uses(ordersID("acme"))
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	old := m.s
	m.do(t, at(tick(), start.Add(policy.Hour)))
	if _, ok := m.s.Uses(state.LimitID{Tenant: tenantID("acme"), Per: policy.Hour}); ok {
		t.Error("an hour that has ended is remembered")
	}
	if _, ok := m.s.Uses(ordersID("acme")); !ok {
		t.Error("a day that goes on is forgotten")
	}
	check(t, m.s)
	m.do(t, at(tick(), start.Add(policy.Day)))
	if _, ok := m.s.Uses(ordersID("acme")); ok {
		t.Error("a day that has ended is remembered")
	}
	if u, ok := old.Uses(ordersID("acme")); !ok || u.Count != 5 {
		t.Error("an older state changed")
	}
}

// Many windows end at once: each command drops some, and none comes back.
func TestMidnight(t *testing.T) {
	m := initialised(t)
	m.do(t, createService("billing", ptr[uint32](1), nil))
	const tenants = 600
	m.do(t, limitRule("billing", "*/orders", perDay(10)))
	for i := range tenants {
		name := fmt.Sprint("t", i)
		m.do(t, createTenant(name))
		m.do(t, ordersOf(name, 10))
	}
	left := func() (n int) {
		for i := range tenants {
			if _, ok := m.s.Uses(ordersID(fmt.Sprint("t", i))); ok {
				n++
			}
		}
		return n
	}
	m.stamp = start.Add(policy.Day)
	for _, want := range []int{tenants - 256, tenants - 512, 0} {
		m.do(t, tick())
		if got := left(); got != want {
			t.Fatalf("%d are left, want %d", got, want)
		}
		check(t, m.s)
	}
}

// One that has ended and is not dropped yet counts for nothing.
func TestUsesLeftOver(t *testing.T) {
	m := initialised(t)
	m.do(t, createService("billing", ptr[uint32](1), nil))
	m.do(t, limitRule("billing", "*/orders", perDay(10)))
	var last string
	for i := range 300 {
		name := fmt.Sprint("t", i)
		m.do(t, createTenant(name))
		m.do(t, ordersOf(name, 10))
		if key := id(name); last == "" || bytes.Compare(key, id(last)) > 0 {
			last = name // the last in order is dropped last
		}
	}
	m.do(t, at(reserveUses(last, "billing", "*/orders", policy.Day, start.Add(policy.Day), 10), start.Add(policy.Day)))
	if u, ok := m.s.Uses(ordersID(last)); !ok || u.Count != 10 || !u.Start.Equal(start.Add(policy.Day)) {
		t.Errorf("got %+v", u)
	}
	check(t, m.s)
}

// Whatever is asked for when, by clocks that differ, and however the limit is changed meanwhile: of
// no window more is reserved than the largest limit that was in force while it ran, and nothing is
// granted beyond the one that is in force. A restart at any point changes nothing.
func TestReservedIsWithinTheLimit(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		s, _ := state.Apply(state.New(), state.Meta{Index: 1}, &commandpb.Command{
			Format: state.Format, Id: number(1), Stamp: start.UnixNano(), Body: &commandpb.Command_InitCluster{InitCluster: initCluster()},
		})
		m := &machine{s, start}
		m.command(createTenant("acme"))
		m.command(createService("billing", ptr[uint32](1), nil))
		limit := uint64(10)
		m.command(limitRule("billing", "*/orders", perHour(limit)))
		granted := map[int64]uint64{} // by window
		m.stamp = start
		t.Repeat(map[string]func(*rapid.T){
			"reserve": func(t *rapid.T) {
				m.stamp = m.stamp.Add(time.Duration(rapid.IntRange(0, 40).Draw(t, "minutes")) * time.Minute)
				window := policy.WindowOf(m.stamp.Add(time.Duration(rapid.IntRange(-90, 90).Draw(t, "the node's clock is off by minutes"))*time.Minute), policy.Hour)
				count := rapid.Uint64Range(1, 12).Draw(t, "count")
				res := m.command(at(reserveUses("acme", "billing", "*/orders", policy.Hour, window, count), m.stamp))
				if res.Err != nil {
					return
				}
				granted[window.UnixNano()] += count
				if got := granted[window.UnixNano()]; got > limit {
					t.Fatalf("%d of %d are granted in the window from %v", got, limit, window)
				}
			},
			"change the limit": func(t *rapid.T) {
				limit = rapid.Uint64Range(1, 20).Draw(t, "limit")
				m.command(at(limitRule("billing", "*/orders", perHour(limit)), m.stamp))
			},
			"take it back": func(t *rapid.T) {
				m.command(at(revoke("billing", "*/orders"), m.stamp))
				m.command(at(limitRule("billing", "*/orders", perHour(limit)), m.stamp))
			},
			"restart": func(t *rapid.T) {
				var buf bytes.Buffer
				if err := state.Write(&buf, m.s); err != nil {
					t.Fatal(err)
				}
				var err error
				if m.s, err = state.Read(&buf); err != nil {
					t.Fatal(err)
				}
			},
		})
	})
}

const (
	goldenLimits     = "testdata/v1-limits.snapshot"
	goldenLimitsHash = "fae90c1bc039bbadefa6b59960ea5a98602d2c84cc9925d72c9b2f4f9386957d"
)

// The first snapshots had no limits, and these have: both must stay readable.
func TestGoldenSnapshotWithLimits(t *testing.T) {
	m := limited(t)
	m.do(t, limitRule("billing", "acme/orders", perSecond(100), perHour(1000)))
	m.do(t, ordersOf("acme", 3))
	m.do(t, reserveUses("acme", "", "", policy.Hour, start, 1))
	if *update {
		if err := os.WriteFile(goldenLimits, snapshot(t, m.s), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	b, err := os.ReadFile(goldenLimits)
	if err != nil {
		t.Fatal(err)
	}
	s, err := state.Read(bytes.NewReader(b))
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(m.s.Rules(""), s.Rules("")); diff != "" {
		t.Errorf("rules (-want +got):\n%s", diff)
	}
	hash := s.Hash()
	if got := hex.EncodeToString(hash[:]); got != goldenLimitsHash {
		t.Errorf("hash %s, want %s", got, goldenLimitsHash)
	}
	if !bytes.Equal(b, snapshot(t, m.s)) {
		t.Error("the same state is written in other bytes today")
	}
	restored := &machine{s, m.stamp}
	if res := restored.command(ordersOf("acme", 8)); !errors.Is(res.Err, hierarchy.ErrRateLimited) {
		t.Errorf("over the limit: %v", res.Err)
	}
	restored.do(t, ordersOf("acme", 7))
	check(t, restored.s)
}
