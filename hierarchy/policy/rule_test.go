package policy_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/kekd/kekd/hierarchy"
	"github.com/kekd/kekd/hierarchy/policy"
)

func TestParseRequirement(t *testing.T) {
	for s, want := range map[string]policy.Requirement{
		"app=billing":             {Key: "app", Value: "billing"},
		"tenant={tenant}":         {Key: "tenant", Value: "{tenant}"},
		"path=/{tenant}/{tenant}": {Key: "path", Value: "/{tenant}/{tenant}"},
		"app":                     {Key: "app", AnyValue: true},
		"app=":                    {Key: "app"},
		"expr=a=b":                {Key: "expr", Value: "a=b"},
		"über=ja":                 {Key: "über", Value: "ja"},
	} {
		got, err := policy.ParseRequirement(s)
		if err != nil {
			t.Errorf("%q: %v", s, err)
			continue
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%q (-want +got):\n%s", s, diff)
		}
		if got.String() != s {
			t.Errorf("%q reads back as %q", s, got)
		}
	}
}

func TestParseRequirementRefuses(t *testing.T) {
	for s, reason := range map[string]string{
		"":                 "KEY=VALUE",
		"=billing":         "KEY=VALUE",
		"tenant={tennant}": "braces",
		"tenant={tenant":   "braces",
		"tenant=tenant}":   "braces",
		"t={{tenant}}":     "braces",
		"app=\xff":         "UTF-8",
		"\xff":             "UTF-8",
		strings.Repeat("k", hierarchy.MaxContextKeyLen+1):            "at most 128",
		"app=" + strings.Repeat("v", hierarchy.MaxContextValueLen+1): "at most 1024",
	} {
		_, err := policy.ParseRequirement(s)
		if !errors.Is(err, hierarchy.ErrInvalidArgument) || !strings.Contains(err.Error(), reason) {
			t.Errorf("%q: got %v, want an invalid argument that says %q", s, err, reason)
		}
	}
}

func FuzzParseRequirement(f *testing.F) {
	for _, s := range []string{"app=billing", "tenant={tenant}", "app", "app=", "a=b=c", "a={x}", "\xff="} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		q, err := policy.ParseRequirement(s)
		if err != nil {
			if !errors.Is(err, hierarchy.ErrInvalidArgument) {
				t.Fatalf("%q: %v is no invalid argument", s, err)
			}
			return
		}
		if q.String() != s {
			t.Fatalf("%q reads back as %q", s, q)
		}
		rule := billing("acme/*")
		rule.Required = []policy.Requirement{q}
		if err := policy.ValidateRule(rule); err != nil {
			t.Fatalf("%q was read, and is not valid: %v", s, err)
		}
		// What it asks for, satisfies it.
		entry := hierarchy.ContextEntry{Key: q.Key, Value: strings.ReplaceAll(q.Value, "{tenant}", "acme")}
		req := policy.Request{Op: hierarchy.OpWrap, Key: acmeOrders, Context: hierarchy.Context{entry}}
		if d := policy.Decide([]policy.Rule{rule}, req); !d.Allowed {
			t.Fatalf("%q is not met by %q: %s", s, entry.Value, d.Reason)
		}
	})
}

func TestValidateRule(t *testing.T) {
	for name, change := range map[string]func(*policy.Rule){
		"as it is":        func(*policy.Rule) {},
		"every operation": func(r *policy.Rule) { r.Ops = 0b1111 },
		"one operation":   func(r *policy.Rule) { r.Ops = hierarchy.Ops(hierarchy.OpRewrap) },
		"no requirement":  func(r *policy.Rule) { r.Required = nil },
		"every key":       func(r *policy.Rule) { r.Pattern = policy.Pattern{Tenant: "*", Key: "*"} },
		"most entries":    func(r *policy.Rule) { r.Required = requirements(hierarchy.MaxContextEntries) },
	} {
		r := billing("acme/*", "app=billing", "tenant={tenant}")
		change(&r)
		if err := policy.ValidateRule(r); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestValidateRuleRefuses(t *testing.T) {
	for reason, change := range map[string]func(*policy.Rule){
		"service of a rule":     func(r *policy.Rule) { r.Service = "" },
		`name "Billing"`:        func(r *policy.Rule) { r.Service = "Billing" },
		"tenant in pattern":     func(r *policy.Rule) { r.Pattern = policy.Pattern{} },
		"key in pattern":        func(r *policy.Rule) { r.Pattern.Key = "" },
		"whole name":            func(r *policy.Rule) { r.Pattern.Key = "ord*" },
		"no operation":          func(r *policy.Rule) { r.Ops = 0 },
		"0x10":                  func(r *policy.Rule) { r.Ops |= 0x10 },
		"requires 17":           func(r *policy.Rule) { r.Required = requirements(hierarchy.MaxContextEntries + 1) },
		`"app" twice`:           func(r *policy.Rule) { r.Required[1].Key = "app" },
		"not sorted":            func(r *policy.Rule) { r.Required[0].Key = "zone" },
		"KEY=VALUE":             func(r *policy.Rule) { r.Required[0].Key = "" },
		"contains '='":          func(r *policy.Rule) { r.Required[0].Key = "a=b" },
		"any value and for":     func(r *policy.Rule) { r.Required[0].AnyValue = true },
		"braces":                func(r *policy.Rule) { r.Required[0].Value = "{key}" },
		"not UTF-8":             func(r *policy.Rule) { r.Required[0].Value = "\xff" },
		"at most 1024":          func(r *policy.Rule) { r.Required[1].Value = strings.Repeat("v", hierarchy.MaxContextValueLen+1) },
		"at most 128 are allow": func(r *policy.Rule) { r.Required[1].Key = strings.Repeat("v", hierarchy.MaxContextKeyLen+1) },
	} {
		r := billing("acme/*", "app=billing", "tenant={tenant}")
		change(&r)
		err := policy.ValidateRule(r)
		if !errors.Is(err, hierarchy.ErrInvalidArgument) || !strings.Contains(err.Error(), reason) {
			t.Errorf("got %v, want an invalid argument that says %q", err, reason)
		}
	}
}

func requirements(n int) []policy.Requirement {
	var qs []policy.Requirement
	for i := range n {
		qs = append(qs, policy.Requirement{Key: fmt.Sprintf("k%02d", i), AnyValue: true})
	}
	return qs
}
