package state_test

import (
	"bytes"
	"slices"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/kekd/kekd/hierarchy"
	"github.com/kekd/kekd/hierarchy/policy"
	"github.com/kekd/kekd/hierarchy/state"
)

// check holds a state against what must be true of every state, and against itself after it was
// written and read: that recomputes the hash and rebuilds all that is derived.
func check(t interface {
	Helper()
	Errorf(string, ...any)
	Fatalf(string, ...any)
}, s *state.State) {
	t.Helper()
	names := make(map[string]bool)
	least := state.MaxMaxStaleness
	tenants := 0
	for tenant := range s.Tenants() {
		tenants++
		least = min(least, tenant.MaxStaleness)
		if names[tenant.Name] {
			t.Errorf("two tenants are named %s", tenant.Name)
		}
		names[tenant.Name] = true
		if found, ok := s.Tenant(tenant.ID); !ok || found != tenant {
			t.Errorf("tenant %s is not found by its ID", tenant.Name)
		}
		if found, ok := s.TenantByName(tenant.Name); !ok || found != tenant {
			t.Errorf("tenant %s is not found by its name", tenant.Name)
		}
		last := ""
		for key := range s.Keys(tenant.ID) {
			if key.Name <= last {
				t.Errorf("key %s follows %s", key.Name, last)
			}
			last = key.Name
			if found, ok := s.Key(tenant.ID, key.ID); !ok || found != key {
				t.Errorf("key %s is not found by its ID", key.Name)
			}
			if found, ok := s.KeyByName(tenant.ID, key.Name); !ok || found != key {
				t.Errorf("key %s is not found by its name", key.Name)
			}
			active := 0
			for i, v := range key.Versions {
				if v.Number != uint32(i+1) {
					t.Errorf("key %s: version %d stands at %d", key.Name, v.Number, i)
				}
				if v.State == hierarchy.Active {
					active++
				}
			}
			if active > 1 {
				t.Errorf("key %s has %d active versions", key.Name, active)
			}
		}
	}
	if tenants == 0 {
		least = state.DefaultMaxStaleness
	}
	if got := s.MinStaleness(); got != least {
		t.Errorf("the smallest max_staleness is %v, want %v", got, least)
	}

	for f := range s.Fences() {
		if found, ok := s.Fence(f.Index); !ok || found != f {
			t.Errorf("the fence of index %d is not found", f.Index)
		}
		if !slices.Contains(s.FencesOf(f.Tenant), f) {
			t.Errorf("the fence of index %d is not among those of its tenant", f.Index)
		}
	}

	var written bytes.Buffer
	if err := state.Write(&written, s); err != nil {
		t.Fatalf("%v", err)
	}
	back, err := state.Read(bytes.NewReader(written.Bytes()))
	if err != nil {
		t.Fatalf("a valid state does not read back: %v", err)
	}
	if back.Hash() != s.Hash() {
		t.Errorf("the hash that was kept up to date differs from the one computed anew")
	}
	for service := range s.Services() {
		if diff := cmp.Diff(s.Rules(service.Name), back.Rules(service.Name)); diff != "" {
			t.Errorf("rules of %s (-kept +read):\n%s", service.Name, diff)
		}
		if (s.PolicySet(service.Name) == nil) != (back.PolicySet(service.Name) == nil) {
			t.Errorf("the policy of %s is compiled in one of the two only", service.Name)
		}
	}
	if diff := cmp.Diff(dump(s), dump(back), cmpopts.EquateEmpty()); diff != "" {
		t.Errorf("state (-kept +read):\n%s", diff)
	}
}

// contents is a state as its readers see it.
type contents struct {
	Cluster  hierarchy.ClusterID
	Index    uint64
	Stamp    string
	Regions  []state.Region
	Nodes    []state.Node
	Tenants  []state.Tenant
	Keys     []state.Key
	Services []state.Service
	Rules    []policy.Rule
	Anchors  []state.Anchor
	Level    uint32
	Removed  []state.RemovedNode
	Invited  []state.Invitation
	Tombs    []state.Tombstone
	Fences   []state.Fence
	Holders  []state.Holder
}

func dump(s *state.State) contents {
	c := contents{Cluster: s.ClusterID(), Index: s.Index(), Stamp: s.Stamp().String(), Level: s.FeatureLevel()}
	for r := range s.Regions() {
		c.Regions = append(c.Regions, *r)
	}
	for n := range s.Nodes() {
		c.Nodes = append(c.Nodes, *n)
		if a, ok := s.Anchor(n.ID); ok {
			c.Anchors = append(c.Anchors, *a)
		}
	}
	for n := range s.RemovedNodes() {
		c.Removed = append(c.Removed, *n)
		if a, ok := s.Anchor(n.ID); ok {
			c.Anchors = append(c.Anchors, *a)
		}
	}
	for i := range s.Invitations() {
		c.Invited = append(c.Invited, *i)
	}
	for t := range s.Tenants() {
		c.Tenants = append(c.Tenants, *t)
		for k := range s.Keys(t.ID) {
			c.Keys = append(c.Keys, *k)
		}
	}
	for svc := range s.Services() {
		c.Services = append(c.Services, *svc)
	}
	c.Rules = s.Rules("")
	for t := range s.Tombstones() {
		c.Tombs = append(c.Tombs, *t)
	}
	for f := range s.Fences() {
		c.Fences = append(c.Fences, *f)
	}
	c.Holders = s.Holders()
	return c
}
