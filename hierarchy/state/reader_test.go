package state_test

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/kekd/kekd/hierarchy"
	"github.com/kekd/kekd/hierarchy/policy"
	"github.com/kekd/kekd/hierarchy/state"
)

func TestReaders(t *testing.T) {
	s := populated(t).s
	if s.ClusterID() != clusterID || !s.Initialised() || s.Epoch() != 0 {
		t.Errorf("cluster %v, epoch %d", s.ClusterID(), s.Epoch())
	}
	if r, ok := s.Region(regionID); !ok || r.Name != "eu-west" || r.Role != hierarchy.RoleVoting || r.MintingNode != nodeID {
		t.Errorf("region: %+v", r)
	}
	if r, ok := s.RegionByName("eu-west"); !ok || r.ID != regionID {
		t.Errorf("region by name: %+v", r)
	}
	if n, ok := s.Node(nodeID); !ok || n.Name != "a" || n.Region != regionID || !n.Voter {
		t.Errorf("node: %+v", n)
	}
	if a, ok := s.Anchor(nodeID); !ok || a.Sequence != 7 || a.Head[0] != 1 {
		t.Errorf("anchor: %+v", a)
	}
	// Of another tenant, a key is not there.
	if k, ok := s.Key(tenantID("globex"), keyID("orders")); ok {
		t.Errorf("globex has %+v", k)
	}
	if _, ok := s.KeyByName(tenantID("globex"), "orders"); ok {
		t.Error("globex has a key named orders")
	}
	tenant, _ := s.TenantByName("globex")
	if tenant.State != hierarchy.TenantDisabled || tenant.StateReason != "a test" || !tenant.StateAt.After(tenant.CreatedAt) {
		t.Errorf("tenant: %+v", tenant)
	}
	if diff := cmp.Diff([]hierarchy.RegionID{regionID}, tenant.Placement); diff != "" {
		t.Errorf("placement (-want +got):\n%s", diff)
	}
}

func TestServicesFor(t *testing.T) {
	s := populated(t).s
	for _, c := range []struct {
		uid, gid uint32
		want     []string
	}{
		{1000, 1, []string{"billing"}},
		{1000, 33, []string{"billing", "group"}},
		{1001, 33, []string{"web", "group"}},
		{1001, 34, nil}, // web is that uid in that group only
		{0, 0, nil},     // an absent uid is not uid 0
		{7, 33, []string{"group"}},
	} {
		var got []string
		for _, svc := range s.ServicesFor(c.uid, c.gid) {
			got = append(got, svc.Name)
		}
		if diff := cmp.Diff(c.want, got); diff != "" {
			t.Errorf("uid %d gid %d (-want +got):\n%s", c.uid, c.gid, diff)
		}
	}
}

func TestDeletedServiceLeavesNothing(t *testing.T) {
	m := populated(t)
	m.do(t, deleteService("billing"))
	m.do(t, createService("billing", ptr[uint32](2000), nil))
	if rules := m.s.Rules("billing"); rules != nil {
		t.Errorf("the new service has the old one's rules: %v", rules)
	}
	if m.s.PolicySet("billing") != nil {
		t.Error("the new service has the old one's policy")
	}
	if got := m.s.ServicesFor(1000, 1); got != nil {
		t.Errorf("the old uid is still %s", got[0].Name)
	}
}

func TestPolicyFollowsItsRules(t *testing.T) {
	m := populated(t)
	ask := policy.Request{Op: hierarchy.OpWrap, Key: hierarchy.KeyName{Tenant: "acme", Key: "orders"}}
	if d := m.s.PolicySet("billing").Decide(ask); !d.Allowed {
		t.Errorf("denied: %s", d.Reason)
	}
	old := m.s
	m.do(t, revoke("billing", "acme/orders"))
	if d := m.s.PolicySet("billing").Decide(ask); d.Allowed {
		t.Errorf("allowed after the rule was revoked: %s", d.Reason)
	}
	if d := old.PolicySet("billing").Decide(ask); !d.Allowed {
		t.Error("the older state changed")
	}
	var patterns []string
	for _, r := range m.s.Rules("") {
		patterns = append(patterns, r.Service+" "+r.Pattern.String())
	}
	if diff := cmp.Diff([]string{"billing */orders"}, patterns); diff != "" {
		t.Errorf("rules (-want +got):\n%s", diff)
	}
}

func TestRevisionMovesForWork(t *testing.T) {
	m := populated(t)
	for _, quiet := range []struct {
		name string
		step func()
	}{
		{"tick", func() { m.do(t, tick()) }},
		{"anchor", func() { m.do(t, anchor(9, 9)) }},
		{"reserve", func() { m.do(t, reserve("acme", "orders", 2, 1)) }},
		{"return", func() { m.do(t, giveBack("acme", "orders", 2, 1)) }},
	} {
		before := m.s.Revision()
		quiet.step()
		if m.s.Revision() != before {
			t.Errorf("%s woke who waits for something to do", quiet.name)
		}
	}
	m.do(t, rotate("acme", "orders", 2))
	if m.s.Revision() != m.s.Index() {
		t.Errorf("revision %d after a rotation at %d", m.s.Revision(), m.s.Index())
	}
}

func TestMinStaleness(t *testing.T) {
	m := initialised(t)
	if got := m.s.MinStaleness(); got != state.DefaultMaxStaleness {
		t.Errorf("without tenants %v, want %v", got, state.DefaultMaxStaleness)
	}
	m.do(t, createTenant("acme"))
	m.do(t, setTenant("acme", ptr(int64(time.Hour))))
	if got := m.s.MinStaleness(); got != time.Hour {
		t.Errorf("got %v, want 1h", got)
	}
	m.do(t, createTenant("globex"))
	if got := m.s.MinStaleness(); got != 2*time.Second {
		t.Errorf("got %v, want 2s", got)
	}
}
