package custody

import (
	"slices"
	"sync/atomic"

	"github.com/kekd/kekd/hierarchy"
)

// OutcomeOK is what became of a request that was done. What was refused has the code of its refusal.
const OutcomeOK = "OK"

// Outcomes are all that can become of a request.
func Outcomes() []string { return slices.Clone(outcomes) }

var outcomes = append([]string{OutcomeOK}, hierarchy.Codes()...)

// tally counts what became of requests. Every request comes by here, so that a counter is found by its place and not
// by a name.
type tally struct {
	answered [][]atomic.Uint64 // by the place in hierarchy.AllOps, then in outcomes
	withheld atomic.Uint64
}

func newTally() *tally {
	t := &tally{answered: make([][]atomic.Uint64, len(hierarchy.AllOps))}
	for i := range t.answered {
		t.answered[i] = make([]atomic.Uint64, len(outcomes))
	}
	return t
}

// count takes note of a batch: at once of those that follow each other, are of one operation and were done.
func (t *tally) count(items []item) {
	var op hierarchy.Op
	done := uint64(0)
	for i := range items {
		it := &items[i]
		switch {
		case it.err != nil:
			t.add(it.op, hierarchy.Code(it.err), 1)
		case it.op == op:
			done++
		default:
			t.add(op, OutcomeOK, done)
			op, done = it.op, 1
		}
	}
	t.add(op, OutcomeOK, done)
}

// add counts nothing for a request that names no operation.
func (t *tally) add(op hierarchy.Op, outcome string, n uint64) {
	if i := slices.Index(hierarchy.AllOps, op); i >= 0 {
		t.answered[i][slices.Index(outcomes, outcome)].Add(n)
	}
}

// Answered is how many requests for an operation have come to an outcome since the daemon has begun. Those of a batch
// are counted one by one. What was taken back of an answer that left part by part, and had begun to, was counted
// as what it was before; see [Custody.Withheld].
func (c *Custody) Answered(op hierarchy.Op, outcome string) uint64 {
	i, j := slices.Index(hierarchy.AllOps, op), slices.Index(outcomes, outcome)
	if i < 0 || j < 0 {
		return 0
	}
	return c.tally.answered[i][j].Load()
}

// Withheld is how many results were taken back by a last look, after the token had given them.
func (c *Custody) Withheld() uint64 { return c.tally.withheld.Load() }
