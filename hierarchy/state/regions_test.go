package state_test

import (
	"bytes"
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/kekd/kekd/hierarchy"
	"github.com/kekd/kekd/hierarchy/commandpb"
	"github.com/kekd/kekd/hierarchy/state"
)

var (
	secondRegion = hierarchy.RegionID{ID: hierarchy.ID(id("second region"))}
	secondNode   = hierarchy.NodeID{ID: hierarchy.ID(id("second node"))}
)

// twoRegions has a tenant that is placed in two regions, with the key orders.
func twoRegions(t testing.TB) *machine {
	t.Helper()
	m := initialised(t)
	m.do(t, createTenant("acme"))
	m.s = state.Placed(m.s, tenantID("acme"),
		&state.Region{ID: secondRegion, Name: "us-east", Role: hierarchy.RoleVoting, Identity: []byte("another"), MintingNode: secondNode},
		&state.Node{ID: secondNode, Name: "b", Region: secondRegion, Voter: true})
	m.do(t, createKey("acme", "orders"))
	return m
}

func objectIn(region hierarchy.RegionID, version, attempt uint32) hierarchy.ObjectID {
	return hierarchy.KEKObjectID(clusterID, tenantID("acme"), keyID("orders"), version, region, attempt)
}

// mintedIn has a check value of its own for each attempt, as each has keys of its own.
func mintedIn(region hierarchy.RegionID, version, attempt uint32) *commandpb.Command {
	return with(mintedAt("acme", "orders", version, attempt), getMinted, func(m *commandpb.RecordMinted) {
		object := objectIn(region, version, attempt)
		m.RegionId, m.ObjectId, m.CheckValue = region.ID[:], object[:], []byte{region.ID[0], byte(version), byte(attempt)}
	})
}

func TestActiveOnceEachRegionHasMinted(t *testing.T) {
	for name, order := range map[string][2]hierarchy.RegionID{"one": {regionID, secondRegion}, "other": {secondRegion, regionID}} {
		t.Run(name+" first", func(t *testing.T) {
			m := twoRegions(t)
			for n := range uint32(2) {
				n++
				m.do(t, mintedIn(order[0], n, 1))
				wantState(t, m, n, hierarchy.PreActive)
				if n > 1 {
					wantState(t, m, n-1, hierarchy.Active)
				}
				check(t, m.s)
				if res := m.command(reserve("acme", "orders", n, 1)); res.Err == nil {
					t.Error("seals were reserved of a version that is not minted everywhere")
				}
				m.do(t, mintedIn(order[0], n, 1)) // said again, it does not stand for the other
				wantState(t, m, n, hierarchy.PreActive)
				if res := m.command(rotate("acme", "orders", n)); !errors.Is(res.Err, hierarchy.ErrFailedPrecondition) {
					t.Errorf("rotated while one region mints: got error %v", res.Err)
				}

				m.do(t, mintedIn(order[1], n, 1))
				wantState(t, m, n, hierarchy.Active)
				if n > 1 {
					wantState(t, m, n-1, hierarchy.Deactivated)
				}
				check(t, m.s)
				m.do(t, rotate("acme", "orders", n))
			}
		})
	}
}

// Once an attempt was given up its objects may be destroyed. So what one region has recorded of it must
// not make the version active when the others have minted the next.
func TestRestartVoidsWhatRegionsHaveRecorded(t *testing.T) {
	for name, order := range map[string][2]hierarchy.RegionID{"one": {regionID, secondRegion}, "other": {secondRegion, regionID}} {
		t.Run(name+" had minted", func(t *testing.T) {
			m := twoRegions(t)
			m.do(t, mintedIn(order[0], 1, 1))
			m.do(t, restart("acme", "orders", 1, 2))
			for _, r := range version(t, m, "acme", "orders", 1).Regions {
				if diff := cmp.Diff(state.RegionKey{Region: r.Region}, r); diff != "" {
					t.Errorf("after the restart (-want +got):\n%s", diff)
				}
			}
			check(t, m.s)

			m.do(t, mintedIn(order[1], 1, 2))
			wantState(t, m, 1, hierarchy.PreActive)
			check(t, m.s)
			if res := m.command(mintedIn(order[0], 1, 1)); !errors.Is(res.Err, hierarchy.ErrFailedPrecondition) || !strings.Contains(res.Err.Error(), "attempt 2") {
				t.Errorf("what was given up is recorded again: got error %v", res.Err)
			}

			m.do(t, mintedIn(order[0], 1, 2))
			wantState(t, m, 1, hierarchy.Active)
			for _, r := range version(t, m, "acme", "orders", 1).Regions {
				if want := objectIn(r.Region, 1, 2); !r.Minted || r.Object != want || r.Check[2] != 2 {
					t.Errorf("region %s has object %s with the check value %s, want %s of attempt 2", r.Region, r.Object, r.Check, want)
				}
			}
			check(t, m.s)
		})
	}
}

// Whatever two regions record when, and whoever gives up what: a version that was ever in use has in each
// region the object of one attempt, and nothing of an attempt that was given up is ever named.
func TestPartlyMinted(t *testing.T) {
	t.Parallel()
	from := twoRegions(t)
	rapid.Check(t, func(t *rapid.T) {
		m := &machine{from.s, from.stamp}
		t.Repeat(map[string]func(*rapid.T){
			"mint": func(t *rapid.T) {
				region := rapid.SampledFrom([]hierarchy.RegionID{regionID, secondRegion}).Draw(t, "region")
				m.command(mintedIn(region, rapid.Uint32Range(1, 3).Draw(t, "version"), rapid.Uint32Range(1, 3).Draw(t, "attempt")))
			},
			"give up": func(t *rapid.T) {
				m.command(restart("acme", "orders", rapid.Uint32Range(1, 3).Draw(t, "version"), rapid.Uint32Range(2, 3).Draw(t, "attempt")))
			},
			"rotate": func(t *rapid.T) { m.command(rotate("acme", "orders", rapid.Uint32Range(1, 2).Draw(t, "after"))) },
			"compromise": func(t *rapid.T) {
				m.command(versionAction("acme", "orders", rapid.Uint32Range(1, 3).Draw(t, "version"), compromise))
			},
			"restore": func(t *rapid.T) {
				var buf bytes.Buffer
				if err := state.Write(&buf, m.s); err != nil {
					t.Fatal(err)
				}
				var err error
				if m.s, err = state.Read(&buf); err != nil {
					t.Fatal(err)
				}
			},
			"": func(t *rapid.T) {
				k, _ := m.s.Key(tenantID("acme"), keyID("orders"))
				for _, v := range k.Versions {
					minted := 0
					for _, r := range v.Regions {
						if !r.Minted {
							continue
						}
						minted++
						if r.Object != objectIn(r.Region, v.Number, v.Attempt) {
							t.Fatalf("version %d is at attempt %d and names an object of another", v.Number, v.Attempt)
						}
					}
					if (v.State == hierarchy.Active || v.State == hierarchy.Deactivated) && minted < 2 {
						t.Fatalf("version %d is %s, and %d of two regions have minted it", v.Number, v.State, minted)
					}
					if v.State == hierarchy.PreActive && minted == 2 {
						t.Fatalf("version %d is minted in both regions, and still %s", v.Number, v.State)
					}
				}
			},
		})
	})
}
