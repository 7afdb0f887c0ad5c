package capacity_test

import (
	"fmt"
	"testing"

	"github.com/kekd/kekd/hierarchy/capacity"
)

// BenchmarkOf is what a node that makes keys pays once a second, with 10,000 tenants of one key each.
func BenchmarkOf(b *testing.B) {
	m := newMachine()
	for i := range 10_000 {
		name := fmt.Sprintf("tenant-%d", i)
		m.createTenant(name)
		m.createKey(name, "orders")
	}
	for b.Loop() {
		if d := capacity.Of(m.State(), region); d.Held != 10_000 {
			b.Fatal(d)
		}
	}
}
