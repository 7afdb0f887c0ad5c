package client_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/kekd/kekd/unix-socket-api/client"
)

// TestNoCallIsLost: callers come and leave, and the daemon dies and is back, all at random.
// Every call ends, with its own answer or with a reason.
func TestNoCallIsLost(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	path := filepath.Join(socketDir(t), "s")
	d := start(t, path, &daemon{})
	c := dial(t, path)
	ctx := soon(t)
	var calls sync.WaitGroup
	for w := range 32 {
		calls.Go(func() {
			r := rand.New(rand.NewPCG(seed, uint64(w)+1))
			for i := range 100 {
				own, cancel := context.WithTimeout(ctx, time.Duration(r.IntN(3000))*time.Microsecond)
				if r.IntN(2) == 0 {
					own, cancel = ctx, func() {}
				}
				want := fmt.Sprintf("%d-%d", w, i)
				switch got, err := unwrap(own, c, want); {
				case err == nil && got != want:
					t.Errorf("call %s got the answer of %s", want, got)
				case err != nil && !errors.Is(err, client.ErrUnavailable) && !errors.Is(err, context.DeadlineExceeded):
					t.Errorf("call %s: %v", want, err)
				case ctx.Err() != nil:
					t.Errorf("call %s was not answered", want)
				}
				cancel()
			}
		})
	}
	done := make(chan struct{})
	go func() {
		calls.Wait()
		close(done)
	}()
	for r := rand.New(rand.NewPCG(seed, 0)); ; {
		select {
		case <-done:
			return
		case <-time.After(time.Duration(r.IntN(20)) * time.Millisecond):
			d.stop()
			d = start(t, path, &daemon{})
		}
	}
}
