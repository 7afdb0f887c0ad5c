package capacity_test

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/kekd/kekd/hierarchy"
	"github.com/kekd/kekd/hierarchy/capacity"
	"github.com/kekd/kekd/hierarchy/commandpb"
	"github.com/kekd/kekd/hierarchy/state"
)

func id(name string) hierarchy.ID {
	sum := sha256.Sum256([]byte(name))
	return hierarchy.ID(sum[:hierarchy.IDSize])
}

var (
	cluster = hierarchy.ClusterID{ID: id("cluster")}
	region  = hierarchy.RegionID{ID: id("region")}
	node    = hierarchy.NodeID{ID: id("node")}
)

func tenant(name string) hierarchy.TenantID { return hierarchy.TenantID{ID: id("tenant " + name)} }

// machine is the real state machine.
type machine struct {
	mu    sync.Mutex
	state *state.State
}

func newMachine() *machine {
	m := &machine{state: state.New()}
	m.must(&commandpb.Command{Body: &commandpb.Command_InitCluster{InitCluster: &commandpb.InitCluster{
		ClusterId: cluster.ID[:],
		Region:    &commandpb.Region{Id: region.ID[:], Name: "eu", Role: commandpb.RegionRole_REGION_ROLE_VOTING, Identity: []byte("not looked at here"), MintingNode: node.ID[:]},
		Node:      &commandpb.Node{Id: node.ID[:], Name: "eu-1", RegionId: region.ID[:], Voter: true},
	}}})
	return m
}

func (m *machine) State() *state.State {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.state
}

func (m *machine) apply(c *commandpb.Command) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	cid := hierarchy.NewID()
	c.Format, c.Id = state.Format, cid[:]
	c.Stamp = time.Date(2026, 1, 1, 0, 0, int(m.state.Index()), 0, time.UTC).UnixNano()
	next, res := state.Apply(m.state, state.Meta{Index: m.state.Index() + 1}, c)
	m.state = next
	return res.Err
}

func (m *machine) must(c *commandpb.Command) {
	if err := m.apply(c); err != nil {
		panic(fmt.Sprintf("%T: %v", c.Body, err))
	}
}

func (m *machine) createTenant(name string) {
	i := tenant(name)
	m.must(&commandpb.Command{Body: &commandpb.Command_CreateTenant{CreateTenant: &commandpb.CreateTenant{TenantId: i.ID[:], Name: name, MaxStaleness: int64(time.Second)}}})
}

func (m *machine) createKey(owner, name string) {
	t, k := tenant(owner), id("key "+owner+"/"+name)
	m.must(&commandpb.Command{Body: &commandpb.Command_CreateKey{CreateKey: &commandpb.CreateKey{TenantId: t.ID[:], KeyId: k[:], Name: name}}})
}

// mint makes the newest version active.
func (m *machine) mint(owner, name string) {
	t := tenant(owner)
	k, _ := m.State().KeyByName(t, name)
	v := k.Newest()
	object := hierarchy.KEKObjectID(cluster, t, k.ID, v.Number, region, v.Attempt)
	m.must(&commandpb.Command{Body: &commandpb.Command_RecordMinted{RecordMinted: &commandpb.RecordMinted{
		TenantId: t.ID[:], KeyId: k.ID.ID[:], Version: v.Number, Attempt: v.Attempt, RegionId: region.ID[:], ObjectId: object[:], CheckValue: []byte{1, 2, 3}}}})
}

func (m *machine) rotate(owner, name string) {
	t := tenant(owner)
	k, _ := m.State().KeyByName(t, name)
	m.must(&commandpb.Command{Body: &commandpb.Command_RotateKey{RotateKey: &commandpb.RotateKey{
		TenantId: t.ID[:], KeyId: k.ID.ID[:], AfterVersion: k.Newest().Number, Cause: commandpb.RotationCause_ROTATION_CAUSE_OPERATOR}}})
}

func (m *machine) compromise(owner, name string) {
	t := tenant(owner)
	k, _ := m.State().KeyByName(t, name)
	m.must(&commandpb.Command{Body: &commandpb.Command_SetVersionState{SetVersionState: &commandpb.SetVersionState{
		TenantId: t.ID[:], KeyId: k.ID.ID[:], Version: k.Newest().Number, Action: commandpb.VersionAction_VERSION_ACTION_COMPROMISE, Reason: "test"}}})
}

func TestDemand(t *testing.T) {
	m := newMachine()
	for _, owner := range []string{"acme", "globex", "empty"} {
		m.createTenant(owner)
	}
	m.createKey("acme", "orders")
	m.mint("acme", "orders")
	m.rotate("acme", "orders") // which is not minted yet, and counts
	m.createKey("acme", "mail")
	m.createKey("globex", "orders")
	m.compromise("globex", "orders") // before it was minted: it never will be

	got := map[string]capacity.Demand{"all": capacity.Of(m.State(), region)}
	for _, owner := range []string{"acme", "globex", "empty", "unknown"} {
		got[owner] = capacity.OfTenant(m.State(), region, tenant(owner))
	}
	got["elsewhere"] = capacity.Of(m.State(), hierarchy.RegionID{ID: id("another region")})
	want := map[string]capacity.Demand{
		"all":       {Held: 3, Pending: 2, Rotations: 3},
		"acme":      {Held: 3, Pending: 2, Rotations: 2},
		"globex":    {Held: 0, Rotations: 1},
		"empty":     {},
		"unknown":   {},
		"elsewhere": {},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("demand (-want +got):\n%s", diff)
	}
}

// A version in r regions costs each token its KEK and a bridge each way to each of the others.
func TestCostOfSeveralRegions(t *testing.T) {
	other := hierarchy.RegionID{ID: id("other")}
	third := hierarchy.RegionID{ID: id("third")}
	for _, c := range []struct {
		placement []hierarchy.RegionID
		want      uint64
	}{
		{nil, 0}, {[]hierarchy.RegionID{other}, 0}, {[]hierarchy.RegionID{region}, 1},
		{[]hierarchy.RegionID{region, other}, 3}, {[]hierarchy.RegionID{region, other, third}, 5},
	} {
		if got := capacity.Cost(&state.Tenant{Placement: c.placement}, region); got != c.want {
			t.Errorf("a version in %d regions costs %d objects, want %d", len(c.placement), got, c.want)
		}
	}
}

func TestRoom(t *testing.T) {
	room := func(limit, foreign, held, rotations uint64) capacity.Room {
		return capacity.Room{Token: capacity.Token{Max: limit, Foreign: foreign}, Demand: capacity.Demand{Held: held, Rotations: rotations}}
	}
	for name, c := range map[string]struct {
		room         capacity.Room
		version, key bool
		left, keys   uint64
	}{
		"empty":                        {room(20+capacity.Spare, 3, 0, 0), true, true, 17, 8},
		"just room for a key":          {room(20+capacity.Spare, 0, 9, 9), true, true, 11, 1},
		"rotations only":               {room(20+capacity.Spare, 0, 10, 9), true, false, 10, 0},
		"one version":                  {room(20+capacity.Spare, 0, 19, 9), true, false, 1, 0},
		"nothing":                      {room(20+capacity.Spare, 0, 20, 9), false, false, 0, 0},
		"more than there may be":       {room(20, 4, 40, 9), false, false, 0, 0},
		"the token refuses":            {capacity.Room{Token: capacity.Token{Max: 100, Full: true}}, false, false, 0, 0},
		"it refuses and nobody counts": {capacity.Room{Token: capacity.Token{Full: true}}, false, false, 0, 0},
		"not known yet":                {capacity.Room{Demand: capacity.Demand{Held: 7, Rotations: 7}}, true, true, 0, 0},
	} {
		for what, got := range map[string]struct {
			err  error
			want bool
		}{"version": {c.room.Version(1), c.version}, "key": {c.room.Key(1), c.key}} {
			if (got.err == nil) != got.want || got.err != nil && !errors.Is(got.err, hierarchy.ErrCapacity) {
				t.Errorf("%s: a %s: %v, want room: %t", name, what, got.err, got.want)
			}
			if got.err != nil && !strings.Contains(got.err.Error(), "hsm.max_objects") {
				t.Errorf("%s: it is not said what to do: %v", name, got.err)
			}
		}
		if c.room.Left() != c.left || c.room.LeftForKeys() != c.keys {
			t.Errorf("%s: %d left, %d of them for keys, want %d and %d", name, c.room.Left(), c.room.LeftForKeys(), c.left, c.keys)
		}
		// Of another region's keys this token needs nothing.
		if err := c.room.Key(0); err != nil {
			t.Errorf("%s: a key of another region: %v", name, err)
		}
	}
}

// Whatever is asked for, in whatever order, the token is never to hold more than it may, and after
// each key that was let through all keys can still be rotated once, unless rotations took the room.
func TestGateHoldsItsPromise(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		m := newMachine()
		m.createTenant("acme")
		token := capacity.Token{Max: rapid.Uint64Range(capacity.Spare, 60).Draw(t, "max"), Foreign: rapid.Uint64Range(0, 5).Draw(t, "foreign")}
		g := capacity.NewGate(region, m.State, func() capacity.Token { return token })
		keys, rotations := 0, 0
		for i := range rapid.IntRange(0, 80).Draw(t, "steps") {
			name := fmt.Sprintf("key-%d", i)
			rotate := keys > 0 && rapid.Bool().Draw(t, "rotate")
			if rotate {
				names := []string{}
				for k := range m.State().Keys(tenant("acme")) {
					names = append(names, k.Name)
				}
				name = rapid.SampledFrom(names).Draw(t, "key")
			}
			before := g.Room()
			ask := g.ForKey
			if rotate {
				ask = g.ForVersion
			}
			release, err := ask(tenant("acme"))
			if err != nil {
				if rotate && before.Left() > 0 || !rotate && before.LeftForKeys() > 0 {
					t.Fatalf("refused with %d left, %d of them for keys: %v", before.Left(), before.LeftForKeys(), err)
				}
				continue
			}
			if rotate {
				m.rotate("acme", name)
				rotations++
			} else {
				m.createKey("acme", name)
				keys++
			}
			release()
			m.mint("acme", name)
			room := g.Room()
			if room.Used()+capacity.Spare > token.Max {
				t.Fatalf("%d of %d objects are used, and %d should be spare", room.Used(), token.Max, capacity.Spare)
			}
			if !rotate && room.Left() < room.Rotations {
				t.Fatalf("after a new key %d are left, and %d keys could have to be rotated", room.Left(), room.Rotations)
			}
		}
		if rotations == 0 && keys > 0 { // a new incident: every key is rotated
			for k := range m.State().Keys(tenant("acme")) {
				release, err := g.ForVersion(tenant("acme"))
				if err != nil {
					t.Fatalf("%s cannot be rotated: %v", k.Name, err)
				}
				m.rotate("acme", k.Name)
				release()
			}
		}
	})
}

// Requests side by side do not add up to more than one after the other would.
func TestGateAtTheSameTime(t *testing.T) {
	m := newMachine()
	m.createTenant("acme")
	g := capacity.NewGate(region, m.State, func() capacity.Token { return capacity.Token{Max: capacity.Spare + 20} })
	var all sync.WaitGroup
	errs := make([]error, 64)
	for i := range errs {
		all.Go(func() {
			release, err := g.ForKey(tenant("acme"))
			if errs[i] = err; err != nil {
				return
			}
			m.createKey("acme", fmt.Sprintf("key-%d", i))
			release()
			release() // once is enough
		})
	}
	all.Wait()
	let := 0
	for _, err := range errs {
		if err == nil {
			let++
		} else if !errors.Is(err, hierarchy.ErrCapacity) {
			t.Error(err)
		}
	}
	if room := g.Room(); let == 0 || let > 10 || room.Used() != uint64(let) {
		t.Errorf("%d keys were let through and %d objects are used; there is room for 10", let, room.Used())
	}
	// One that is being brought into the hierarchy may count twice for a moment, and never after.
	for i := let; i < 10; i++ {
		release, err := g.ForKey(tenant("acme"))
		if err != nil {
			t.Fatalf("the %dth of 10 keys: %v", i+1, err)
		}
		m.createKey("acme", fmt.Sprintf("later-%d", i))
		release()
	}
	if room := g.Room(); room.Used() != 10 || room.Left() != 10 {
		t.Errorf("%d objects are used and %d left; want 10 and 10", room.Used(), room.Left())
	}
}

// What was asked for and failed gives its room back.
func TestGateReleases(t *testing.T) {
	m := newMachine()
	m.createTenant("acme")
	g := capacity.NewGate(region, m.State, func() capacity.Token { return capacity.Token{Max: capacity.Spare + 2} })
	for range 3 {
		key, err := g.ForKey(tenant("acme"))
		if err != nil {
			t.Fatal(err)
		}
		version, err := g.ForVersion(tenant("acme"))
		if err != nil {
			t.Fatalf("one more version: %v", err)
		}
		if _, err := g.ForKey(tenant("acme")); !errors.Is(err, hierarchy.ErrCapacity) {
			t.Fatalf("a second key in a token with room for one: %v", err)
		}
		if _, err := g.ForVersion(tenant("acme")); !errors.Is(err, hierarchy.ErrCapacity) {
			t.Fatalf("a third object in a token with room for two: %v", err)
		}
		key()
		version()
	}
	if _, err := g.ForKey(tenant("nobody")); !errors.Is(err, hierarchy.ErrNotFound) {
		t.Errorf("a key of a tenant that does not exist: %v", err)
	}
}
