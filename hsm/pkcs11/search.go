package pkcs11

import (
	"sync"
	"time"

	"github.com/kekd/kekd/hierarchy"
)

// Searches may take this share of the time, and come no closer than searchGap: one listing
// takes 78 ms with 10,000 objects.
const (
	searchShare = 20
	searchGap   = 50 * time.Millisecond
)

// search collects the operations whose keys are not in the index. One listing answers for all
// of them: it costs as much as looking for a single ID.
type search struct {
	mu      sync.Mutex
	waiting []piece   // guarded by mu
	planned bool      // guarded by mu: a listing will take them along
	next    time.Time // guarded by mu: no listing before
}

// searchFor lists the token for keys that another process may have made since.
func (t *Token) searchFor(pieces []piece) {
	x := &t.search
	x.mu.Lock()
	defer x.mu.Unlock()
	x.waiting = append(x.waiting, pieces...)
	if x.planned {
		return
	}
	x.planned = true
	time.AfterFunc(time.Until(x.next), func() {
		select {
		case t.manager <- t.searchNow:
		case <-t.dead:
		}
	})
}

func (t *Token) searchNow(s *slot) {
	x := &t.search
	x.mu.Lock()
	pieces := x.waiting
	x.waiting, x.planned = nil, false
	x.mu.Unlock()

	err := t.searchAll(s, pieces)
	for _, p := range pieces {
		if err != nil {
			p.fail(err)
			continue
		}
		p.searched = true
		t.queue.retry(p)
	}
}

// searchAll lists the token and takes the listing in.
func (t *Token) searchAll(s *slot, pieces []piece) error {
	t.m.changes.Lock()
	defer t.m.changes.Unlock()
	start := time.Now()
	defer func() {
		t.search.mu.Lock()
		t.search.next = time.Now().Add(max(searchGap, searchShare*time.Since(start)))
		t.search.mu.Unlock()
	}()
	listing, err := t.list(s, false)
	if err != nil {
		t.judge(s, err)
		return err
	}
	// A token that is gone can show an empty listing: nothing is called missing until the
	// canary has answered.
	if err := s.canary(); err != nil {
		t.fail(err)
		return err
	}
	t.copies.orphan(t.index.replace(listing, start))
	t.index.miss(t.wanted(pieces), start)
	return nil
}

// wanted gives the IDs that the pieces need.
func (t *Token) wanted(pieces []piece) (ids []hierarchy.ObjectID) {
	var h held
	defer h.release()
	for _, p := range pieces {
		op := h.op(p)
		if op == nil {
			continue
		}
		if op.Open != nil {
			ids = append(ids, op.Open.Key.ID)
		}
		for i := range op.To {
			ids = append(ids, op.To[i].Key.ID)
		}
	}
	return ids
}
