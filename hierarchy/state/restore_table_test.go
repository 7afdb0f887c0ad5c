package state

import (
	"bytes"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/kekd/kekd/hierarchy"
	"github.com/kekd/kekd/hierarchy/commandpb"
	"github.com/kekd/kekd/hierarchy/policy"
)

// snapshotFields are the fields of all messages that a snapshot has, by message.
func snapshotFields() map[string][]string {
	fields := make(map[string][]string)
	var visit func(protoreflect.MessageDescriptor)
	visit = func(m protoreflect.MessageDescriptor) {
		if _, seen := fields[string(m.Name())]; seen {
			return
		}
		fields[string(m.Name())] = nil
		for i := range m.Fields().Len() {
			f := m.Fields().Get(i)
			fields[string(m.Name())] = append(fields[string(m.Name())], string(f.Name()))
			if f.Message() != nil {
				visit(f.Message())
			}
		}
	}
	visit((&commandpb.SnapshotHeader{}).ProtoReflect().Descriptor())
	visit((&commandpb.SnapshotRecord{}).ProtoReflect().Descriptor())
	delete(fields, "SnapshotRecord") // it has the others
	return fields
}

// Whoever adds a field to a snapshot has to say what a restore does with it: a field that nobody thought of
// would stand as it is here, also if it closes something.
func TestRestoreTableHasEveryField(t *testing.T) {
	want := snapshotFields()
	for _, m := range restoreTable() {
		var got []string
		for _, f := range m.fields {
			got = append(got, f.field)
			if f.words == "" {
				t.Errorf("nothing is said of %s.%s", m.message, f.field)
			}
		}
		sorted := slices.Sorted(slices.Values(want[m.message]))
		slices.Sort(got)
		if diff := cmp.Diff(sorted, got); diff != "" {
			t.Errorf("fields of %s (-there are +are in the table):\n%s", m.message, diff)
		}
		delete(want, m.message)
	}
	for m := range want {
		t.Errorf("message %s is not in the table", m)
	}
}

// The documentation has the table in the same words and order.
func TestRestoreTableIsDocumented(t *testing.T) {
	b, err := os.ReadFile("../../docs/RESTORE.md")
	if err != nil {
		t.Fatal(err)
	}
	var want strings.Builder
	for _, m := range restoreTable() {
		want.WriteString("| **" + m.message + "** | |\n")
		for _, f := range m.fields {
			want.WriteString("| `" + f.field + "` | " + f.words + " |\n")
		}
	}
	var got strings.Builder
	for line := range strings.Lines(string(b)) {
		if strings.HasPrefix(line, "| `") || strings.HasPrefix(line, "| **") {
			got.WriteString(line)
		}
	}
	if diff := cmp.Diff(strings.Split(want.String(), "\n"), strings.Split(got.String(), "\n")); diff != "" {
		t.Errorf("docs/RESTORE.md (-is done +is said):\n%s", diff)
	}
}

// records is one of each kind that a restore can change.
type records struct {
	Tenant  *Tenant
	Old     *Version // deactivated
	Version *Version // active
	Newest  *Version // pre-active
	Key     *Key     // its versions are the ones above
	Rule    *policy.Rule
	Uses    *Uses
	Removed *RemovedNode // nil: none
}

var (
	tableCluster     = hierarchy.ClusterID{ID: hierarchy.ID{1}}
	tableRegion      = hierarchy.RegionID{ID: hierarchy.ID{2}}
	tableEmptyRegion = hierarchy.RegionID{ID: hierarchy.ID{20}}
	tableNode        = hierarchy.NodeID{ID: hierarchy.ID{3}}
	tableTenant      = hierarchy.TenantID{ID: hierarchy.ID{4}}
	tableKey         = hierarchy.KeyID{ID: hierarchy.ID{5}}
	// now is in an hour that began 1000 s ago.
	tableNow = time.Unix(1_900_000_800+1000, 0).UTC()
)

func mintedKey(version, attempt uint32) RegionKey {
	return RegionKey{
		Region: tableRegion, Minted: true, Object: hierarchy.KEKObjectID(tableCluster, tableTenant, tableKey, version, tableRegion, attempt),
		Check: hierarchy.CheckValue{byte(version)}, MintedAt: time.Unix(50, 0).UTC(), WrapsReserved: 100, Reservations: []Reservation{{tableNode, 100}},
	}
}

func someRecords() *records {
	at := time.Unix(10, 0).UTC()
	r := &records{
		Tenant: &Tenant{
			ID: tableTenant, Name: "t", State: hierarchy.TenantEnabled, StateReason: "here", MaxStaleness: time.Minute, CreatedAt: at, StateAt: at, Placement: []hierarchy.RegionID{tableRegion},
			Limits: policy.Limits{Short: policy.Limit{Count: 100, Per: policy.Second}, Long: policy.Limit{Count: 1000, Per: policy.Day}},
		},
		Old:     &Version{Number: 1, State: hierarchy.Deactivated, StateReason: "here", CreatedAt: at, ActivatedAt: at, StateAt: at, Attempt: 1, Regions: []RegionKey{mintedKey(1, 1)}},
		Version: &Version{Number: 2, State: hierarchy.Active, StateReason: "here", CreatedAt: at, ActivatedAt: at, StateAt: at, Attempt: 1, Regions: []RegionKey{mintedKey(2, 1)}},
		Newest:  &Version{Number: 3, State: hierarchy.PreActive, StateReason: "here", CreatedAt: at, StateAt: at, Attempt: 2, Regions: []RegionKey{{Region: tableRegion}}},
		Key:     &Key{ID: tableKey, Tenant: tableTenant, Name: "k", CreatedAt: at, RotateEvery: 2 * time.Hour, MinUnwrapVersion: 1},
		Rule: &policy.Rule{
			Service: "s", Pattern: policy.Pattern{Tenant: "t", Key: "*"}, Ops: hierarchy.Ops(hierarchy.OpWrap | hierarchy.OpUnwrap),
			Required: []policy.Requirement{{Key: "any", AnyValue: true}, {Key: "given", Value: "v"}},
		},
		Uses: &Uses{LimitID: LimitID{Tenant: tableTenant, Per: policy.Hour}, Start: policy.WindowOf(tableNow, policy.Hour), Count: 5},
	}
	return r
}

func (r *records) state(t *testing.T) *State {
	t.Helper()
	d := New().draft()
	d.cluster, d.level, d.index, d.stamp = tableCluster, 1, 100, tableNow.UnixNano()
	d.putRegion(&Region{ID: tableRegion, Name: "r", Role: hierarchy.RoleVoting, Identity: []byte("i"), MintingNode: tableNode, AddedIndex: 1})
	d.putRegion(&Region{ID: tableEmptyRegion, Name: "r2", Role: hierarchy.RoleVoting, Identity: []byte("i"), AddedIndex: 2})
	d.putNode(&Node{ID: tableNode, Name: "n", Region: tableRegion, Voter: true})
	d.putTenant(r.Tenant)
	key := *r.Key
	key.Versions = []*Version{r.Old, r.Version, r.Newest}
	d.putKey(&key)
	uid := uint32(7)
	d.putService(&Service{Name: "s", UID: &uid})
	if r.Rule != nil {
		d.putRule(r.Rule)
	}
	d.compilePolicy("s")
	if r.Uses != nil {
		d.putUses(r.Uses)
	}
	if r.Removed != nil {
		d.putRemoved(r.Removed)
	}
	var buf bytes.Buffer
	if err := Write(&buf, d.State); err != nil {
		t.Fatal(err)
	}
	if _, err := Read(&buf); err != nil {
		t.Fatalf("what is to be restored, or to, is no state: %v", err)
	}
	return d.State
}

// of are the records of a state.
func (r *records) of(s *State) *records {
	got := new(records)
	got.Tenant, _ = s.Tenant(tableTenant)
	k, _ := s.Key(tableTenant, tableKey)
	key := *k
	got.Old, got.Version, got.Newest = k.Versions[0], k.Versions[1], k.Versions[2]
	key.Versions = nil
	got.Key = &key
	got.Rule, _ = s.Rule("s", someRecords().Rule.Pattern)
	got.Uses, _ = s.Uses(LimitID{Tenant: tableTenant, Per: policy.Hour})
	for n := range s.RemovedNodes() {
		got.Removed = n
	}
	return got
}

// A fieldCase changes what is here, what is in the snapshot, and says what is here after the restore.
type fieldCase struct {
	name  string
	here  func(*records)
	there func(*records)
	want  func(*records)
}

func same(*records)     {}
func noUses(r *records) { r.Uses = nil }

var fieldCases = map[string][]fieldCase{
	"Tenant.name": nil, // TestRestoreLeavesOutWhatClashes
	"Tenant.state": {
		{"stricter there", same, func(r *records) { r.Tenant.State, r.Tenant.StateReason = hierarchy.TenantDestroyed, "there" }, func(r *records) {
			r.Tenant.State, r.Tenant.StateReason, r.Tenant.StateAt = hierarchy.TenantDestroyed, "there", tableNow
		}},
		{"stricter here", func(r *records) { r.Tenant.State = hierarchy.TenantDisabled }, func(r *records) { r.Tenant.StateReason = "there" }, same},
		{"suspended there, disabled here", func(r *records) { r.Tenant.State = hierarchy.TenantDisabled }, func(r *records) { r.Tenant.State, r.Tenant.StateReason = hierarchy.TenantSuspended, "" }, func(r *records) {
			r.Tenant.State, r.Tenant.StateReason, r.Tenant.StateAt = hierarchy.TenantSuspended, "", tableNow
		}},
	},
	"Tenant.state_reason": {{"the same state", same, func(r *records) { r.Tenant.StateReason = "there" }, same}},
	"Tenant.max_staleness": {
		{"smaller there", same, func(r *records) { r.Tenant.MaxStaleness = time.Second }, func(r *records) { r.Tenant.MaxStaleness = time.Second }},
		{"larger there", same, func(r *records) { r.Tenant.MaxStaleness = time.Hour }, same},
	},
	"Tenant.created_at": {{"another", same, func(r *records) { r.Tenant.CreatedAt = tableNow }, same}},
	"Tenant.state_at":   {{"the same state", same, func(r *records) { r.Tenant.StateAt = time.Unix(1, 0).UTC() }, same}},
	"Tenant.placement":  {{"another", same, func(r *records) { r.Tenant.Placement = []hierarchy.RegionID{tableRegion, tableEmptyRegion} }, same}},
	"Tenant.limits": {
		{"none there", same, func(r *records) { r.Tenant.Limits = policy.Limits{} }, same},
		{"none here", func(r *records) { r.Tenant.Limits = policy.Limits{} }, same, func(r *records) { r.Tenant.Limits = someRecords().Tenant.Limits }},
		{"one each", same, func(r *records) {
			r.Tenant.Limits = policy.Limits{Short: policy.Limit{Count: 200, Per: policy.Second}, Long: policy.Limit{Count: 10, Per: policy.Day}}
		}, func(r *records) { r.Tenant.Limits.Long.Count = 10 }},
	},

	"Key.name":         nil, // TestRestoreLeavesOutWhatClashes
	"Key.created_at":   {{"another", same, func(r *records) { r.Key.CreatedAt = tableNow }, same}},
	"Key.rotate_every": {{"another", same, func(r *records) { r.Key.RotateEvery = time.Hour }, same}},
	"Key.min_unwrap_version": {
		{"larger there", same, func(r *records) { r.Key.MinUnwrapVersion = 2 }, func(r *records) { r.Key.MinUnwrapVersion = 2 }},
		{"larger here", func(r *records) { r.Key.MinUnwrapVersion = 2 }, same, same},
	},
	"Key.versions": nil, // those that are not here: TestRestoreBringsBackClosed, TestRestoreSuspendsWhatComesBack

	"Version.attempt": {
		{"minted in a later one there", same, func(r *records) { r.Newest.Attempt = 3 }, func(r *records) { r.Newest.Attempt = 3 }},
		{"minted in an earlier one there", same, func(r *records) { r.Newest.Attempt = 1 }, same},
		{"in use here", same, func(r *records) { r.Old.Attempt, r.Old.Regions[0] = 2, mintedKey(1, 2) }, same},
	},
	"Version.state": {
		{"deactivated there", same, func(r *records) { r.Version.State, r.Version.StateReason = hierarchy.Deactivated, "there" }, func(r *records) {
			r.Version.State, r.Version.StateReason, r.Version.StateAt = hierarchy.Deactivated, "there", tableNow
		}},
		{"active there", func(r *records) { r.Version.State = hierarchy.Deactivated }, same, same},
		{"compromised there", same, func(r *records) { r.Old.State = hierarchy.Compromised }, func(r *records) {
			r.Old.State, r.Old.StateAt = hierarchy.Compromised, tableNow
		}},
		{"compromised here", func(r *records) { r.Old.State = hierarchy.Compromised }, same, same},
		{"destroyed there", same, func(r *records) { r.Old.State = hierarchy.Destroyed }, func(r *records) {
			r.Old.State, r.Old.StateAt = hierarchy.Destroyed, tableNow
		}},
		{"destroyed there, suspended here", func(r *records) { r.Old.State, r.Old.ResumeTo = hierarchy.Suspended, hierarchy.Deactivated }, func(r *records) { r.Old.State = hierarchy.Destroyed }, func(r *records) {
			r.Old.State, r.Old.ResumeTo, r.Old.StateAt = hierarchy.Destroyed, 0, tableNow
		}},
		{"destroyed here, suspended there", func(r *records) { r.Old.State = hierarchy.Destroyed }, func(r *records) { r.Old.State, r.Old.ResumeTo = hierarchy.Suspended, hierarchy.Deactivated }, same},
		{"suspended there", same, func(r *records) { r.Version.State, r.Version.ResumeTo = hierarchy.Suspended, hierarchy.Active }, func(r *records) {
			r.Version.State, r.Version.ResumeTo, r.Version.StateAt = hierarchy.Suspended, hierarchy.Active, tableNow
		}},
		{"suspended here", func(r *records) { r.Version.State, r.Version.ResumeTo = hierarchy.Suspended, hierarchy.Active }, same, same},
		{"compromised there, suspended here", func(r *records) { r.Old.State, r.Old.ResumeTo = hierarchy.Suspended, hierarchy.Deactivated }, func(r *records) { r.Old.State = hierarchy.Compromised }, func(r *records) {
			r.Old.ResumeTo = hierarchy.Compromised
		}},
		{"in use there, minted here", same, func(r *records) { r.Version.State = hierarchy.Deactivated; useNewest(r, 2) }, func(r *records) {
			r.Version.State, r.Version.StateAt = hierarchy.Deactivated, tableNow
			useNewest(r, 2)
			r.Newest.State, r.Newest.ResumeTo, r.Newest.StateReason, r.Newest.StateAt = hierarchy.Suspended, hierarchy.Active, "restored from a snapshot: here", tableNow
			r.Newest.Regions[0].Reservations = nil
		}},
		{"in use there in an attempt that is given up here", same, func(r *records) { r.Version.State = hierarchy.Deactivated; useNewest(r, 1) }, func(r *records) {
			r.Version.State, r.Version.StateAt = hierarchy.Deactivated, tableNow
			r.Newest.State, r.Newest.ResumeTo, r.Newest.StateReason, r.Newest.StateAt = hierarchy.Suspended, hierarchy.Compromised, "restored from a snapshot: here", tableNow
		}},
		{"minted there", func(r *records) { r.Version.State = hierarchy.Deactivated; useNewest(r, 2) }, func(r *records) { r.Version.State = hierarchy.Deactivated }, same},
	},
	"Version.resume_to": {
		{"stricter there", func(r *records) { r.Version.State, r.Version.ResumeTo = hierarchy.Suspended, hierarchy.Active }, func(r *records) {
			r.Version.State, r.Version.ResumeTo, r.Version.StateReason = hierarchy.Suspended, hierarchy.Deactivated, "there"
		}, func(r *records) { r.Version.ResumeTo = hierarchy.Deactivated }},
		{"stricter here", func(r *records) { r.Old.State, r.Old.ResumeTo = hierarchy.Suspended, hierarchy.Compromised }, func(r *records) { r.Old.State, r.Old.ResumeTo = hierarchy.Suspended, hierarchy.Deactivated }, same},
	},
	"Version.state_reason": {{"the same state", same, func(r *records) { r.Old.StateReason = "there" }, same}},
	"Version.created_at":   {{"another", same, func(r *records) { r.Old.CreatedAt = tableNow }, same}},
	"Version.activated_at": {{"another", same, func(r *records) { r.Old.ActivatedAt = tableNow }, same}},
	"Version.state_at":     {{"the same state", same, func(r *records) { r.Old.StateAt = tableNow }, same}},
	"Version.cause":        {{"another", same, func(r *records) { r.Old.Cause = CauseUse }, same}},
	"Version.kdf": {
		{"another", same, func(r *records) { r.Old.KDF = "there" }, same},
		{"with the attempt", same, func(r *records) {
			r.Version.State = hierarchy.Deactivated
			useNewest(r, 2)
			r.Newest.KDF = "there"
		}, func(r *records) {
			r.Version.State, r.Version.StateAt = hierarchy.Deactivated, tableNow
			useNewest(r, 2)
			r.Newest.State, r.Newest.ResumeTo, r.Newest.StateReason, r.Newest.StateAt = hierarchy.Suspended, hierarchy.Active, "restored from a snapshot: here", tableNow
			r.Newest.Regions[0].Reservations, r.Newest.KDF = nil, "there"
		}},
	},
	"Version.regions": {{"of another attempt", same, func(r *records) {
		r.Old.Attempt, r.Old.Regions[0] = 2, mintedKey(1, 2)
		r.Old.Regions[0].WrapsReserved = 1000
	}, same}},

	"RegionKey.object_id": {{"none here", func(r *records) {
		r.Old.State, r.Old.Regions[0] = hierarchy.Compromised, RegionKey{Region: tableRegion}
	}, same, func(r *records) {
		r.Old.Regions[0] = mintedKey(1, 1)
		r.Old.Regions[0].Reservations = nil
	}}},
	"RegionKey.check_value": {{"another", same, func(r *records) { r.Old.Regions[0].Check[2] = 9 }, same}},
	"RegionKey.minted_at":   {{"another", same, func(r *records) { r.Old.Regions[0].MintedAt = tableNow }, same}},
	"RegionKey.wraps_reserved": {
		{"larger there", same, func(r *records) { r.Version.Regions[0].WrapsReserved = 101 }, func(r *records) {
			r.Version.Regions[0].WrapsReserved, r.Version.Regions[0].Reservations = 101, nil
		}},
		{"larger here", same, func(r *records) { r.Version.Regions[0].WrapsReserved, r.Version.Regions[0].Reservations = 99, nil }, same},
	},
	"RegionKey.reservations": {{"none there", same, func(r *records) { r.Version.Regions[0].Reservations = nil }, same}},

	"Rule.service": {
		{"none here", func(r *records) { r.Rule = nil }, same, same},
		{"none there", same, func(r *records) { r.Rule = nil }, same},
	},
	"Rule.ops": {
		{"fewer there", same, func(r *records) { r.Rule.Ops = hierarchy.Ops(hierarchy.OpUnwrap) }, func(r *records) { r.Rule.Ops = hierarchy.Ops(hierarchy.OpUnwrap) }},
		{"more there", same, func(r *records) { r.Rule.Ops = 0xf }, same},
		{"others there", same, func(r *records) { r.Rule.Ops = hierarchy.Ops(hierarchy.OpRewrap) }, func(r *records) { r.Rule = nil }},
	},
	"Rule.required_context": {
		{"others there", same, func(r *records) {
			r.Rule.Required = []policy.Requirement{{Key: "b", Value: "x"}, {Key: "z", AnyValue: true}}
		}, func(r *records) {
			r.Rule.Required = []policy.Requirement{{Key: "any", AnyValue: true}, {Key: "b", Value: "x"}, {Key: "given", Value: "v"}, {Key: "z", AnyValue: true}}
		}},
		{"none there", same, func(r *records) { r.Rule.Required = nil }, same},
		{"more together than a context has", same, func(r *records) {
			r.Rule.Required = nil
			for i := range hierarchy.MaxContextEntries - 1 {
				r.Rule.Required = append(r.Rule.Required, policy.Requirement{Key: string(rune('A' + i)), AnyValue: true})
			}
		}, func(r *records) { r.Rule = nil }},
	},
	"Rule.require_reason": {
		{"there", same, func(r *records) { r.Rule.RequireReason = true }, func(r *records) { r.Rule.RequireReason = true }},
		{"here", func(r *records) { r.Rule.RequireReason = true }, same, same},
	},
	"Rule.limits": {{"there", same, func(r *records) { r.Rule.Limits.Short = policy.Limit{Count: 3, Per: policy.Minute} }, func(r *records) {
		r.Rule.Limits.Short = policy.Limit{Count: 3, Per: policy.Minute}
	}}},
	"RequiredContext.value": {
		{"given there", same, func(r *records) { r.Rule.Required[0] = policy.Requirement{Key: "any", Value: "w"} }, func(r *records) {
			r.Rule.Required[0] = policy.Requirement{Key: "any", Value: "w"}
		}},
		{"any there", same, func(r *records) { r.Rule.Required[1] = policy.Requirement{Key: "given", AnyValue: true} }, same},
		{"another there", same, func(r *records) { r.Rule.Required[1].Value = "w" }, func(r *records) { r.Rule = nil }},
	},
	"Limit.count": {
		{"smaller there", same, func(r *records) { r.Tenant.Limits.Short.Count = 9 }, func(r *records) { r.Tenant.Limits.Short.Count = 9 }},
		{"larger there", same, func(r *records) { r.Tenant.Limits.Short.Count = 900 }, same},
	},
	"Limit.per": {
		{"longer there, and it fits", same, func(r *records) { r.Tenant.Limits.Short = policy.Limit{Count: 600, Per: policy.Minute} }, func(r *records) { r.Tenant.Limits.Short.Count = 10 }},
		{"longer there, and larger", same, func(r *records) { r.Tenant.Limits.Short = policy.Limit{Count: 60_000, Per: policy.Minute} }, same},
		{"longer there, and it does not fit", same, func(r *records) { r.Tenant.Limits.Short = policy.Limit{Count: 59, Per: policy.Minute} }, func(r *records) {
			r.Tenant.Limits.Short = policy.Limit{Count: 59, Per: policy.Minute}
		}},
		{"shorter there, and it fits", same, func(r *records) { r.Tenant.Limits.Long = policy.Limit{Count: 500, Per: policy.Hour} }, func(r *records) {
			r.Tenant.Limits.Long = policy.Limit{Count: 1000 / 24, Per: policy.Hour}
		}},
		{"shorter there, and smaller", same, func(r *records) { r.Tenant.Limits.Long = policy.Limit{Count: 7, Per: policy.Hour} }, func(r *records) {
			r.Tenant.Limits.Long = policy.Limit{Count: 7, Per: policy.Hour}
		}},
		{"shorter there, and it does not fit", func(r *records) { r.Tenant.Limits.Long.Count = 23 }, func(r *records) { r.Tenant.Limits.Long = policy.Limit{Count: 3, Per: policy.Hour} }, func(r *records) {
			r.Tenant.Limits.Long.Count = 3
		}},
	},

	"Uses.start": {
		{"over there", same, func(r *records) { r.Uses.Start, r.Uses.Count = r.Uses.Start.Add(-policy.Hour), 50 }, same},
		{"over there, none here", noUses, func(r *records) { r.Uses.Start = r.Uses.Start.Add(-policy.Hour) }, same},
		{"not begun there, none here", noUses, func(r *records) { r.Uses.Start = r.Uses.Start.Add(policy.Hour) }, same},
		{"none here", noUses, same, func(r *records) { r.Uses = someRecords().Uses }},
		{"not begun there", same, func(r *records) { r.Uses.Start, r.Uses.Count = r.Uses.Start.Add(policy.Hour), 50 }, same},
		{"later there", func(r *records) { r.Uses.Start, r.Uses.Count = r.Uses.Start.Add(-policy.Hour), 50 }, same, func(r *records) {
			r.Uses.Start, r.Uses.Count = r.Uses.Start.Add(policy.Hour), 5
		}},
	},
	"Uses.count": {
		{"larger there", same, func(r *records) { r.Uses.Count = 6 }, func(r *records) { r.Uses.Count = 6 }},
		{"larger here", same, func(r *records) { r.Uses.Count = 4 }, same},
	},

	"RemovedNode.id":         {{"not known here", same, removeThere, removeThere}},
	"RemovedNode.name":       {{"another here", func(r *records) { removeThere(r); r.Removed.Name = "here" }, removeThere, same}},
	"RemovedNode.region_id":  {{"another here", func(r *records) { removeThere(r); r.Removed.Region = hierarchy.RegionID{ID: hierarchy.ID{99}} }, removeThere, same}},
	"RemovedNode.removed_at": {{"another here", func(r *records) { removeThere(r); r.Removed.RemovedAt = tableNow }, removeThere, same}},
}

// useNewest makes the newest version the active one, minted in an attempt.
func useNewest(r *records, attempt uint32) {
	r.Newest.State, r.Newest.Attempt, r.Newest.Regions[0] = hierarchy.Active, attempt, mintedKey(3, attempt)
}

func removeThere(r *records) {
	r.Removed = &RemovedNode{ID: hierarchy.NodeID{ID: hierarchy.ID{77}}, Name: "gone", Region: tableRegion, RemovedAt: time.Unix(60, 0).UTC()}
}

func TestRestoreTable(t *testing.T) {
	untaken := map[string]bool{namesIt: true, pinned: true, notTaken: true}
	taken := map[string]bool{"Tenant": true, "Key": true, "Version": true, "RegionKey": true, "Rule": true, "RequiredContext": true, "Limit": true, "Uses": true, "RemovedNode": true}
	for _, m := range restoreTable() {
		for _, f := range m.fields {
			if _, ok := fieldCases[m.message+"."+f.field]; !ok && taken[m.message] && !untaken[f.words] {
				t.Errorf("no case says what a restore does with %s.%s", m.message, f.field)
			}
		}
	}
	for field, cases := range fieldCases {
		for _, c := range cases {
			t.Run(field+"/"+c.name, func(t *testing.T) {
				here, there, want := someRecords(), someRecords(), someRecords()
				c.here(here)
				c.there(there)
				c.here(want)
				c.want(want)
				commands, err := RestoreCommands(there.state(t), 1<<19)
				if err != nil {
					t.Fatal(err)
				}
				s := here.state(t)
				untouched := here.of(s)
				for round := range 2 { // the second changes nothing more
					for i, cmd := range commands {
						cmd.Id = bytes.Repeat([]byte{byte(10*round + i + 1)}, hierarchy.IDSize)
						var res Result
						if s, res = Apply(s, Meta{Index: s.index + 1}, cmd); res.Err != nil {
							t.Fatal(res.Err)
						}
					}
					if diff := cmp.Diff(want, here.of(s), cmpopts.EquateEmpty()); diff != "" {
						t.Errorf("restored %d times (-want +got):\n%s", round+1, diff)
					}
				}
				// The state before is immutable.
				if diff := cmp.Diff(untouched, here.of(here.state(t)), cmpopts.EquateEmpty()); diff != "" {
					t.Errorf("the state before was changed (-was +is):\n%s", diff)
				}
				var buf bytes.Buffer
				if err := Write(&buf, s); err != nil {
					t.Fatal(err)
				}
				if _, err := Read(&buf); err != nil {
					t.Errorf("what a restore made is no state: %v", err)
				}
			})
		}
	}
}
