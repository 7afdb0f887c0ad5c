package quota

import (
	"bytes"
	"slices"
	"sync"
	"time"

	"github.com/kekd/kekd/hierarchy"
)

const (
	// RefusalsPerSecond is how many of one user's refusals are recorded one by one in a second. A
	// refusal costs its caller nothing; without a bound it would cost everybody else the journal's
	// disk.
	RefusalsPerSecond = 100
	// RefusingTenants is of how many tenants a user's first refusal in a second is recorded
	// whatever he has spent on others, and those that are too many are counted apart: who tries one
	// tenant's door cannot hide that behind another's.
	RefusingTenants = 100
)

// Refusals counts what users were refused for want of permission. The zero value is ready.
type Refusals struct {
	mu    sync.Mutex
	users map[uint32]*refused
	ended []Uncounted
}

// refused is one user's present second.
type refused struct {
	first   hierarchy.Principal
	since   time.Time
	single  int                        // recorded one by one, of the allowance
	tenants map[hierarchy.TenantID]int // how many more, of each
	others  int                        // how many more, of no tenant or of one too many
}

// Uncounted says how many refusals of a user in one second have no record of their own.
type Uncounted struct {
	Caller hierarchy.Principal // of the user's first refusal in that second
	Tenant hierarchy.TenantID  // zero: of names that no tenant has, or of more tenants than are counted apart
	Since  time.Time
	Count  int
}

// Admit counts a refusal that is about a tenant, or about none, and tells whether it is to be
// recorded by itself.
func (r *Refusals) Admit(who hierarchy.Principal, tenant hierarchy.TenantID, now time.Time) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	u := r.users[who.UID]
	if u == nil || over(u, now) {
		if r.users == nil {
			r.users = map[uint32]*refused{}
		}
		if u != nil {
			r.end(u)
		}
		u = &refused{first: who, since: now, tenants: map[hierarchy.TenantID]int{}}
		r.users[who.UID] = u
	}
	_, apart := u.tenants[tenant]
	first := !apart && !tenant.IsZero() && len(u.tenants) < RefusingTenants
	if first {
		u.tenants[tenant], apart = 0, true
	}
	switch {
	case u.single < RefusalsPerSecond:
		u.single++
		return true
	case first:
		return true
	case apart:
		u.tenants[tenant]++
	default:
		u.others++
	}
	return false
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
			r.end(u)
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

func (r *Refusals) end(u *refused) {
	from := len(r.ended)
	for tenant, n := range u.tenants {
		if n > 0 {
			r.ended = append(r.ended, Uncounted{u.first, tenant, u.since, n})
		}
	}
	slices.SortFunc(r.ended[from:], func(a, b Uncounted) int { return bytes.Compare(a.Tenant.ID[:], b.Tenant.ID[:]) })
	if u.others > 0 {
		r.ended = append(r.ended, Uncounted{u.first, hierarchy.TenantID{}, u.since, u.others})
	}
}
