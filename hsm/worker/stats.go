package worker

import (
	"errors"
	"iter"
	"sync/atomic"
	"time"

	"github.com/kekd/kekd/hsm"
	"github.com/kekd/kekd/stats"
)

// What data keys go through. They are named as their callers name them.
const (
	useWrap = iota
	useUnwrap
	useDataKey
	useRewrap
	uses
)

var useNames = [uses]string{"wrap", "unwrap", "datakey", "rewrap"}

// useOf a valid operation.
func useOf(op *hsm.Operation) int {
	switch {
	case op.Open != nil && len(op.To) > 0:
		return useRewrap
	case op.Open != nil:
		return useUnwrap
	case op.Random != 0:
		return useDataKey
	}
	return useWrap
}

// verbNames are what requests are called in statistics.
var verbNames = [verbs]string{
	verbHealthy: "health", verbForget: "forget", verbSign: "sign", verbList: "list", verbInfo: "info",
	verbGenerate: "generate", verbSetUsable: "latch", verbDestroy: "destroy", verbExamine: "examine",
	verbMark: "read_mark", verbRaiseMark: "mark", verbBegin: "begin_agreement", verbDerive: "derive", verbEnd: "end_agreement",
}

// counts are what a pool counts. It is read without the pool's lock.
type counts struct {
	uses  [uses]stats.Histogram
	verbs [verbs]stats.Histogram
	ended atomic.Uint64 // workers that ended while they were wanted
}

// mix is how many operations of each use a call has.
type mix [uses]int

func (c *counts) used(m *mix, took time.Duration) {
	for use, n := range m {
		if n > 0 {
			c.uses[use].ObserveN(took, n)
		}
	}
}

// asked counts a request that was answered, or given up. One whose worker has ended is asked again.
func (c *counts) asked(v verb, began time.Time, err error) {
	if !errors.Is(err, errGone) {
		c.verbs[v].Observe(time.Since(began))
	}
}

// OperationNames are those of [Pool.Durations].
func OperationNames() []string { return append(useNames[:], verbNames[verbHealthy:]...) }

// Durations gives how long what was asked of the token took, by operation: from when it was asked until there was an
// answer or nobody waited any more, its time in the queue included. Each operation of a batch took as long as all of it.
func (p *Pool) Durations() iter.Seq2[string, stats.Distribution] {
	return func(yield func(string, stats.Distribution) bool) {
		for use := range p.counts.uses {
			if !yield(useNames[use], p.counts.uses[use].Read()) {
				return
			}
		}
		for v := verbHealthy; v < verbs; v++ {
			if !yield(verbNames[v], p.counts.verbs[v].Read()) {
				return
			}
		}
	}
}

// Stats is how a pool is at a moment.
type Stats struct {
	Workers int    // that serve
	Seats   int    // workers that there ought to be
	Ended   uint64 // workers that ended while they were wanted, since Open
	Queued  int    // operations that wait for a worker
	Sent    int    // operations that are at one
}

// Stats looks at the pool. It asks no worker.
func (p *Pool) Stats() Stats {
	p.mu.Lock()
	defer p.mu.Unlock()
	s := Stats{
		Workers: len(p.workers), Seats: len(p.seats), Ended: p.counts.ended.Load(),
		Queued: p.queue.size + len(p.queue.again) + len(p.queue.appeal),
	}
	for _, w := range p.workers {
		s.Sent += w.inFlight
	}
	return s
}
