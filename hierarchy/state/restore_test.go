package state_test

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strings"
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

func restoreRecords(records ...*commandpb.SnapshotRecord) *commandpb.Command {
	return &commandpb.Command{Body: &commandpb.Command_RestoreRecords{RestoreRecords: &commandpb.RestoreRecords{ClusterId: clusterID.ID[:], Records: records}}}
}

func tenantRecord(name string, change func(*commandpb.Tenant)) *commandpb.SnapshotRecord {
	m := &commandpb.Tenant{
		Id: id(name), Name: name, State: commandpb.TenantState_TENANT_STATE_ENABLED, MaxStaleness: int64(2 * time.Second),
		CreatedAt: start.UnixNano(), StateAt: start.UnixNano(), Placement: [][]byte{regionID.ID[:]},
	}
	if change != nil {
		change(m)
	}
	return &commandpb.SnapshotRecord{Record: &commandpb.SnapshotRecord_Tenant{Tenant: m}}
}

// keyRecord is a piece of a key: versions that are retired, up to the last, which is active.
func keyRecord(tenant, key string, first, last uint32, change func(*commandpb.Key)) *commandpb.SnapshotRecord {
	m := &commandpb.Key{TenantId: id(tenant), Id: id(key), Name: key, CreatedAt: start.UnixNano(), MinUnwrapVersion: 1}
	for n := first; n <= last; n++ {
		v := &commandpb.Version{
			Number: n, State: commandpb.VersionState_VERSION_STATE_DEACTIVATED, CreatedAt: start.UnixNano(), StateAt: start.UnixNano(), Attempt: 1,
			Regions: []*commandpb.RegionKey{{
				RegionId: regionID.ID[:], ObjectId: objectOf(tenant, key, n, 1), CheckValue: []byte{1, 2, byte(n)}, MintedAt: start.UnixNano(),
			}},
		}
		if n == last {
			v.State = commandpb.VersionState_VERSION_STATE_ACTIVE
		}
		m.Versions = append(m.Versions, v)
	}
	if change != nil {
		change(m)
	}
	return &commandpb.SnapshotRecord{Record: &commandpb.SnapshotRecord_Key{Key: m}}
}

var restoreSteps = []step{
	{name: "what is here", c: restoreRecords(tenantRecord("acme", nil), keyRecord("acme", "orders", 1, 2, nil))},
	{name: "what is not here", c: restoreRecords(tenantRecord("initech", nil), keyRecord("initech", "mail", 1, 3, nil))},
	{name: "what clashes", c: restoreRecords(tenantRecord("acme", func(m *commandpb.Tenant) { m.Id = id("another") }))},
	{name: "nothing", c: restoreRecords(), want: hierarchy.ErrInvalidArgument, words: "nothing"},
	{name: "an empty record", c: restoreRecords(&commandpb.SnapshotRecord{}), want: hierarchy.ErrInvalidArgument, words: "record 0"},
	{name: "a region", c: restoreRecords(tenantRecord("acme", nil), &commandpb.SnapshotRecord{Record: &commandpb.SnapshotRecord_Region{Region: initCluster().Region}}),
		want: hierarchy.ErrInvalidArgument, words: "record 1"},
	{name: "a member", c: restoreRecords(&commandpb.SnapshotRecord{Record: &commandpb.SnapshotRecord_Node{Node: initCluster().Node}}), want: hierarchy.ErrInvalidArgument},
	{name: "a service", c: restoreRecords(&commandpb.SnapshotRecord{Record: &commandpb.SnapshotRecord_Service{Service: &commandpb.Service{Name: "s", Uid: ptr[uint32](1)}}}), want: hierarchy.ErrInvalidArgument},
	{name: "an invitation", c: restoreRecords(&commandpb.SnapshotRecord{Record: &commandpb.SnapshotRecord_Invitation{Invitation: invite("d", "us-east", replica, false).GetInviteNode().GetInvitation()}}), want: hierarchy.ErrInvalidArgument},
	{name: "no tenant", c: restoreRecords(tenantRecord("acme", func(m *commandpb.Tenant) { m.State = 77 })), want: hierarchy.ErrInvalidArgument},
	{name: "no key", c: restoreRecords(keyRecord("acme", "orders", 2, 1, nil)), want: hierarchy.ErrInvalidArgument, words: "0 versions"},
	{name: "a gap in a key", c: restoreRecords(keyRecord("acme", "orders", 1, 3, func(m *commandpb.Key) { m.Versions = slices.Delete(m.Versions, 1, 2) })), want: hierarchy.ErrInvalidArgument, words: "stands where 2"},
	{name: "a version beyond", c: restoreRecords(keyRecord("acme", "orders", state.MaxVersions, state.MaxVersions+1, nil)), want: hierarchy.ErrInvalidArgument},
	{name: "no rule", c: restoreRecords(&commandpb.SnapshotRecord{Record: &commandpb.SnapshotRecord_Rule{Rule: &commandpb.Rule{}}}), want: hierarchy.ErrInvalidArgument},
	{name: "no uses", c: restoreRecords(&commandpb.SnapshotRecord{Record: &commandpb.SnapshotRecord_Uses{Uses: &commandpb.Uses{}}}), want: hierarchy.ErrInvalidArgument},
	{name: "no removed node", c: restoreRecords(&commandpb.SnapshotRecord{Record: &commandpb.SnapshotRecord_RemovedNode{RemovedNode: &commandpb.RemovedNode{}}}), want: hierarchy.ErrInvalidArgument},
	{name: "of another cluster", c: with(restoreRecords(tenantRecord("acme", nil)), (*commandpb.Command).GetRestoreRecords, func(m *commandpb.RestoreRecords) { m.ClusterId = id("elsewhere") }),
		want: hierarchy.ErrInvalidArgument, words: clusterID.String()},
	{name: "of no cluster", c: with(restoreRecords(tenantRecord("acme", nil)), (*commandpb.Command).GetRestoreRecords, func(m *commandpb.RestoreRecords) { m.ClusterId = nil }), want: hierarchy.ErrInvalidArgument},
}

// restore applies the commands that a snapshot is split into.
func (m *machine) restore(t interface {
	Helper()
	Fatalf(string, ...any)
}, snapshot *state.State, maxBytes int) {
	t.Helper()
	commands, err := state.RestoreCommands(snapshot, maxBytes)
	if err != nil {
		t.Fatalf("%v", err)
	}
	for _, c := range commands {
		c.Actor = &commandpb.Actor{NodeId: nodeID.ID[:], Uid: 1<<32 - 1, Gid: 1<<32 - 1, Pid: 1<<31 - 1}
		if res := m.command(c); res.Err != nil {
			t.Fatalf("%v", res.Err)
		}
		if size := c.SizeVT(); size >= maxBytes {
			t.Fatalf("a command has %d bytes, it is to have fewer than %d", size, maxBytes)
		}
	}
}

const roomy = 1 << 19

// A tenant that was lost comes back closed, with all that it had.
func TestRestoreBringsBackClosed(t *testing.T) {
	lost := populated(t)
	m := initialised(t)
	m.do(t, createService("billing", ptr[uint32](1000), nil))
	m.restore(t, lost.s, roomy)
	check(t, m.s)

	acme, ok := m.s.TenantByName("acme")
	if !ok || acme.State != hierarchy.TenantDisabled || acme.StateReason != "restored from a snapshot" {
		t.Fatalf("tenant: %+v", acme)
	}
	globex, ok := m.s.TenantByName("globex")
	if !ok || globex.State != hierarchy.TenantDisabled || globex.StateReason != "restored from a snapshot: a test" {
		t.Fatalf("tenant that was disabled: %+v", globex)
	}
	// Once somebody enables the tenant, its keys do what they did.
	m.do(t, enable("acme"))
	wantState(t, m, 1, hierarchy.Deactivated)
	wantState(t, m, 2, hierarchy.Active)
	r, _ := version(t, m, "acme", "orders", 2).Region(regionID)
	if r.WrapsReserved != 1<<16 || len(r.Reservations) != 0 {
		t.Errorf("what is reserved: %+v", r)
	}
	m.do(t, reserve("acme", "orders", 2, 1))
	m.do(t, minted("acme", "fresh", 1))
	if rules := m.s.Rules(""); len(rules) != 0 {
		t.Errorf("rules were added: %v", rules)
	}
	if _, ok := m.s.Removed(gone); !ok {
		t.Error("a node that was removed could be a member again")
	}
	// Enabled by somebody, it stays so: the snapshot had it enabled.
	m.restore(t, lost.s, roomy)
	if acme, _ := m.s.TenantByName("acme"); acme.State != hierarchy.TenantEnabled {
		t.Errorf("after the second restore: %+v", acme)
	}
	check(t, m.s)
}

// A key, or a version, that is not here comes back suspended where its tenant is enabled.
func TestRestoreSuspendsWhatComesBack(t *testing.T) {
	m := populated(t)
	m.do(t, versionAction("acme", "orders", 2, suspend))
	m.do(t, versionAction("acme", "orders", 2, resume))
	m.do(t, restoreRecords(keyRecord("acme", "orders", 1, 4, func(k *commandpb.Key) { k.MinUnwrapVersion = 3 }), keyRecord("acme", "mail", 1, 2, nil)))
	check(t, m.s)
	wantState(t, m, 2, hierarchy.Deactivated)
	wantState(t, m, 3, hierarchy.Suspended)
	wantState(t, m, 4, hierarchy.Suspended)
	if k, _ := m.s.KeyByName(tenantID("acme"), "orders"); k.MinUnwrapVersion != 3 {
		t.Errorf("unwraps from version %d, want 3", k.MinUnwrapVersion)
	}
	for n, resumesTo := range map[uint32]hierarchy.VersionState{1: hierarchy.Deactivated, 2: hierarchy.Active} {
		v := version(t, m, "acme", "mail", n)
		if v.State != hierarchy.Suspended || v.ResumeTo != resumesTo || v.StateReason != "restored from a snapshot" || !v.StateAt.Equal(m.s.Stamp()) {
			t.Errorf("version %d of the key that came back: %+v", n, v)
		}
	}
	m.do(t, versionAction("acme", "orders", 4, resume))
	wantState(t, m, 4, hierarchy.Active)
	m.do(t, rotate("acme", "orders", 4))
	m.do(t, minted("acme", "orders", 5))
	check(t, m.s)
}

// What was being minted when the snapshot was taken is never to be, and keeps its number.
func TestRestoreSpendsTheNumberOfWhatWasNotMinted(t *testing.T) {
	m := populated(t)
	lost := &machine{m.s, m.stamp}
	lost.do(t, rotate("acme", "orders", 2))
	m.restore(t, lost.s, roomy)
	v := version(t, m, "acme", "orders", 3)
	if v.State != hierarchy.Suspended || v.ResumeTo != hierarchy.Compromised {
		t.Errorf("version 3: %+v", v)
	}
	wantState(t, m, 2, hierarchy.Active)
	m.do(t, rotate("acme", "orders", 3))
	check(t, m.s)
}

// Pieces come in any order, and some not at all: what cannot be placed is left out.
func TestRestoreOfAPiece(t *testing.T) {
	t.Run("too far", func(t *testing.T) {
		m := populated(t)
		m.do(t, restoreRecords(keyRecord("acme", "orders", 4, 5, nil), keyRecord("acme", "mail", 2, 3, nil)))
		if k, _ := m.s.KeyByName(tenantID("acme"), "orders"); len(k.Versions) != 2 {
			t.Errorf("it has %d versions", len(k.Versions))
		}
		if _, ok := m.s.KeyByName(tenantID("acme"), "mail"); ok {
			t.Error("a key was added without its first version")
		}
		check(t, m.s)
	})
	t.Run("behind what is not minted", func(t *testing.T) {
		m := populated(t)
		m.do(t, restoreRecords(keyRecord("acme", "fresh", 2, 2, nil)))
		if k, _ := m.s.KeyByName(tenantID("acme"), "fresh"); len(k.Versions) != 1 {
			t.Errorf("it has %d versions", len(k.Versions))
		}
		check(t, m.s)
	})
	t.Run("another active version", func(t *testing.T) {
		m := populated(t)
		m.do(t, disable("acme"))
		m.do(t, restoreRecords(keyRecord("acme", "orders", 3, 3, nil)))
		wantState(t, m, 2, hierarchy.Deactivated)
		wantState(t, m, 3, hierarchy.Active) // of a tenant that is closed
		check(t, m.s)
	})
	t.Run("a suspended one that would be active", func(t *testing.T) {
		m := populated(t)
		m.do(t, versionAction("acme", "orders", 2, suspend))
		m.do(t, restoreRecords(keyRecord("acme", "orders", 3, 3, nil)))
		if v := version(t, m, "acme", "orders", 2); v.State != hierarchy.Suspended || v.ResumeTo != hierarchy.Deactivated {
			t.Errorf("version 2: %+v", v)
		}
		check(t, m.s)
	})
}

// Nobody can return seals that he reserved before the snapshot, and who did may be nobody that is known here.
func TestRestoreTakesNoReservations(t *testing.T) {
	m := populated(t)
	stranger := nodeOf("stranger")
	reserved := func(k *commandpb.Key) {
		for _, v := range k.Versions {
			v.Regions[0].WrapsReserved, v.Regions[0].Reservations = 1<<20, []*commandpb.Reservation{{NodeId: stranger.ID[:], Count: 5}}
		}
	}
	// A version that is here, some that are not, and one that is not minted here.
	m.do(t, restoreRecords(keyRecord("acme", "orders", 2, 4, reserved), keyRecord("acme", "mail", 1, 2, reserved), keyRecord("acme", "fresh", 1, 1, reserved)))
	for _, key := range []string{"orders", "mail", "fresh"} {
		k, _ := m.s.KeyByName(tenantID("acme"), key)
		for _, v := range k.Versions {
			if key == "orders" && v.Number == 1 {
				continue
			}
			if r := v.Regions[0]; r.WrapsReserved != 1<<20 || len(r.Reservations) > 0 {
				t.Errorf("%s@%d: %d seals are reserved, by %v", key, v.Number, r.WrapsReserved, r.Reservations)
			}
		}
	}
	check(t, m.s)
}

// One region had minted there, another one has here. Both together would be minted everywhere and still
// pre-active, for ever.
func TestRestoreLeavesMintingToTheLiving(t *testing.T) {
	from := twoRegions(t)
	lost := &machine{from.s, from.stamp}
	lost.do(t, mintedIn(secondRegion, 1, 1))
	m := &machine{from.s, from.stamp}
	m.do(t, mintedIn(regionID, 1, 1))
	m.restore(t, lost.s, roomy)
	wantState(t, m, 1, hierarchy.PreActive)
	if r, _ := version(t, m, "acme", "orders", 1).Region(secondRegion); r.Minted {
		t.Errorf("what was recorded there is taken: %+v", r)
	}
	check(t, m.s)
	m.do(t, mintedIn(secondRegion, 1, 1))
	wantState(t, m, 1, hierarchy.Active)
}

// Each clash is named, and keeps nothing else from being closed.
func TestRestoreLeavesOutWhatClashes(t *testing.T) {
	m := populated(t)
	m.do(t, createTenant("hooli"))
	m.do(t, createKey("hooli", "mail"))
	other := initialised(t)
	for _, c := range []*commandpb.Command{
		with(createTenant("acme"), getTenant, func(m *commandpb.CreateTenant) { m.TenantId = id("another acme") }),
		with(createKey("acme", "lost"), getKey, func(m *commandpb.CreateKey) { m.TenantId = id("another acme") }),
		with(createTenant("renamed"), getTenant, func(m *commandpb.CreateTenant) { m.TenantId = id("globex") }),
		createTenant("hooli"), disable("hooli"), enable("hooli"),
		with(createKey("hooli", "mail"), getKey, func(m *commandpb.CreateKey) { m.KeyId = id("another mail") }),
		with(createKey("hooli", "stolen"), getKey, func(m *commandpb.CreateKey) { m.KeyId = id("orders") }),
		createTenant("initech"),
		createService("billing", ptr[uint32](4000), nil), createService("web", ptr[uint32](1001), ptr[uint32](33)), createService("absent", ptr[uint32](7), nil),
		allow("web", "acme/*"), allow("absent", "acme/*"),
		invite("gone", "eu-west", voting, true), join("gone", "eu-west"),
		invite("b", "eu-west", voting, true), join("b", "eu-west"), removeNode(nodeB),
		disable("hooli"),
	} {
		other.do(t, c)
	}
	want := []string{
		"tenant acme: another tenant has its name here",
		"tenant renamed: its ID is that of tenant globex here",
		"key lost: its tenant",
		"key hooli/mail: another key has its name here",
		"key hooli/stolen: its ID is that of another key here",
		"removed node b: node b is a member with its ID here",
		"service absent: it is not here",
		"service billing: other callers are it here",
		"the rule of service web for acme/*: it is not here",
	}
	slices.Sort(want)
	before := m.s
	for _, when := range []string{"before", "after"} {
		left := state.LeftOut(m.s, other.s)
		slices.Sort(left)
		if len(left) != len(want) {
			t.Fatalf("%s the restore %d are left out, want %d:\n%s", when, len(left), len(want), strings.Join(left, "\n"))
		}
		for i := range want {
			if !strings.HasPrefix(left[i], want[i]) {
				t.Errorf("%s the restore: got %q, want %q", when, left[i], want[i])
			}
		}
		m.restore(t, other.s, roomy)
	}
	if hooli, _ := m.s.TenantByName("hooli"); hooli.State != hierarchy.TenantDisabled || hooli.StateReason != "a test" {
		t.Errorf("what does not clash: %+v", hooli)
	}
	if _, ok := m.s.TenantByName("initech"); !ok {
		t.Error("a tenant that does not clash was left out")
	}
	if diff := cmp.Diff(dump(before).Services, dump(m.s).Services); diff != "" {
		t.Errorf("services (-before +after):\n%s", diff)
	}
	check(t, m.s)
	if left := state.LeftOut(m.s, m.s); left != nil {
		t.Errorf("of itself it leaves out %q", left)
	}
}

// Two histories that parted while a version was minted have two keys under one name.
func TestRestoreNamesTwoKeysOfOneName(t *testing.T) {
	from := populated(t)
	in := func(cs ...*commandpb.Command) *machine {
		m := &machine{from.s, from.stamp}
		for _, c := range cs {
			m.do(t, c)
		}
		return m
	}
	first := in(minted("acme", "fresh", 1), reserve("acme", "fresh", 1, 1<<10))
	second := in(restart("acme", "fresh", 1, 2), mintedAt("acme", "fresh", 1, 2))
	givenUp := in(restart("acme", "fresh", 1, 2))
	another := in(with(minted("acme", "fresh", 1), getMinted, func(m *commandpb.RecordMinted) { m.CheckValue = []byte{9, 9, 9} }))
	wantLeft := func(m *machine, snapshot *state.State, words string) {
		t.Helper()
		left := state.LeftOut(m.s, snapshot)
		if words == "" && left != nil || words != "" && (len(left) != 1 || !strings.Contains(left[0], words)) {
			t.Errorf("left out: %q, want %q", left, words)
		}
	}

	// It is in use under both.
	m := &machine{second.s, second.stamp}
	wantLeft(m, first.s, "of minting attempt 2 here, and of 1")
	m.restore(t, first.s, roomy)
	if v := version(t, m, "acme", "fresh", 1); v.State != hierarchy.Active || v.Attempt != 2 {
		t.Errorf("version: %+v", v)
	}
	m = &machine{another.s, another.stamp}
	wantLeft(m, first.s, "has the check value 090909 here, and 010201")
	check(t, m.s)

	// It was in use in the snapshot, and is given up here: never to wrap under it again.
	m = &machine{givenUp.s, givenUp.stamp}
	wantLeft(m, first.s, "of minting attempt 2 here")
	m.restore(t, first.s, roomy)
	if v := version(t, m, "acme", "fresh", 1); v.State != hierarchy.Suspended || v.ResumeTo != hierarchy.Compromised || v.Attempt != 2 {
		t.Errorf("version: %+v", v)
	}
	wantLeft(m, first.s, "of minting attempt 2 here")
	check(t, m.s)

	// It was in use in the snapshot, and is not minted here: it comes back with what it has sealed.
	m = &machine{from.s, from.stamp}
	wantLeft(m, first.s, "")
	m.restore(t, first.s, roomy)
	v := version(t, m, "acme", "fresh", 1)
	r, _ := v.Region(regionID)
	if v.State != hierarchy.Suspended || v.ResumeTo != hierarchy.Active || r.WrapsReserved != 1<<10 || len(r.Reservations) > 0 {
		t.Errorf("version: %+v", v)
	}
	check(t, m.s)

	// An older snapshot, taken while it was minted, takes nothing away.
	m = &machine{first.s, first.stamp}
	m.restore(t, from.s, roomy)
	if v := version(t, m, "acme", "fresh", 1); v.State != hierarchy.Active {
		t.Errorf("version: %+v", v)
	}
}

func TestRestoreOfAnotherCluster(t *testing.T) {
	m := populated(t)
	elsewhere := &machine{state.New(), start}
	body := initCluster()
	body.ClusterId = id("elsewhere")
	elsewhere.do(t, &commandpb.Command{Body: &commandpb.Command_InitCluster{InitCluster: body}})
	elsewhere.do(t, createTenant("acme"))
	elsewhere.do(t, disable("acme"))
	commands, err := state.RestoreCommands(elsewhere.s, roomy)
	if err != nil || len(commands) != 1 {
		t.Fatalf("%d commands, %v", len(commands), err)
	}
	if res := m.command(commands[0]); !errors.Is(res.Err, hierarchy.ErrInvalidArgument) || !strings.Contains(res.Err.Error(), fmt.Sprintf("%x", id("elsewhere"))) {
		t.Errorf("got error %v", res.Err)
	}
	if left := state.LeftOut(m.s, elsewhere.s); len(left) != 1 || !strings.HasPrefix(left[0], "all of it") {
		t.Errorf("left out: %q", left)
	}
	if acme, _ := m.s.TenantByName("acme"); acme.State != hierarchy.TenantEnabled {
		t.Errorf("tenant: %+v", acme)
	}
}

func TestRestoreCommandsAreBounded(t *testing.T) {
	lost := populated(t)
	for i := range 40 {
		lost.do(t, createTenant(fmt.Sprint("t", i)))
		lost.do(t, rotate("acme", "orders", uint32(i+2)))
		lost.do(t, minted("acme", "orders", uint32(i+3)))
	}
	whole := initialised(t)
	whole.restore(t, lost.s, roomy)
	for _, size := range []int{600, 1000, 5000} {
		m := initialised(t)
		m.restore(t, lost.s, size)
		if k, _ := m.s.KeyByName(tenantID("acme"), "orders"); len(k.Versions) != 42 {
			t.Errorf("in commands of %d bytes %d versions come back, want 42", size, len(k.Versions))
		}
		if diff := cmp.Diff(restored(whole.s), restored(m.s)); diff != "" {
			t.Errorf("in commands of %d bytes something else comes back (-in one +in many):\n%s", size, diff)
		}
		check(t, m.s)
	}
	for _, size := range []int{-1, 0, 100, 300} {
		if _, err := state.RestoreCommands(lost.s, size); !errors.Is(err, hierarchy.ErrInvalidArgument) {
			t.Errorf("in commands of %d bytes: got error %v", size, err)
		}
	}
	if _, err := state.RestoreCommands(state.New(), roomy); !errors.Is(err, hierarchy.ErrInvalidArgument) {
		t.Errorf("of nothing: got error %v", err)
	}
	if commands, err := state.RestoreCommands(initialised(t).s, roomy); err != nil || len(commands) != 0 {
		t.Errorf("of a cluster without tenants: %d commands, %v", len(commands), err)
	}
}

// restored is what a restore can touch, without the times that it was done at.
func restored(s *state.State) contents {
	c := dump(s)
	c.Index, c.Stamp = 0, ""
	for i := range c.Tenants {
		c.Tenants[i].StateAt = time.Time{}
	}
	return c
}

// anyHistory goes on from a state. What another history draws may have other IDs.
func anyHistory(t *rapid.T, from *machine, label string) *machine {
	m := &machine{from.s, from.stamp}
	for range rapid.IntRange(0, 30).Draw(t, label) {
		c := anyCommand(t)
		c.Id, c.Stamp = nil, 0
		if rapid.IntRange(0, 4).Draw(t, "drawn") == 0 {
			if b := c.GetCreateTenant(); b != nil {
				b.TenantId = id(b.Name + label)
			}
			if b := c.GetCreateKey(); b != nil {
				b.KeyId = id(b.Name + label)
			}
		}
		m.command(c)
	}
	return m
}

// Whatever is restored in whichever order: no tenant, version or rule allows more than before, nothing that
// was closed in a snapshot is open, and doing it again changes nothing.
func TestRestoreOnlyCloses(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		m := &machine{state.New(), start}
		m.command(&commandpb.Command{Body: &commandpb.Command_InitCluster{InitCluster: initCluster()}})
		for _, c := range []*commandpb.Command{
			createTenant("acme"), createKey("acme", "acme-a"), minted("acme", "acme-a", 1), createService("web", ptr[uint32](1000), nil), allow("web", "acme/*"),
		} {
			m.command(c)
		}
		common := anyHistory(t, m, "common")
		living := anyHistory(t, common, "living")
		snapshots := []*machine{common, anyHistory(t, common, "other"), anyHistory(t, m, "early")}
		for range rapid.IntRange(1, 4).Draw(t, "restores") {
			snap := rapid.SampledFrom(snapshots).Draw(t, "snapshot").s
			size := rapid.SampledFrom([]int{800, 2000, roomy}).Draw(t, "size")
			before := living.s
			living.restore(t, snap, size)
			allowsNoMore(t, before, living.s)
			nothingOpen(t, snap, living.s)
			once := dump(living.s)
			living.restore(t, snap, size)
			twice := dump(living.s)
			twice.Index, twice.Stamp = once.Index, once.Stamp
			if diff := cmp.Diff(once, twice); diff != "" {
				t.Fatalf("restored again (-once +twice):\n%s", diff)
			}
			var buf bytes.Buffer
			if err := state.Write(&buf, living.s); err != nil {
				t.Fatal(err)
			}
			if _, err := state.Read(&buf); err != nil {
				t.Fatal(err)
			}
		}
	})
}

// power is what a version in a state may be used for.
func power(s hierarchy.VersionState) int {
	switch s {
	case hierarchy.Active:
		return 3
	case hierarchy.Deactivated:
		return 2
	case hierarchy.Compromised:
		return 1
	}
	return 0
}

// resumed is what a version would be if it were resumed.
func resumed(v *state.Version) hierarchy.VersionState {
	if v.State == hierarchy.Suspended {
		return v.ResumeTo
	}
	return v.State
}

// within tells whether a limit allows nothing that another one refuses.
func within(a, b policy.Limit) bool {
	switch {
	case b == policy.Limit{}:
		return true
	case a == policy.Limit{}:
		return false
	case a.Per <= b.Per:
		return a.Count*uint64(b.Per/a.Per) <= b.Count
	}
	return a.Count <= b.Count
}

func bothWithin(a, b policy.Limits) bool { return within(a.Short, b.Short) && within(a.Long, b.Long) }

// narrower tells whether a rule allows nothing that another one does not.
func narrower(a, b policy.Rule) bool {
	for _, q := range b.Required {
		if !slices.ContainsFunc(a.Required, func(p policy.Requirement) bool { return p == q || p.Key == q.Key && q.AnyValue }) {
			return false
		}
	}
	return a.Ops&^b.Ops == 0 && (a.RequireReason || !b.RequireReason) && bothWithin(a.Limits, b.Limits)
}

func allowsNoMore(t *rapid.T, before, after *state.State) {
	for now := range after.Tenants() {
		was, ok := before.Tenant(now.ID)
		if !ok {
			if now.State == hierarchy.TenantEnabled {
				t.Fatalf("tenant %s came back enabled", now.Name)
			}
		} else if now.State < was.State || now.MaxStaleness > was.MaxStaleness || !bothWithin(now.Limits, was.Limits) {
			t.Fatalf("tenant allows more: %+v, before %+v", now, was)
		}
		for k := range after.Keys(now.ID) {
			old, existed := before.Key(now.ID, k.ID)
			for _, v := range k.Versions {
				may := power(v.State)
				if now.State != hierarchy.TenantEnabled {
					may = 0
				}
				if !existed || uint32(len(old.Versions)) < v.Number {
					if may > 0 {
						t.Fatalf("%s@%d came back %s", k.Name, v.Number, v.State)
					}
					continue
				}
				o, _ := old.Version(v.Number)
				if may > power(o.State) || resumed(o) != hierarchy.PreActive && power(resumed(v)) > power(resumed(o)) {
					t.Fatalf("%s@%d is %s, to be resumed to %s, before %s and %s", k.Name, v.Number, v.State, resumed(v), o.State, resumed(o))
				}
				for i, r := range v.Regions {
					if v.Attempt == o.Attempt && r.WrapsReserved < o.Regions[i].WrapsReserved {
						t.Fatalf("%s@%d has more seals left", k.Name, v.Number)
					}
				}
			}
			if existed && k.MinUnwrapVersion < old.MinUnwrapVersion {
				t.Fatalf("%s unwraps from %d, before %d", k.Name, k.MinUnwrapVersion, old.MinUnwrapVersion)
			}
		}
	}
	for tenant := range before.Tenants() {
		if _, ok := after.Tenant(tenant.ID); !ok {
			t.Fatalf("tenant %s is gone", tenant.Name)
		}
	}
	for _, r := range after.Rules("") {
		if old, ok := before.Rule(r.Service, r.Pattern); !ok || !narrower(r, *old) {
			t.Fatalf("a rule allows more: %+v, before %+v", r, old)
		}
	}
	if diff := cmp.Diff(dump(before).Services, dump(after).Services); diff != "" {
		t.Fatalf("services (-before +after):\n%s", diff)
	}
}

func nothingOpen(t *rapid.T, snapshot, after *state.State) {
	for was := range snapshot.Tenants() {
		now, ok := after.Tenant(was.ID)
		if !ok {
			if _, ok := after.TenantByName(was.Name); !ok {
				t.Fatalf("tenant %s is neither here nor does it clash", was.Name)
			}
			continue
		}
		if now.State < was.State || now.MaxStaleness > was.MaxStaleness || !bothWithin(now.Limits, was.Limits) {
			t.Fatalf("tenant allows more: %+v, in the snapshot %+v", now, was)
		}
		for old := range snapshot.Keys(was.ID) {
			k, ok := after.Key(was.ID, old.ID)
			if !ok {
				if _, ok := after.KeyByName(was.ID, old.Name); !ok {
					t.Fatalf("key %s is neither here nor does it clash", old.Name)
				}
				continue
			}
			if k.MinUnwrapVersion < old.MinUnwrapVersion {
				t.Fatalf("%s unwraps from %d, in the snapshot %d", k.Name, k.MinUnwrapVersion, old.MinUnwrapVersion)
			}
			for _, o := range old.Versions {
				v, ok := k.Version(o.Number)
				if !ok {
					t.Fatalf("%s@%d is not here", k.Name, o.Number)
				}
				if resumed(o) == hierarchy.PreActive {
					continue // that it was not minted closes nothing
				}
				if power(v.State) > power(o.State) || power(resumed(v)) > power(resumed(o)) {
					t.Fatalf("%s@%d is %s, to be resumed to %s, in the snapshot %s and %s", k.Name, v.Number, v.State, resumed(v), o.State, resumed(o))
				}
				for i, r := range v.Regions {
					if v.Attempt == o.Attempt && r.WrapsReserved < o.Regions[i].WrapsReserved {
						t.Fatalf("%s@%d has more seals left", k.Name, v.Number)
					}
				}
			}
		}
	}
	for _, was := range snapshot.Rules("") {
		if r, ok := after.Rule(was.Service, was.Pattern); ok && !narrower(*r, was) {
			t.Fatalf("a rule allows more: %+v, in the snapshot %+v", r, was)
		}
	}
	for n := range snapshot.RemovedNodes() {
		if _, member := after.Node(n.ID); member {
			continue
		}
		if _, ok := after.Removed(n.ID); !ok {
			t.Fatalf("node %s could be a member again", n.Name)
		}
	}
}

// A policy that a restore has narrowed is decided by at once.
func TestRestoredPolicyIsCompiled(t *testing.T) {
	m := populated(t)
	ask := policy.Request{Op: hierarchy.OpUnwrap, Key: hierarchy.KeyName{Tenant: "acme", Key: "orders"}}
	if !m.s.PolicySet("billing").Decide(ask).Allowed {
		t.Fatal("denied before")
	}
	rule := proto.Clone(allow("billing", "acme/orders").GetAllowPolicy().GetRule()).(*commandpb.Rule)
	rule.Ops = uint32(hierarchy.OpWrap)
	m.do(t, restoreRecords(&commandpb.SnapshotRecord{Record: &commandpb.SnapshotRecord_Rule{Rule: rule}}))
	if m.s.PolicySet("billing").Decide(ask).Allowed {
		t.Error("allowed after the rule was narrowed")
	}
	ask.Op = hierarchy.OpWrap
	if !m.s.PolicySet("billing").Decide(ask).Allowed {
		t.Error("what both allow is denied")
	}
	check(t, m.s)
}
