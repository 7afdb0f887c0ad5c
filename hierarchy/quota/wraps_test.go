package quota_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/kekd/kekd/hierarchy"
	"github.com/kekd/kekd/hierarchy/commandpb"
	"github.com/kekd/kekd/hierarchy/quota"
)

var (
	node   = hierarchy.NodeID{ID: hierarchy.ID{1}}
	region = hierarchy.RegionID{ID: hierarchy.ID{2}}
	tenant = hierarchy.TenantID{ID: hierarchy.ID{3}}
	key    = hierarchy.KeyID{ID: hierarchy.ID{4}}
)

// ledger is the cluster's side: it grants blocks until limit is reached.
type ledger struct {
	mu       sync.Mutex
	limit    uint64
	reserved uint64
	asked    []uint64 // sizes of the reservations that were asked for
	returned uint64
	err      error
	hold     chan struct{} // a reservation waits for it
}

func (l *ledger) Propose(ctx context.Context, c *commandpb.Command) error {
	if l.hold != nil {
		<-l.hold
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.err != nil {
		return l.err
	}
	if r := c.GetReturnWraps(); r != nil {
		if r.Count > 1<<24 {
			return fmt.Errorf("%w: a block of %d", hierarchy.ErrInvalidArgument, r.Count)
		}
		l.returned += r.Count
		l.reserved -= r.Count
		return nil
	}
	r := c.GetReserveWraps()
	l.asked = append(l.asked, r.Count)
	if l.reserved+r.Count > l.limit {
		return fmt.Errorf("%w: reserved", hierarchy.ErrCapacity)
	}
	l.reserved += r.Count
	return nil
}

func (l *ledger) sizes() []uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return append([]uint64(nil), l.asked...)
}

func newWraps(l *ledger) *quota.Wraps {
	return quota.NewWraps(node, region, l, slog.New(slog.DiscardHandler))
}

// Whatever many callers take at once, no more is allowed than was reserved.
func TestNeverMoreThanReserved(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := &ledger{limit: 100_000}
		w := newWraps(l)
		var taken atomic.Uint64
		var wg sync.WaitGroup
		for range 16 {
			wg.Go(func() {
				for {
					if err := w.Take(t.Context(), tenant, key, 1, 7); err != nil {
						if !errors.Is(err, hierarchy.ErrCapacity) {
							t.Errorf("take: %v", err)
						}
						return
					}
					taken.Add(7)
				}
			})
		}
		wg.Wait()
		if taken.Load() > l.limit || taken.Load() <= l.limit-7 {
			t.Fatalf("%d seals were allowed of %d", taken.Load(), l.limit)
		}
	})
}

func TestBlocksGrowWithUse(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := &ledger{limit: 1 << 32}
		w := newWraps(l)
		for range 1 << 12 {
			if err := w.Take(t.Context(), tenant, key, 1, 1024); err != nil {
				t.Fatal(err)
			}
		}
		synctest.Wait()
		sizes := l.sizes()
		if sizes[0] != 1<<16 {
			t.Fatalf("the first block has %d", sizes[0])
		}
		for i := 1; i < len(sizes); i++ {
			if sizes[i] != min(2*sizes[i-1], 1<<24) {
				t.Fatalf("blocks: %v", sizes)
			}
		}
		if len(sizes) > 8 {
			t.Fatalf("%d reservations for %d seals", len(sizes), 1<<22)
		}
	})
}

// The next block is asked for before the last is used up, so that nobody waits for it.
func TestReservesAhead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := &ledger{limit: 1 << 32}
		w := newWraps(l)
		if err := w.Take(t.Context(), tenant, key, 1, 1); err != nil {
			t.Fatal(err)
		}
		l.hold = make(chan struct{})
		start := time.Now()
		for range 63 { // down to the last 1023 of 65536
			if err := w.Take(t.Context(), tenant, key, 1, 1024); err != nil {
				t.Fatal(err)
			}
		}
		if time.Since(start) != 0 {
			t.Fatal("a caller waited while there were seals left")
		}
		close(l.hold)
		synctest.Wait()
		if len(l.sizes()) != 2 {
			t.Fatalf("reservations: %v", l.sizes())
		}
	})
}

// A version near its end gets what is left, to the last seal, and then does not ask the cluster
// at every call.
func TestTheLastSeals(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := &ledger{limit: 1000}
		w := newWraps(l)
		for i := range 1000 {
			if err := w.Take(t.Context(), tenant, key, 1, 1); err != nil {
				t.Fatalf("seal %d: %v", i, err)
			}
		}
		synctest.Wait()
		asked := len(l.sizes())
		for range 1000 {
			if err := w.Take(t.Context(), tenant, key, 1, 1); !errors.Is(err, hierarchy.ErrCapacity) {
				t.Fatalf("over the limit: %v", err)
			}
		}
		synctest.Wait()
		if n := len(l.sizes()) - asked; n > 40 {
			t.Fatalf("a version that is used up asked %d times for 1000 calls", n)
		}
	})
}

func TestACallerLeaves(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := &ledger{limit: 1 << 20, hold: make(chan struct{})}
		w := newWraps(l)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := w.Take(ctx, tenant, key, 1, 1); !errors.Is(err, context.DeadlineExceeded) {
			t.Fatalf("got %v", err)
		}
		close(l.hold)
		synctest.Wait()
		if err := w.Take(t.Context(), tenant, key, 1, 1); err != nil || len(l.sizes()) != 1 {
			t.Fatalf("the reservation that the first caller caused was lost: %v, %v", err, l.sizes())
		}
	})
}

func TestTheClusterIsAway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := &ledger{limit: 1 << 20, err: hierarchy.ErrStale}
		w := newWraps(l)
		if err := w.Take(t.Context(), tenant, key, 1, 1); !errors.Is(err, hierarchy.ErrStale) {
			t.Fatalf("got %v", err)
		}
		l.mu.Lock()
		l.err = nil
		l.mu.Unlock()
		time.Sleep(time.Second) // of synctest's clock
		if err := w.Take(t.Context(), tenant, key, 1, 1); err != nil {
			t.Fatalf("after it came back: %v", err)
		}
	})
}

func TestALargeRestGoesBackToo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := &ledger{limit: 1 << 32}
		w := newWraps(l)
		used := uint64(0)
		for len(l.sizes()) < 10 || l.sizes()[9] < 1<<24 { // until a block of the largest size is fresh
			if err := w.Take(t.Context(), tenant, key, 1, 1024); err != nil {
				t.Fatal(err)
			}
			used += 1024
			synctest.Wait()
		}
		if err := w.Return(t.Context()); err != nil {
			t.Fatal(err)
		}
		if l.reserved != used {
			t.Fatalf("%d stay reserved, %d were used", l.reserved, used)
		}
	})
}

func TestACleanStopGivesBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := &ledger{limit: 1 << 32}
		w := newWraps(l)
		for v := uint32(1); v <= 200; v++ {
			if err := w.Take(t.Context(), tenant, key, v, 5); err != nil {
				t.Fatal(err)
			}
		}
		if err := w.Return(t.Context()); err != nil {
			t.Fatal(err)
		}
		if l.reserved != 200*5 {
			t.Fatalf("%d stay reserved, %d were used", l.reserved, 200*5)
		}
	})
}
