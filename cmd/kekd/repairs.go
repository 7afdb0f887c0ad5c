package main

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"sync"

	"github.com/kekd/kekd/hierarchy/audit"
	"github.com/kekd/kekd/hsm/softhsm"
)

// repairs brings what was put right in the token's directory into the audit journal: by this
// process before there are workers, and by its workers at any time, which have no journal. What
// comes before the journal is open waits, and so does what comes while its disk is slow: a worker
// is not held up.
type repairs struct {
	log  *slog.Logger
	came chan struct{} // of size 1: something waits

	mu      sync.Mutex
	waiting []string // guarded by mu: each fits into a record
	dropped int      // guarded by mu: how many did not fit into waiting
}

// repairsLimit bounds what waits, in texts of some three files each: a directory of 16,666 objects,
// which is the largest token that is known, has a third of that.
const repairsLimit = 1 << 14

func newRepairs(log *slog.Logger) *repairs {
	return &repairs{log: log, came: make(chan struct{}, 1)}
}

// report takes a report of this process, for the log too.
func (r *repairs) report(directory string) func(softhsm.Report) {
	logged := logRepairs(r.log, directory)
	return func(report softhsm.Report) {
		logged(report)
		r.add(report.Texts(audit.MaxDetail)...)
	}
}

// add takes texts of [audit.MaxDetail] bytes at most. It does not wait.
func (r *repairs) add(texts ...string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	fit := min(len(texts), repairsLimit-len(r.waiting))
	r.waiting = append(r.waiting, texts[:fit]...)
	r.dropped += len(texts) - fit
	select {
	case r.came <- struct{}{}:
	default:
	}
}

// take gives the records of what waits, n at most.
func (r *repairs) take(n int) []audit.Record {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.dropped > 0 && len(r.waiting) < n {
		r.waiting = append(r.waiting, fmt.Sprintf("%d more reports are in the log alone", r.dropped))
		r.dropped = 0
	}
	n = min(n, len(r.waiting))
	records := make([]audit.Record, n)
	for i, text := range r.waiting[:n] {
		records[i] = audit.Record{Kind: "token-repair", Outcome: audit.OutcomeOK, Detail: text}
	}
	r.waiting = slices.Delete(r.waiting, 0, n)
	return records
}

type journal interface {
	Write(context.Context, []audit.Record) (audit.Position, error)
}

// write makes the records of what waits durable.
func (r *repairs) write(ctx context.Context, to journal) error {
	for {
		records := r.take(audit.MaxAppend)
		if len(records) == 0 {
			return nil
		}
		if _, err := to.Write(ctx, records); err != nil {
			return fmt.Errorf("record what was put right in the token directory: %w", err)
		}
	}
}

// record writes what comes from now on, until stop is called. It has no deadline: a journal that
// cannot be written ends this node.
func (r *repairs) record(to journal) (stop func(context.Context) error) {
	ending, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		for more := true; more; {
			select {
			case <-r.came:
			case <-ending:
				more = false
			}
			if err := r.write(context.Background(), to); err != nil {
				r.log.Error("repairs are in no audit journal", "error", err)
			}
		}
	}()
	return func(ctx context.Context) error {
		close(ending)
		return await(ctx, ended)
	}
}
