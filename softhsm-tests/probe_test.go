package softhsmtests

import (
	"bytes"
	"context"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/kekd/kekd/unix-socket-api/client"
	"github.com/kekd/kekd/unix-socket-api/kekdv1"
)

// prober is an innocent caller: it unwraps all the time, and none may fail.
type prober struct {
	t      *testing.T
	cancel context.CancelFunc
	done   chan struct{}

	mu     sync.Mutex
	took   []time.Duration
	fault  error // the first one
	faults int
}

// probePause lets a prober notice an outage of some milliseconds and leaves the machine to others.
const probePause = 2 * time.Millisecond

// probe starts a prober, as this process's own user.
func probe(t *testing.T, n *node, key string) *prober {
	t.Helper()
	k, closer, err := client.DialKeys(n.Socket)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { closer.Close() })
	return probeWith(t, k, key)
}

func probeWith(t *testing.T, k kekdv1.KeyServiceClient, key string) *prober {
	t.Helper()
	sealed, err := k.GenerateDataKey(within(t, 10*time.Second), &kekdv1.GenerateDataKeyRequest{Key: key})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	p := &prober{t: t, cancel: cancel, done: make(chan struct{})}
	t.Cleanup(cancel)
	go func() {
		defer close(p.done)
		for ctx.Err() == nil {
			begun := time.Now()
			opened, err := k.Unwrap(context.WithoutCancel(ctx), &kekdv1.UnwrapRequest{Envelope: sealed.Envelope})
			took := time.Since(begun)
			p.mu.Lock()
			p.took = append(p.took, took)
			if err != nil || !bytes.Equal(opened.GetPlaintext(), sealed.Plaintext) {
				if p.faults++; p.fault == nil {
					p.fault = err
				}
			}
			p.mu.Unlock()
			time.Sleep(probePause)
		}
	}()
	return p
}

// window forgets what was measured so far.
func (p *prober) window() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.took = nil
}

// p99 is that of the present window, and how many calls it has.
func (p *prober) p99() (time.Duration, int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	sorted := slices.Sorted(slices.Values(p.took))
	if len(sorted) == 0 {
		return 0, 0
	}
	return sorted[len(sorted)*99/100], len(sorted)
}

func (p *prober) failed() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.faults > 0
}

// stop ends the prober and fails the test if one of its calls failed.
func (p *prober) stop() {
	p.t.Helper()
	p.cancel()
	<-p.done
	if p.faults > 0 {
		p.t.Fatalf("an innocent caller had %d failures of %d calls, the first: %v", p.faults, len(p.took), p.fault)
	}
	if len(p.took) == 0 {
		p.t.Fatal("the innocent caller made no call")
	}
}
