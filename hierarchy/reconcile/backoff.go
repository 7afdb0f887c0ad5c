package reconcile

import "time"

// pace is how soon what failed is tried again: after first, then twice as long each time up to last.
type pace struct{ first, last time.Duration }

var (
	// usual is that of a token that does not answer, or a command that is not taken.
	usual = pace{50 * time.Millisecond, 2 * time.Second}
	// looking is that of a listing, for an object that is not there: it costs a large token most
	// of a second.
	looking = pace{50 * time.Millisecond, time.Minute}
	// givenUp is that of a token that has refused mintAttempts keys for one version.
	givenUp = pace{5 * time.Minute, 5 * time.Minute}
)

// task is what may fail: something that is done for a version, or with a zero version for all.
type task struct {
	version VersionID
	action  action
}

// trouble is a task that failed, and has not been done since.
type trouble struct {
	err   error
	wait  time.Duration
	until time.Time // not tried again before
}

// troubles are remembered over all changes of the hierarchy: a busy cluster must not have a token
// asked again at each of them.
type troubles map[task]*trouble

// failed notes a failure, and tells whether it is news.
func (ts troubles) failed(t task, err error, p pace) (news bool) {
	tr, again := ts[t]
	if !again {
		tr = &trouble{}
		ts[t] = tr
	}
	news = !again || tr.err.Error() != err.Error()
	tr.err = err
	tr.wait = min(max(2*tr.wait, p.first), p.last)
	tr.until = time.Now().Add(tr.wait)
	return news
}

func (ts troubles) over(t task) { delete(ts, t) }

// waits tells whether it is too early to try again.
func (ts troubles) waits(t task) bool {
	tr, ok := ts[t]
	return ok && time.Now().Before(tr.until)
}

// of is how a task failed last; nil if it did not.
func (ts troubles) of(t task) error {
	if tr, ok := ts[t]; ok {
		return tr.err
	}
	return nil
}

// next is when the first of them is due.
func (ts troubles) next() (at time.Time, ok bool) {
	for _, tr := range ts {
		if !ok || tr.until.Before(at) {
			at, ok = tr.until, true
		}
	}
	return at, ok
}

// keep forgets what nobody has to do any more.
func (ts troubles) keep(live map[task]bool) {
	for t := range ts {
		if !live[t] {
			delete(ts, t)
		}
	}
}
