package worker

import (
	"github.com/kekd/kekd/hsm"
)

// quantum is what a lane may send before the next one's turn, in units of cost.
const quantum = 16

// cost weighs an operation: one for each step in the token, and one for each 4 KiB that have to
// be carried.
func cost(op *hsm.Operation) uint16 { return uint16(steps(op) + operationSize(op)>>12) }

// steps is how many times the token encrypts or decrypts for an operation.
func steps(op *hsm.Operation) int {
	n := len(op.To)
	if op.Open != nil {
		n++
	}
	return max(n, 1)
}

// A queue holds what waits for a worker, in lanes: a deficit round robin (Shreedhar and
// Varghese, 1995) with the two lists of FQ-CoDel (RFC 8290, section 4.2). A lane that has
// nothing in flight when it has something to send is served before those that keep the
// workers busy.
//
// It is guarded by the pool's lock.
type queue struct {
	lanes  map[hsm.Lane]*lane
	fresh  lanes // nothing of theirs was in flight when they came
	old    lanes
	again  []piece // was in flight to a worker that ended
	appeal []piece // was denied by a server; for the manager
	size   int     // operations in lanes
	spare  *lane   // lanes of no use for now
	limit  int     // operations in one lane
	spared int
}

// sizeLimit bounds what waits in all lanes together, in operations.
const sizeLimit = 1 << 18

type lane struct {
	id       hsm.Lane
	runs     []run
	first    int // of the runs
	queued   int // operations in runs
	inFlight int // operations at workers
	deficit  int
	listed   bool // in fresh or old
	next     *lane
}

// A run is consecutive operations of one call in one lane, of one cost.
type run struct {
	call     *call
	from, to int32
	cost     uint16
}

// lanes is a list.
type lanes struct{ first, last *lane }

func (l *lanes) append(x *lane) {
	x.next = nil
	if l.last == nil {
		l.first = x
	} else {
		l.last.next = x
	}
	l.last = x
}

func (l *lanes) pop() *lane {
	x := l.first
	if l.first = x.next; l.first == nil {
		l.last = nil
	}
	x.next = nil
	return x
}

func newQueue(limit int) queue { return queue{lanes: map[hsm.Lane]*lane{}, limit: limit} }

func (q *queue) empty() bool { return q.size == 0 && len(q.again) == 0 && len(q.appeal) == 0 }

// push queues a run. False: its lane is full, or everything is.
func (q *queue) push(id hsm.Lane, r run) bool {
	n := int(r.to - r.from)
	l := q.lanes[id]
	if q.size+n > sizeLimit || l != nil && l.queued+n > q.limit || n > q.limit {
		return false
	}
	if l == nil {
		l = q.lane(id)
	}
	l.runs = append(l.runs, r)
	l.queued += n
	q.size += n
	if !l.listed {
		l.listed, l.deficit = true, quantum
		if l.inFlight == 0 {
			q.fresh.append(l)
		} else {
			q.old.append(l)
		}
	}
	return true
}

func (q *queue) lane(id hsm.Lane) *lane {
	l := q.spare
	if l == nil {
		l = &lane{}
	} else {
		q.spare = l.next
		q.spared--
	}
	*l = lane{id: id, runs: l.runs[:0]}
	q.lanes[id] = l
	return l
}

// release gives a lane back that has nothing to do any more.
func (q *queue) release(l *lane) {
	if l.listed || l.queued > 0 || l.inFlight > 0 {
		return
	}
	delete(q.lanes, l.id)
	if q.spared < 1024 && cap(l.runs) <= 64 {
		l.next, q.spare = q.spare, l
		q.spared++
	}
}

// take takes up to budget units of cost, and at least one operation, in fair turns. With only
// fresh set it serves no lane that has something in flight.
func (q *queue) take(buf []piece, budget int, onlyFresh bool) []piece {
	for budget > 0 {
		list := &q.fresh
		if list.first == nil {
			if list = &q.old; list.first == nil || onlyFresh {
				break
			}
		}
		l := list.first
		var used int
		if buf, used = q.serve(l, buf, budget, len(buf) == 0); used > 0 {
			budget -= used
			l.deficit -= used
		}
		switch {
		case l.queued == 0:
			list.pop()
			l.listed = false
			q.release(l)
		case l.deficit < int(l.runs[l.first].cost):
			// Its turn is over. What it could not pay for it saves.
			l.deficit += quantum
			list.pop()
			q.old.append(l)
		default:
			return buf // the budget is spent
		}
	}
	return buf
}

// serve takes what a lane can pay for and the budget allows. any: one operation in any case
// of the budget, as long as the lane can pay.
func (q *queue) serve(l *lane, buf []piece, budget int, any bool) (_ []piece, used int) {
	for l.queued > 0 {
		r := &l.runs[l.first]
		c := int(r.cost)
		if used+c > l.deficit || used+c > budget && !(any && used == 0) {
			break
		}
		buf = append(buf, piece{call: r.call, lane: l, i: r.from, cost: r.cost})
		used += c
		r.from++
		l.queued--
		q.size--
		l.inFlight++
		if r.from == r.to {
			*r = run{}
			l.first++
		}
	}
	l.compact()
	return buf, used
}

// compact forgets the runs that were served.
func (l *lane) compact() {
	if l.first == len(l.runs) || l.first > 32 {
		n := copy(l.runs, l.runs[l.first:])
		clear(l.runs[n:])
		l.runs, l.first = l.runs[:n], 0
	}
}

// landed takes note of an operation that is not in flight any more.
func (q *queue) landed(l *lane) {
	l.inFlight--
	q.release(l)
}

// drop takes out what waits of a call in these lanes, after its caller has left.
func (q *queue) drop(c *call, id hsm.Lane) {
	l := q.lanes[id]
	if l == nil {
		return
	}
	kept := l.runs[:0]
	for _, r := range l.runs[l.first:] {
		if r.call != c {
			kept = append(kept, r)
			continue
		}
		l.queued -= int(r.to - r.from)
		q.size -= int(r.to - r.from)
	}
	clear(l.runs[len(kept):])
	l.runs, l.first = kept, 0 // a lane that is empty leaves its list at its turn
}

// flush takes out everything, to be failed.
func (q *queue) flush() []piece {
	all := append(q.again, q.appeal...)
	q.again, q.appeal = nil, nil
	for i := range all {
		q.landed(all[i].lane)
	}
	for _, l := range q.lanes {
		for _, r := range l.runs[l.first:] {
			for i := r.from; i < r.to; i++ {
				all = append(all, piece{call: r.call, i: i})
			}
		}
		q.size -= l.queued
		clear(l.runs)
		l.runs, l.first, l.queued, l.listed, l.next = l.runs[:0], 0, 0, false, nil
		q.release(l)
	}
	q.fresh, q.old = lanes{}, lanes{}
	return all
}
