package main

import (
	"context"
	"log/slog"
	"sync/atomic"
	"time"

	"github.com/kekd/kekd/hsm/worker"
)

// health looks at the token all the time, so that who has to know at once does.
type health struct {
	healthy atomic.Bool
	quit    context.CancelFunc
}

// healthEvery is how often the token is asked; it has [healthTimeout] to answer.
const healthEvery = time.Second

// watchHealth says in the log when the token begins not to answer, and when it answers again.
func watchHealth(token *worker.Pool, log *slog.Logger) *health {
	ctx, quit := context.WithCancel(context.Background())
	h := &health{quit: quit}
	h.healthy.Store(true) // it was opened just now
	go func() {
		next := time.NewTicker(healthEvery)
		defer next.Stop()
		for {
			select {
			case <-next.C:
			case <-ctx.Done():
				return
			}
			asking, cancel := context.WithTimeout(ctx, healthTimeout)
			err := token.Healthy(asking)
			cancel()
			was := h.healthy.Swap(err == nil)
			switch {
			case ctx.Err() != nil:
				return // it is being closed
			case err != nil && was:
				log.Error("the token does not answer: nothing is served until it does", "error", err)
			case err == nil && !was:
				log.Info("the token answers again")
			}
		}
	}()
	return h
}

// ok tells whether the token answered when it was last asked.
func (h *health) ok() bool { return h.healthy.Load() }
