package worker

import (
	"bytes"
	"context"
	"crypto"
	"crypto/x509"
	"errors"
	"fmt"
	"time"

	"github.com/kekd/kekd/hierarchy"
	"github.com/kekd/kekd/hsm"
)

// A seat is one worker's place: when the worker ends, another takes it. Its fields are guarded by
// the pool's mu.
type seat struct {
	role      Role
	w         *worker              // who serves; nil: nobody
	launching bool                 // a process is opening the token
	missed    []hierarchy.ObjectID // to be forgotten by the one that is launched, before it serves
	since     time.Time            // since when nobody serves
	fault     error                // why nobody will, for now
}

// keep sees to it that a seat has a worker, until the pool is closed or the PIN is refused.
func (p *Pool) keep(s *seat, w *worker) {
	wait := time.Duration(0)
	for {
		<-w.exited
		<-w.down
		served := time.Since(w.since)
		cause := w.why()
		if p.isClosed() {
			return
		}
		p.counts.ended.Add(1)
		p.cfg.Log.Warn("a token worker has ended", "pid", w.cmd.Process.Pid, "role", w.role.String(), "served", served.Round(time.Millisecond), "reason", cause.Error())
		if served >= p.cfg.Steady {
			wait = 0
		}
		if w, wait = p.replace(s, wait); w == nil {
			return
		}
	}
}

// replace starts workers until one serves: at once after a worker that has served for some time,
// and then after waits that double. It returns the wait to begin with the next time.
func (p *Pool) replace(s *seat, wait time.Duration) (*worker, time.Duration) {
	for {
		select {
		case <-time.After(wait):
		case <-p.closing:
			return nil, 0
		}
		wait = min(max(2*wait, 50*time.Millisecond), p.cfg.BackOff)
		w, err := p.launch(context.Background(), s)
		if err == nil {
			return w, wait
		}
		if p.isClosed() {
			return nil, 0
		}
		if p.blame(s, err) {
			p.cfg.Log.Error("a token worker does not start, and none is started any more: put the PIN right, then restart", "role", s.role.String(), "reason", err.Error())
			return nil, 0
		}
		p.cfg.Log.Error("a token worker does not start", "role", s.role.String(), "reason", err.Error(), "again_in", wait)
	}
}

func (p *Pool) isClosed() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.closed
}

// refuses tells an error after which the PIN is not tried again.
func refuses(err error) bool {
	return errors.Is(err, hsm.ErrPINIncorrect) || errors.Is(err, hsm.ErrPINLocked)
}

// blame takes note of a start that failed. What has waited for too long ends with it. It tells
// whether that was the last start.
func (p *Pool) blame(s *seat, err error) (final bool) {
	err = unavailable(err)
	p.mu.Lock()
	if final = refuses(err); final || time.Since(s.since) > p.cfg.Patience {
		s.fault = err
	}
	var waiting []piece
	fault := p.fault()
	if fault != nil {
		waiting = p.queue.flush()
	}
	p.announce()
	p.mu.Unlock()
	fail(waiting, fault)
	return final
}

// launch starts a process for a seat and waits until it serves. An error that the worker itself
// told is a toldError. One logs in at a time: a PIN that the token refuses now, though it took it
// before, costs one try, and not one for each worker that ended together with others.
func (p *Pool) launch(ctx context.Context, s *seat) (*worker, error) {
	select {
	case p.login <- struct{}{}:
		defer func() { <-p.login }()
	case <-p.closing:
		return nil, errClosed()
	case <-ctx.Done():
		return nil, late(ctx)
	}
	ctx, cancel := context.WithTimeout(ctx, p.cfg.StartTimeout)
	defer cancel()
	p.mu.Lock()
	if p.refused != nil || p.closed {
		err := p.refused
		if p.closed {
			err = errClosed()
		}
		p.mu.Unlock()
		return nil, err
	}
	s.launching, s.missed = true, nil
	p.mu.Unlock()
	w, err := p.open(ctx, s)
	p.mu.Lock()
	defer p.mu.Unlock()
	s.launching, s.missed = false, nil
	if refuses(err) && p.refused == nil {
		p.refused = unavailable(err) // before the next one may try
	}
	return w, err
}

func unavailable(err error) error {
	if errors.Is(err, hsm.ErrUnavailable) {
		return err
	}
	return fmt.Errorf("%w: %w", hsm.ErrUnavailable, err)
}

func (p *Pool) open(ctx context.Context, s *seat) (*worker, error) {
	w, err := p.exec(s.role)
	if err != nil {
		return nil, err
	}
	p.mu.Lock()
	closed := p.closed
	p.alive[w] = struct{}{}
	p.mu.Unlock()
	w.run()
	if closed {
		w.kill(errClosed())
	}
	select {
	case r := <-w.opened:
		w.parallel = r.parallel
		if err = p.admit(ctx, s, w, r.public); err == nil {
			return w, nil
		}
		w.kill(err)
	case <-w.down:
	case <-ctx.Done():
		w.kill(fmt.Errorf("it did not open the token in time: %w", late(ctx)))
	}
	<-w.exited
	<-w.down
	return nil, w.why()
}

// admit lets a worker that has opened the token serve.
func (p *Pool) admit(ctx context.Context, s *seat, w *worker, public crypto.PublicKey) error {
	if s.role == RoleManager {
		if err := p.identify(public); err != nil {
			return err
		}
	}
	for {
		p.mu.Lock()
		missed := s.missed
		s.missed = nil
		if len(missed) == 0 {
			break
		}
		p.mu.Unlock()
		// Keys that were to be forgotten while it opened the token.
		if err := w.forget(ctx, missed); err != nil {
			return err
		}
	}
	defer p.mu.Unlock()
	if w.takenBack || p.closed {
		return errGone
	}
	s.w, s.fault, s.launching = w, nil, false
	w.since = time.Now()
	p.workers = append(p.workers, w)
	p.announce()
	p.cfg.Log.Info("a token worker serves", "pid", w.cmd.Process.Pid, "role", s.role.String())
	go w.watch()
	go p.pump() // what has waited for it
	return nil
}

// identify compares the manager's signing identity with that of the first one.
func (p *Pool) identify(public crypto.PublicKey) error {
	if !p.known {
		p.known, p.public = true, public
		return nil
	}
	if (public == nil) != (p.public == nil) {
		return fmt.Errorf("%w: the token's identity is not what it was", hsm.ErrKeyRefused)
	}
	if public == nil {
		return nil
	}
	was, err := x509.MarshalPKIXPublicKey(p.public)
	if err != nil {
		return err
	}
	is, err := x509.MarshalPKIXPublicKey(public)
	if err != nil {
		return err
	}
	if !bytes.Equal(was, is) {
		return fmt.Errorf("%w: the token's identity is not what it was", hsm.ErrKeyRefused)
	}
	return nil
}

// takeBack takes a worker out of service, and gives what was in flight to it to the others.
func (p *Pool) takeBack(w *worker) {
	p.mu.Lock()
	if w.takenBack {
		p.mu.Unlock()
		return
	}
	w.takenBack = true
	for i, x := range p.workers {
		if x == w {
			p.workers = append(p.workers[:i:i], p.workers[i+1:]...)
			break
		}
	}
	for _, s := range p.seats {
		if s.w == w {
			s.w, s.since = nil, time.Now()
			if s.fault = nil; p.refused != nil {
				s.fault = p.refused
			}
		}
	}
	var lost []piece
	alone := w.inFlight == 1
	for _, x := range w.flights {
		if x.call == nil {
			continue
		}
		if w.blames(&x, alone) || p.closed {
			p.queue.landed(x.lane)
			lost = append(lost, x)
			continue
		}
		p.queue.again = append(p.queue.again, x)
	}
	w.flights, w.load, w.inFlight, w.frames = nil, 0, 0, 0
	clear(w.requests)
	reason := fmt.Errorf("%w: token workers end, or are killed, whenever they run it", hsm.ErrUnavailable)
	if p.closed {
		reason = errClosed()
	}
	var waiting []piece
	fault := p.fault()
	if fault != nil {
		waiting = p.queue.flush()
	}
	p.announce()
	p.mu.Unlock()
	fail(lost, reason)
	fail(waiting, fault)
	p.pump()
	go func() {
		<-w.exited
		p.mu.Lock()
		delete(p.alive, w)
		p.mu.Unlock()
	}()
}

// blames counts a worker's end against an operation that was in flight to it, and tells whether it
// is not to be tried again. The caller holds the pool's mu.
func (w *worker) blames(x *piece, alone bool) bool {
	switch {
	case w.murdered && alone:
		x.kills++
	case w.murdered:
		// Perhaps by an operator, perhaps by a kernel that is out of memory, for one of these. Each is
		// run by itself from now on.
		x.tries = max(x.tries, triesLimit-1)
	default:
		x.tries++
	}
	return x.tries >= triesLimit || x.kills >= killsLimit
}
