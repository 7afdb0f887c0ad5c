package main

import (
	"context"
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

func watchHealth(token *worker.Pool) *health {
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
			h.healthy.Store(token.Healthy(asking) == nil)
			cancel()
		}
	}()
	return h
}

// ok tells whether the token answered when it was last asked.
func (h *health) ok() bool { return h.healthy.Load() }
