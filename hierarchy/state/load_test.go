package state

import (
	"bytes"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/kekd/kekd/hierarchy"
	"github.com/kekd/kekd/hierarchy/policy"
)

// No command leads to what is refused here, and a snapshot of it has all its hashes right. So it is
// made from inside: put checks nothing.
func TestSnapshotOfWhatIsNoState(t *testing.T) {
	mk := func(b byte) hierarchy.ID { return hierarchy.ID{b} }
	cluster := hierarchy.ClusterID{ID: mk(1)}
	region, node := hierarchy.RegionID{ID: mk(2)}, hierarchy.NodeID{ID: mk(3)}
	tenant, key := hierarchy.TenantID{ID: mk(4)}, hierarchy.KeyID{ID: mk(5)}
	uid := uint32(7)

	regionOf := func(id byte, name string) *Region {
		return &Region{ID: hierarchy.RegionID{ID: mk(id)}, Name: name, Role: hierarchy.RoleVoting, Identity: []byte("i"), MintingNode: node, AddedIndex: uint64(id)}
	}
	tenantOf := func(id byte, name string) *Tenant {
		return &Tenant{ID: hierarchy.TenantID{ID: mk(id)}, Name: name, State: hierarchy.TenantEnabled, MaxStaleness: time.Second, Placement: []hierarchy.RegionID{region}}
	}
	versionOf := func(n uint32, s hierarchy.VersionState) *Version {
		return &Version{Number: n, State: s, Attempt: 1, Regions: []RegionKey{{
			Region: region, Minted: true, Object: hierarchy.KEKObjectID(cluster, tenant, key, n, region, 1),
		}}}
	}
	keyOf := func(change func(*Key)) *Key {
		k := &Key{ID: key, Tenant: tenant, Name: "k", MinUnwrapVersion: 1, Versions: []*Version{versionOf(1, hierarchy.Deactivated), versionOf(2, hierarchy.Active)}}
		if change != nil {
			change(k)
		}
		return k
	}
	usesOf := func(change func(*Uses)) *Uses {
		u := &Uses{LimitID: LimitID{Tenant: tenant, Per: policy.Hour}, Start: time.Unix(1_900_000_800, 0).UTC(), Count: 5}
		if change != nil {
			change(u)
		}
		return u
	}
	fenceOf := func(change func(*Fence)) *Fence {
		f := &Fence{Index: 50, Kind: "tenant-disable", Tenant: tenant, Wait: time.Minute, Holders: []Holder{{node, mk(8)}, {node, mk(9)}}}
		if change != nil {
			change(f)
		}
		return f
	}
	tombstoneOf := func(change func(*Tombstone)) *Tombstone {
		t := &Tombstone{Holder: Holder{node, mk(8)}, Index: 40, Wait: time.Minute}
		if change != nil {
			change(t)
		}
		return t
	}
	invitationOf := func(change func(*Invitation)) *Invitation {
		i := &Invitation{ID: mk(7), Node: "invited", Region: "r", Role: hierarchy.RoleVoting, ExpiresAt: time.Unix(0, 1_000_000).Add(time.Hour)}
		if change != nil {
			change(i)
		}
		return i
	}
	build := func(change func(*draft)) error {
		d := New().draft()
		d.cluster, d.level, d.index, d.stamp = cluster, 1, 100, 1_000_000
		d.putRegion(regionOf(2, "r"))
		d.putNode(&Node{ID: node, Name: "n", Region: region, Voter: true})
		d.putTenant(tenantOf(4, "t"))
		d.putService(&Service{Name: "s", UID: &uid})
		change(d)
		var buf bytes.Buffer
		if err := Write(&buf, d.State); err != nil {
			t.Fatal(err)
		}
		_, err := Read(&buf)
		return err
	}
	if err := build(func(d *draft) {
		d.putKey(keyOf(nil))
		d.putUses(usesOf(nil))
		d.putInvitation(invitationOf(nil))
		d.putTombstone(tombstoneOf(nil))
		d.putFence(fenceOf(nil))
	}); err != nil {
		t.Fatalf("what the others are changed from: %v", err)
	}
	for _, c := range []struct {
		name, words string
		change      func(*draft)
	}{
		{"two regions of one ID", "two regions", func(d *draft) { d.putRegion(regionOf(2, "r2")) }},
		{"two nodes of one ID", "two nodes", func(d *draft) { d.putNode(&Node{ID: node, Name: "n2", Region: region}) }},
		{"node of no region", "region that is not there", func(d *draft) {
			d.putNode(&Node{ID: hierarchy.NodeID{ID: mk(30)}, Name: "n2", Region: hierarchy.RegionID{ID: mk(99)}})
		}},
		{"region added by nothing", "added at index 0", func(d *draft) { r := regionOf(20, "r2"); r.AddedIndex = 0; d.putRegion(r) }},
		{"region to come", "the state is of 100", func(d *draft) { d.putRegion(regionOf(101, "r2")) }},
		{"two regions at once", "by one command", func(d *draft) {
			r := regionOf(20, "r2")
			r.AddedIndex, r.MintingNode = 2, hierarchy.NodeID{}
			d.putRegion(r)
		}},
		{"a stranger mints", "not of it", func(d *draft) { r := regionOf(20, "r2"); r.MintingNode = hierarchy.NodeID{ID: mk(99)}; d.putRegion(r) }},
		{"another region's mints", "not of it", func(d *draft) { d.putRegion(regionOf(20, "r2")) }},
		{"a replica votes", "do not vote", func(d *draft) {
			r := regionOf(20, "r2")
			r.Role, r.MintingNode = hierarchy.RoleReplica, hierarchy.NodeID{}
			d.putRegion(r)
			d.putNode(&Node{ID: hierarchy.NodeID{ID: mk(30)}, Name: "n2", Region: r.ID, Voter: true})
		}},
		{"member and removed", "is a member and was removed", func(d *draft) { d.putRemoved(&RemovedNode{ID: node, Name: "n", Region: region}) }},
		{"invitation that has expired", "is to expire at", func(d *draft) { d.putInvitation(invitationOf(func(i *Invitation) { i.ExpiresAt = time.Unix(0, 1) })) }},
		{"invitation without end", "is to expire at", func(d *draft) {
			d.putInvitation(invitationOf(func(i *Invitation) { i.ExpiresAt = i.ExpiresAt.Add(48 * time.Hour) }))
		}},
		{"member is invited", "a node is called n", func(d *draft) { d.putInvitation(invitationOf(func(i *Invitation) { i.Node = "n" })) }},
		{"invited to another role", "not a witness one", func(d *draft) { d.putInvitation(invitationOf(func(i *Invitation) { i.Role = hierarchy.RoleWitness })) }},
		{"tombstone of nothing", "is of index 0", func(d *draft) { d.putTombstone(tombstoneOf(func(t *Tombstone) { t.Index = 0 })) }},
		{"tombstone to come", "the state is of 100", func(d *draft) { d.putTombstone(tombstoneOf(func(t *Tombstone) { t.Index = 101 })) }},
		{"tombstone of a stranger", "never a member", func(d *draft) {
			d.putTombstone(tombstoneOf(func(t *Tombstone) { t.Node = hierarchy.NodeID{ID: mk(99)} }))
		}},
		{"tombstone that is registered", "registered and a tombstone", func(d *draft) {
			d.putNode(&Node{ID: node, Name: "n", Region: region, Voter: true, Incarnation: mk(8)})
			d.putTombstone(tombstoneOf(nil))
		}},
		{"tombstone of no incarnation", "incarnation", func(d *draft) { d.putTombstone(tombstoneOf(func(t *Tombstone) { t.Incarnation = hierarchy.ID{} })) }},
		{"tombstone for days", "wait of a tombstone", func(d *draft) { d.putTombstone(tombstoneOf(func(t *Tombstone) { t.Wait = 48 * time.Hour })) }},
		{"fence of nothing", "is of index 0", func(d *draft) { d.putFence(fenceOf(func(f *Fence) { f.Index = 0 })) }},
		{"fence to come", "the state is of 100", func(d *draft) { d.putFence(fenceOf(func(f *Fence) { f.Index = 101 })) }},
		{"fence since itself", "since 50", func(d *draft) { d.putFence(fenceOf(func(f *Fence) { f.Since = 50 })) }},
		{"fence of no kind", "kind", func(d *draft) { d.putFence(fenceOf(func(f *Fence) { f.Kind = "" })) }},
		{"fence of a tenant that is not there", "not there", func(d *draft) { d.putFence(fenceOf(func(f *Fence) { f.Tenant = hierarchy.TenantID{ID: mk(99)} })) }},
		{"fence without a wait", "wait of a fence", func(d *draft) { d.putFence(fenceOf(func(f *Fence) { f.Wait = 0 })) }},
		{"fence that lowered from little", "lowered from", func(d *draft) { d.putFence(fenceOf(func(f *Fence) { f.LoweredFrom = 1 })) }},
		{"fence that lowered from more", "lowered from", func(d *draft) { d.putFence(fenceOf(func(f *Fence) { f.LoweredFrom = time.Hour })) }},
		{"fence for nobody", "holders", func(d *draft) { d.putFence(fenceOf(func(f *Fence) { f.Holders = nil })) }},
		{"fence for one twice", "holders", func(d *draft) { d.putFence(fenceOf(func(f *Fence) { f.Holders[1] = f.Holders[0] })) }},
		{"fence out of order", "holders", func(d *draft) {
			d.putFence(fenceOf(func(f *Fence) { f.Holders[0], f.Holders[1] = f.Holders[1], f.Holders[0] }))
		}},
		{"fence for a stranger", "never a member", func(d *draft) {
			d.putFence(fenceOf(func(f *Fence) { f.Holders = []Holder{{hierarchy.NodeID{ID: mk(99)}, mk(8)}} }))
		}},
		{"a level to come", "feature level 2", func(d *draft) { d.level = 2 }},
		{"no level", "feature level 0", func(d *draft) { d.level = 0 }},
		{"pre-active and not the newest", "not the newest", func(d *draft) {
			d.putKey(keyOf(func(k *Key) {
				k.Versions[0] = versionOf(1, hierarchy.PreActive)
				k.Versions[0].Regions[0] = RegionKey{Region: region}
			}))
		}},
		{"pre-active and minted", "minted everywhere", func(d *draft) {
			d.putKey(keyOf(func(k *Key) { k.Versions[1] = versionOf(2, hierarchy.PreActive) }))
		}},
		{"active if resumed and not minted", "not minted", func(d *draft) {
			d.putKey(keyOf(func(k *Key) {
				k.Versions[1] = versionOf(2, hierarchy.Suspended)
				k.Versions[1].ResumeTo, k.Versions[1].Regions[0] = hierarchy.Active, RegionKey{Region: region}
			}))
		}},
		{"reserved by one removed from elsewhere", "not of the region", func(d *draft) {
			stranger := hierarchy.NodeID{ID: mk(98)}
			d.putRemoved(&RemovedNode{ID: stranger, Name: "x", Region: hierarchy.RegionID{ID: mk(97)}})
			d.putKey(keyOf(func(k *Key) {
				k.Versions[1].Regions[0].WrapsReserved, k.Versions[1].Regions[0].Reservations = 5, []Reservation{{stranger, 5}}
			}))
		}},
		{"two tenants of one ID", "two tenants", func(d *draft) { d.putTenant(tenantOf(4, "t2")) }},
		{"tenant in no region", "has no region", func(d *draft) { n := tenantOf(40, "t2"); n.Placement = nil; d.putTenant(n) }},
		{"tenant elsewhere", "region that is not there", func(d *draft) {
			n := tenantOf(40, "t2")
			n.Placement = []hierarchy.RegionID{{ID: mk(99)}}
			d.putTenant(n)
		}},
		{"tenant too stale", "max_staleness", func(d *draft) { n := tenantOf(40, "t2"); n.MaxStaleness = 48 * time.Hour; d.putTenant(n) }},
		{"key of no tenant", "tenant that is not there", func(d *draft) { d.putKey(keyOf(func(k *Key) { k.Tenant = hierarchy.TenantID{ID: mk(99)} })) }},
		{"two keys of one ID", "two keys", func(d *draft) {
			d.putKey(keyOf(nil))
			d.putKey(keyOf(func(k *Key) {
				// Its objects would be those of the other's name: of no version that is minted.
				k.Name, k.Versions = "k2", []*Version{{Number: 1, State: hierarchy.PreActive, Attempt: 1, Regions: []RegionKey{{Region: region}}}}
			}))
		}},
		{"two active versions", "2 active", func(d *draft) { d.putKey(keyOf(func(k *Key) { k.Versions[0] = versionOf(1, hierarchy.Active) })) }},
		{"one that would be active if resumed", "2 active", func(d *draft) {
			d.putKey(keyOf(func(k *Key) {
				k.Versions[0] = versionOf(1, hierarchy.Suspended)
				k.Versions[0].ResumeTo = hierarchy.Active
			}))
		}},
		{"a version is missing", "stands where", func(d *draft) { d.putKey(keyOf(func(k *Key) { k.Versions = k.Versions[1:] })) }},
		{"no versions", "0 versions", func(d *draft) { d.putKey(keyOf(func(k *Key) { k.Versions = nil })) }},
		{"unwraps from beyond", "min_unwrap_version", func(d *draft) { d.putKey(keyOf(func(k *Key) { k.MinUnwrapVersion = 3 })) }},
		{"unwraps from nowhere", "min_unwrap_version", func(d *draft) { d.putKey(keyOf(func(k *Key) { k.MinUnwrapVersion = 0 })) }},
		{"resumes without being suspended", "resume", func(d *draft) { d.putKey(keyOf(func(k *Key) { k.Versions[0].ResumeTo = hierarchy.Deactivated })) }},
		{"active and not minted", "not minted", func(d *draft) { d.putKey(keyOf(func(k *Key) { k.Versions[1].Regions[0] = RegionKey{Region: region} })) }},
		{"another's object", "not its own", func(d *draft) { d.putKey(keyOf(func(k *Key) { k.Versions[1].Attempt = 2 })) }},
		{"version elsewhere", "region that is not there", func(d *draft) {
			d.putKey(keyOf(func(k *Key) { k.Versions[1].Regions[0].Region = hierarchy.RegionID{ID: mk(99)} }))
		}},
		{"too many seals", "seals are reserved", func(d *draft) {
			d.putKey(keyOf(func(k *Key) { k.Versions[1].Regions[0].WrapsReserved = MaxWraps + 1 }))
		}},
		{"more reserved than is", "do not fit", func(d *draft) {
			d.putKey(keyOf(func(k *Key) {
				k.Versions[1].Regions[0].WrapsReserved, k.Versions[1].Regions[0].Reservations = 5, []Reservation{{node, 6}}
			}))
		}},
		{"reserved by a stranger", "not of the region", func(d *draft) {
			d.putKey(keyOf(func(k *Key) {
				k.Versions[1].Regions[0].WrapsReserved, k.Versions[1].Regions[0].Reservations = 5, []Reservation{{hierarchy.NodeID{ID: mk(99)}, 5}}
			}))
		}},
		{"services alike", "same callers", func(d *draft) { d.putService(&Service{Name: "s2", UID: &uid}) }},
		{"service of everybody", "needs a uid", func(d *draft) { d.putService(&Service{Name: "s2"}) }},
		{"rule of no service", "not there", func(d *draft) {
			d.putRule(&policy.Rule{Service: "gone", Pattern: policy.Pattern{Tenant: "*", Key: "*"}, Ops: 1})
		}},
		{"anchor of no node", "never a member", func(d *draft) { d.putAnchor(&Anchor{Node: hierarchy.NodeID{ID: mk(99)}, Signature: []byte("s")}) }},
		{"uses of no tenant", "not there", func(d *draft) { d.putUses(usesOf(func(u *Uses) { u.Tenant = hierarchy.TenantID{ID: mk(99)} })) }},
		{"uses of half a window", "no window", func(d *draft) { d.putUses(usesOf(func(u *Uses) { u.Start = u.Start.Add(time.Second) })) }},
		{"no uses", "0 uses", func(d *draft) { d.putUses(usesOf(func(u *Uses) { u.Count = 0 })) }},
		{"too many uses", "uses of a limit", func(d *draft) { d.putUses(usesOf(func(u *Uses) { u.Count = policy.MaxLimit + 1 })) }},
		{"uses of a short limit", "not reserved", func(d *draft) { d.putUses(usesOf(func(u *Uses) { u.Per = policy.Minute })) }},
		{"two windows of one limit", "two windows", func(d *draft) {
			d.putUses(usesOf(nil))
			u := usesOf(func(u *Uses) { u.Start = u.Start.Add(policy.Hour) })
			d.account(nil, record(hashUses, usesToPB(u)))
			d.uses, _, _ = d.uses.Insert(usesKey(u), u)
		}},
		{"two outcomes of one command", "two outcomes", func(d *draft) {
			d.putOutcome(&outcome{id: hierarchy.CommandID{ID: mk(8)}, index: 1})
			d.putOutcome(&outcome{id: hierarchy.CommandID{ID: mk(8)}, index: 2})
		}},
		{"outcome to come", "the state is of 100", func(d *draft) { d.putOutcome(&outcome{id: hierarchy.CommandID{ID: mk(8)}, index: 101}) }},
		{"outcome of an unknown code", "not known", func(d *draft) {
			d.putOutcome(&outcome{id: hierarchy.CommandID{ID: mk(8)}, index: 1, code: "FINE"})
		}},
	} {
		if err := build(c.change); !errors.Is(err, ErrSnapshot) || !strings.Contains(err.Error(), c.words) {
			t.Errorf("%s: got error %v, which is to say %q", c.name, err, c.words)
		}
	}
}
