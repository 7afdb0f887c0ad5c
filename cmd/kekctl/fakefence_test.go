package main

import (
	"context"
	"time"

	"github.com/kekd/kekd/unix-socket-api/kekdv1"
)

// fence is that of a closing, which the fake's only node acknowledges at once.
func (f *fakeAdmin) fence(noWait bool) *kekdv1.Fence {
	m := &kekdv1.Fence{Index: f.h.index + 1}
	if !noWait {
		m.Fenced, m.Elapsed = true, int64(3*time.Millisecond)
		m.Nodes = []*kekdv1.FencedNode{{Id: f.h.node.String(), Name: "one", How: "acknowledged"}}
	}
	return m
}

func (f *fakeAdmin) GetFenceBound(context.Context, *kekdv1.GetFenceBoundRequest) (*kekdv1.GetFenceBoundResponse, error) {
	return &kekdv1.GetFenceBoundResponse{Bound: int64(20 * time.Millisecond)}, nil
}
