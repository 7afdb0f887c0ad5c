package pkcs11

import (
	"sync"

	"github.com/kekd/kekd/hsm"
)

const (
	// chunkSize is how many operations a token's only slot takes at once: 64 of them hold it for
	// about half a millisecond on SoftHSM, and the cost of the crossing is gone from 16 on.
	chunkSize = 64
	// queueLimit bounds what waits. A token that does 10,000 a second is six seconds behind then.
	queueLimit = 1 << 16
)

// A queue holds what waits for a slot, in the order in which it came, and the slots that wait
// for something to do. Who sends much is made to wait for himself before this queue: see
// package worker.
//
// No goroutine belongs to a slot. Whoever brings something while a slot is idle is given that
// slot, and works with it until nothing waits: a hand-over to another goroutine costs as much as
// an operation.
type queue struct {
	chunk int // operations that a slot takes at once

	mu     sync.Mutex
	idle   []*slot        // guarded by mu
	runs   []run          // guarded by mu
	again  []piece        // guarded by mu: tried before; they go before the runs
	jobs   []func(*slot)  // guarded by mu: they go first
	size   int            // guarded by mu: operations in runs
	closed bool           // guarded by mu
	busy   sync.WaitGroup // the slots that are not idle. Added to only with mu held and closed unset
}

// A run is consecutive operations of one call.
type run struct {
	call     *call
	from, to int
}

// newQueue makes the queue of a token with so many slots. Of several, each takes one operation
// at a time: they are many because each waits for its answer, and what waits in one slot's
// chunk could have been under way in another.
func newQueue(slots int) *queue {
	if slots > 1 {
		return &queue{chunk: 1}
	}
	return &queue{chunk: chunkSize}
}

// push queues those n operations of the call that have no error yet. If a slot is idle, the
// caller gets it and has to work with it. False: the queue is full.
func (q *queue) push(c *call, ops []hsm.Operation, n int) (*slot, bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.size+n > queueLimit {
		return nil, false
	}
	for i := 0; i < len(ops); {
		if ops[i].Err != nil {
			i++
			continue
		}
		from := i
		for i < len(ops) && ops[i].Err == nil {
			i++
		}
		q.runs = append(q.runs, run{c, from, i})
	}
	q.size += n
	s := q.wake()
	for i := q.chunk; i < n; i += q.chunk {
		other := q.wake()
		if other == nil {
			break
		}
		go other.work(nil)
	}
	return s, true
}

// wake gives an idle slot, if there is one. The caller holds mu.
func (q *queue) wake() *slot {
	n := len(q.idle)
	if n == 0 || q.closed {
		return nil
	}
	s := q.idle[n-1]
	q.idle = q.idle[:n-1]
	q.busy.Add(1)
	return s
}

// retry queues pieces again, ahead of what is new.
func (q *queue) retry(p ...piece) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.again = append(q.again, p...)
	q.start()
}

// do queues a job.
func (q *queue) do(job func(*slot)) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.jobs = append(q.jobs, job)
	q.start()
}

// start lets an idle slot work. The caller holds mu.
func (q *queue) start() {
	if s := q.wake(); s != nil {
		go s.work(nil)
	}
}

// join adds a slot, which begins to work.
func (q *queue) join(s *slot) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.idle = append(q.idle, s)
	q.start()
}

// take gives something to do: a job, or pieces, appended to buf. False: there is nothing, and
// the slot is idle.
func (q *queue) take(s *slot, buf []piece) ([]piece, func(*slot), bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.closed || len(q.jobs) == 0 && len(q.again) == 0 && len(q.runs) == 0 {
		q.rest(s)
		return buf, nil, false
	}
	if len(q.jobs) > 0 {
		job := q.jobs[0]
		q.jobs = q.jobs[1:]
		return buf, job, true
	}
	n := min(len(q.again), q.chunk)
	buf = append(buf, q.again[:n]...)
	q.again = q.again[:copy(q.again, q.again[n:])]

	used := 0
	for used < len(q.runs) && len(buf) < q.chunk {
		r := &q.runs[used]
		for r.from < r.to && len(buf) < q.chunk {
			buf = append(buf, piece{call: r.call, i: r.from})
			r.from++
			q.size--
		}
		if r.from == r.to {
			used++
		}
	}
	if used > 0 {
		rest := copy(q.runs, q.runs[used:])
		clear(q.runs[rest:])
		q.runs = q.runs[:rest]
	}
	return buf, nil, true
}

// rest makes a slot idle. The caller holds mu.
func (q *queue) rest(s *slot) {
	q.idle = append(q.idle, s)
	q.busy.Done()
}

// leave is for who worked with a slot and has what he wants: another goes on, or it is idle.
func (q *queue) leave(s *slot) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.closed || len(q.jobs) == 0 && len(q.again) == 0 && len(q.runs) == 0 {
		q.rest(s)
		return
	}
	go s.work(nil)
}

// close lets the slots become idle, and gives them when they are: it waits for those that work.
func (q *queue) close() []*slot {
	q.mu.Lock()
	q.closed = true
	q.mu.Unlock()
	q.busy.Wait()
	return q.idle // nobody touches it any more
}
