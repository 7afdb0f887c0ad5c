package faultmodule_test

import (
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/miekg/pkcs11"

	"github.com/kekd/kekd/softhsm-tests/faultmodule"
)

// timed returns the shortest of some runs: what is below a bound by nature is so in the luckiest.
func timed(t *testing.T, runs int, f func() error) time.Duration {
	t.Helper()
	best := time.Hour
	for range runs {
		start := time.Now()
		check(t, f())
		best = min(best, time.Since(start))
	}
	return best
}

func TestLatency(t *testing.T) {
	tok := newToken(t)
	pair := func() error {
		params := []byte{0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07} // P-256
		_, _, err := tok.GenerateKeyPair(tok.session, mechanism(pkcs11.CKM_EC_KEY_PAIR_GEN, nil),
			[]*pkcs11.Attribute{pkcs11.NewAttribute(pkcs11.CKA_EC_PARAMS, params), pkcs11.NewAttribute(pkcs11.CKA_TOKEN, true)},
			[]*pkcs11.Attribute{pkcs11.NewAttribute(pkcs11.CKA_TOKEN, true)})
		return err
	}
	random := func() error { _, err := tok.GenerateRandom(tok.session, 16); return err }

	alone := timed(t, 5, pair)
	latency := (10*time.Millisecond + 2*alone).Truncate(time.Microsecond)
	tok.Control.Set(fmt.Sprintf("C_GenerateKeyPair latency=%dus", latency.Microseconds()), "C_SeedRandom latency=60000000us")
	if got := timed(t, 8, pair); got < latency || got >= latency+alone/2 {
		t.Errorf("a pair takes %v, want from %v to less than %v: its own time is not added", got, latency, latency+alone/2)
	}
	if got := timed(t, 3, random); got >= 5*time.Millisecond {
		t.Errorf("a function without latency takes %v", got)
	}

	tok.Control.Set("* latency=1000us", "C_SeedRandom latency=60000000us")
	if got := timed(t, 50, random); got < time.Millisecond || got > 1200*time.Microsecond {
		t.Errorf("a call of 1 ms takes %v", got)
	}
}

// rate lets callers ask for a time, and says how many calls per second were answered.
func rate(tb testing.TB, tok *token, callers int, d time.Duration) float64 {
	tb.Helper()
	var done atomic.Int64
	var wg sync.WaitGroup
	start := time.Now()
	for range callers {
		wg.Go(func() {
			for time.Since(start) < d {
				if _, err := tok.GenerateRandom(tok.session, 16); err != nil {
					tb.Error(err)
					return
				}
				done.Add(1)
			}
		})
	}
	wg.Wait()
	return float64(done.Load()) / time.Since(start).Seconds()
}

// 16 at once of 4 ms are 4,000 in a second: never more, and that many if more ask. Threads that the
// scheduler wakes late take nothing from it, which is why a busy machine reaches it too.
func TestParallel(t *testing.T) {
	const slots, ceiling = 16, 4000.0
	tok := newToken(t)
	tok.Control.Set("C_GenerateRandom latency=4000us", "token parallel=16")
	best := 0.0
	for range 20 {
		got := rate(t, tok, 4*slots, 200*time.Millisecond)
		if got > ceiling*1.001 {
			t.Fatalf("%.0f calls per second, more than %.0f", got, ceiling)
		}
		if best = max(best, got); best >= 0.95*ceiling {
			break
		}
	}
	if best < 0.95*ceiling {
		t.Errorf("%.0f calls per second, want 0.95 of %.0f", best, ceiling)
	}
	if got := rate(t, tok, 4, 100*time.Millisecond); got > 1000*1.001 {
		t.Errorf("4 callers do %.0f calls per second of 4 ms", got)
	}
}

// A network HSM of 1 ms, 16 at once: at most 16,000 calls per second, and that many on an idle machine.
func BenchmarkNetworkHSM(b *testing.B) {
	tok := newToken(b)
	tok.Control.Set(faultmodule.NetworkHSM().Rules...)
	for b.Loop() {
		b.ReportMetric(rate(b, tok, 48, time.Second), "calls/s")
	}
}

// What the module costs without a rule.
func BenchmarkForward(b *testing.B) {
	tok := newToken(b)
	for b.Loop() {
		if _, err := tok.GetSessionInfo(tok.session); err != nil {
			b.Fatal(err)
		}
	}
}

// One thing at a time, whichever process asks.
func TestParallelOverProcesses(t *testing.T) {
	const latency, each = 10 * time.Millisecond, 10
	tok := newToken(t)
	child := startChild(t, tok, "random-on-input")
	tok.Control.Set("C_GenerateRandom latency=10000us", "token parallel=1")

	start := time.Now()
	for range each {
		child.println("go")
	}
	for range each {
		_, err := tok.GenerateRandom(tok.session, 16)
		check(t, err)
	}
	for range each {
		child.readLine()
	}
	if took := time.Since(start); took < 2*each*latency {
		t.Errorf("%d calls of %v in two processes took %v: side by side", 2*each, latency, took)
	}
	child.end()
}
