package main

import (
	"context"
	"errors"
	"log/slog"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/kekd/kekd/hierarchy"
	"github.com/kekd/kekd/hsm"
)

// moody is a token that answers, or says why it does not.
type moody struct{ mood atomic.Pointer[mood] }

type mood struct{ healthy, answers error }

func (m *moody) Healthy(context.Context) error { return m.mood.Load().healthy }
func (m *moody) Answers(context.Context) error { return m.mood.Load().answers }

// What a token says of itself is known after a second; that it cannot be served with, once it has been silent for some, and no longer
// than it is.
func TestHealth(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		token := new(moody)
		token.mood.Store(new(mood))
		h := watchHealth(token, slog.New(slog.DiscardHandler))
		defer h.quit()
		for _, step := range []struct {
			healthy, answers error
			after            time.Duration
			ok               bool
			unwell           error
		}{
			{nil, nil, time.Second, true, nil},
			{hsm.ErrPINLocked, nil, time.Hour, false, nil}, // those that have logged in serve on
			{nil, nil, time.Second, true, nil},
			{hsm.ErrUnavailable, hsm.ErrUnavailable, 2 * time.Second, false, nil},
			{nil, nil, 300 * time.Millisecond, true, nil},
			{hsm.ErrUnavailable, hsm.ErrUnavailable, 3 * time.Second, false, nil},
			{hsm.ErrPINLocked, hsm.ErrPINLocked, 2 * time.Second, false, hsm.ErrPINLocked},
			{nil, nil, 300 * time.Millisecond, true, nil},
		} {
			token.mood.Store(&mood{step.healthy, step.answers})
			time.Sleep(step.after)
			synctest.Wait()
			err := h.unwell()
			if h.ok() != step.ok || !errors.Is(err, step.unwell) || step.unwell == nil && err != nil {
				t.Errorf("%+v: ok %v, unwell: %v", step, h.ok(), err)
			}
			if err != nil && !errors.Is(err, hierarchy.ErrHSMUnavailable) {
				t.Errorf("%v is no %v", err, hierarchy.ErrHSMUnavailable)
			}
		}
	})
}
