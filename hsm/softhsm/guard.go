package softhsm

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// Guard is one process's part in a token directory. It is taken before the module is loaded and
// kept for as long as it is: it holds the directory lock, shared. It may be used by several
// goroutines.
//
// Everything that rewrites files of the token runs in one of its brackets: [Guard.Change],
// [Guard.ChangeWhole], [Guard.Destroy]. They take the change lock, look at what changed since
// the last bracket (of any process), call f, make durable what f changed, and let go. f is called
// at most once and must not begin a bracket; ctx bounds the wait for the lock (then ErrBusy), not
// f.
//
// C_Initialize belongs into a bracket, too: a module that reads the token while another process
// rewrites it, or has died of it, finds none.
//
// When a bracket returns nil, what f did is durable and in the shadow, and may be told to others. On
// any error it may or may not have happened, and f's own error is wrapped.
type Guard struct {
	dir    *Dir
	notify func(Report)
	known  atomic.Pointer[[]ref] // the token.object of each token, for Check
	shared lockFile              // the directory lock
	turn   chan struct{}

	// Of whoever has the turn.
	change lockFile // locked within a bracket
	watch  *watcher // nil: the system has no watches left
	all    bool     // the last round did not end well: look at everything
	closed bool
}

// Attach takes the directory lock for this process, before it loads the module, and puts right
// what others left behind, as [Dir.Repair] does. notify is called with every report that is not
// empty, now and by brackets; it must not call the guard.
//
// ErrInUse if a repair does not end before ctx does, ErrBusy if another process's change does not.
func (d *Dir) Attach(ctx context.Context, notify func(Report)) (*Guard, error) {
	g := &Guard{dir: d, notify: notify, turn: make(chan struct{}, 1), all: true}
	var err error
	if g.shared, err = openLock(d.join(dirLockName)); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrGone, err)
	}
	if g.change, err = openLock(d.join(changeLockName)); err != nil {
		g.shared.Close()
		return nil, fmt.Errorf("%w: %w", ErrGone, err)
	}
	if err := g.attach(ctx); err != nil {
		g.release()
		return nil, fmt.Errorf("attach to %s: %w", d.path, err)
	}
	return g, nil
}

func (g *Guard) attach(ctx context.Context) error {
	if err := g.shared.lock(ctx, unix.LOCK_SH); err != nil {
		return blocked(g.shared, err, ErrInUse)
	}
	if err := g.change.lock(ctx, unix.LOCK_EX); err != nil {
		return blocked(g.change, err, ErrBusy)
	}
	defer g.change.unlock()
	w, err := newWatcher(g.dir)
	if err != nil && !errors.Is(err, unix.EMFILE) && !errors.Is(err, unix.ENOSPC) {
		return err
	}
	g.watch = w
	return g.settle()
}

// Change brackets a login, the generation or derivation of one object, the setting of attributes:
// whatever makes no object go away. An object that goes away all the same is put back.
func (g *Guard) Change(ctx context.Context, f func() error) error {
	return g.bracket(ctx, f, changed)
}

// Destroy brackets the destruction of objects: what goes away in it stays away. Others may be made
// and rewritten in it, so that a new one can take the place of an old one: whenever power is lost, one
// of the two is there.
//
// A destruction that is interrupted may be undone; its caller destroys again.
func (g *Guard) Destroy(ctx context.Context, f func() error) error {
	return g.bracket(ctx, f, destroyed)
}

// ChangeWhole brackets a change that makes several files which are of use only together: a key
// pair, a token. If f fails, or the process dies, all that it made goes to the quarantine.
func (g *Guard) ChangeWhole(ctx context.Context, f func() error) error {
	return g.bracket(ctx, func() error {
		if err := g.dir.writeIntent(); err != nil {
			return err
		}
		return f()
	}, changedWhole)
}

// bracket runs f between two looks at the files. after is the second one.
func (g *Guard) bracket(ctx context.Context, f func() error, after func(*Guard, error) error) error {
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("%w: %w", ErrBusy, err)
	}
	select {
	case g.turn <- struct{}{}:
		defer func() { <-g.turn }()
	case <-ctx.Done():
		return fmt.Errorf("%w: %w", ErrBusy, ctx.Err())
	}
	if g.closed {
		return ErrClosed
	}
	if err := g.change.lock(ctx, unix.LOCK_EX); err != nil {
		return blocked(g.change, err, ErrBusy)
	}
	defer g.change.unlock()
	if err := g.Check(); err != nil {
		return err
	}
	if err := g.settle(); err != nil {
		return fmt.Errorf("before a change of the token: %w", err)
	}
	return after(g, f())
}

// changed, changedWhole and destroyed end a bracket. err is f's.

func changed(g *Guard, err error) error {
	return errors.Join(err, g.acknowledge(false))
}

func destroyed(g *Guard, err error) error {
	return errors.Join(err, g.acknowledge(true))
}

func changedWhole(g *Guard, err error) error {
	if err == nil {
		err = g.acknowledge(false)
	}
	if err == nil {
		return g.dir.dropIntent()
	}
	return errors.Join(err, g.settle()) // which finds the intent
}

// settle puts right what changed since the last round, of this process or another.
func (g *Guard) settle() error {
	p := newPass(g.dir)
	err := g.round(p, p.settle)
	g.tell(p.report)
	return err
}

// acknowledge makes durable what f changed. What had to be put right was not done.
func (g *Guard) acknowledge(destroys bool) error {
	p := newPass(g.dir)
	p.destroys = destroys
	err := g.round(p, p.lookAt)
	p.report.Adopted = nil // no news: it is what the bracket is for
	if err == nil && !p.report.Empty() {
		g.all = true // what f destroyed comes back
		err = fmt.Errorf("%w: SoftHSM did not finish: %s", ErrTorn, p.report)
	}
	g.tell(p.report)
	return err
}

func (g *Guard) tell(r Report) {
	if !r.Empty() && g.notify != nil {
		g.notify(r)
	}
}

// round does the work of a pass over what changed since the last round.
func (g *Guard) round(p *pass, work func(changes) error) error {
	c, err := g.watch.take()
	if err != nil {
		g.all = true
		return err
	}
	c.all = c.all || g.all
	g.all = true // unless this ends well
	if err := errors.Join(work(c), p.finish()); err != nil {
		return err
	}
	if c.all {
		if err := g.learn(); err != nil {
			return err
		}
	}
	g.all = false
	return nil
}

// learn notes which tokens there are.
func (g *Guard) learn() error {
	tokens, err := subdirs(g.dir.join(tokensName))
	if err != nil {
		return err
	}
	var known []ref
	for _, t := range tokens {
		known = append(known, ref{t, tokenObject})
	}
	g.known.Store(&known)
	return nil
}

// Check tells whether the directory still is the one that was attached to, with its tokens:
// ErrGone if not. It costs a few system calls, and says nothing about what the files hold.
func (g *Guard) Check() error {
	if err := g.shared.current(); err != nil {
		return err
	}
	if err := g.change.current(); err != nil {
		return err
	}
	for _, r := range *g.known.Load() {
		if _, err := os.Lstat(g.dir.objectFile(r)); err != nil {
			return fmt.Errorf("%w: %w", ErrGone, err)
		}
	}
	return nil
}

// Close lets go of the directory, after the module was finalised. It waits for a bracket that is
// under way; later ones are ErrClosed.
func (g *Guard) Close() error {
	g.turn <- struct{}{}
	defer func() { <-g.turn }()
	if g.closed {
		return nil
	}
	g.closed = true
	return g.release()
}

func (g *Guard) release() error {
	g.watch.close()
	return errors.Join(g.change.Close(), g.shared.Close())
}
