package worker

import "sync"

const (
	// slice is how many steps in the token are run at once: long enough that the token never waits
	// for the next one (16 cost a quarter of the rate), and short, since nobody overtakes what runs.
	slice = 32
	// runners is how many slices are with the token: one that runs, and the next.
	runners = 2
	// smallRow is how many small jobs may go before large ones in a row.
	smallRow = 4
)

// jobs are the frames that wait for a token that runs one operation at a time. Small ones go
// first, and large ones take turns by the slice.
type jobs struct {
	mu     sync.Mutex
	wake   sync.Cond
	small  []*job // guarded by mu
	large  []*job // guarded by mu
	row    int    // guarded by mu: small ones in a row
	closed bool   // guarded by mu
}

func newJobs() *jobs {
	q := &jobs{}
	q.wake.L = &q.mu
	return q
}

func (q *jobs) add(j *job) {
	sum := 0
	for i := range j.ops {
		sum += steps(&j.ops[i])
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	if sum <= slice {
		q.small = append(q.small, j)
	} else {
		q.large = append(q.large, j)
	}
	q.wake.Signal()
}

// take waits for a slice of a job. Nil: closed.
func (q *jobs) take() (j *job, from, to int) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for !q.closed && len(q.small) == 0 && len(q.large) == 0 {
		q.wake.Wait()
	}
	if q.closed {
		return nil, 0, 0
	}
	list := &q.large
	if len(q.small) > 0 && (len(q.large) == 0 || q.row < smallRow) {
		list = &q.small
		q.row++
	} else {
		q.row = 0
	}
	j = (*list)[0]
	*list = (*list)[:copy(*list, (*list)[1:])]
	from = j.next
	for sum := 0; j.next < len(j.ops); j.next++ {
		sum += steps(&j.ops[j.next])
		if sum > slice && j.next > from {
			break
		}
	}
	if j.next < len(j.ops) {
		*list = append(*list, j)
	}
	return j, from, j.next
}

// ran notes that n operations of a job were run, and tells whether they were the last.
func (q *jobs) ran(j *job, n int) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	j.done += n
	return j.done == len(j.ops)
}

func (q *jobs) close() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.closed = true
	q.wake.Broadcast()
}
