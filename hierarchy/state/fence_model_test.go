package state_test

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"pgregory.net/rapid"

	"github.com/kekd/kekd/hierarchy"
	"github.com/kekd/kekd/hierarchy/commandpb"
	"github.com/kekd/kekd/hierarchy/state"
)

// world is what may happen outside of the replicated state: which run of which node may still serve which
// tenant by how old a state. It knows what commands ask for and whether they were taken, and nothing of how
// the state keeps account.
type world struct {
	runs     []*servant
	limits   map[string][]limitAt // max_staleness of a tenant, by index
	disabled map[string]bool
	rules    map[string]hierarchy.Ops // of the service web, by pattern
	closings []*taken
}

// servant is a run of a node's process that was registered.
type servant struct {
	state.Holder
	// oldest is the oldest state by which it may still serve a tenant, as far as was waited for.
	oldest map[string]uint64
	over   bool // it is dead, or all its leases have run out
}

type limitAt struct {
	index uint64
	limit time.Duration
}

// taken is a closing that is not known to be effective.
type taken struct {
	index   uint64
	tenants []string
	must    map[*servant]time.Duration // who may serve what it closed, and by how old a state
}

// longest is the longest max_staleness by which a run may serve a tenant, of the states before an index.
func (w *world) longest(r *servant, tenant string, before uint64) (longest time.Duration) {
	limits := w.limits[tenant]
	for i, l := range limits {
		last := before // the last state that has it, and one more
		if i+1 < len(limits) {
			last = min(last, limits[i+1].index)
		}
		if l.index < last && r.oldest[tenant] < last {
			longest = max(longest, l.limit)
		}
	}
	return longest
}

func (w *world) limit(tenant string) time.Duration {
	limits := w.limits[tenant]
	return limits[len(limits)-1].limit
}

func (w *world) lowerings(tenant string, s *state.State) (pending bool) {
	for f := range s.Fences() {
		pending = pending || f.LoweredFrom > 0 && (f.Tenant.IsZero() || f.Tenant == tenantID(tenant))
	}
	return pending
}

func (w *world) living() (runs []*servant) {
	for _, r := range w.runs {
		if !r.over {
			runs = append(runs, r)
		}
	}
	return runs
}

func (w *world) run(h state.Holder) *servant {
	for _, r := range w.living() {
		if r.Holder == h {
			return r
		}
	}
	return nil
}

// closed are the tenants that a command closes something to.
func (w *world) closed(c *commandpb.Command) (tenants []string) {
	of := func(pattern string) []string {
		if pattern == "*/*" {
			return []string{"acme", "globex"}
		}
		return []string{"acme"}
	}
	names := map[string]string{string(id("acme")): "acme", string(id("globex")): "globex"}
	switch b := c.GetBody().(type) {
	case *commandpb.Command_SetTenantState:
		name := names[string(b.SetTenantState.TenantId)]
		if off := b.SetTenantState.State == commandpb.TenantState_TENANT_STATE_DISABLED; off && !w.disabled[name] {
			return []string{name}
		}
	case *commandpb.Command_SetTenant:
		name := names[string(b.SetTenant.TenantId)]
		if time.Duration(b.SetTenant.GetMaxStaleness()) < w.limit(name) {
			return []string{name}
		}
	case *commandpb.Command_AllowPolicy:
		if r := b.AllowPolicy.Rule; w.rules[r.Pattern]&^hierarchy.Ops(r.Ops) != 0 {
			return of(r.Pattern)
		}
	case *commandpb.Command_RevokePolicy:
		return of(b.RevokePolicy.Pattern)
	case *commandpb.Command_RestoreRecords:
		for _, rec := range b.RestoreRecords.Records {
			if time.Duration(rec.GetTenant().MaxStaleness) < w.limit(rec.GetTenant().Name) {
				tenants = append(tenants, rec.GetTenant().Name)
			}
		}
	}
	return tenants
}

// follow takes a command that was taken into account.
func (w *world) follow(t *rapid.T, c *commandpb.Command, before, after *state.State) {
	index := after.Index()
	if tenants := w.closed(c); tenants != nil {
		closing := &taken{index: index, tenants: tenants, must: make(map[*servant]time.Duration)}
		exact := time.Duration(0)
		pending := false
		for _, tenant := range tenants {
			for _, r := range w.living() {
				closing.must[r] = max(closing.must[r], w.longest(r, tenant, index))
			}
			exact = max(exact, w.limit(tenant))
			pending = pending || w.lowerings(tenant, before)
		}
		f, ok := after.Fence(index)
		switch {
		case ok != (len(closing.must) > 0):
			t.Fatalf("%v: %d may serve what it closed, and there is a fence: %v", c, len(closing.must), ok)
		case ok && !pending && f.Since == 0 && f.Wait != exact:
			t.Fatalf("%v: nothing is pending, and it waits %v, want %v", c, f.Wait, exact)
		case ok:
			w.closings = append(w.closings, closing)
		}
	}
	set := func(tenant string, limit time.Duration) {
		w.limits[tenant] = append(w.limits[tenant], limitAt{index, limit})
	}
	switch b := c.GetBody().(type) {
	case *commandpb.Command_SetTenantState:
		for _, tenant := range []string{"acme", "globex"} {
			if string(id(tenant)) == string(b.SetTenantState.TenantId) {
				w.disabled[tenant] = b.SetTenantState.State == commandpb.TenantState_TENANT_STATE_DISABLED
			}
		}
	case *commandpb.Command_SetTenant:
		for _, tenant := range []string{"acme", "globex"} {
			if string(id(tenant)) == string(b.SetTenant.TenantId) {
				set(tenant, time.Duration(b.SetTenant.GetMaxStaleness()))
			}
		}
	case *commandpb.Command_RestoreRecords:
		for _, rec := range b.RestoreRecords.Records {
			set(rec.GetTenant().Name, min(w.limit(rec.GetTenant().Name), time.Duration(rec.GetTenant().MaxStaleness)))
		}
	case *commandpb.Command_AllowPolicy:
		w.rules[b.AllowPolicy.Rule.Pattern] = hierarchy.Ops(b.AllowPolicy.Rule.Ops)
	case *commandpb.Command_RevokePolicy:
		delete(w.rules, b.RevokePolicy.Pattern)
	case *commandpb.Command_RegisterIncarnation:
		h := state.Holder{Node: hierarchy.NodeID{ID: hierarchy.ID(b.RegisterIncarnation.NodeId)}, Incarnation: hierarchy.ID(b.RegisterIncarnation.Incarnation)}
		if n, _ := before.Node(h.Node); n.Incarnation == h.Incarnation {
			break
		} else if !n.Incarnation.IsZero() && string(b.RegisterIncarnation.Dead) == string(n.Incarnation[:]) {
			w.run(state.Holder{Node: h.Node, Incarnation: n.Incarnation}).over = true
		}
		w.runs = append(w.runs, &servant{Holder: h, oldest: map[string]uint64{"acme": index, "globex": index}})
	case *commandpb.Command_CompleteFence:
		// Each holder has applied the closing, or the fence's time has gone by.
		if f, ok := before.Fence(b.CompleteFence.Index); ok && f.Index == b.CompleteFence.Index {
			w.effective(f)
		}
	case *commandpb.Command_RetireTombstone:
		h := state.Holder{Node: hierarchy.NodeID{ID: hierarchy.ID(b.RetireTombstone.NodeId)}, Incarnation: hierarchy.ID(b.RetireTombstone.Incarnation)}
		// It was waited for if the wait began when it was buried.
		if tomb := tombstone(before, h); tomb != nil && tomb.Index == b.RetireTombstone.Index {
			w.run(h).over = true
		}
	}
}

// effective takes a complete fence into account. It is of its own closing, and of those that were merged
// into it, which are of the same tenant or of several as well.
func (w *world) effective(f *state.Fence) {
	w.closings = slices.DeleteFunc(w.closings, func(c *taken) bool {
		of := hierarchy.TenantID{}
		if len(c.tenants) == 1 {
			of = tenantID(c.tenants[0])
		}
		if c.index != f.Index && (of != f.Tenant || f.Since == 0 || c.index < f.Since || c.index > f.Index) {
			return false
		}
		for _, h := range f.Holders {
			if r := w.run(h); r != nil {
				for _, tenant := range c.tenants {
					r.oldest[tenant] = max(r.oldest[tenant], c.index)
				}
			}
		}
		return true
	})
}

// judge holds the state's account against what may happen.
func (w *world) judge(t *rapid.T, s *state.State) {
	holders := s.Holders()
	for _, r := range w.living() {
		if !slices.Contains(holders, r.Holder) {
			t.Fatalf("%+v may hold a lease and is no holder", r.Holder)
		}
		longest := time.Duration(0)
		for tenant := range w.limits {
			by := w.longest(r, tenant, s.Index()+1)
			if counts := s.CountingStaleness(tenantID(tenant)); by > counts {
				t.Fatalf("%+v may serve %s by a state of %v, which is longer than what counts, %v", r.Holder, tenant, by, counts)
			}
			longest = max(longest, w.longest(r, tenant, s.Index()))
		}
		if tomb := tombstone(s, r.Holder); tomb != nil && tomb.Index == s.Index() && longest > tomb.Wait {
			t.Fatalf("%+v may serve by a state of %v, which is longer than what counts, %v, for its tombstone", r.Holder, longest, tomb.Wait)
		}
	}
	for _, c := range w.closings {
		f, ok := s.Fence(c.index)
		for r, by := range c.must {
			switch {
			case r.over:
			case !ok:
				t.Fatalf("%+v may serve what command %d closed, and it has no fence", r.Holder, c.index)
			case !slices.Contains(f.Holders, r.Holder):
				t.Fatalf("%+v may hold a lease and is no holder of the fence %d for command %d", r.Holder, f.Index, c.index)
			case f.Wait < by:
				t.Fatalf("%+v may serve what command %d closed by a state of %v, which is longer than what counts, %v", r.Holder, c.index, by, f.Wait)
			}
		}
	}
}

// anyFenced draws what closes, opens, comes and goes.
func anyFenced(t *rapid.T, s *state.State, late []*commandpb.Command) *commandpb.Command {
	tenant := rapid.SampledFrom([]string{"acme", "globex"}).Draw(t, "tenant")
	limit := int64(rapid.SampledFrom([]int{1, 2, 3, 5, 10, 60}).Draw(t, "limit")) * int64(time.Second)
	node := rapid.SampledFrom([]hierarchy.NodeID{nodeID, nodeB, nodeC}).Draw(t, "node")
	run := rapid.IntRange(1, 9).Draw(t, "run")
	pattern := rapid.SampledFrom([]string{"acme/*", "*/*"}).Draw(t, "pattern")
	ops := rapid.Uint32Range(1, 3).Draw(t, "ops")
	fences, tombs := slices.Collect(s.Fences()), slices.Collect(s.Tombstones())
	one := rapid.IntRange(0, 1<<10).Draw(t, "one")
	kinds := []func() *commandpb.Command{
		func() *commandpb.Command { return disable(tenant) },
		func() *commandpb.Command { return enable(tenant) },
		func() *commandpb.Command { return setTenant(tenant, &limit) },
		func() *commandpb.Command { return setTenant(tenant, &limit) },
		func() *commandpb.Command {
			return with(allow("web", pattern), getRule, func(r *commandpb.Rule) { r.Ops = ops })
		},
		func() *commandpb.Command { return revoke("web", pattern) },
		func() *commandpb.Command { return register(node, fmt.Sprint(run), "") },
		func() *commandpb.Command {
			c := register(node, fmt.Sprint(run), "")
			if n, ok := s.Node(node); ok && !n.Incarnation.IsZero() {
				c.GetRegisterIncarnation().Dead = n.Incarnation[:]
			}
			return c
		},
		func() *commandpb.Command { return removeNode(node) },
		func() *commandpb.Command {
			lower := func(m *commandpb.Tenant) { m.MaxStaleness = limit }
			return restoreRecords(tenantRecord("acme", lower), tenantRecord("globex", func(m *commandpb.Tenant) { m.MaxStaleness = int64(ops) * int64(time.Second) }))
		},
	}
	if len(fences) > 0 {
		kinds = append(kinds, func() *commandpb.Command { return complete(fences[one%len(fences)].Index) })
	}
	if len(tombs) > 0 {
		kinds = append(kinds, func() *commandpb.Command { return retire(tombs[one%len(tombs)].Holder, tombs[one%len(tombs)].Index) })
	}
	if len(late) > 0 { // a command that was in the log before, from another node that waited for the same
		kinds = append(kinds, func() *commandpb.Command {
			c := proto.Clone(late[one%len(late)]).(*commandpb.Command)
			c.Id = nil
			return c
		})
	}
	return rapid.SampledFrom(kinds).Draw(t, "kind")()
}

// At any moment the state has all who may hold a lease, and each fence waits for as long as any of them may
// serve by a state from before: whatever is raised, lowered, closed, replaced or removed meanwhile, and
// in whichever order that is recorded.
func TestFencesWaitForWhoMayServe(t *testing.T) {
	t.Parallel()
	few, many := initialised(t), initialised(t)
	for _, m := range []*machine{few, many} {
		for _, c := range append([]*commandpb.Command{createTenant("acme"), createTenant("globex"), createService("web", ptr[uint32](1), nil)}, moreNodes()...) {
			m.do(t, c)
		}
	}
	// So many are pending that those of one tenant are merged.
	for _, c := range []*commandpb.Command{createTenant("filler"), register(nodeW, "w1", "")} {
		many.do(t, c)
	}
	for range state.MaxFences {
		many.do(t, disable("filler"))
		many.do(t, enable("filler"))
	}
	rapid.Check(t, func(t *rapid.T) {
		from := rapid.SampledFrom([]*machine{few, many}).Draw(t, "from")
		m := &machine{from.s, from.stamp}
		w := &world{
			limits:   map[string][]limitAt{"acme": {{0, 2 * time.Second}}, "globex": {{0, 2 * time.Second}}},
			disabled: make(map[string]bool), rules: make(map[string]hierarchy.Ops),
		}
		for _, h := range m.s.Holders() {
			w.runs = append(w.runs, &servant{Holder: h, oldest: map[string]uint64{"acme": m.s.Index(), "globex": m.s.Index()}})
		}
		var late []*commandpb.Command
		for range rapid.IntRange(1, 60).Draw(t, "commands") {
			c := anyFenced(t, m.s, late)
			before := m.s
			if res := m.command(c); res.Err != nil || res.Replayed {
				continue
			}
			late = append(late, c)
			t.Logf("command %d: %v", m.s.Index(), c)
			w.follow(t, c, before, m.s)
			w.judge(t, m.s)
		}
		if from == few {
			check(t, m.s)
		}
	})
}
