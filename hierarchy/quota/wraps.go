// Package quota counts what may be done only so often. What has to hold over all nodes is
// reserved in blocks through the hierarchy, so that counting costs the hot path an atomic
// subtraction and no round trip.
package quota

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"

	"github.com/kekd/kekd/hierarchy"
	"github.com/kekd/kekd/hierarchy/commandpb"
	"github.com/kekd/kekd/hierarchy/state"
)

// Blocks of seals that a node reserves: small at first, so that a crash forfeits little of a
// key that is seldom used, then doubling, so that a busy one asks seldom. The next block is asked
// for when less than reserveAt is left of the last; the largest is such that a node never has more
// than it can give back at once.
const (
	firstBlock = 1 << 16
	reserveAt  = firstBlock / 2
	lastBlock  = state.MaxReservation - reserveAt
)

// Proposer makes a command part of the hierarchy, or says why not.
type Proposer interface {
	Propose(ctx context.Context, c *commandpb.Command) error
}

// Ledger is where seals are reserved. When Propose has returned, State has what it has in it on
// the node that leads.
type Ledger interface {
	Proposer
	State() *state.State
}

// Wraps is this node's share of the seals that each key version's keys may do: AES-GCM with
// random IVs allows 2^32 under one key (NIST SP 800-38D section 8.3). What a crash leaves in a
// block is forfeited; a clean stop gives it back.
type Wraps struct {
	node   hierarchy.NodeID
	region hierarchy.RegionID
	ledger Ledger

	blocks sync.Map // versionID -> *block
}

type versionID struct {
	tenant  hierarchy.TenantID
	key     hierarchy.KeyID
	version uint32
}

// block is what is left of one version's reservations.
type block struct {
	left atomic.Int64
	flight
	next uint64 // size of the next reservation; for the one under way
}

// NewWraps makes an empty share.
func NewWraps(node hierarchy.NodeID, region hierarchy.RegionID, l Ledger) *Wraps {
	return &Wraps{node: node, region: region, ledger: l}
}

// Take allows n seals under a version. It waits for a reservation only when the share is used
// up. A version that has none left is hierarchy.ErrCapacity.
func (w *Wraps) Take(ctx context.Context, tenant hierarchy.TenantID, key hierarchy.KeyID, version uint32, n int) error {
	id := versionID{tenant, key, version}
	v, ok := w.blocks.Load(id)
	if !ok {
		v, _ = w.blocks.LoadOrStore(id, &block{next: firstBlock})
	}
	b := v.(*block)
	for {
		left := b.left.Load()
		if left >= int64(n) {
			if !b.left.CompareAndSwap(left, left-int64(n)) {
				continue
			}
			if left-int64(n) < reserveAt {
				w.reserve(id, b, n) // ahead of need
			}
			return nil
		}
		select {
		case <-w.reserve(id, b, n):
			if err := b.failure(); err != nil && b.left.Load() < int64(n) {
				return err
			}
		case <-ctx.Done():
			return fmt.Errorf("%w: no reservation of seals in time: %w", hierarchy.ErrStale, ctx.Err())
		}
	}
}

// reserve starts a reservation unless one is under way, and returns the channel that is closed
// at its end.
func (w *Wraps) reserve(id versionID, b *block, n int) <-chan struct{} {
	return b.start(func() error {
		if b.left.Load() >= max(int64(n), reserveAt) {
			return nil // another one has ended since somebody looked
		}
		size, err := w.propose(id, b.next)
		if err != nil {
			return err
		}
		b.left.Add(int64(size))
		b.next = min(2*size, lastBlock)
		return nil
	})
}

// propose reserves size seals, or what is left of the version if that is less. What is used up is
// not asked for: a proposal that is refused costs the cluster as much as one that is not.
func (w *Wraps) propose(id versionID, size uint64) (uint64, error) {
	ctx, cancel := context.WithTimeout(context.Background(), reserveTimeout)
	defer cancel()
	for {
		left, err := w.left(id)
		if err != nil {
			return 0, err
		}
		size = min(size, left)
		err = w.ledger.Propose(ctx, &commandpb.Command{Body: &commandpb.Command_ReserveWraps{ReserveWraps: &commandpb.ReserveWraps{
			TenantId: id.tenant.ID[:], KeyId: id.key.ID[:], Version: id.version,
			RegionId: w.region.ID[:], NodeId: w.node.ID[:], Count: size,
		}}})
		switch {
		case err == nil:
			return size, nil
		case errors.Is(err, hierarchy.ErrCapacity) && size > 1:
			size /= 2 // another node was faster, and this one may not see it yet
		case errors.Is(err, hierarchy.ErrOutcomeUnknown):
			// Of the reservation, which is forfeited; of the seal that waits for it nothing is unknown.
			return 0, fmt.Errorf("%w: seals could not be reserved: %v", hierarchy.ErrStale, err)
		default:
			return 0, fmt.Errorf("reserve seals: %w", err)
		}
	}
}

// left is what nobody has reserved of a version yet, at least one.
func (w *Wraps) left(id versionID) (uint64, error) {
	k, ok := w.ledger.State().Key(id.tenant, id.key)
	if !ok {
		return 0, fmt.Errorf("%w: the key that is to seal", hierarchy.ErrNotFound)
	}
	v, ok := k.Version(id.version)
	if !ok {
		return 0, fmt.Errorf("%w: version %d of %s, which is to seal", hierarchy.ErrNotFound, id.version, k.Name)
	}
	r, ok := v.Region(w.region)
	if !ok {
		return 0, fmt.Errorf("%w: version %d of %s has no key in this region", hierarchy.ErrFailedPrecondition, id.version, k.Name)
	}
	if r.WrapsReserved >= state.MaxWraps {
		return 0, fmt.Errorf("%w: version %d of %s has sealed as often as one key may: rotate the key", hierarchy.ErrCapacity, id.version, k.Name)
	}
	return state.MaxWraps - r.WrapsReserved, nil
}

// Return gives back what is left, at a clean stop. Nothing may be taken any more.
func (w *Wraps) Return(ctx context.Context) error {
	const parallel = 64 // Raft writes what comes together in one go
	slots := make(chan struct{}, parallel)
	var (
		wg   sync.WaitGroup
		mu   sync.Mutex
		errs []error
	)
	w.blocks.Range(func(k, v any) bool {
		id, left := k.(versionID), v.(*block).left.Swap(0)
		if left <= 0 {
			return true
		}
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			err := w.giveBack(ctx, id, uint64(left))
			if err != nil {
				mu.Lock()
				errs = append(errs, err)
				mu.Unlock()
			}
		})
		return ctx.Err() == nil
	})
	wg.Wait()
	return errors.Join(errs...)
}

func (w *Wraps) giveBack(ctx context.Context, id versionID, left uint64) error {
	return w.ledger.Propose(ctx, &commandpb.Command{Body: &commandpb.Command_ReturnWraps{ReturnWraps: &commandpb.ReturnWraps{
		TenantId: id.tenant.ID[:], KeyId: id.key.ID[:], Version: id.version,
		RegionId: w.region.ID[:], NodeId: w.node.ID[:], Count: left,
	}}})
}
