package socketapi_test

import (
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/kekd/kekd/hierarchy"
	"github.com/kekd/kekd/hierarchy/audit"
	"github.com/kekd/kekd/hierarchy/policy"
	"github.com/kekd/kekd/unix-socket-api/kekdv1"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
)

// ruleFields is how each field of a rule can be another, by the field's name in package policy and
// in the request.
var ruleFields = []struct {
	name, asked string
	change      func(*kekdv1.Rule)
}{
	{"Rule.Service", "Rule.service", func(r *kekdv1.Rule) { r.Service = "other" }},
	{"Rule.Pattern", "Rule.pattern", func(r *kekdv1.Rule) { r.Pattern = "acme/*" }},
	{"Rule.Ops", "Rule.ops", func(r *kekdv1.Rule) { r.Ops = append(r.Ops, "rewrap") }},
	{"Rule.Required", "Rule.required_context", func(r *kekdv1.Rule) { r.RequiredContext = r.RequiredContext[1:] }},
	{"Rule.RequireReason", "Rule.require_reason", func(r *kekdv1.Rule) { r.RequireReason = false }},
	{"Rule.Limits", "Rule.limits", func(r *kekdv1.Rule) { r.Limits = nil }},
	{"Requirement.Key", "RequiredContext.key", func(r *kekdv1.Rule) { lastOf(r).Key += "x" }},
	{"Requirement.AnyValue", "RequiredContext.value", func(r *kekdv1.Rule) { lastOf(r).Value = nil }},
	{"Requirement.Value", "RequiredContext.value", func(r *kekdv1.Rule) { lastOf(r).Value = proto.String("") }},
	{"Limits.Short", "Rule.limits", func(r *kekdv1.Rule) { r.Limits = r.Limits[1:] }},
	{"Limits.Long", "Rule.limits", func(r *kekdv1.Rule) { r.Limits = r.Limits[:1] }},
	{"Limit.Count", "Limit.count", func(r *kekdv1.Rule) { r.Limits[1].Count++ }},
	{"Limit.Per", "Limit.per", func(r *kekdv1.Rule) { r.Limits[1].Per = int64(time.Hour) }},
}

func lastOf(r *kekdv1.Rule) *kekdv1.RequiredContext {
	return r.RequiredContext[len(r.RequiredContext)-1]
}

// Rules that differ in whatever are recorded differently: a rule takes the place of another, and the
// journal has to show that it allows more.
func TestRecordsOfRules(t *testing.T) {
	api, n := newAdmin(t)
	for i, name := range []string{"saas", "other"} {
		must[*kekdv1.Service](t)(api.CreateService(soon(t), &kekdv1.CreateServiceRequest{Name: name, Uid: proto.Uint32(uint32(i))}))
	}
	record := func(r *kekdv1.Rule) (service, detail string) {
		t.Helper()
		n.last()
		must[*kekdv1.Rule](t)(api.AllowPolicy(soon(t), &kekdv1.AllowPolicyRequest{Rule: r}))
		records := n.last()
		if records[0].Detail != records[1].Detail {
			t.Errorf("asked for %q, and done %q", records[0].Detail, records[1].Detail)
		}
		if command := "; command " + hierarchy.NewID().String(); len(records[0].Detail)+len(command) > audit.MaxDetail {
			t.Errorf("%d bytes of detail: a record cuts them off: %s", len(records[0].Detail), records[0].Detail)
		}
		return records[0].Service, records[0].Detail
	}
	short := func() *kekdv1.Rule {
		return &kekdv1.Rule{Service: "saas", Pattern: "*/orders", Ops: []string{"wrap", "unwrap"}, RequireReason: true, Limits: limits(100, 10_000),
			RequiredContext: []*kekdv1.RequiredContext{{Key: "app", Value: proto.String("billing")}, {Key: "tenant", Value: proto.String("{tenant}")}}}
	}
	long := func() *kekdv1.Rule {
		r := short()
		r.RequiredContext = append(r.RequiredContext, &kekdv1.RequiredContext{Key: "text", Value: proto.String(strings.Repeat("ü", 100))}, &kekdv1.RequiredContext{Key: "z", Value: proto.String("z")})
		return r
	}

	const want = `*/orders wrap,unwrap limits="100/s 10000/d" require_reason context="app=billing" context="tenant={tenant}"`
	if _, detail := record(short()); detail != want {
		t.Errorf("recorded %s\nwant     %s", detail, want)
	}
	for name, rule := range map[string]func() *kekdv1.Rule{"short": short, "long": long} {
		service, detail := record(rule())
		seen := map[[2]string]string{{service, detail}: "the rule itself"}
		for _, f := range ruleFields {
			r := rule()
			f.change(r)
			s, d := record(r)
			if like := seen[[2]string{s, d}]; like != "" {
				t.Errorf("a %s rule of another %s is recorded like %s: %s", name, f.name, like, d)
			}
			seen[[2]string{s, d}] = f.name
		}
		r := rule()
		r.Ops[0], r.Ops[1] = r.Ops[1], r.Ops[0]
		if _, d := record(r); d != detail {
			t.Errorf("operations in another order: a %s rule is recorded as %s, want %s", name, d, detail)
		}
	}
}

// A field that is added to a rule has to be in its record, and in the test of it.
func TestRecordsOfRulesHaveEveryField(t *testing.T) {
	names, asked := map[string]bool{}, map[string]bool{}
	for _, f := range ruleFields {
		names[f.name], asked[f.asked] = true, true
	}
	for _, typ := range []reflect.Type{reflect.TypeFor[policy.Rule](), reflect.TypeFor[policy.Requirement](), reflect.TypeFor[policy.Limits](), reflect.TypeFor[policy.Limit]()} {
		for _, f := range reflect.VisibleFields(typ) {
			if name := typ.Name() + "." + f.Name; !names[name] {
				t.Errorf("no test that %s is recorded", name)
			}
		}
	}
	for _, m := range []protoreflect.ProtoMessage{&kekdv1.Rule{}, &kekdv1.RequiredContext{}, &kekdv1.Limit{}} {
		d := m.ProtoReflect().Descriptor()
		for i := range d.Fields().Len() {
			// How far an answer is effective nobody asks for.
			if name := string(d.Name()) + "." + string(d.Fields().Get(i).Name()); !asked[name] && name != "Rule.fence" {
				t.Errorf("no test that %s is recorded", name)
			}
		}
	}
}
