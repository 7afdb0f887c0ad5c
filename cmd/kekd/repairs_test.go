package main

import (
	"context"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"testing/synctest"

	"github.com/google/go-cmp/cmp"

	"github.com/kekd/kekd/hierarchy/audit"
	"github.com/kekd/kekd/hsm/softhsm"
)

// written is a journal that keeps what it is given, once it is let.
type written struct {
	let chan struct{} // closed: it writes

	mu      sync.Mutex
	details []string
}

func (w *written) Write(_ context.Context, records []audit.Record) (audit.Position, error) {
	<-w.let
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(records) > audit.MaxAppend {
		return audit.Position{}, fmt.Errorf("%d records at once", len(records))
	}
	for _, r := range records {
		w.details = append(w.details, r.Kind+" "+r.Detail)
	}
	return audit.Position{}, nil
}

// What comes before there is a journal, from this process and from its workers, what comes while the
// journal is slow, and what comes just before the end are all recorded, in order, and nobody waits.
func TestRepairsAreRecorded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRepairs(slog.New(slog.DiscardHandler))
		w := &written{let: make(chan struct{})}
		r.report("dir")(softhsm.Report{Adopted: []string{"t/a"}, Lost: []string{"t/l"}})
		r.add("restored t/w")
		stop := r.record(w)
		synctest.Wait() // it writes
		for i := range 3 * audit.MaxAppend {
			r.add(fmt.Sprint("restored t/", i))
		}
		close(w.let)
		r.add("adopted t/last")
		if err := stop(t.Context()); err != nil {
			t.Fatal(err)
		}
		want := []string{"token-repair lost t/l", "token-repair adopted t/a", "token-repair restored t/w"}
		for i := range 3 * audit.MaxAppend {
			want = append(want, fmt.Sprint("token-repair restored t/", i))
		}
		want = append(want, "token-repair adopted t/last")
		if diff := cmp.Diff(want, w.details); diff != "" {
			t.Errorf("(-want +got):\n%s", diff)
		}
	})
}

// A worker that has lost its mind fills no memory, and that it was not all recorded is.
func TestRepairsAreBounded(t *testing.T) {
	r := newRepairs(slog.New(slog.DiscardHandler))
	for range repairsLimit + 3 {
		r.add(strings.Repeat("x", audit.MaxDetail))
	}
	w := &written{let: make(chan struct{})}
	close(w.let)
	if err := r.write(t.Context(), w); err != nil {
		t.Fatal(err)
	}
	if n := len(w.details); n != repairsLimit+1 || w.details[n-1] != "token-repair 3 more reports are in the log alone" {
		t.Errorf("%d records, the last %.60q", n, w.details[n-1])
	}
}
