package policy_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/kekd/kekd/hierarchy"
	"github.com/kekd/kekd/hierarchy/policy"
)

// Few values of everything, some the beginning of others, so that rules and requests meet.
var (
	someTenants = []string{"acme", "acme2", "umbrella", "a"}
	someKeys    = []string{"orders", "orders2", "logs", "a"}
	someEntries = []string{"app", "tenant", "zone"}
	someValues  = []string{"", "a", "acme", "acme2", "{tenant}", "x-{tenant}", "{tenant}{tenant}", "aa", "x-acme"}
)

func drawKey(t *rapid.T) hierarchy.KeyName {
	return hierarchy.KeyName{Tenant: rapid.SampledFrom(someTenants).Draw(t, "tenant"), Key: rapid.SampledFrom(someKeys).Draw(t, "key")}
}

func drawPattern(t *rapid.T) policy.Pattern {
	return policy.Pattern{
		Tenant: rapid.SampledFrom(append([]string{policy.Any}, someTenants...)).Draw(t, "pattern tenant"),
		Key:    rapid.SampledFrom(append([]string{policy.Any}, someKeys...)).Draw(t, "pattern key"),
	}
}

func drawRule(t *rapid.T) policy.Rule {
	r := policy.Rule{
		Service:       rapid.SampledFrom([]string{"billing", "backup"}).Draw(t, "service"),
		Pattern:       drawPattern(t),
		Ops:           hierarchy.Ops(rapid.IntRange(1, 0b1111).Draw(t, "ops")),
		RequireReason: rapid.IntRange(0, 3).Draw(t, "require reason") == 0,
	}
	for _, key := range someEntries {
		switch rapid.IntRange(0, 3).Draw(t, "requirement") {
		case 0:
			r.Required = append(r.Required, policy.Requirement{Key: key, AnyValue: true})
		case 1:
			r.Required = append(r.Required, policy.Requirement{Key: key, Value: rapid.SampledFrom(someValues).Draw(t, "value")})
		}
	}
	if err := policy.ValidateRule(r); err != nil {
		t.Fatal(err)
	}
	return r
}

func drawRules(t *rapid.T) []policy.Rule {
	return rapid.SliceOfN(rapid.Custom(drawRule), 0, 8).Draw(t, "rules")
}

// drawRequest draws odd ones too: a decision has to stand even if a caller forgot to check a name.
func drawRequest(t *rapid.T) policy.Request {
	req := policy.Request{Op: rapid.SampledFrom(hierarchy.AllOps).Draw(t, "op"), Key: drawKey(t)}
	if rapid.IntRange(0, 9).Draw(t, "odd") == 0 {
		odd := []string{"", policy.Any, "acme"}
		req.Key = hierarchy.KeyName{Tenant: rapid.SampledFrom(odd).Draw(t, "odd tenant"), Key: rapid.SampledFrom(odd).Draw(t, "odd key")}
	}
	for _, key := range someEntries {
		if rapid.Bool().Draw(t, "has entry") {
			v := rapid.SampledFrom(someValues).Draw(t, "entry")
			req.Context = append(req.Context, hierarchy.ContextEntry{Key: key, Value: strings.ReplaceAll(v, "{tenant}", req.Key.Tenant)})
		}
	}
	req.Reason = rapid.SampledFrom([]string{"", "because", " "}).Draw(t, "reason")
	return req
}

// allowedByTheWords says whether a rule allows, in the words of its documentation and by other
// means than the package's own.
func allowedByTheWords(r policy.Rule, req policy.Request) bool {
	has := map[string]string{}
	for _, e := range req.Context {
		has[e.Key] = e.Value
	}
	for _, q := range r.Required {
		v, ok := has[q.Key]
		if !ok || !q.AnyValue && v != strings.ReplaceAll(q.Value, "{tenant}", req.Key.Tenant) {
			return false
		}
	}
	return slices.Contains([]string{req.Key.Tenant, "*"}, r.Pattern.Tenant) &&
		slices.Contains([]string{req.Key.Key, "*"}, r.Pattern.Key) &&
		slices.Contains(strings.Split(r.Ops.String(), ","), req.Op.String()) &&
		(!r.RequireReason || strings.TrimSpace(req.Reason) != "")
}

func TestDecideIsWhatTheWordsSay(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		rules, req := drawRules(t), drawRequest(t)
		want := slices.ContainsFunc(rules, func(r policy.Rule) bool { return allowedByTheWords(r, req) })
		got := policy.Decide(rules, req)
		if got.Allowed != want {
			t.Fatalf("allowed %v, want %v: %s", got.Allowed, want, got.Reason)
		}
		if got.Allowed != (got.Rule != nil) || got.Reason == "" {
			t.Fatalf("a decision without its rule or reason: %+v", got)
		}
		if got.Rule != nil && !allowedByTheWords(*got.Rule, req) {
			t.Fatalf("names the rule %+v, which does not allow", *got.Rule)
		}
	})
}

func TestSetDecidesAsDecide(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		rules := drawRules(t)
		set := policy.Compile(rules)
		for range 4 {
			req := drawRequest(t)
			if diff := cmp.Diff(policy.Decide(rules, req), set.Decide(req)); diff != "" {
				t.Fatalf("%+v (-Decide +Set.Decide):\n%s", req, diff)
			}
		}
	})
}

func TestAnotherRuleNeverDenies(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		rules, req := drawRules(t), drawRequest(t)
		before := policy.Compile(rules).Decide(req)
		at := rapid.IntRange(0, len(rules)).Draw(t, "at")
		after := policy.Compile(slices.Insert(slices.Clone(rules), at, drawRule(t))).Decide(req)
		if before.Allowed && !after.Allowed {
			t.Fatalf("allowed before, denied after: %s", after.Reason)
		}
	})
}

// The answer for one operation says nothing about another: what a rule allows beside it does
// not matter.
func TestOperationsAreDecidedOneByOne(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		rules, req := drawRules(t), drawRequest(t)
		var only []policy.Rule
		for _, r := range rules {
			if r.Ops &= hierarchy.Ops(req.Op); r.Ops != 0 {
				only = append(only, r)
			}
		}
		if all, one := policy.Decide(rules, req), policy.Decide(only, req); all.Allowed != one.Allowed {
			t.Fatalf("with other operations %v (%s), without %v (%s)", all.Allowed, all.Reason, one.Allowed, one.Reason)
		}
	})
}

// Nothing is remembered from one decision to the next, and the arguments are left as they were.
func TestDecisionDependsOnArgumentsAlone(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		rules, req := drawRules(t), drawRequest(t)
		set := policy.Compile(rules)
		first := set.Decide(req)
		rulesBefore, requestBefore := fmt.Sprintf("%#v", rules), fmt.Sprintf("%#v", req)
		for range 3 {
			other := drawRequest(t)
			set.Decide(other)
			policy.Decide(rules, other)
		}
		if diff := cmp.Diff(first, set.Decide(req)); diff != "" {
			t.Fatalf("the second time (-first +second):\n%s", diff)
		}
		if rulesBefore != fmt.Sprintf("%#v", rules) || requestBefore != fmt.Sprintf("%#v", req) {
			t.Fatal("an argument was changed")
		}
	})
}
