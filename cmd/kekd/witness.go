package main

import (
	"context"
	"fmt"
	"sync"

	"github.com/kekd/kekd/hierarchy"
	"github.com/kekd/kekd/hierarchy/custody"
)

// noCustody answers for a witness, which has no keys. There is nothing in it to be audited: whoever asks is
// refused nothing that he could have here.
type noCustody struct{ name string }

func (n noCustody) Do(_ context.Context, _ hierarchy.Principal, _ []custody.Request, resps []custody.Response) {
	for i := range resps {
		resps[i].Err = fmt.Errorf("%w: node %s is a witness: it votes, and has no HSM to serve from; call a node of another region", hierarchy.ErrHSMUnavailable, n.name)
	}
}

func (n noCustody) DoInTurn(ctx context.Context, who hierarchy.Principal, reqs []custody.Request, resps []custody.Response, turn sync.Locker) func(context.Context, int, int) {
	n.Do(ctx, who, reqs, resps)
	if turn != nil {
		turn.Lock()
	}
	return func(context.Context, int, int) {}
}
