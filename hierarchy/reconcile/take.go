package reconcile

import (
	"context"
	"errors"
	"fmt"

	"github.com/kekd/kekd/hierarchy/commandpb"
	"github.com/kekd/kekd/hsm"
)

// take does one step, or notes why it could not be done.
func (r *Reconciler) take(ctx context.Context, st step) {
	ctx, cancel := context.WithTimeout(ctx, stepTimeout)
	defer cancel()
	var err error
	switch st.action {
	case latch, unlatch:
		err = r.latch(ctx, st)
	case sweep:
		err = r.sweep(ctx, st)
	case mint:
		err = r.mint(ctx, st)
	}
	if err != nil {
		p := usual
		if isFinal(err) {
			p = givenUp
		}
		r.failed(st.task(), err, p, "the token does not yet have what the hierarchy says", "key_version", st.name().String())
		if st.action != sweep { // nobody waits for it
			r.progress.failed(st.id(), lack{err, isFinal(err)})
		}
		return
	}
	r.troubles.over(st.task())
	if st.action == latch || st.action == unlatch {
		r.progress.settled(st.id()) // a minting is over when the hierarchy says so
	}
}

func (r *Reconciler) latch(ctx context.Context, st step) error {
	want := st.action == unlatch
	err := r.manager.SetUsable(ctx, st.object, want)
	switch {
	case errors.Is(err, hsm.ErrUnsupported):
		r.noLatch = true
		r.log.Warn("the token cannot latch keys: a disabled tenant is refused by the daemon alone")
	case err != nil:
		return fmt.Errorf("latch: %w", err)
	}
	obj := r.have[st.object]
	obj.Usable = want
	r.have[st.object] = obj
	return nil
}

func (r *Reconciler) sweep(ctx context.Context, st step) error {
	if err := r.manager.Destroy(ctx, st.object); err != nil {
		return fmt.Errorf("sweep what an earlier minting has left: %w", err)
	}
	delete(r.have, st.object)
	r.progress.full(false)
	return nil
}

// mint makes the region's KEK of a version, or finds the one that an earlier try made, and
// records it.
func (r *Reconciler) mint(ctx context.Context, st step) error {
	if err := r.room(ctx, st.object); err != nil {
		return fmt.Errorf("mint: %w", err)
	}
	obj, err := r.manager.Generate(ctx, st.object, st.label())
	if full := errors.Is(err, hsm.ErrCapacity); full || err == nil {
		r.progress.full(full)
	}
	if errors.Is(err, hsm.ErrKeyRefused) || errors.Is(err, hsm.ErrAmbiguous) {
		return r.giveUp(ctx, st, err)
	}
	if err != nil {
		return fmt.Errorf("mint: %w", err)
	}
	r.have[st.object] = obj
	err = r.raft.Propose(ctx, &commandpb.Command{Body: &commandpb.Command_RecordMinted{RecordMinted: &commandpb.RecordMinted{
		TenantId: st.tenant.ID.ID[:], KeyId: st.key.ID.ID[:], Version: st.version.Number, Attempt: st.version.Attempt,
		RegionId: r.self.Region.ID[:], ObjectId: obj.ID[:], CheckValue: obj.Check[:],
	}}})
	if err != nil {
		return fmt.Errorf("record what was minted: %w", err)
	}
	return nil
}

// giveUp ends an attempt at minting that left an unfit object under its ID: a crash did, or the token
// makes no other. The object is not destroyed before the hierarchy has given the attempt up: only
// that proves that nobody has recorded it.
func (r *Reconciler) giveUp(ctx context.Context, st step, why error) error {
	r.have[st.object] = hsm.Object{ID: st.object, RawID: st.object[:], Fault: why}
	err := r.raft.Propose(ctx, &commandpb.Command{Body: &commandpb.Command_RestartMinting{RestartMinting: &commandpb.RestartMinting{
		TenantId: st.tenant.ID.ID[:], KeyId: st.key.ID.ID[:], Version: st.version.Number, Attempt: st.version.Attempt + 1,
	}}})
	if err != nil {
		return fmt.Errorf("start a minting anew: %w", err)
	}
	return &refusal{st.version.Attempt, why}
}

// mintAttempts is how many keys a token may refuse for one version before that is no accident. A
// crash spoils one.
const mintAttempts = 5

// refusal is a key of the token's own making that is not what it must be. The hierarchy counts
// them, so the count survives this process.
type refusal struct {
	keys uint32
	err  error
}

func (e *refusal) Error() string {
	if e.keys < mintAttempts {
		return fmt.Sprintf("minting is started anew, the token's key is refused: %v", e.err)
	}
	return fmt.Sprintf("the token has made %d keys for it that were refused, and makes the next in %v: %v", e.keys, givenUp.first, e.err)
}

func (e *refusal) Unwrap() error { return e.err }

// isFinal tells whether it is of no use to wait for the next try.
func isFinal(err error) bool {
	e, ok := errors.AsType[*refusal](err)
	return ok && e.keys >= mintAttempts
}
