package main

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// Each part of a node has a share of its own of the time that a stop may take, so that one which
// hangs takes nothing from those after it. Together they are less than 10 s.
const (
	stopSockets    = 3 * time.Second
	stopLeadership = 600 * time.Millisecond // two elections: the next leader has to be heard of
	stopRefusals   = 200 * time.Millisecond
	stopReconciler = 500 * time.Millisecond
	stopWraps      = 900 * time.Millisecond
	stopRepairs    = 200 * time.Millisecond
	stopJournal    = 1400 * time.Millisecond
	stopAdmin      = 200 * time.Millisecond
	stopMetrics    = 100 * time.Millisecond
	stopRaft       = time.Second
	stopToken      = 1300 * time.Millisecond
	stopMarks      = 200 * time.Millisecond // a witness's, which has no token to stop
)

// lifecycle is what runs, in the order in which it was started. It is stopped the other way round:
// each part still has what it was built upon.
type lifecycle struct{ parts []part }

type part struct {
	name string
	// stop ends the part, or says why it did not when the context ends.
	stop  func(context.Context) error
	share time.Duration
}

// started adds a part. It is called before the next one is started.
func (l *lifecycle) started(name string, share time.Duration, stop func(context.Context) error) {
	l.parts = append(l.parts, part{name, stop, share})
}

// stop ends all parts, once, and tells what did not end in order.
func (l *lifecycle) stop() error {
	var errs []error
	for len(l.parts) > 0 {
		last := len(l.parts) - 1
		p := l.parts[last]
		l.parts = l.parts[:last]
		if err := p.end(); err != nil {
			errs = append(errs, fmt.Errorf("stop %s: %w", p.name, err))
		}
	}
	return errors.Join(errs...)
}

// leave is how much longer than its share a part may take to say what it has left undone.
const leave = 50 * time.Millisecond

var errStillRuns = errors.New("it still runs, and ends with the process")

// end does not wait for who forgets the time, for example in a system call on a disk that hangs.
func (p part) end() error {
	ctx, cancel := context.WithTimeout(context.Background(), p.share)
	defer cancel()
	done := make(chan error, 1)
	go func() { done <- p.stop(ctx) }()
	select {
	case err := <-done:
		return err
	case <-time.After(p.share + leave):
		return errStillRuns
	}
}
