package pkcs11

import (
	"sync"

	"github.com/kekd/kekd/hsm"
)

const (
	// chunkSize is how many operations a slot takes at once: 64 of them hold it for about half
	// a millisecond on SoftHSM, and the cost of the crossing is gone from 16 on.
	chunkSize = 64
	// quantum is how many operations a lane gets before the next one's turn.
	quantum = 16
	// queueLimit bounds what waits. A token that does 10,000 a second is six seconds behind then.
	queueLimit = 1 << 16
)

// A queue holds what waits for a slot: operations in lanes that are served in turn, so that a
// tenant who sends much waits for himself, and jobs, which go first.
type queue struct {
	mu     sync.Mutex
	wake   sync.Cond
	lanes  map[hsm.Lane]*lane
	first  *lane // the ring of lanes that have something, as a list
	last   *lane
	again  []piece // tried before; they go before the lanes
	jobs   []func(*slot)
	size   int
	closed bool
	spare  *lane // emptied lanes
}

type lane struct {
	id   hsm.Lane
	runs []run
	next *lane
}

// A run is consecutive operations of one call in one lane.
type run struct {
	call     *call
	from, to int
}

func newQueue() *queue {
	q := &queue{lanes: map[hsm.Lane]*lane{}}
	q.wake.L = &q.mu
	return q
}

// push queues those operations of the call that have no error yet. False: the queue is full.
func (q *queue) push(c *call, ops []hsm.Operation, n int) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.size+n > queueLimit {
		return false
	}
	for i := 0; i < len(ops); {
		if ops[i].Err != nil {
			i++
			continue
		}
		from, id := i, ops[i].Lane
		for i < len(ops) && ops[i].Err == nil && ops[i].Lane == id {
			i++
		}
		l := q.lanes[id]
		if l == nil {
			l = q.newLane(id)
			q.lanes[id] = l
			q.append(l)
		}
		l.runs = append(l.runs, run{c, from, i})
	}
	q.size += n
	q.wake.Signal()
	return true
}

func (q *queue) newLane(id hsm.Lane) *lane {
	l := q.spare
	if l == nil {
		return &lane{id: id}
	}
	q.spare = l.next
	*l = lane{id: id, runs: l.runs[:0]}
	return l
}

func (q *queue) append(l *lane) {
	if q.last == nil {
		q.first = l
	} else {
		q.last.next = l
	}
	q.last = l
}

// retry queues pieces again, ahead of what is new.
func (q *queue) retry(p ...piece) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.again = append(q.again, p...)
	q.wake.Signal()
}

// do queues a job.
func (q *queue) do(job func(*slot)) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.jobs = append(q.jobs, job)
	q.wake.Signal()
}

// take waits for something to do: a job, or pieces, appended to buf. False: closed.
func (q *queue) take(buf []piece) ([]piece, func(*slot), bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for !q.closed && len(q.jobs) == 0 && len(q.again) == 0 && q.first == nil {
		q.wake.Wait()
	}
	if q.closed {
		return buf, nil, false
	}
	if len(q.jobs) > 0 {
		job := q.jobs[0]
		q.jobs = q.jobs[1:]
		return buf, job, true
	}
	n := min(len(q.again), chunkSize)
	buf = append(buf, q.again[:n]...)
	q.again = q.again[:copy(q.again, q.again[n:])]
	for len(buf) < chunkSize && q.first != nil {
		buf = q.turn(buf)
	}
	if q.first != nil || len(q.again) > 0 {
		q.wake.Signal() // another slot may take the rest
	}
	return buf, nil, true
}

// turn gives the first lane its turn.
func (q *queue) turn(buf []piece) []piece {
	l := q.first
	n := chunkSize - len(buf)
	if l.next != nil {
		n = min(n, quantum)
	}
	used := 0
	for used < len(l.runs) && n > 0 {
		r := &l.runs[used]
		for r.from < r.to && n > 0 {
			buf = append(buf, piece{call: r.call, i: r.from})
			r.from++
			q.size--
			n--
		}
		if r.from == r.to {
			used++
		}
	}
	rest := copy(l.runs, l.runs[used:])
	clear(l.runs[rest:])
	l.runs = l.runs[:rest]

	if q.first = l.next; q.first == nil {
		q.last = nil
	}
	l.next = nil
	if rest > 0 {
		q.append(l)
	} else {
		delete(q.lanes, l.id)
		l.next, q.spare = q.spare, l
	}
	return buf
}

// close wakes the slots, who leave.
func (q *queue) close() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.closed = true
	q.wake.Broadcast()
}
