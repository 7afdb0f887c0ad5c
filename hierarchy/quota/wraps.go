// Package quota counts what may be done only so often. What has to hold over all nodes is
// reserved in blocks through the hierarchy, so that counting costs the hot path an atomic
// subtraction and no round trip.
package quota

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"

	"github.com/kekd/kekd/hierarchy"
	"github.com/kekd/kekd/hierarchy/commandpb"
)

// Blocks of seals that a node reserves: small at first, so that a crash forfeits little of a
// key that is seldom used, then doubling, so that a busy one asks seldom.
const (
	firstBlock = 1 << 16
	lastBlock  = 1 << 24 // state.MaxReservation
)

// Proposer makes a command part of the hierarchy, or says why not.
type Proposer interface {
	Propose(ctx context.Context, c *commandpb.Command) error
}

// Wraps is this node's share of the seals that each key version's keys may do: AES-GCM with
// random IVs allows 2^32 under one key (NIST SP 800-38D section 8.3). What a crash leaves in a
// block is forfeited; a clean stop gives it back.
type Wraps struct {
	node   hierarchy.NodeID
	region hierarchy.RegionID
	raft   Proposer
	log    *slog.Logger

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
func NewWraps(node hierarchy.NodeID, region hierarchy.RegionID, raft Proposer, log *slog.Logger) *Wraps {
	return &Wraps{node: node, region: region, raft: raft, log: log}
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
			if left-int64(n) < firstBlock/2 {
				w.reserve(id, b) // ahead of need
			}
			return nil
		}
		select {
		case <-w.reserve(id, b):
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
func (w *Wraps) reserve(id versionID, b *block) <-chan struct{} {
	return b.start(func() error {
		size, err := w.propose(id, b.next)
		if err != nil {
			return err
		}
		b.left.Add(int64(size))
		b.next = min(2*size, lastBlock)
		return nil
	})
}

// propose reserves size seals, or the largest smaller block that is left of the version.
func (w *Wraps) propose(id versionID, size uint64) (uint64, error) {
	ctx, cancel := context.WithTimeout(context.Background(), reserveTimeout)
	defer cancel()
	for {
		err := w.raft.Propose(ctx, &commandpb.Command{Body: &commandpb.Command_ReserveWraps{ReserveWraps: &commandpb.ReserveWraps{
			TenantId: id.tenant.ID[:], KeyId: id.key.ID[:], Version: id.version,
			RegionId: w.region.ID[:], NodeId: w.node.ID[:], Count: size,
		}}})
		switch {
		case err == nil:
			return size, nil
		case errors.Is(err, hierarchy.ErrCapacity) && size > 1:
			size /= 2
		case errors.Is(err, hierarchy.ErrOutcomeUnknown):
			// Of the reservation, which is forfeited; of the seal that waits for it nothing is unknown.
			return 0, fmt.Errorf("%w: seals could not be reserved: %v", hierarchy.ErrStale, err)
		default:
			return 0, fmt.Errorf("reserve seals: %w", err)
		}
	}
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

// giveBack returns seals in pieces of the size in which they are reserved at most.
func (w *Wraps) giveBack(ctx context.Context, id versionID, left uint64) error {
	for left > 0 {
		n := min(left, lastBlock)
		err := w.raft.Propose(ctx, &commandpb.Command{Body: &commandpb.Command_ReturnWraps{ReturnWraps: &commandpb.ReturnWraps{
			TenantId: id.tenant.ID[:], KeyId: id.key.ID[:], Version: id.version,
			RegionId: w.region.ID[:], NodeId: w.node.ID[:], Count: n,
		}}})
		if err != nil {
			return err
		}
		left -= n
	}
	return nil
}
