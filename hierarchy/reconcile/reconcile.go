// Package reconcile brings a region's token to what the hierarchy says: it mints what was
// created, latches what was disabled, unlatches what was enabled, and sweeps what a minting
// that was given up has left. It also proposes the rotations that are due.
//
// What was disabled is latched once its fence is complete, behind which nobody uses it any more: the latch is for other
// users of the token.
//
// It works by comparison and remembers nothing that it could look up, but for which keys were as they are to be
// (see attention): each pass plans from the hierarchy and from what is in the token, so a step that was interrupted anywhere, by an error
// or by the end of the process, is found again by the next pass. A step is idempotent, or finds
// what its first try left.
//
// Minting is intent (a command that made the version pre-active), act (here), record (a command
// that says what was made). Only the region's minting node acts, and only while it can be sure to
// be that. One that takes over knows nothing of what the one before has done, and lists the token anew.
package reconcile

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"github.com/kekd/kekd/hierarchy"
	"github.com/kekd/kekd/hierarchy/capacity"
	"github.com/kekd/kekd/hierarchy/commandpb"
	"github.com/kekd/kekd/hierarchy/state"
	"github.com/kekd/kekd/hsm"
)

const (
	stepTimeout = 10 * time.Second // bounds one step: a token that hangs is given up for now
	// doubtPause is between two listings of the token because of doubts: one takes 78 ms with 10,000
	// objects.
	doubtPause = 5 * time.Second
	// planAge is how old a plan may be when it opens something, once there is a later state: what that
	// closes comes first, and a plan for each key of many would be all that is done.
	planAge = 50 * time.Millisecond
	// confirmAgain is how soon a minting node looks again whether its copy of the hierarchy is confirmed.
	confirmAgain = 250 * time.Millisecond
)

// Hierarchy is the replicated state, and the way to change it.
type Hierarchy interface {
	State() *state.State
	// Changed returns a channel that is closed at the next change of the revision: at a later
	// one than any that a State called after it shows.
	Changed() <-chan struct{}
	Propose(ctx context.Context, c *commandpb.Command) error
	IsLeader() bool
	// Current tells whether State is proved to be of the last few seconds. A node that is not heard of is
	// replaced as the one that mints, and does not hear of it: before that it must have stopped.
	Current() bool
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
	have      map[hierarchy.ObjectID]hsm.Object // nil: the token has not been listed yet
	unnamed   uint64                            // key objects whose CKA_ID is none of ours
	attention attention
	forgotten map[hierarchy.ObjectID]bool // closed, and dropped from the serving side
	noLatch   bool                        // the token cannot latch
	mints     bool                        // this node is the region's minting node, by the state of the last pass
	outdated  bool                        // it is, and nobody confirms that state
	troubles  troubles
	lacking   map[VersionID]bool // what the log has said is not in the token

	doubts   chan struct{} // of size 1
	progress progress
}

// New makes a reconciler.
func New(self Self, raft Hierarchy, m hsm.Manager, t Token, log *slog.Logger) *Reconciler {
	return &Reconciler{self: self, raft: raft, manager: m, token: t, log: log, troubles: troubles{}, doubts: make(chan struct{}, 1), progress: newProgress()}
}

// Run works until ctx ends. Failures are retried, reported by Settled, and logged.
func (r *Reconciler) Run(ctx context.Context) {
	rotations := time.NewTimer(rotationEvery)
	defer rotations.Stop()
	doubts, sure := r.doubts, (<-chan time.Time)(nil)
	for ctx.Err() == nil {
		changed := r.raft.Changed()
		r.pass(ctx)

		var again <-chan time.Time
		if at, ok := r.troubles.next(); ok {
			again = time.After(max(time.Until(at), usual.first)) // what nobody takes up keeps no core busy
		}
		if r.outdated {
			again = time.After(confirmAgain)
		}
		select {
		case <-ctx.Done():
		case <-changed:
		case <-again:
		case <-doubts:
			r.have = nil
			doubts, sure = nil, time.After(doubtPause)
		case <-sure:
			doubts, sure = r.doubts, nil
		case <-rotations.C:
			r.look(ctx)
			rotations.Reset(r.rotate(ctx))
		}
	}
}

// Doubt is called when the token has denied a key that the hierarchy says is there: somebody may have
// taken it away since the token was listed, which is then done again. It may be called at any time and
// as often as one likes.
func (r *Reconciler) Doubt() {
	select {
	case r.doubts <- struct{}{}:
	default:
	}
}

// pass takes the steps that one state asks for, until the state has changed.
func (r *Reconciler) pass(ctx context.Context) {
	s, planned := r.raft.State(), time.Now()
	r.takeOver(s)
	lacks := r.forget(ctx, s)
	steps, gone, err := r.compare(ctx, s)
	if err != nil {
		r.progress.stuck(err)
		return
	}
	var missing []string
	for _, l := range gone {
		lacks[l.id()] = lack{err: l.why}
		if r.troubles.of(task{l.id(), look}) == errMissing { // it was looked for, and is not there
			lacks[l.id()] = lack{&hierarchy.KeyLost{Version: l.name(), Why: l.why}, true}
		}
		missing = append(missing, fmt.Sprintf("%s: %v", l.name(), l.why))
	}
	minter, ours := r.minter(s)
	r.outdated = ours && len(steps) > 0 && !r.raft.Current()
	pending := map[VersionID]lack{}
	var refused []string
	for _, st := range steps {
		l := lack{err: r.troubles.of(st.task())}
		l.final = isFinal(l.err)
		switch {
		case st.action == sweep:
			continue // nobody waits for it
		case !ours:
			l.err = fmt.Errorf("node %s of this region has not done it yet", minter)
		case r.outdated && l.err == nil:
			l.err = errOutdated
		case l.final:
			refused = append(refused, fmt.Sprintf("%s: %v", st.name(), l.err))
		}
		pending[st.id()] = l
	}
	r.progress.begin(s.Index(), lacks, pending, Inventory{Objects: uint64(len(r.have)), Missing: missing, Refused: refused})
	if !ours {
		return
	}
	for _, st := range steps {
		if _, ours := r.minter(r.raft.State()); !ours {
			return
		}
		if r.outdated = !r.raft.Current(); r.outdated {
			return
		}
		opens := st.action == unlatch || st.action == mint
		if now := r.raft.State(); opens && now.Revision() != s.Revision() && (time.Since(planned) > planAge || !st.asked(now)) {
			continue
		}
		if ctx.Err() != nil {
			return
		}
		if !r.troubles.waits(st.task()) {
			r.take(ctx, st)
		}
	}
}

var errOutdated = errors.New("no leader confirms this node's copy of the hierarchy, so that it changes nothing in the token")

// takeOver has the token listed anew where this node has become the one that mints, since the one before may
// have changed it; and once more when a step of that one, which it was in when it was replaced, has
// ended at the latest. What it left under attempts that were given up is swept then.
func (r *Reconciler) takeOver(s *state.State) {
	_, ours := r.minter(s)
	if ours && !r.mints && r.have != nil {
		r.have = nil
		time.AfterFunc(stepTimeout, r.Doubt)
	}
	r.mints = ours
}

func (r *Reconciler) minter(s *state.State) (name string, ours bool) {
	return Minter(s, r.self.Region, r.self.Node)
}

// Minter is the name of the node that changes objects in a region's token, and whether it is self.
func Minter(s *state.State, region hierarchy.RegionID, self hierarchy.NodeID) (name string, ours bool) {
	r, ok := s.Region(region)
	if !ok {
		return "none", false
	}
	if n, ok := s.Node(r.MintingNode); ok {
		return n.Name, r.MintingNode == self
	}
	return r.MintingNode.String(), r.MintingNode == self
}

// compare plans with what is in the token. That is listed when this node does not know it, and again
// when the hierarchy says that there is more, or that another node is to have changed something.
func (r *Reconciler) compare(ctx context.Context, s *state.State) ([]step, []lost, error) {
	fresh := r.have == nil
	if fresh {
		if err := r.list(ctx, s); err != nil {
			return nil, nil, err
		}
	}
	steps, gone := r.plan(s)
	watched, found := r.watched(s, steps, gone), errMissing
	if !fresh && slices.ContainsFunc(watched, func(t task) bool { return !r.troubles.waits(t) }) {
		fresh = true
		if err := r.list(ctx, s); err != nil {
			found = err // and what was known goes on: there may be something to close
		} else {
			steps, gone = r.plan(s)
			watched = r.watched(s, steps, gone)
		}
	}
	if fresh {
		for _, t := range watched {
			r.troubles.failed(t, found, looking)
		}
		r.tell(gone)
	}
	if len(r.troubles) > 0 {
		r.keepTroubles(s, steps, watched)
	}
	return steps, gone, nil
}

// plan plans for what needs attention.
func (r *Reconciler) plan(s *state.State) ([]step, []lost) {
	some := r.attention.versions(s, r.self.Region)
	steps, gone := plan(s, some, r.have, !r.noLatch)
	r.attention.note(s, some, r.have, !r.noLatch)
	return steps, gone
}

// tell logs which keys the token lacks, when that changes.
func (r *Reconciler) tell(gone []lost) {
	lacking := make(map[VersionID]bool, len(gone))
	for _, l := range gone {
		if lacking[l.id()] = true; !r.lacking[l.id()] {
			r.log.Error("the token lacks a key: a restart puts it back if kekd's copy of the token's directory has it, and else only a backup of the token does", "version", l.name(), "error", l.why)
		}
	}
	r.lacking = lacking
}

// keepTroubles forgets those with what nobody has to do any more.
func (r *Reconciler) keepTroubles(s *state.State, steps []step, watched []task) {
	live := map[task]bool{{action: forget}: true}
	if _, ours := r.minter(s); ours {
		for _, st := range steps {
			live[st.task()] = true
		}
	}
	for _, t := range watched {
		live[t] = true
	}
	r.troubles.keep(live)
}

// watched is what only another look at the token can tell: whether an object has come back, and what
// another node has done.
func (r *Reconciler) watched(s *state.State, steps []step, gone []lost) (tasks []task) {
	for _, l := range gone {
		tasks = append(tasks, task{l.id(), look})
	}
	if _, ours := r.minter(s); ours {
		return tasks
	}
	for _, st := range steps {
		if st.action == latch || st.action == unlatch {
			tasks = append(tasks, task{st.id(), look})
		}
	}
	return tasks
}

// list reads what is in the token.
func (r *Reconciler) list(ctx context.Context, s *state.State) error {
	ctx, cancel := context.WithTimeout(ctx, stepTimeout)
	defer cancel()
	objects, err := r.manager.List(ctx)
	var info hsm.Info
	if err == nil {
		info, err = r.manager.Info(ctx)
	}
	if err != nil {
		r.failed(task{action: look}, err, usual, "the token's objects cannot be listed")
		return err
	}
	r.troubles.over(task{action: look})
	have := make(map[hierarchy.ObjectID]hsm.Object, len(objects))
	for _, o := range objects {
		if len(o.RawID) == len(o.ID) {
			have[o.ID] = o
		}
	}
	r.have, r.unnamed = have, uint64(len(objects)-len(have))
	r.attention.forget()
	if _, ours := r.minter(s); !ours {
		r.noLatch = !info.CanLatch // who latches finds out for himself
	}
	ours, others := orphans(s, r.self.Region, objects)
	labels := make([]string, len(ours))
	for i, o := range ours {
		labels[i] = o.Label
	}
	r.progress.listed(labels, capacity.Token{Max: r.limit(info, r.used(info)), Foreign: others + info.Others})
	return nil
}

// forget has the serving side drop its copies of what may not be used, on every node and before any
// latch, which cannot reach them. It tells for which versions that could not be done.
func (r *Reconciler) forget(ctx context.Context, s *state.State) map[VersionID]lack {
	shut := map[hierarchy.ObjectID]VersionID{}
	var drop []hierarchy.ObjectID
	for p := range r.attention.versions(s, r.self.Region) {
		n := p.need()
		if !p.region.Minted || n == open || n == closing && !r.forgotten[p.region.Object] {
			continue
		}
		shut[p.region.Object] = p.id()
		if !r.forgotten[p.region.Object] {
			drop = append(drop, p.region.Object)
		}
	}
	forgotten, lacks := make(map[hierarchy.ObjectID]bool, len(shut)), map[VersionID]lack{}
	for o := range shut {
		forgotten[o] = true
	}
	r.forgotten = forgotten
	if len(drop) == 0 {
		r.troubles.over(task{action: forget})
		return lacks
	}
	ctx, cancel := context.WithTimeout(ctx, stepTimeout)
	defer cancel()
	if err := r.token.Forget(ctx, drop); err != nil {
		r.failed(task{action: forget}, err, usual, "copies of disabled keys could not be dropped")
		for _, o := range drop {
			delete(forgotten, o)
			lacks[shut[o]] = lack{err: fmt.Errorf("its copies could not be dropped: %w", err)}
		}
		return lacks
	}
	r.troubles.over(task{action: forget})
	return lacks
}

// failed notes what is to be tried again, and logs it unless that was said before.
func (r *Reconciler) failed(t task, err error, p pace, what string, args ...any) {
	if r.troubles.failed(t, err, p) {
		r.log.Warn(what, append(args, "error", err)...)
	}
}
