package history

import (
	"slices"
	"sync"
)

// Recorder takes down operations as they happen, from any number of goroutines.
type Recorder struct {
	mu  sync.Mutex
	ops []Operation
}

// Begin takes down that an operation is about to be sent, and its time. Until [Pending.End] its outcome
// is unknown.
func (r *Recorder) Begin(o Operation) *Pending {
	r.mu.Lock()
	defer r.mu.Unlock()
	o.Call, o.Return, o.Outcome = Now(), 0, Unknown
	r.ops = append(r.ops, o)
	return &Pending{recorder: r, at: len(r.ops) - 1}
}

// Pending is an operation that was sent.
type Pending struct {
	recorder *Recorder
	at       int
}

// End takes down what became of it, and when. What happened is told by o's fields besides what was asked for:
// Node, Run, Tries, Outcome, Code, Index, Seen.
func (p *Pending) End(o Operation) {
	now := Now() // before the lock: a wait for it is no part of the operation
	p.recorder.mu.Lock()
	defer p.recorder.mu.Unlock()
	was := &p.recorder.ops[p.at]
	was.Return = now
	was.Node, was.Run, was.Tries = o.Node, o.Run, o.Tries
	was.Outcome, was.Code, was.Index, was.Seen = o.Outcome, o.Code, o.Index, o.Seen
}

// Operations are those of now, in the order of their calls.
func (r *Recorder) Operations() []Operation {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.ops)
}
