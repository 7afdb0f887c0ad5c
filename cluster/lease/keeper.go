package lease

import (
	"context"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"
)

// Renewer has the leader prove itself.
type Renewer interface {
	// Renew returns the index of a Tick that the leader proposed after the call, and applied as
	// committed in its own term, once this node's state machine has reached that index. Anything
	// else is an error, and proves nothing.
	Renew(ctx context.Context) (index uint64, err error)
}

// Keeper renews a node's lease.
type Keeper struct {
	clock    Clock
	renewer  Renewer
	interval func() time.Duration
	log      *slog.Logger

	current atomic.Pointer[Lease]
	done    atomic.Uint64 // renewals
	failed  atomic.Uint64 // tries
	kick    chan struct{}

	mu      sync.Mutex
	renewed chan struct{} // closed at the next renewal; nil if nobody waits
}

// NewKeeper makes a keeper that asks at each interval, which is read anew every time.
func NewKeeper(clock Clock, renewer Renewer, interval func() time.Duration, log *slog.Logger) *Keeper {
	k := &Keeper{clock: clock, renewer: renewer, interval: interval, log: log, kick: make(chan struct{}, 1)}
	k.current.Store(&Lease{})
	return k
}

// Current is the lease as it was last renewed. Whether it still proves anything is for
// [Lease.Fresh] to say.
func (k *Keeper) Current() Lease { return *k.current.Load() }

// Kick asks for a renewal at once: there is a new leader, or somebody waits for the next renewal.
func (k *Keeper) Kick() {
	select {
	case k.kick <- struct{}{}:
	default: // one is asked for already
	}
}

// Renewals are those since the keeper was made, and the tries that failed. One that fails is tried again soon.
func (k *Keeper) Renewals() (done, failed uint64) { return k.done.Load(), k.failed.Load() }

// Renewed is closed at the next renewal.
func (k *Keeper) Renewed() <-chan struct{} {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.renewed == nil {
		k.renewed = make(chan struct{})
	}
	return k.renewed
}

// renewTimeout bounds one try, so that a leader which does not answer is asked again.
const renewTimeout = time.Second

// retryAfter is how soon a renewal that failed is tried again: leadership may just be going from one node to
// another, and who waits for the lease has a deadline.
const retryAfter = 50 * time.Millisecond

// sayAgain is how often the log says that renewals fail, after the first time.
const sayAgain = time.Minute

// Run renews until ctx ends.
func (k *Keeper) Run(ctx context.Context) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	failing := false
	var since, said time.Duration // when it began to fail, and when that was last said
	for {
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		case <-k.kick:
		}
		err := k.renew(ctx)
		if ctx.Err() != nil {
			return
		}
		switch {
		case err != nil && !failing:
			since, said = k.clock.Now(), k.clock.Now()
			k.log.Warn("the lease is not renewed; this node serves until it runs out", "error", err)
		case err != nil && k.clock.Now()-said >= sayAgain:
			said = k.clock.Now()
			k.log.Warn("the lease is not renewed still: this node serves no tenant that wants a newer copy", "for", (said - since).Round(time.Second), "error", err)
		case err == nil && failing:
			k.log.Info("the lease is renewed again", "after", (k.clock.Now() - since).Round(time.Millisecond))
		}
		failing = err != nil
		if failing {
			k.failed.Add(1)
			timer.Reset(min(retryAfter, k.interval()))
		} else {
			timer.Reset(k.interval())
		}
	}
}

func (k *Keeper) renew(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, renewTimeout)
	defer cancel()
	t0 := k.clock.Now() // before anything is asked
	index, err := k.renewer.Renew(ctx)
	if err != nil {
		return err
	}
	k.current.Store(&Lease{T0: t0, Index: index})
	k.done.Add(1)
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.renewed != nil {
		close(k.renewed)
		k.renewed = nil
	}
	return nil
}
