package socketapi_test

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/kekd/kekd/hierarchy"
	"github.com/kekd/kekd/unix-socket-api/kekdv1"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/testing/protocmp"
)

func limits(perSecond, perDay uint64) []*kekdv1.Limit {
	return []*kekdv1.Limit{{Count: perSecond, Per: int64(time.Second)}, {Count: perDay, Per: int64(24 * time.Hour)}}
}

func TestLimitsOfARule(t *testing.T) {
	api, n := newAdmin(t)
	must[*kekdv1.Service](t)(api.CreateService(soon(t), &kekdv1.CreateServiceRequest{Name: "saas", Uid: proto.Uint32(7)}))
	n.last()
	rule := &kekdv1.Rule{Service: "saas", Pattern: "*/orders", Ops: []string{"unwrap"}, Limits: limits(100, 10_000)}
	got := must[*kekdv1.Rule](t)(api.AllowPolicy(soon(t), &kekdv1.AllowPolicyRequest{Rule: rule}))
	if diff := cmp.Diff(rule, got, protocmp.Transform()); diff != "" {
		t.Error(diff)
	}
	if got, want := n.last()[0].Detail, `*/orders unwrap limits="100/s 10000/d"`; got != want {
		t.Errorf("recorded %q, want %q", got, want)
	}
	list := must[*kekdv1.ListPoliciesResponse](t)(api.ListPolicies(soon(t), &kekdv1.ListPoliciesRequest{}))
	if diff := cmp.Diff([]*kekdv1.Rule{rule}, list.Rules, protocmp.Transform()); diff != "" {
		t.Error(diff)
	}
	said := must[*kekdv1.ExplainPolicyResponse](t)(api.ExplainPolicy(soon(t), &kekdv1.ExplainPolicyRequest{Service: "saas", Key: "acme/orders", Op: "unwrap"}))
	if diff := cmp.Diff(rule, said.Rule, protocmp.Transform()); diff != "" {
		t.Error(diff)
	}
	// Without limits it has none.
	rule = proto.CloneOf(rule)
	rule.Limits = nil
	got = must[*kekdv1.Rule](t)(api.AllowPolicy(soon(t), &kekdv1.AllowPolicyRequest{Rule: rule}))
	if diff := cmp.Diff(rule, got, protocmp.Transform()); diff != "" {
		t.Error(diff)
	}
	rule.Limits = append(limits(1, 1), limits(2, 2)...)
	if err := second(api.AllowPolicy(soon(t), &kekdv1.AllowPolicyRequest{Rule: rule})); code(err) != "INVALID_ARGUMENT" {
		t.Errorf("two of each kind: %v", err)
	}
}

func TestLimitsOfATenant(t *testing.T) {
	api, n := newAdmin(t)
	set := func(m *kekdv1.SetTenantRequest) *kekdv1.Tenant {
		t.Helper()
		m.Name = "acme"
		return must[*kekdv1.Tenant](t)(api.SetTenant(soon(t), m))
	}
	got := set(&kekdv1.SetTenantRequest{Limits: &kekdv1.Limits{Limits: limits(5, 50)}, MaxStaleness: proto.Int64(int64(time.Minute))})
	if diff := cmp.Diff(limits(5, 50), got.Limits, protocmp.Transform()); diff != "" || got.MaxStaleness != int64(time.Minute) {
		t.Errorf("max_staleness %v, limits %s", time.Duration(got.MaxStaleness), diff)
	}
	if got, want := n.last()[0].Detail, `max_staleness=1m0s limits="5/s 50/d"`; got != want {
		t.Errorf("recorded %q, want %q", got, want)
	}
	// What is not named stays.
	got = set(&kekdv1.SetTenantRequest{MaxStaleness: proto.Int64(int64(time.Hour))})
	if len(got.Limits) != 2 {
		t.Errorf("limits: %v", got.Limits)
	}
	got = set(&kekdv1.SetTenantRequest{Limits: &kekdv1.Limits{}})
	if got.Limits != nil || got.MaxStaleness != int64(time.Hour) {
		t.Errorf("lifted: %v", got)
	}
	err := second(api.SetTenant(soon(t), &kekdv1.SetTenantRequest{Name: "acme", Limits: &kekdv1.Limits{Limits: []*kekdv1.Limit{{Count: 1, Per: 5}}}}))
	if code(err) != "INVALID_ARGUMENT" || !strings.Contains(err.Error(), "per second, minute, hour or day") {
		t.Errorf("a limit per 5ns: %v", err)
	}
}

func TestWatchTenant(t *testing.T) {
	api, n := newAdmin(t)
	events, err := api.WatchTenant(soon(t), &kekdv1.WatchTenantRequest{Name: "acme"})
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []*kekdv1.TenantEvent{
		{Kind: "watch", Detail: mustTenant(t, n, "acme").String()},
		{Kind: "missed", Missed: 7},
	} {
		got, err := events.Recv()
		if diff := cmp.Diff(want, got, protocmp.Transform()); diff != "" || err != nil {
			t.Errorf("%v (-want +got):\n%s", err, diff)
		}
	}
	for name, want := range map[string]error{"nobody": hierarchy.ErrNotFound, "No Name": hierarchy.ErrInvalidArgument} {
		events, err := api.WatchTenant(soon(t), &kekdv1.WatchTenantRequest{Name: name})
		if err == nil {
			_, err = events.Recv()
		}
		if code(err) != hierarchy.Code(want) {
			t.Errorf("%s: got %v", name, err)
		}
	}
}
