package view_test

import (
	"testing"

	"github.com/kekd/kekd/cluster/lease"
	"github.com/kekd/kekd/cluster/view"
)

// BenchmarkLook is what leases cost a request: it looks three times.
func BenchmarkLook(b *testing.B) {
	r := view.New(newWorld(), self)
	clock := lease.AgeClock{}
	b.Run("look", func(b *testing.B) {
		for b.Loop() {
			r.Look()
		}
	})
	b.Run("clock", func(b *testing.B) {
		for b.Loop() {
			clock.Now()
		}
	})
}
