package main

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
)

// Whatever the parts do, each has its own share, the next one is asked, and all together end in time.
func TestStopInReverseOrderAndInTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		began := time.Now()
		var mu sync.Mutex
		var stopped []string
		var l lifecycle
		broken := errors.New("broken")
		forever := make(chan struct{})
		defer close(forever)
		for _, p := range []struct {
			name string
			stop func(context.Context) error
		}{
			{"fine", func(context.Context) error { return nil }},
			{"slow", func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() }},
			{"broken", func(context.Context) error { return broken }},
			{"deaf", func(context.Context) error { <-forever; return nil }},
		} {
			l.started(p.name, time.Second, func(ctx context.Context) error {
				mu.Lock()
				stopped = append(stopped, p.name)
				mu.Unlock()
				if end, ok := ctx.Deadline(); !ok || time.Until(end) != time.Second {
					t.Errorf("%s has until %v, a second is its share", p.name, end)
				}
				return p.stop(ctx)
			})
		}
		err := l.stop()
		if diff := cmp.Diff([]string{"deaf", "broken", "slow", "fine"}, stopped); diff != "" {
			t.Errorf("stopped (-want +got):\n%s", diff)
		}
		if !errors.Is(err, errStillRuns) || !errors.Is(err, broken) || !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("got error %v", err)
		}
		if lines := strings.Split(err.Error(), "\n"); !slices.ContainsFunc(lines, func(s string) bool { return strings.HasPrefix(s, "stop deaf: ") }) {
			t.Errorf("the error does not name the part: %v", err)
		}
		if took := time.Since(began); took > 2*(time.Second+leave) {
			t.Errorf("it took %v", took)
		}
		if err := l.stop(); err != nil || len(stopped) != 4 {
			t.Errorf("a second time it stops %v: %v", stopped[4:], err)
		}
	})
}

// A node whose every part hangs ends within the 10 s that operators are promised.
func TestSharesOfAStop(t *testing.T) {
	var sum time.Duration
	for _, share := range []time.Duration{stopSockets, stopLeadership, stopRefusals, stopReconciler, stopWraps, stopRepairs, stopJournal, stopAdmin, stopRaft, stopToken} {
		sum += share + leave
	}
	if sum > 9800*time.Millisecond {
		t.Errorf("a stop may take %v", sum)
	}
}
