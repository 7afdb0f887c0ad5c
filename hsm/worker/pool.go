package worker

import (
	"context"
	"crypto"
	"errors"
	"fmt"
	"runtime"
	"sync"
	"time"

	"github.com/kekd/kekd/hierarchy"
	"github.com/kekd/kekd/hsm"
)

// A Pool is a token that lives in worker processes.
type Pool struct {
	cfg     Config
	spawn   *spawner
	known   bool             // whether public is. Only the manager's seat looks
	public  crypto.PublicKey // of the identity, as the first manager told it; nil: none. Fixed when Begin returns
	closing chan struct{}
	login   chan struct{}  // of size 1: held by who starts a worker
	keepers sync.WaitGroup // one for each seat
	joined  chan error     // receives once from each seat but the manager's, when its first worker serves or does not start
	counts  counts

	mu      sync.Mutex
	queue   queue                // guarded by mu
	workers []*worker            // guarded by mu: those that serve
	alive   map[*worker]struct{} // guarded by mu: those whose process is not gone yet
	seats   []*seat              // guarded by mu while Begin runs, then fixed. The first is the manager's
	changed chan struct{}        // guarded by mu: closed and made anew when a seat changes
	refused error                // guarded by mu: why nobody logs in any more
	closed  bool                 // guarded by mu
	looking bool                 // guarded by mu: pump is called soon, whatever happens
}

var (
	_ hsm.Token    = (*Pool)(nil)
	_ hsm.Manager  = (*Pool)(nil)
	_ hsm.Agreer   = (*Pool)(nil)
	_ hsm.Marks    = (*Pool)(nil)
	_ hsm.Examiner = (*Pool)(nil)
)

// firstTries is how often the first worker is started. A worker that ends without a word may
// have cost a PIN try, and nobody knows yet whether the PIN is right.
const firstTries = 2

// Open starts the workers and returns when all of them serve: it is [Begin] and [Pool.Whole].
func Open(ctx context.Context, cfg Config) (*Pool, error) {
	p, err := Begin(ctx, cfg)
	if err != nil {
		return nil, err
	}
	if err := p.Whole(ctx); err != nil {
		return nil, errors.Join(err, p.Close(context.WithoutCancel(ctx)))
	}
	return p, nil
}

// Begin starts the workers and returns when the manager serves; the others open the token from then on, which
// takes SoftHSM two seconds with 10,000 objects. ctx bounds all starts. What keeps the manager from opening the
// token is returned, wrapping one of package hsm's errors.
func Begin(ctx context.Context, cfg Config) (*Pool, error) {
	p := &Pool{
		cfg: cfg.withDefaults(), spawn: newSpawner(), closing: make(chan struct{}), login: make(chan struct{}, 1),
		alive: map[*worker]struct{}{}, changed: make(chan struct{}),
	}
	p.queue = newQueue(p.cfg.LaneLimit)
	if err := p.start(ctx); err != nil {
		return nil, errors.Join(err, p.Close(context.WithoutCancel(ctx)))
	}
	return p, nil
}

func (p *Pool) start(ctx context.Context) error {
	manager := &seat{role: RoleManager}
	p.seats = []*seat{manager}
	first, err := p.launch(ctx, manager)
	for try := 1; err != nil && !isTold(err) && try < firstTries && ctx.Err() == nil; try++ {
		first, err = p.launch(ctx, manager)
	}
	if err != nil {
		return fmt.Errorf("start the token's manager: %w", err)
	}
	p.keepers.Go(func() { p.keep(manager, first) })

	n := p.cfg.Workers
	if n <= 0 {
		n = 1
		if first.parallel <= 1 {
			n = min(2, runtime.NumCPU())
		}
	}
	p.joined = make(chan error, n-1)
	for range n - 1 {
		s := &seat{role: RoleServer}
		p.mu.Lock()
		p.seats = append(p.seats, s)
		p.mu.Unlock()
		p.keepers.Go(func() {
			w, err := p.launch(ctx, s)
			if err != nil {
				p.joined <- fmt.Errorf("start a token worker: %w", err)
				return
			}
			p.joined <- nil
			p.keep(s, w)
		})
	}
	return nil
}

// Whole returns when all workers that [Begin] started serve, or one of them does not start: then the pool is to
// be closed. It is for one caller, once.
func (p *Pool) Whole(ctx context.Context) error {
	var errs []error
	for range cap(p.joined) {
		select {
		case err := <-p.joined:
			errs = append(errs, err)
		case <-ctx.Done():
			return errors.Join(append(errs, fmt.Errorf("start a token worker: %w", late(ctx)))...)
		}
	}
	return errors.Join(errs...)
}

// Close ends the workers and waits until their processes are gone. What waits or is in flight
// ends with hsm.ErrUnavailable. A worker has two seconds to let go of its token. If ctx ends
// before the last process is gone, the error is hsm.ErrDeadline.
func (p *Pool) Close(ctx context.Context) error {
	p.mu.Lock()
	if p.closed {
		p.mu.Unlock()
		return nil
	}
	p.closed = true
	close(p.closing)
	waiting := p.queue.flush()
	var ending []*worker
	for w := range p.alive {
		ending = append(ending, w)
	}
	p.announce()
	p.mu.Unlock()

	fail(waiting, errClosed())
	for _, w := range ending {
		p.takeBack(w)
		_ = w.conn.CloseWrite() // which ends Serve; an error means that the worker has ended
	}
	ended := make(chan struct{})
	go func() { p.keepers.Wait(); close(ended) }()
	grace := time.NewTimer(2 * time.Second)
	defer grace.Stop()
	for {
		select {
		case <-ended:
			p.spawn.close()
			return nil
		case <-grace.C:
			for _, w := range ending {
				w.kill(errors.New("it did not end by itself"))
			}
		case <-ctx.Done():
			for _, w := range ending {
				w.kill(errors.New("it did not end by itself"))
			}
			return fmt.Errorf("%w: a token worker does not end: %w", hsm.ErrDeadline, context.Cause(ctx))
		}
	}
}

func errClosed() error { return fmt.Errorf("%w: it was closed", hsm.ErrUnavailable) }

// announce wakes those who wait for a seat to change. The caller holds mu.
func (p *Pool) announce() {
	close(p.changed)
	p.changed = make(chan struct{})
}

// fault is why nothing is served and nothing will be for now; nil while there is hope. The caller
// holds mu.
func (p *Pool) fault() error {
	if p.closed {
		return errClosed()
	}
	if len(p.workers) > 0 {
		return nil
	}
	for _, s := range p.seats {
		if s.fault == nil {
			return nil
		}
	}
	return p.seats[0].fault
}

// Do is [hsm.Token]'s. While a worker is replaced, operations wait for it.
func (p *Pool) Do(ctx context.Context, ops []hsm.Operation) {
	n, asked := 0, mix{}
	for i := range ops {
		op := &ops[i]
		op.Revealed, op.Sealed = nil, nil
		if op.Err = op.Validate(); op.Err == nil {
			n++
			asked[useOf(op)]++
		}
	}
	if n == 0 {
		return
	}
	c := newCall(ops, n)
	if ctx.Err() != nil {
		c.abandon(late(ctx))
		return
	}
	began := time.Since(epoch)
	if !p.submit(c, ops) {
		return
	}
	p.pump()
	select {
	case <-c.done:
		c.recycle()
	case <-ctx.Done():
		p.withdraw(c, ops)
		c.abandon(late(ctx))
	}
	p.counts.used(&asked, time.Since(epoch)-began)
}

func late(ctx context.Context) error {
	return fmt.Errorf("%w: %w", hsm.ErrDeadline, context.Cause(ctx))
}

// submit queues those operations of a call that have no error yet. False: none is left to wait
// for.
func (p *Pool) submit(c *call, ops []hsm.Operation) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if err := p.fault(); err != nil {
		c.abandon(err)
		return false
	}
	for i := 0; i < len(ops); {
		if ops[i].Err != nil {
			i++
			continue
		}
		from, id, each := i, ops[i].Lane, cost(&ops[i])
		for i++; i < len(ops) && ops[i].Err == nil && ops[i].Lane == id && cost(&ops[i]) == each; i++ {
		}
		if p.queue.push(id, run{c, int32(from), int32(i), each}) {
			continue
		}
		c.left -= i - from
		for j := from; j < i; j++ {
			ops[j].Err = fmt.Errorf("%w: of this tenant, or in all", hsm.ErrBusy)
		}
	}
	return c.left > 0
}

// withdraw takes what still waits of a call out of the queue.
func (p *Pool) withdraw(c *call, ops []hsm.Operation) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for i := range ops {
		if i == 0 || ops[i].Lane != ops[i-1].Lane {
			p.queue.drop(c, ops[i].Lane)
		}
	}
}

// Forget is [hsm.Token]'s: it returns when no worker has anything of these keys any more. A
// worker that does not answer is killed, and then it has nothing.
func (p *Pool) Forget(ctx context.Context, keys []hierarchy.ObjectID) error {
	return p.forget(ctx, keys, nil)
}

func (p *Pool) forget(ctx context.Context, keys []hierarchy.ObjectID, except *worker) error {
	if ctx.Err() != nil {
		return late(ctx)
	}
	p.mu.Lock()
	var tell []*worker
	for _, w := range p.workers {
		if w != except {
			tell = append(tell, w)
		}
	}
	for _, s := range p.seats {
		if s.launching {
			s.missed = append(s.missed, keys...)
		}
	}
	p.mu.Unlock()
	errs := make([]error, len(tell))
	var wg sync.WaitGroup
	for i, w := range tell {
		wg.Go(func() { errs[i] = w.forget(ctx, keys) })
	}
	wg.Wait()
	return errors.Join(errs...)
}

// Healthy is [hsm.Token]'s: it asks the token through each worker, and one that answers is
// enough. A PIN that was refused is told here even while workers serve that had logged in
// before, since none of them can be replaced.
func (p *Pool) Healthy(ctx context.Context) error {
	p.mu.Lock()
	refused := p.refused
	p.mu.Unlock()
	if refused != nil {
		return refused
	}
	return p.Answers(ctx)
}

// Answers is nil if the token does what it is asked now, through one worker at least.
func (p *Pool) Answers(ctx context.Context) error {
	for {
		p.mu.Lock()
		refused, fault, changed := p.refused, p.fault(), p.changed
		workers := append([]*worker(nil), p.workers...)
		p.mu.Unlock()
		if fault != nil {
			return fault
		}
		err := ask(ctx, workers)
		switch {
		case !errors.Is(err, errGone):
			return err
		case refused != nil:
			return refused // there will be no other
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return fmt.Errorf("%w: no worker serves: %w", hsm.ErrUnavailable, late(ctx))
		}
	}
}

// ask asks workers for their health, all at once. The first good answer counts. errGone: there
// is none, or the last of them has ended meanwhile.
func ask(ctx context.Context, workers []*worker) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	answers := make(chan error, len(workers))
	for _, w := range workers {
		go func() {
			_, err := w.ask(ctx, &request{verb: verbHealthy})
			answers <- err
		}()
	}
	last := errGone
	for range workers {
		switch err := <-answers; {
		case err == nil:
			return nil
		case !errors.Is(err, errGone):
			last = err
		}
	}
	if !errors.Is(last, errGone) && !errors.Is(last, hsm.ErrUnavailable) {
		last = fmt.Errorf("%w: %w", hsm.ErrUnavailable, last)
	}
	return last
}

// Status describes a worker.
type Status struct {
	PID   int
	Role  Role
	Since time.Time // when it began to serve
}

// Workers gives the workers that serve now.
func (p *Pool) Workers() []Status {
	p.mu.Lock()
	defer p.mu.Unlock()
	all := make([]Status, 0, len(p.workers))
	for _, w := range p.workers {
		all = append(all, Status{PID: w.cmd.Process.Pid, Role: w.role, Since: w.since})
	}
	return all
}
