package state

import (
	"encoding/binary"
	"errors"
	"testing"

	"github.com/kekd/kekd/hierarchy"
)

// From inside, since 65,536 commands take their time.
func TestOldestOutcomeIsDropped(t *testing.T) {
	t.Parallel()
	d := New().draft()
	put := func(n uint64, err error) {
		d.index = n
		id := hierarchy.CommandID{ID: hierarchy.ID(binary.BigEndian.AppendUint64(make([]byte, 8), n))}
		d.remember(&outcome{id: id, index: n}, err)
	}
	has := func(n uint64) (*outcome, bool) {
		return d.outcomeByID.get(hierarchy.CommandID{ID: hierarchy.ID(binary.BigEndian.AppendUint64(make([]byte, 8), n))})
	}
	for n := range uint64(maxOutcomes) {
		put(n+1, nil)
	}
	if _, ok := has(1); !ok {
		t.Fatalf("the first of %d is gone", maxOutcomes)
	}
	put(maxOutcomes+1, hierarchy.ErrNotFound)
	if _, ok := has(1); ok {
		t.Error("the oldest is kept beyond the bound")
	}
	if _, ok := has(2); !ok {
		t.Error("more than the oldest was dropped")
	}
	if o, ok := has(maxOutcomes + 1); !ok || !errors.Is(o.err(), hierarchy.ErrNotFound) {
		t.Errorf("the last is %+v", o)
	}
	if n := d.outcomes.Len(); n != maxOutcomes {
		t.Errorf("%d are kept, want %d", n, maxOutcomes)
	}
}
