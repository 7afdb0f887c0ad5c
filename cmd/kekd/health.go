package main

import (
	"context"
	"fmt"
	"log/slog"
	"sync/atomic"
	"time"

	"github.com/kekd/kekd/hierarchy"
)

// answering is a token that is asked how it does: package worker's pool.
type answering interface {
	// Healthy is nil if all is well with it; Answers if it does what it is asked, which it may although it is not well.
	Healthy(context.Context) error
	Answers(context.Context) error
}

// health looks at the token all the time, so that who has to know at once does.
type health struct {
	healthy atomic.Bool
	silent  atomic.Pointer[silence] // nil while the token answers
	quit    context.CancelFunc
}

// silence is a token that does not answer.
type silence struct {
	since time.Time // of the first question without an answer
	err   error
}

const (
	// healthEvery is how often the token is asked; it has [healthTimeout] to answer.
	healthEvery = time.Second
	// silenceAllowed is for how long the token may be silent until this node takes no lease any more: as long as it may take
	// to replace a worker.
	silenceAllowed = 3 * time.Second
	// askAgain is how soon a token that did not answer is asked again, so that the node serves as soon as that does.
	askAgain = 200 * time.Millisecond
)

// watchHealth says in the log when the token begins not to be well, and when it is well again.
func watchHealth(token answering, log *slog.Logger) *health {
	ctx, quit := context.WithCancel(context.Background())
	h := &health{quit: quit}
	h.healthy.Store(true) // it was opened just now
	go func() {
		next := time.NewTimer(healthEvery)
		defer next.Stop()
		for {
			select {
			case <-next.C:
			case <-ctx.Done():
				return
			}
			if h.ask(ctx, token, log) {
				next.Reset(healthEvery)
			} else {
				next.Reset(askAgain)
			}
		}
	}()
	return h
}

// ask tells whether the token answers.
func (h *health) ask(ctx context.Context, token answering, log *slog.Logger) bool {
	asked := time.Now()
	asking, cancel := context.WithTimeout(ctx, healthTimeout)
	defer cancel()
	err := token.Healthy(asking)
	if ctx.Err() != nil {
		return true // it is being closed
	}
	switch was := h.healthy.Swap(err == nil); {
	case err != nil && was:
		log.Error("the token is not well", "error", err)
	case err == nil && !was:
		log.Info("the token is well again")
	}
	if err != nil {
		err = token.Answers(asking)
	}
	if err == nil {
		h.silent.Store(nil)
		return true
	}
	next := &silence{since: asked, err: err}
	if last := h.silent.Load(); last != nil {
		next.since = last.since
	}
	h.silent.Store(next)
	return false
}

// ok tells whether all was well with the token when it was last asked.
func (h *health) ok() bool { return h.healthy.Load() }

// unwell says why the token cannot be served with: it has not answered for a while. Its error wraps
// [hierarchy.ErrHSMUnavailable].
func (h *health) unwell() error {
	s := h.silent.Load()
	if s == nil || time.Since(s.since) < silenceAllowed {
		return nil
	}
	return fmt.Errorf("%w: it has not answered for %v: %w", hierarchy.ErrHSMUnavailable, time.Since(s.since).Round(time.Second), s.err)
}

// unwell says why this node takes no lease: what it released could not be recorded, or there is no token to release it.
// A node without a token serves nothing, and has a lease for the sake of its copy.
func (n *node) unwell() error {
	if n.health != nil {
		if err := n.health.unwell(); err != nil {
			return err
		}
	}
	if n.up.Load() {
		return n.journal.Healthy()
	}
	return nil
}
