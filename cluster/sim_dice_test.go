package cluster_test

import (
	"hash/fnv"
	"math/rand/v2"
	"sync"
	"time"
)

// simDice draw one sequence of numbers. Whoever's draws the seed is to fix has dice of his own: where many draw
// from the same, the order in which they do is the scheduler's.
type simDice struct {
	mu  sync.Mutex
	rng *rand.Rand
}

func newSimDice(seed uint64, whose string) *simDice {
	h := fnv.New64a()
	h.Write([]byte(whose))
	return &simDice{rng: rand.New(rand.NewPCG(seed, h.Sum64()))}
}

// draw is a number below n.
func (d *simDice) draw(n int) int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.rng.IntN(n)
}

func (d *simDice) chance(p float64) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.rng.Float64() < p
}

// between is a time of at least low and below high.
func (d *simDice) between(low, high time.Duration) time.Duration {
	d.mu.Lock()
	defer d.mu.Unlock()
	return low + time.Duration(d.rng.Int64N(int64(high-low)))
}

// perhaps takes up to so much time.
func (d *simDice) perhaps(p float64, most time.Duration) {
	if most > 0 && (p >= 1 || d.chance(p)) {
		time.Sleep(d.between(0, most))
	}
}
