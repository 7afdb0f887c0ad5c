// Package reconcile brings a region's token to what the hierarchy says: it mints what was
// created, latches what was disabled, unlatches what was enabled, and sweeps what a minting
// that was given up has left. It also proposes the rotations that are due.
//
// It works by comparison and remembers nothing that it could look up: each pass plans from the
// hierarchy and from what is in the token, so a step that was interrupted anywhere, by an error
// or by the end of the process, is found again by the next pass. A step is idempotent, or finds
// what its first try left.
//
// Minting is intent (a command that made the version pre-active), act (here), record (a command
// that says what was made). Only the region's minting node acts.
package reconcile

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/kekd/kekd/hierarchy"
	"github.com/kekd/kekd/hierarchy/capacity"
	"github.com/kekd/kekd/hierarchy/commandpb"
	"github.com/kekd/kekd/hierarchy/state"
	"github.com/kekd/kekd/hsm"
)

const (
	retryFirst    = 50 * time.Millisecond
	retryLast     = 2 * time.Second
	rotationEvery = 5 * time.Second  // how often due rotations are looked for
	stepTimeout   = 10 * time.Second // bounds one step: a token that hangs is given up for now
)

// Hierarchy is the replicated state, and the way to change it.
type Hierarchy interface {
	State() *state.State
	// Changed returns a channel that is closed at the next change of the revision: at a later
	// one than any that a State called after it shows.
	Changed() <-chan struct{}
	Propose(ctx context.Context, c *commandpb.Command) error
	IsLeader() bool
}

// Token is what the reconciler needs of the serving side.
type Token interface {
	Forget(ctx context.Context, keys []hierarchy.ObjectID) error
}

// Self says for which node and region a reconciler works.
type Self struct {
	Region hierarchy.RegionID
	Node   hierarchy.NodeID
	// MaxObjects is how many objects the token is to hold; 0: what suits its model.
	MaxObjects uint64
}

// Reconciler drives one region's token. Make one with New and run it once.
type Reconciler struct {
	self    Self
	raft    Hierarchy
	manager hsm.Manager
	token   Token
	log     *slog.Logger

	// Of the goroutine in Run alone.
	have      map[hierarchy.ObjectID]hsm.Object
	unnamed   uint64                          // key objects whose CKA_ID is none of ours
	forgotten map[hierarchy.ObjectID]struct{} // unusable, and dropped from the serving side
	noLatch   bool                            // the token cannot latch

	progress progress
}

// New makes a reconciler.
func New(self Self, raft Hierarchy, m hsm.Manager, t Token, log *slog.Logger) *Reconciler {
	return &Reconciler{
		self: self, raft: raft, manager: m, token: t, log: log,
		forgotten: map[hierarchy.ObjectID]struct{}{},
		progress:  newProgress(),
	}
}

// Run works until ctx ends. Failures are retried, reported by Settled, and logged.
func (r *Reconciler) Run(ctx context.Context) {
	retry := retryFirst
	rotations := time.NewTicker(rotationEvery)
	defer rotations.Stop()
	for ctx.Err() == nil {
		changed := r.raft.Changed()
		failed := r.pass(ctx)

		var again <-chan time.Time
		if failed {
			again = time.After(retry)
			retry = min(2*retry, retryLast)
		} else {
			retry = retryFirst
		}
		select {
		case <-ctx.Done():
		case <-changed:
		case <-again:
		case <-rotations.C:
			r.look(ctx)
			r.rotate(ctx)
		}
	}
}

// pass takes the steps that one state asks for, until the state has changed, and tells whether
// any failed.
func (r *Reconciler) pass(ctx context.Context) (failed bool) {
	s := r.raft.State()
	if r.have == nil {
		if err := r.list(ctx, s); err != nil {
			r.log.Error("the token's objects cannot be listed", "error", err)
			r.progress.stuck(err)
			return true
		}
	}
	r.forget(ctx, s)
	steps := plan(s, r.self.Region, r.have)
	open := map[hierarchy.TenantID]error{}
	for _, st := range steps {
		if _, there := open[st.tenant.ID]; !there {
			open[st.tenant.ID] = nil
		}
		if r.raft.State().Revision() != s.Revision() && st.action == mint {
			continue // something may have been closed meanwhile: that comes first
		}
		if err := r.take(ctx, s, st); err != nil {
			failed = true
			open[st.tenant.ID] = err
			r.log.Warn("the token does not yet have what the hierarchy says", "key_version", st.name().String(), "error", err)
			if ctx.Err() != nil {
				break
			}
		} else if st.action != mint && open[st.tenant.ID] == nil {
			// A minting is over when the hierarchy says so; the rest is over now.
			delete(open, st.tenant.ID)
		}
	}
	r.progress.done(s.Index(), open, len(r.have))
	return failed
}

// list reads the token once, and reports what the hierarchy has and the token has not.
func (r *Reconciler) list(ctx context.Context, s *state.State) error {
	objects, err := r.manager.List(ctx)
	if err != nil {
		return err
	}
	info, err := r.manager.Info(ctx)
	if err != nil {
		return err
	}
	have := make(map[hierarchy.ObjectID]hsm.Object, len(objects))
	for _, o := range objects {
		if len(o.RawID) == len(o.ID) {
			have[o.ID] = o
		}
	}
	r.have, r.unnamed = have, uint64(len(objects)-len(have))
	inv := inventory(s, r.self.Region, objects)
	inv.Token.Foreign += info.Others
	inv.Token.Max = r.limit(info, r.used(info))
	r.progress.inventory(inv)
	return nil
}

// forget drops copies of what may not be used any more, on every node and before any latch.
func (r *Reconciler) forget(ctx context.Context, s *state.State) {
	var drop []hierarchy.ObjectID
	for t := range s.Tenants() {
		for k := range s.Keys(t.ID) {
			for _, v := range k.Versions {
				rk, ok := v.Region(r.self.Region)
				if !ok || !rk.Minted {
					continue
				}
				_, gone := r.forgotten[rk.Object]
				switch ok := usable(t, v); {
				case ok && gone:
					delete(r.forgotten, rk.Object)
				case !ok && !gone:
					drop = append(drop, rk.Object)
				}
			}
		}
	}
	if len(drop) == 0 {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, stepTimeout)
	defer cancel()
	if err := r.token.Forget(ctx, drop); err != nil {
		r.log.Warn("copies of disabled keys could not be dropped", "error", err)
		return
	}
	for _, id := range drop {
		r.forgotten[id] = struct{}{}
	}
}

// take does one step.
func (r *Reconciler) take(ctx context.Context, s *state.State, st step) error {
	region, ok := s.Region(r.self.Region)
	if !ok || region.MintingNode != r.self.Node {
		return nil // another node's work; the plan stays open until it is done
	}
	ctx, cancel := context.WithTimeout(ctx, stepTimeout)
	defer cancel()
	switch st.action {
	case latch, unlatch:
		return r.latch(ctx, st)
	case sweep:
		if err := r.manager.Destroy(ctx, st.object); err != nil {
			return fmt.Errorf("sweep what an earlier minting has left: %w", err)
		}
		delete(r.have, st.object)
		r.progress.full(false)
		return nil
	default:
		return r.mint(ctx, st)
	}
}

func (r *Reconciler) latch(ctx context.Context, st step) error {
	want := st.action == unlatch
	if !r.noLatch {
		err := r.manager.SetUsable(ctx, st.object, want)
		switch {
		case errors.Is(err, hsm.ErrUnsupported):
			r.noLatch = true
			r.log.Warn("the token cannot latch keys: a disabled tenant is refused by the daemon alone")
		case err != nil:
			return fmt.Errorf("latch: %w", err)
		}
	}
	obj := r.have[st.object]
	obj.Usable = want
	r.have[st.object] = obj
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
		// A crash left something unfit under the ID. It is not destroyed before the hierarchy
		// has given the attempt up: only that proves that nobody has recorded it.
		r.log.Warn("a minting is started anew", "key_version", st.name().String(), "error", err)
		return r.raft.Propose(ctx, &commandpb.Command{Body: &commandpb.Command_RestartMinting{RestartMinting: &commandpb.RestartMinting{
			TenantId: st.tenant.ID.ID[:], KeyId: st.key.ID.ID[:], Version: st.version.Number, Attempt: st.version.Attempt + 1,
		}}})
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

// rotate proposes what is due. Followers leave it to the leader; two that propose the same do
// it once, since a rotation names the version that it follows.
func (r *Reconciler) rotate(ctx context.Context) {
	if !r.raft.IsLeader() {
		return
	}
	s := r.raft.State()
	rotations := due(s)
	if len(rotations) == 0 {
		return
	}
	room := capacity.Room{Token: r.Inventory().Token, Demand: capacity.Of(s, r.self.Region)}
	for _, d := range rotations {
		n := capacity.Cost(d.tenant, r.self.Region)
		if err := room.Version(n); err != nil {
			r.log.Warn("a rotation that is due has no room in the token", "tenant", d.tenant.Name, "key", d.key.Name, "error", err)
			continue
		}
		ctx, cancel := context.WithTimeout(ctx, stepTimeout)
		err := r.raft.Propose(ctx, &commandpb.Command{Body: &commandpb.Command_RotateKey{RotateKey: &commandpb.RotateKey{
			TenantId: d.tenant.ID.ID[:], KeyId: d.key.ID.ID[:], AfterVersion: d.after, Cause: commandpb.RotationCause(d.cause),
		}}})
		cancel()
		if err != nil {
			r.log.Warn("a rotation that is due was not started", "tenant", d.tenant.Name, "key", d.key.Name, "error", err)
		}
		room.Held += n // also if it failed: it may have been done
	}
}
