package cluster_test

import (
	"context"
	"sync"

	"github.com/kekd/kekd/cluster"
)

// kept is a mark in memory.
type kept struct {
	mu     sync.Mutex
	mark   cluster.Mark
	marked bool
	fails  error                // what SetMark fails with
	before func(m cluster.Mark) // called by SetMark, before the mark is kept
}

func (k *kept) Mark(context.Context) (cluster.Mark, bool, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.mark, k.marked, nil
}

func (k *kept) SetMark(ctx context.Context, m cluster.Mark) error {
	k.mu.Lock()
	before, err := k.before, k.fails
	k.mu.Unlock()
	if before != nil {
		before(m)
	}
	if err != nil {
		return err
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.mark.Term = max(k.mark.Term, m.Term)
	if m.LastTerm > k.mark.LastTerm || m.LastTerm == k.mark.LastTerm && m.LastIndex > k.mark.LastIndex {
		k.mark.LastTerm, k.mark.LastIndex = m.LastTerm, m.LastIndex
	}
	k.marked = true
	return nil
}

func (k *kept) is() cluster.Mark {
	m, _, _ := k.Mark(context.Background())
	return m
}

func (k *kept) on(before func(m cluster.Mark)) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.before = before
}

func (k *kept) failing(err error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.fails = err
}
