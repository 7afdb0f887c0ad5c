package policy_test

import (
	"fmt"
	"testing"

	"github.com/kekd/kekd/hierarchy"
	"github.com/kekd/kekd/hierarchy/policy"
)

// manyRules are n rules of a service, among them one for */orders.
func manyRules(n int) []policy.Rule {
	rules := []policy.Rule{billing("*/orders", "app=billing", "tenant={tenant}")}
	for i := 1; i < n; i++ {
		rules = append(rules, billing(fmt.Sprintf("tenant-%d/key-%d", i, i)))
	}
	return rules
}

func BenchmarkSetDecide(b *testing.B) {
	req := policy.Request{Op: hierarchy.OpUnwrap, Key: hierarchy.KeyName{Tenant: "tenant-42", Key: "orders"}, Context: contextOf(b, "app=billing", "tenant=tenant-42")}
	for _, n := range []int{1, 100, 10_000} {
		b.Run(fmt.Sprintf("rules=%d", n), func(b *testing.B) {
			s := policy.Compile(manyRules(n))
			b.ReportAllocs()
			for b.Loop() {
				if !s.Decide(req).Allowed {
					b.Fatal("denied")
				}
			}
		})
	}
}
