package worker

import (
	"errors"
	"fmt"
	"time"

	"github.com/kekd/kekd/hsm"
)

const (
	// frameCost is how much one frame carries: 128 unwraps keep SoftHSM busy for a millisecond.
	frameCost = 128
	// heavy is the cost in flight to a worker from which on a lane that is new is given a frame
	// beyond the usual: what is ahead of it takes longer than the frame costs.
	heavy = 32
	// silence is how long a worker may say nothing until nothing is kept for it any more: a few of the
	// kernel's time slices.
	silence = 20 * time.Millisecond
	// waitingLimit is how much may be in flight to a worker that gets more, with what only waits there.
	waitingLimit = inFlightLimit / 2
	// triesLimit is how many workers may end with an operation, unless they were killed.
	triesLimit = 3
	// killsLimit is how many workers may be killed while an operation is all that they run. By the
	// first of them it may be an accident.
	killsLimit = 2
)

// window is what a worker is given at a time, in units of cost and in frames: enough that it
// always has the next frame when it has done one, and no more, since what is in flight cannot be
// overtaken.
func (w *worker) window() (cost, frames int) {
	if w.parallel <= 1 {
		return 2 * frameCost, 2
	}
	return 3 * w.parallel, 2 * w.parallel
}

// lookAgain has the pool look whether what it keeps for a worker has left. The caller holds mu.
func (p *Pool) lookAgain() {
	if p.looking {
		return
	}
	p.looking = true
	time.AfterFunc(silence, func() {
		p.mu.Lock()
		p.looking = false
		p.mu.Unlock()
		p.pump()
	})
}

// swift tells whether a worker has something in flight, but not for long: it has little, and answers.
// The caller holds the pool's mu.
func (w *worker) swift() bool {
	return w.load > 0 && w.load < heavy && time.Since(epoch)-time.Duration(w.heard.Load()) < silence
}

// least is the room from which on a worker is given more. A token that does many things at once
// ends them one by one, and a frame for each would cost as much as the rest of its way.
func (w *worker) least() int { return max(1, w.parallel/2) }

// pump gives the workers what they have room for. Whoever calls it may send for everybody: a
// caller who finds a worker being sent to leaves his operations to the one who sends.
func (p *Pool) pump() {
	var pieces []piece
	var ids []uint32
	p.mu.Lock()
	for {
		w := (*worker)(nil)
		if w, pieces = p.feed(pieces[:0]); w == nil {
			break
		}
		ids = w.depart(pieces, ids[:0])
		w.sending = true
		p.mu.Unlock()
		w.send(pieces, ids)
		p.mu.Lock()
		w.sending = false
		for i := range pieces {
			if pieces[i].call == nil { // its caller had left
				if x, ok := w.land(ids[i]); ok {
					p.queue.landed(x.lane)
				}
			}
		}
	}
	p.mu.Unlock()
}

// feed chooses a worker, and takes from the queue what it is to be sent. Nil: nobody has room,
// or nothing waits. The caller holds mu.
func (p *Pool) feed(buf []piece) (*worker, []piece) {
	if p.queue.empty() {
		return nil, buf
	}
	if w := p.judge(); w != nil {
		return w, p.queue.appeals(buf)
	}
	draining := (*worker)(nil)
	if len(p.queue.again) > 0 {
		// What a worker has ended with is run apart from all else, so that nothing new shares its
		// fate: first together, since most often none of it was to blame, then one by one.
		w := p.idlest(func(w *worker) bool { return !w.suspect })
		if w != nil && w.load == 0 && !w.sending {
			w.suspect = true
			return w, p.queue.suspects(buf)
		}
		draining = w
	}
	fresh := p.queue.fresh.first != nil
	fit := func(w *worker) bool {
		cost, frames := w.window()
		return w != draining && !w.suspect && !w.sending && cost-w.load >= w.least() && w.frames < frames && w.inFlight < waitingLimit
	}
	// One that works and has little left takes it along, or will: to wake another process costs more
	// than what is ahead takes.
	w := p.idlest(func(w *worker) bool { return w.swift() && fit(w) })
	if w == nil {
		if p.queue.size < heavy && p.idlest(func(w *worker) bool { return w.swift() && w != draining && !w.suspect }) != nil {
			p.lookAgain()
			return nil, buf
		}
		w = p.idlest(fit)
	}
	if w != nil {
		cost, _ := w.window()
		budget := min(frameCost, cost-w.load)
		if fresh {
			// In a frame of their own: the results of a frame come together.
			if buf = p.queue.take(buf, budget, true); len(buf) > 0 {
				return w, buf
			}
		}
		if buf = p.queue.take(buf, budget, false); len(buf) > 0 {
			return w, buf
		}
		return nil, buf
	}
	if !fresh {
		return nil, buf
	}
	w = p.idlest(func(w *worker) bool {
		_, frames := w.window()
		return w != draining && !w.suspect && !w.sending && w.load >= heavy && w.frames < 2*frames
	})
	if w == nil {
		return nil, buf
	}
	if buf = p.queue.take(buf, quantum, true); len(buf) > 0 {
		return w, buf
	}
	return nil, buf
}

// idlest gives the worker with the least in flight of those that are fit. The manager has other
// things to do, too, so it comes last among equals.
func (p *Pool) idlest(fit func(*worker) bool) (best *worker) {
	for _, w := range p.workers {
		if fit(w) && (best == nil || w.load < best.load || w.load == best.load && best.role == RoleManager) {
			best = w
		}
	}
	return best
}

// judge gives who is to be sent appeals now: the manager, or anybody when there is none and will
// be none.
func (p *Pool) judge() *worker {
	if len(p.queue.appeal) == 0 {
		return nil
	}
	return p.idlest(func(w *worker) bool {
		_, frames := w.window()
		return !w.suspect && !w.sending && w.frames < frames && w.inFlight < waitingLimit && (w.role == RoleManager || p.seats[0].fault != nil)
	})
}

// denies tells a verdict on a key that a server may give because it has not seen yet what the
// manager changed.
func denies(err error) bool {
	return errors.Is(err, hsm.ErrKeyNotFound) || errors.Is(err, hsm.ErrKeyLatched) ||
		errors.Is(err, hsm.ErrKeyRefused) || errors.Is(err, hsm.ErrAmbiguous)
}

// appeals takes what a server has denied.
func (q *queue) appeals(buf []piece) []piece {
	n := min(len(q.appeal), frameCost)
	buf = append(buf, q.appeal[:n]...)
	rest := copy(q.appeal, q.appeal[n:])
	clear(q.appeal[rest:])
	q.appeal = q.appeal[:rest]
	return buf
}

// suspects takes what is to be tried again together.
func (q *queue) suspects(buf []piece) []piece {
	n := min(len(q.again), frameCost)
	if q.again[0].tries >= triesLimit-1 {
		n = 1
	}
	for i := 1; i < n; i++ {
		if q.again[i].tries >= triesLimit-1 {
			n = i
		}
	}
	buf = append(buf, q.again[:n]...)
	rest := copy(q.again, q.again[n:])
	clear(q.again[rest:])
	q.again = q.again[:rest]
	return buf
}

// depart notes pieces as in flight to the worker, under IDs. The caller holds the pool's mu.
func (w *worker) depart(pieces []piece, ids []uint32) []uint32 {
	if w.idle() {
		w.hear()
	}
	f := &frame{left: len(pieces), sent: time.Since(epoch)}
	w.frames++
	for i := range pieces {
		pieces[i].frame, pieces[i].waits = f, false
		w.load += int(pieces[i].cost)
		w.inFlight++
		id := uint32(len(w.flights))
		if n := len(w.free); n > 0 {
			id = w.free[n-1]
			w.free = w.free[:n-1]
			w.flights[id] = pieces[i]
		} else {
			w.flights = append(w.flights, pieces[i])
		}
		ids = append(ids, id)
	}
	return ids
}

// land takes a piece that has its result out of what is in flight to the worker. To its lane it
// is in flight until queue.landed. The caller holds the pool's mu.
func (w *worker) land(id uint32) (piece, bool) {
	if int(id) >= len(w.flights) || w.flights[id].call == nil {
		return piece{}, false
	}
	x := w.flights[id]
	w.flights[id] = piece{}
	w.free = append(w.free, id)
	w.inFlight--
	if !x.waits {
		w.makeRoom(&x)
	}
	if w.load == 0 {
		w.suspect = false
	}
	return x, true
}

// makeRoom counts a piece out of what keeps the worker busy. The caller holds the pool's mu.
func (w *worker) makeRoom(x *piece) {
	w.load -= int(x.cost)
	if x.frame.left--; x.frame.left == 0 {
		w.frames--
	}
}

// wait takes note of operations that wait in the worker. The caller pumps.
func (w *worker) wait(frame []byte) error {
	w.p.mu.Lock()
	defer w.p.mu.Unlock()
	if w.takenBack {
		return nil
	}
	d := decoder{b: frame}
	for d.more() {
		id := d.u32()
		if d.bad {
			break
		}
		if int(id) >= len(w.flights) || w.flights[id].call == nil || w.flights[id].waits {
			return fmt.Errorf("%w: something waits that nobody asked for", errGarbage)
		}
		w.flights[id].waits = true
		w.makeRoom(&w.flights[id])
	}
	return d.done()
}

// send writes one frame of operations. Pieces whose callers have left lose their call.
func (w *worker) send(pieces []piece, ids []uint32) {
	b := w.out.begin()
	b, at := beginFrame(room(b, frameHead+1), kindOperations)
	head := len(b)
	var h held
	for i := range pieces {
		op := h.op(&pieces[i])
		if op == nil {
			h.release()
			pieces[i].call = nil
			continue
		}
		b = appendOperation(room(b, operationSize(op)), ids[i], op)
	}
	h.release()
	if len(b) == head {
		b = b[:at]
	} else {
		b = endFrame(b, at)
	}
	w.out.end(b)
}

// results hands over what a frame of results holds. The caller pumps.
func (w *worker) results(frame []byte) error {
	w.got, w.landed = w.got[:0], w.landed[:0]
	d := decoder{b: frame}
	for d.more() {
		w.got = append(w.got, d.result())
	}
	err := d.done()
	if err != nil {
		return err
	}
	w.p.mu.Lock()
	if w.takenBack {
		w.p.mu.Unlock()
		return nil // too late: they have gone elsewhere
	}
	final := w.role == RoleManager || w.p.seats[0].fault != nil
	for i := range w.got {
		x, ok := w.land(w.got[i].id)
		if !ok {
			err = fmt.Errorf("%w: a result that nobody asked for", errGarbage)
			break
		}
		if !final && w.got[i].err != nil && denies(w.got[i].err) {
			// The manager has made all changes, and is not behind.
			w.p.queue.appeal = append(w.p.queue.appeal, x)
			x.call = nil
		} else {
			w.p.queue.landed(x.lane)
		}
		w.landed = append(w.landed, x)
	}
	w.p.mu.Unlock()

	var h held
	for i := range w.landed {
		if w.landed[i].call == nil {
			continue
		}
		op := h.op(&w.landed[i])
		if op == nil {
			continue
		}
		if e := w.got[i].give(op); e != nil {
			err = fmt.Errorf("%w: a result of another operation", e)
			op.Err = fmt.Errorf("%w: %w", hsm.ErrUnavailable, err)
		}
		h.finish()
	}
	h.release()
	clear(w.got)
	clear(w.landed)
	return err
}
