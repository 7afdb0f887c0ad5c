package worker_test

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"

	"github.com/kekd/kekd/hsm"
	"github.com/kekd/kekd/hsm/worker"
)

// begun is a pool whose first worker serves, and whose second waits for what comes from the channel.
func begun(t *testing.T) (*worker.Pool, chan<- error) {
	t.Helper()
	second := make(chan error, 1)
	var starts atomic.Int32
	p, err := worker.Begin(t.Context(), worker.Config{
		Command: commandOf(t, workerConfig{Kind: "fake"}), Workers: 2,
		PIN: func() ([]byte, error) {
			if starts.Add(1) == 2 {
				if err := <-second; err != nil {
					return nil, err
				}
			}
			return []byte("1234"), nil
		},
	})
	must(t, err)
	t.Cleanup(func() {
		close(second)
		if err := p.Close(soon(t)); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	return p, second
}

// TestBegin: a pool serves as soon as its manager does, and is whole later.
func TestBegin(t *testing.T) {
	p, second := begun(t)
	ops := []hsm.Operation{fakeSeal(acme, []byte("x"))}
	p.Do(soon(t), ops)
	must(t, ops[0].Err)
	if serve, seats := len(p.Workers()), p.Size(); serve != 1 || seats != 2 {
		t.Errorf("%d of %d workers serve, want 1 of 2", serve, seats)
	}
	second <- nil
	must(t, p.Whole(soon(t)))
	if n := len(p.Workers()); n != 2 {
		t.Errorf("%d workers serve, want 2", n)
	}
}

// TestBeginWithoutASecond: what keeps the second worker from starting is told by Whole, which waits no
// longer than it is to.
func TestBeginWithoutASecond(t *testing.T) {
	p, second := begun(t)
	second <- hsm.ErrPINMissing
	if err := p.Whole(soon(t)); !errors.Is(err, hsm.ErrPINMissing) {
		t.Errorf("%v, want ErrPINMissing", err)
	}
	p, _ = begun(t)
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if err := p.Whole(ended); !errors.Is(err, hsm.ErrDeadline) {
		t.Errorf("%v, want ErrDeadline", err)
	}
}
