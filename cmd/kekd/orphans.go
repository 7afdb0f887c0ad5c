package main

import (
	"context"
	"fmt"

	"github.com/kekd/kekd/hierarchy"
	"github.com/kekd/kekd/hierarchy/reconcile"
	"github.com/kekd/kekd/hsm"
	"github.com/kekd/kekd/unix-socket-api"
)

// orphans are the keys in the token that the hierarchy does not know.
type orphans struct{ n *node }

func (o orphans) Orphans(ctx context.Context) ([]socketapi.Orphan, error) {
	objects, err := o.list(ctx)
	if err != nil {
		return nil, err
	}
	return told(objects), nil
}

func (o orphans) Sweep(ctx context.Context) (destroyed []socketapi.Orphan, err error) {
	objects, err := o.list(ctx)
	if err != nil {
		return nil, err
	}
	if minter, ours := reconcile.Minter(o.n.raft.State(), o.n.self.RegionID, o.n.self.NodeID); !ours {
		return nil, fmt.Errorf("%w: node %s mints for region %s, and alone destroys in its token: ask there", hierarchy.ErrFailedPrecondition, minter, o.n.self.Region)
	}
	for _, object := range objects {
		if err := o.n.token.Destroy(ctx, object.ID); err != nil {
			return destroyed, fmt.Errorf("destroy %s: %w", object.Label, err)
		}
		destroyed = append(destroyed, told([]hsm.Object{object})...)
	}
	if len(destroyed) > 0 {
		o.n.reconciler.Doubt() // it lists the token anew
	}
	return destroyed, nil
}

// list compares the token with a copy of the hierarchy that was confirmed after the token was listed: a key
// is made after the command that asks for it, so that what this copy does not know was asked for by none.
func (o orphans) list(ctx context.Context) ([]hsm.Object, error) {
	if !o.n.up.Load() {
		return nil, fmt.Errorf("%w: node %s is starting", hierarchy.ErrStale, o.n.self.Node)
	}
	objects, err := o.n.token.List(ctx)
	if err != nil {
		return nil, fmt.Errorf("%w: the token's objects cannot be listed: %w", hierarchy.ErrHSMUnavailable, err)
	}
	if err := o.n.confirmed(ctx); err != nil {
		return nil, err
	}
	return reconcile.Orphans(o.n.raft.State(), o.n.self.RegionID, objects), nil
}

// confirmed returns when a leader has confirmed this node's copy of the hierarchy by a renewal that was asked for
// after the call.
func (n *node) confirmed(ctx context.Context) error {
	// The first one that ends may have been under way.
	for range 2 {
		select {
		case <-n.raft.Renewed():
		case <-ctx.Done():
			return fmt.Errorf("%w: no leader has confirmed this node's copy of the hierarchy: %w", hierarchy.ErrStale, ctx.Err())
		}
	}
	return nil
}

func told(objects []hsm.Object) []socketapi.Orphan {
	list := make([]socketapi.Orphan, 0, len(objects))
	for _, o := range objects {
		list = append(list, socketapi.Orphan{ID: o.ID, Label: o.Label})
	}
	return list
}
