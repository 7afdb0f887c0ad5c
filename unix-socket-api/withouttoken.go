package socketapi

import (
	"context"
	"fmt"
	"strings"
	"sync"

	"github.com/kekd/kekd/hierarchy"
	"github.com/kekd/kekd/hierarchy/custody"
	"github.com/kekd/kekd/hierarchy/state"
)

// WithoutToken is the [Custody] of a node that has no HSM. It refuses everything, and says where to go
// instead. It looks at no request, so that there is nothing for the journal to say of any.
type WithoutToken struct {
	Self  hierarchy.NodeID
	State func() *state.State
}

func (w WithoutToken) Do(_ context.Context, _ hierarchy.Principal, _ []custody.Request, resps []custody.Response) {
	err := w.refusal()
	for i := range resps {
		resps[i] = custody.Response{Err: err}
	}
}

func (w WithoutToken) DoInTurn(ctx context.Context, who hierarchy.Principal, reqs []custody.Request, resps []custody.Response, turn sync.Locker) func(context.Context, int, int) {
	w.Do(ctx, who, reqs, resps)
	turn.Lock()
	return func(context.Context, int, int) {}
}

func (w WithoutToken) refusal() error {
	s := w.State()
	name := w.Self.String()
	if n, ok := s.Node(w.Self); ok {
		name = n.Name
	}
	var serve []string
	for r := range s.Regions() {
		if r.Role != hierarchy.RoleWitness {
			serve = append(serve, r.Name)
		}
	}
	return fmt.Errorf("%w: node %s has no HSM, and serves no keys: ask a node of region %s", hierarchy.ErrFailedPrecondition, name, strings.Join(serve, " or "))
}
