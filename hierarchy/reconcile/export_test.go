package reconcile

import (
	"fmt"

	"github.com/kekd/kekd/hierarchy"
	"github.com/kekd/kekd/hierarchy/state"
	"github.com/kekd/kekd/hsm"
)

// Plans plans for one state after the other as a reconciler does, and for all versions beside.
type Plans struct{ attention attention }

// Task is a step of a plan, to be taken by who has no token.
type Task struct {
	Action string
	Object hierarchy.ObjectID
	Tenant hierarchy.TenantID
	Key    hierarchy.KeyID
	Number uint32
	Tries  uint32
}

// Next gives the steps to take, and words for all that was planned: with attention, and without.
func (p *Plans) Next(s *state.State, region hierarchy.RegionID, have map[hierarchy.ObjectID]hsm.Object, latches bool) (tasks []Task, some, all []string) {
	looked := p.attention.versions(s, region)
	steps, gone := plan(s, looked, have, latches)
	p.attention.note(s, looked, have, latches)
	for _, st := range steps {
		tasks = append(tasks, Task{
			Action: [...]string{latch: "latch", unlatch: "unlatch", sweep: "sweep", mint: "mint"}[st.action],
			Object: st.object, Tenant: st.tenant.ID, Key: st.key.ID, Number: st.version.Number, Tries: st.version.Attempt,
		})
	}
	some = append(words(steps, gone), shut(looked)...)
	whole := versions(s, region)
	steps, gone = plan(s, whole, have, latches)
	return tasks, some, append(words(steps, gone), shut(whole)...)
}

// Pass is Next without the words.
func (p *Plans) Pass(s *state.State, region hierarchy.RegionID, have map[hierarchy.ObjectID]hsm.Object) int {
	looked := p.attention.versions(s, region)
	steps, gone := plan(s, looked, have, true)
	p.attention.note(s, looked, have, true)
	return len(steps) + len(gone)
}

// Listed is that the token was listed anew.
func (p *Plans) Listed() { p.attention.forget() }

// Awake is how many keys are looked at again whatever happens.
func (p *Plans) Awake() int { return len(p.attention.awake) }

func words(steps []step, gone []lost) (all []string) {
	for _, st := range steps {
		all = append(all, fmt.Sprint("step ", st.action, st.id(), st.object))
	}
	for _, l := range gone {
		all = append(all, fmt.Sprint("lost ", l.id(), l.why))
	}
	return all
}

// shut are those that the serving side is to have forgotten.
func shut(some func(func(placed) bool)) (all []string) {
	for p := range some {
		if n := p.need(); p.region.Minted && n != open {
			all = append(all, fmt.Sprint("shut ", p.id(), n))
		}
	}
	return all
}
