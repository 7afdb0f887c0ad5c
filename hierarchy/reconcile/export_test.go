package reconcile

import (
	"github.com/kekd/kekd/hierarchy"
	"github.com/kekd/kekd/hierarchy/state"
	"github.com/kekd/kekd/hsm"
)

// Plan tells how many steps there are to take, and how many objects are lost.
func Plan(s *state.State, region hierarchy.RegionID, have map[hierarchy.ObjectID]hsm.Object) (steps, gone int) {
	st, g := plan(s, region, have, true)
	return len(st), len(g)
}
