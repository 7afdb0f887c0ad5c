package worker

const (
	// slice is how many steps in the token are run at once: long enough that what comes between
	// two slices does not count, and short, since nobody overtakes what runs.
	slice = 32
	// smallRow is how many small jobs may go before large ones in a row.
	smallRow = 4
)

// jobs are the frames that wait for a token that runs one operation at a time. Small ones go
// first, and large ones take turns by the slice. They belong to one goroutine.
type jobs struct {
	small []*job
	large []*job
	row   int // small ones in a row
}

func (q *jobs) empty() bool { return len(q.small) == 0 && len(q.large) == 0 }

func (q *jobs) add(j *job) {
	sum := 0
	for i := range j.ops {
		sum += steps(&j.ops[i])
	}
	if sum <= slice {
		q.small = append(q.small, j)
	} else {
		q.large = append(q.large, j)
	}
}

// take gives a slice of a job. One has to wait.
func (q *jobs) take() (j *job, from, to int) {
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
