package worker_test

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/kekd/kekd/hsm"
	"github.com/kekd/kekd/hsm/worker"
)

// flood keeps the pool busy with one lane's operations until stop is called: batches, four at a
// time, and as many callers with one operation each.
func flood(p *worker.Pool, callers int, make func(n int) []hsm.Operation) (stop func()) {
	var done atomic.Bool
	var wg sync.WaitGroup
	for i := range callers + 4 {
		n := 1
		if i < 4 {
			n = 1024
		}
		wg.Go(func() {
			ops := make(n)
			for !done.Load() {
				p.Do(context.Background(), ops)
			}
		})
	}
	return func() { done.Store(true); wg.Wait() }
}

// TestVictim: what one lane has piled up is overtaken by another that asks for little.
func TestVictim(t *testing.T) {
	const each = 50 * time.Microsecond
	p := openPool(t, worker.Config{Command: commandOf(t, workerConfig{Kind: "fake", Each: each}), Workers: 1})
	stop := flood(p, 64, func(n int) []hsm.Operation {
		ops := make([]hsm.Operation, n)
		for i := range ops {
			ops[i] = fakeSeal(globex, []byte("x"))
		}
		return ops
	})
	defer stop()
	var took []time.Duration
	for range 40 {
		ops := []hsm.Operation{fakeSeal(acme, []byte("x"))}
		from := time.Now()
		p.Do(soon(t), ops)
		took = append(took, time.Since(from))
		must(t, checkFake(&ops[0]))
		time.Sleep(time.Millisecond)
	}
	// Two slices are with the token, 3.2 ms. In its turn, but in one frame with others, it would take
	// 13 ms; in one queue for all 4160 would be ahead, 208 ms.
	if half := quantile(took, 0.5); half > 160*each {
		t.Errorf("half of the victim's operations took more than %v, want the time of 64 others, %v", half, 64*each)
	}
}

// TestLanesInTurn: of lanes that are always busy, each gets its share, however much one of them
// asks for.
func TestLanesInTurn(t *testing.T) {
	p := openPool(t, worker.Config{Command: commandOf(t, workerConfig{Kind: "fake", Each: 20 * time.Microsecond}), Workers: 1})
	var done atomic.Bool
	var ran [2]atomic.Int64
	var wg sync.WaitGroup
	for caller := range 9 { // one of acme's, eight of globex's
		wg.Go(func() {
			lane, who := acme, 0
			if caller > 0 {
				lane, who = globex, 1
			}
			ops := make([]hsm.Operation, 600)
			for i := range ops {
				ops[i] = fakeSeal(lane, fmt.Appendf(nil, "%d", caller))
			}
			for !done.Load() {
				p.Do(context.Background(), ops)
				ran[who].Add(int64(len(ops)))
			}
		})
	}
	await(t, "some were run", func() bool { return ran[0].Load() > 15_000 })
	done.Store(true)
	a, b := ran[0].Load(), ran[1].Load()
	wg.Wait()
	// One caller's batches leave gaps that the other lane fills.
	if float64(b) > 3*float64(a) {
		t.Errorf("one caller's lane ran %d operations, eight callers' lane %d: want no more than 3 times as many", a, b)
	}
}

// BenchmarkVictim measures one tenant's operations, 200 a second, alone and while another floods.
func BenchmarkVictim(b *testing.B) {
	p := openPool(b, worker.Config{Command: commandOf(b, kept(b)), Workers: 2})
	victim, other := mint(b, p, acme, 1), mint(b, p, globex, 1)
	for range 20 {
		victim.do(b, p, 256)
		other.do(b, p, 256)
	}
	for _, flooded := range []bool{false, true} {
		b.Run(fmt.Sprintf("flooded=%t", flooded), func(b *testing.B) {
			if flooded {
				defer flood(p, 64, other.unwraps)()
			}
			var took []time.Duration
			for range b.N {
				time.Sleep(5 * time.Millisecond)
				ops := victim.unwraps(1)
				from := time.Now()
				p.Do(context.Background(), ops)
				took = append(took, time.Since(from))
				must(b, ops[0].Err)
			}
			b.ReportMetric(float64(quantile(took, 0.5))/1000, "p50-us")
			b.ReportMetric(float64(quantile(took, 0.99))/1000, "p99-us")
			b.ReportMetric(0, "ns/op")
		})
	}
}
