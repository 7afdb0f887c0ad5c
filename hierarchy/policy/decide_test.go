package policy_test

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/kekd/kekd/hierarchy"
	"github.com/kekd/kekd/hierarchy/policy"
)

var acmeOrders = hierarchy.KeyName{Tenant: "acme", Key: "orders"}

const wrapUnwrap = hierarchy.Ops(hierarchy.OpWrap | hierarchy.OpUnwrap)

// billing is a rule that allows the service billing to wrap and unwrap.
func billing(pattern string, required ...string) policy.Rule {
	p, err := policy.ParsePattern(pattern)
	if err != nil {
		panic(err)
	}
	r := policy.Rule{Service: "billing", Pattern: p, Ops: wrapUnwrap}
	for _, s := range required {
		q, err := policy.ParseRequirement(s)
		if err != nil {
			panic(err)
		}
		r.Required = append(r.Required, q)
	}
	return r
}

func withReason(r policy.Rule) policy.Rule {
	r.RequireReason = true
	return r
}

func contextOf(t testing.TB, entries ...string) hierarchy.Context {
	t.Helper()
	var es []hierarchy.ContextEntry
	for _, s := range entries {
		e, err := hierarchy.ParseContextEntry(s)
		if err != nil {
			t.Fatal(err)
		}
		es = append(es, e)
	}
	c, err := hierarchy.NewContext(es...)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestDecide(t *testing.T) {
	for _, c := range []struct {
		name    string
		rules   []policy.Rule
		op      hierarchy.Op
		key     string
		context []string
		reason  string

		rule string // pattern of the rule that allows; empty: denied
		why  string
	}{
		{
			name: "exact", rules: []policy.Rule{billing("acme/orders")}, op: hierarchy.OpWrap, key: "acme/orders",
			rule: "acme/orders", why: "the rule of billing for acme/orders allows it",
		},
		{
			name: "all keys of a tenant", rules: []policy.Rule{billing("acme/*")}, op: hierarchy.OpUnwrap, key: "acme/orders",
			rule: "acme/*", why: "the rule of billing for acme/* allows it",
		},
		{
			name: "one key of every tenant", rules: []policy.Rule{billing("*/orders")}, op: hierarchy.OpUnwrap, key: "umbrella/orders",
			rule: "*/orders", why: "the rule of billing for */orders allows it",
		},
		{
			name: "every key", rules: []policy.Rule{billing("*/*")}, op: hierarchy.OpUnwrap, key: "umbrella/logs",
			rule: "*/*", why: "the rule of billing for */* allows it",
		},
		{
			name: "no rule at all", op: hierarchy.OpWrap, key: "acme/orders",
			why: "there is no rule for the service",
		},
		{
			name: "no rule names the key", rules: []policy.Rule{billing("acme/orders"), billing("*/logs")}, op: hierarchy.OpWrap, key: "umbrella/orders",
			why: "no rule names umbrella/orders",
		},
		{
			name: "a tenant whose name begins alike", rules: []policy.Rule{billing("acme/*")}, op: hierarchy.OpWrap, key: "acme2/orders",
			why: "no rule names acme2/orders",
		},
		{
			name: "op by op", rules: []policy.Rule{billing("acme/*")}, op: hierarchy.OpDataKey, key: "acme/orders",
			why: "the rule of billing for acme/* allows wrap,unwrap, not datakey",
		},
		{
			name: "no operation", rules: []policy.Rule{billing("acme/*")}, op: 0, key: "acme/orders",
			why: "the rule of billing for acme/* allows wrap,unwrap, not op(0)",
		},
		{
			name: "required value is there", rules: []policy.Rule{billing("acme/*", "app=billing")}, op: hierarchy.OpWrap, key: "acme/orders",
			context: []string{"app=billing", "more=is fine"},
			rule:    "acme/*", why: "the rule of billing for acme/* allows it",
		},
		{
			name: "required entry is missing", rules: []policy.Rule{billing("acme/*", "app=billing")}, op: hierarchy.OpWrap, key: "acme/orders",
			context: []string{"application=billing"},
			why:     "the rule of billing for acme/* requires app=billing in the encryption context, which has no app",
		},
		{
			name: "required entry has another value", rules: []policy.Rule{billing("acme/*", "app=billing")}, op: hierarchy.OpWrap, key: "acme/orders",
			context: []string{"app=billing2"},
			why:     "the rule of billing for acme/* requires app=billing in the encryption context, which has another value",
		},
		{
			name: "any value", rules: []policy.Rule{billing("acme/*", "app")}, op: hierarchy.OpWrap, key: "acme/orders",
			context: []string{"app="},
			rule:    "acme/*", why: "the rule of billing for acme/* allows it",
		},
		{
			name: "any value, but an entry", rules: []policy.Rule{billing("acme/*", "app")}, op: hierarchy.OpWrap, key: "acme/orders",
			why: "the rule of billing for acme/* requires app in the encryption context, which has no app",
		},
		{
			name: "every requirement counts", rules: []policy.Rule{billing("acme/*", "app=billing", "zone=eu")}, op: hierarchy.OpWrap, key: "acme/orders",
			context: []string{"app=billing", "zone=us"},
			why:     "the rule of billing for acme/* requires zone=eu in the encryption context, which has another value",
		},
		{
			name: "the tenant's name", rules: []policy.Rule{billing("*/orders", "tenant={tenant}")}, op: hierarchy.OpUnwrap, key: "acme/orders",
			context: []string{"tenant=acme"},
			rule:    "*/orders", why: "the rule of billing for */orders allows it",
		},
		{
			name: "another tenant's name", rules: []policy.Rule{billing("*/orders", "tenant={tenant}")}, op: hierarchy.OpUnwrap, key: "acme/orders",
			context: []string{"tenant=umbrella"},
			why:     "the rule of billing for */orders requires tenant=acme in the encryption context, which has another value",
		},
		{
			name: "the placeholder is no value", rules: []policy.Rule{billing("*/orders", "tenant={tenant}")}, op: hierarchy.OpUnwrap, key: "acme/orders",
			context: []string{"tenant={tenant}"},
			why:     "the rule of billing for */orders requires tenant=acme in the encryption context, which has another value",
		},
		{
			name: "the tenant's name amid text", rules: []policy.Rule{billing("*/*", "path=/{tenant}/x/{tenant}.db")}, op: hierarchy.OpUnwrap, key: "acme/orders",
			context: []string{"path=/acme/x/acme.db"},
			rule:    "*/*", why: "the rule of billing for */* allows it",
		},
		{
			name: "text after the tenant's name", rules: []policy.Rule{billing("*/*", "path=/{tenant}")}, op: hierarchy.OpUnwrap, key: "acme/orders",
			context: []string{"path=/acme2"},
			why:     "the rule of billing for */* requires path=/acme in the encryption context, which has another value",
		},
		{
			name: "reason required", rules: []policy.Rule{withReason(billing("acme/*"))}, op: hierarchy.OpUnwrap, key: "acme/orders",
			why: "the rule of billing for acme/* requires a reason, and none was given",
		},
		{
			name: "a blank reason is none", rules: []policy.Rule{withReason(billing("acme/*"))}, op: hierarchy.OpUnwrap, key: "acme/orders",
			reason: " \t\n",
			why:    "the rule of billing for acme/* requires a reason, and none was given",
		},
		{
			name: "reason given", rules: []policy.Rule{withReason(billing("acme/*"))}, op: hierarchy.OpUnwrap, key: "acme/orders",
			reason: "restore of last night",
			rule:   "acme/*", why: "the rule of billing for acme/* allows it",
		},
		{
			name:  "the most specific is named",
			rules: []policy.Rule{billing("*/*"), billing("*/orders"), billing("acme/*"), billing("acme/orders")}, op: hierarchy.OpWrap, key: "acme/orders",
			rule: "acme/orders", why: "the rule of billing for acme/orders allows it",
		},
		{
			name:  "a tenant is more specific than a key's name",
			rules: []policy.Rule{billing("*/*"), billing("*/orders"), billing("acme/*")}, op: hierarchy.OpWrap, key: "acme/orders",
			rule: "acme/*", why: "the rule of billing for acme/* allows it",
		},
		{
			name:  "a key's name is more specific than none",
			rules: []policy.Rule{billing("*/*"), billing("*/orders")}, op: hierarchy.OpWrap, key: "acme/orders",
			rule: "*/orders", why: "the rule of billing for */orders allows it",
		},
		{
			name:  "a narrow rule does not forbid what a wide one allows",
			rules: []policy.Rule{billing("acme/orders", "app=billing"), billing("acme/*")}, op: hierarchy.OpWrap, key: "acme/orders",
			rule: "acme/*", why: "the rule of billing for acme/* allows it",
		},
		{
			name:  "the closest is told, though a narrower one fits worse",
			rules: []policy.Rule{billing("acme/orders", "app=billing"), withReason(billing("*/*"))}, op: hierarchy.OpWrap, key: "acme/orders",
			why: "the rule of billing for */* requires a reason, and none was given",
		},
		{
			name:  "another value is closer than none",
			rules: []policy.Rule{billing("acme/orders", "zone=eu"), billing("*/*", "app=billing")}, op: hierarchy.OpWrap, key: "acme/orders",
			context: []string{"app=logs"},
			why:     "the rule of billing for */* requires app=billing in the encryption context, which has another value",
		},
		{
			name:  "of two as close the more specific is told",
			rules: []policy.Rule{billing("*/*", "app=a"), billing("acme/*", "app=b")}, op: hierarchy.OpWrap, key: "acme/orders",
			why: "the rule of billing for acme/* requires app=b in the encryption context, which has no app",
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			key, err := hierarchy.ParseKeyName(c.key)
			if err != nil {
				t.Fatal(err)
			}
			req := policy.Request{Op: c.op, Key: key, Context: contextOf(t, c.context...), Reason: c.reason}
			for name, got := range map[string]policy.Decision{
				"Decide":     policy.Decide(c.rules, req),
				"Set.Decide": policy.Compile(c.rules).Decide(req),
			} {
				var rule string
				if got.Rule != nil {
					rule = got.Rule.Pattern.String()
				}
				if got.Allowed != (c.rule != "") || rule != c.rule {
					t.Errorf("%s: allowed %v by %q, want %q (%s)", name, got.Allowed, rule, c.rule, got.Reason)
				}
				if diff := cmp.Diff(c.why, got.Reason); diff != "" {
					t.Errorf("%s: reason (-want +got):\n%s", name, diff)
				}
			}
		})
	}
}

func TestNilSetDenies(t *testing.T) {
	var s *policy.Set
	d := s.Decide(policy.Request{Op: hierarchy.OpWrap, Key: acmeOrders})
	if d.Allowed || !strings.Contains(d.Reason, "no rule") {
		t.Errorf("got %+v, want a denial for want of rules", d)
	}
}

// The caller goes on changing its slice: the set does not see it.
func TestSetKeepsItsOwnRules(t *testing.T) {
	rules := []policy.Rule{billing("acme/*")}
	s := policy.Compile(rules)
	rules[0] = billing("umbrella/*")
	if d := s.Decide(policy.Request{Op: hierarchy.OpWrap, Key: acmeOrders}); !d.Allowed {
		t.Errorf("denied: %s", d.Reason)
	} else if diff := cmp.Diff(billing("acme/*"), *d.Rule); diff != "" {
		t.Errorf("rule (-want +got):\n%s", diff)
	}
}

func TestAllowingAllocatesNothing(t *testing.T) {
	s := policy.Compile(manyRules(100))
	req := policy.Request{Op: hierarchy.OpUnwrap, Key: hierarchy.KeyName{Tenant: "tenant-42", Key: "orders"}, Context: contextOf(t, "app=billing", "tenant=tenant-42")}
	if d := s.Decide(req); !d.Allowed {
		t.Fatal(d.Reason)
	}
	if n := testing.AllocsPerRun(100, func() { s.Decide(req) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}
