package quota

import (
	"sync"
	"time"
)

// RefusalsPerSecond is how many of one user's refusals are recorded one by one in a second. A
// refusal costs its caller nothing; without a bound it would cost everybody else the journal's
// disk. What is over it is counted.
const RefusalsPerSecond = 100

// Refusals counts what users were refused for want of permission. The zero value is ready.
type Refusals struct {
	mu    sync.Mutex
	users map[uint32]*refused
	ended []Uncounted
}

// refused is one user's present second.
type refused struct {
	since time.Time
	count int
}

// Uncounted says how many refusals of a user in one second have no record of their own.
type Uncounted struct {
	UID   uint32
	Since time.Time
	Count int
}

// Admit counts n refusals of a user, and returns how many of them are to be recorded one by one.
func (r *Refusals) Admit(uid uint32, now time.Time, n int) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	u := r.users[uid]
	if u == nil {
		if r.users == nil {
			r.users = map[uint32]*refused{}
		}
		u = &refused{since: now}
		r.users[uid] = u
	} else if over(u, now) {
		r.end(uid, u)
		*u = refused{since: now}
	}
	single := min(n, max(0, RefusalsPerSecond-u.count))
	u.count += n
	return single
}

// Ended returns the seconds that are over and had more refusals than are recorded one by one, each
// once.
func (r *Refusals) Ended(now time.Time) []Uncounted {
	return r.take(func(u *refused) bool { return over(u, now) })
}

// All is Ended for all seconds, over or not: nobody will ask again.
func (r *Refusals) All() []Uncounted {
	return r.take(func(*refused) bool { return true })
}

func (r *Refusals) take(which func(*refused) bool) []Uncounted {
	r.mu.Lock()
	defer r.mu.Unlock()
	for uid, u := range r.users {
		if which(u) {
			r.end(uid, u)
			delete(r.users, uid)
		}
	}
	ended := r.ended
	r.ended = nil
	return ended
}

func over(u *refused, now time.Time) bool {
	age := now.Sub(u.since)
	return age >= time.Second || age < 0 // a clock that was set back begins anew
}

func (r *Refusals) end(uid uint32, u *refused) {
	if more := u.count - RefusalsPerSecond; more > 0 {
		r.ended = append(r.ended, Uncounted{uid, u.since, more})
	}
}
