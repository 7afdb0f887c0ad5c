package quota_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/kekd/kekd/hierarchy"
	"github.com/kekd/kekd/hierarchy/commandpb"
	"github.com/kekd/kekd/hierarchy/quota"
	"github.com/kekd/kekd/hierarchy/state"
)

var (
	node   = hierarchy.NodeID{ID: hierarchy.ID(memberID(0))}
	region = hierarchy.RegionID{ID: hierarchy.ID(memberID(98))}
	tenant = hierarchy.TenantID{ID: hierarchy.ID(idOf("acme"))}
	key    = keyNumber(1)
)

func keyNumber(n int) hierarchy.KeyID { return hierarchy.KeyID{ID: hierarchy.ID{4, byte(n)}} }

// ledger is the cluster's side, with the real state machine: it has keys whose first version seals,
// the first of them limit times.
type ledger struct {
	*cluster
	limit  uint64
	blocks []uint64      // sizes of the reservations that were asked for
	err    error         // of all proposals
	hold   chan struct{} // a reservation waits for it
}

func newLedger(t fataler, limit uint64, keys int) *ledger {
	l := &ledger{cluster: newCluster(t), limit: limit}
	for n := 1; n <= keys; n++ {
		id := keyNumber(n)
		object := hierarchy.KEKObjectID(l.state.ClusterID(), tenant, id, 1, region, 1)
		l.do(&commandpb.Command{Body: &commandpb.Command_CreateKey{CreateKey: &commandpb.CreateKey{TenantId: tenant.ID[:], KeyId: id.ID[:], Name: fmt.Sprintf("key-%d", n)}}})
		l.do(&commandpb.Command{Body: &commandpb.Command_RecordMinted{RecordMinted: &commandpb.RecordMinted{
			TenantId: tenant.ID[:], KeyId: id.ID[:], Version: 1, Attempt: 1, RegionId: region.ID[:], ObjectId: object[:], CheckValue: object[:3],
		}}})
	}
	l.use(state.MaxWraps - limit)
	return l
}

// use has another node of the region reserve so many seals.
func (l *ledger) use(seals uint64) {
	for left := seals; left > 0; left -= min(left, state.MaxReservation) {
		l.do(&commandpb.Command{Body: &commandpb.Command_ReserveWraps{ReserveWraps: &commandpb.ReserveWraps{
			TenantId: tenant.ID[:], KeyId: key.ID[:], Version: 1, RegionId: region.ID[:], NodeId: node.ID[:], Count: min(left, state.MaxReservation),
		}}})
	}
}

func (l *ledger) State() *state.State {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.state
}

func (l *ledger) Propose(_ context.Context, c *commandpb.Command) error {
	if l.hold != nil {
		<-l.hold
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if r := c.GetReserveWraps(); r != nil {
		l.blocks = append(l.blocks, r.Count)
	}
	if l.err != nil {
		return l.err
	}
	return l.apply(c)
}

func (l *ledger) sizes() []uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return append([]uint64(nil), l.blocks...)
}

// reserved is what is reserved of all keys together, but for what was so at the beginning.
func (l *ledger) reserved() (sum uint64) {
	for k := range l.State().Keys(tenant) {
		sum += k.Newest().Regions[0].WrapsReserved
	}
	return sum - (state.MaxWraps - l.limit)
}

func newWraps(l *ledger) *quota.Wraps { return quota.NewWraps(node, region, l) }

// Whatever many callers take at once, no more is allowed than was reserved.
func TestNeverMoreThanReserved(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLedger(t, 100_000, 1)
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
		l := newLedger(t, 1<<32, 1)
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
			if sizes[i] != 2*sizes[i-1] {
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
		l := newLedger(t, 1<<32, 1)
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

// A version near its end gets what is left, to the last seal and in one piece, and then costs the
// cluster nothing: the hierarchy says that there is nothing to ask for.
func TestTheLastSeals(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLedger(t, 1000, 1)
		w := newWraps(l)
		for i := range 1000 {
			if err := w.Take(t.Context(), tenant, key, 1, 1); err != nil {
				t.Fatalf("seal %d: %v", i, err)
			}
		}
		for range 1000 {
			if err := w.Take(t.Context(), tenant, key, 1, 1); !errors.Is(err, hierarchy.ErrCapacity) {
				t.Fatalf("over the limit: %v", err)
			}
			time.Sleep(10 * time.Millisecond) // of synctest's clock
		}
		if diff := cmp.Diff([]uint64{1000}, l.sizes()); diff != "" {
			t.Fatalf("what was asked for (-want +got):\n%s", diff)
		}
	})
}

// Between the look and the proposal other nodes may take what was left.
func TestAnotherNodeIsFaster(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for name, c := range map[string]struct {
			left uint64
			want []uint64
			err  error
		}{
			"and leaves some":    {100, []uint64{1000, 100}, nil},
			"and leaves nothing": {0, []uint64{1000}, hierarchy.ErrCapacity},
		} {
			l := newLedger(t, 1000, 1)
			l.hold = make(chan struct{})
			w := newWraps(l)
			done := make(chan error, 1)
			go func() { done <- w.Take(t.Context(), tenant, key, 1, 1) }()
			synctest.Wait()
			l.use(1000 - c.left)
			close(l.hold)
			if err := <-done; !errors.Is(err, c.err) {
				t.Errorf("%s: got %v, want %v", name, err, c.err)
			}
			if diff := cmp.Diff(c.want, l.sizes()); diff != "" {
				t.Errorf("%s: what was asked for (-want +got):\n%s", name, diff)
			}
		}
	})
}

// Seals that were given back can be had again.
func TestSealsThatComeBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLedger(t, 10, 1)
		w := newWraps(l)
		if err := w.Take(t.Context(), tenant, key, 1, 11); !errors.Is(err, hierarchy.ErrCapacity) {
			t.Fatalf("got %v", err)
		}
		l.do(&commandpb.Command{Body: &commandpb.Command_ReturnWraps{ReturnWraps: &commandpb.ReturnWraps{
			TenantId: tenant.ID[:], KeyId: key.ID[:], Version: 1, RegionId: region.ID[:], NodeId: node.ID[:], Count: 1,
		}}})
		time.Sleep(time.Second) // of synctest's clock
		if err := w.Take(t.Context(), tenant, key, 1, 11); err != nil {
			t.Fatalf("after one came back: %v", err)
		}
	})
}

func TestACallerLeaves(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLedger(t, 1<<20, 1)
		l.hold = make(chan struct{})
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
		l := newLedger(t, 1<<20, 1)
		l.err = hierarchy.ErrStale
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

// What is left is at its most when the next block has come ahead of need.
func TestALargeRestGoesBackToo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLedger(t, 1<<32, 1)
		w := newWraps(l)
		used := uint64(0)
		for len(l.sizes()) < 10 { // until a block of the largest size is fresh
			if err := w.Take(t.Context(), tenant, key, 1, 1024); err != nil {
				t.Fatal(err)
			}
			used += 1024
			synctest.Wait()
		}
		if err := w.Return(t.Context()); err != nil {
			t.Fatal(err)
		}
		if got := l.reserved(); got != used {
			t.Fatalf("%d stay reserved, %d were used", got, used)
		}
	})
}

func TestACleanStopGivesBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLedger(t, 1<<32, 200)
		w := newWraps(l)
		for n := 1; n <= 200; n++ {
			if err := w.Take(t.Context(), tenant, keyNumber(n), 1, 5); err != nil {
				t.Fatal(err)
			}
		}
		if err := w.Return(t.Context()); err != nil {
			t.Fatal(err)
		}
		if got := l.reserved(); got != 200*5 {
			t.Fatalf("%d stay reserved, %d were used", got, 200*5)
		}
	})
}
