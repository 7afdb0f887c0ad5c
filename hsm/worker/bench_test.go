package worker_test

import (
	"context"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/miekg/pkcs11"

	"github.com/kekd/kekd/hsm"
	"github.com/kekd/kekd/hsm/hsmtest"
	"github.com/kekd/kekd/hsm/worker"
	"github.com/kekd/kekd/softhsm-tests/faultmodule"
)

// cpu is the processor time of this process and of the pool's workers, in nanoseconds.
func cpu(b testing.TB, p *worker.Pool) float64 {
	b.Helper()
	var u syscall.Rusage
	must(b, syscall.Getrusage(syscall.RUSAGE_SELF, &u))
	total := float64(u.Utime.Nano() + u.Stime.Nano())
	if p == nil {
		return total
	}
	for _, w := range p.Workers() {
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", w.PID))
		must(b, err)
		f := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+2:]))
		for _, i := range []int{11, 12} { // utime and stime, in ticks of 10 ms
			ticks, err := strconv.ParseFloat(f[i], 64)
			must(b, err)
			total += ticks * 1e7
		}
	}
	return total
}

// measure reports operations per second and the processor time of each.
func measure(b *testing.B, p *worker.Pool, run func(n int) int) {
	from := cpu(b, p)
	b.ResetTimer()
	n := run(b.N)
	took := b.Elapsed()
	b.ReportMetric(float64(n)/took.Seconds(), "op/s")
	b.ReportMetric((cpu(b, p)-from)/float64(n)/1000, "cpu-us/op")
	b.ReportMetric(0, "ns/op")
}

// BenchmarkUnwrap compares a loop of C_DecryptInit and C_Decrypt on a session copy with operations
// through a token in this process, through one worker, and through two.
func BenchmarkUnwrap(b *testing.B) {
	c := kept(b)
	setup := openPool(b, worker.Config{Command: commandOf(b, c), Workers: 1})
	s := mint(b, setup, acme, 1)
	must(b, setup.Close(soon(b)))

	b.Run("raw", func(b *testing.B) { benchmarkRaw(b, s) })
	b.Run("inprocess", func(b *testing.B) {
		backend, err := c.open(soon(b), worker.RoleServer, []byte(hsmtest.UserPIN), func(string) {})
		must(b, err)
		defer backend.Close(soon(b))
		benchmarkToken(b, backend.Token, nil, s)
	})
	for _, workers := range []int{1, 2} {
		b.Run(fmt.Sprintf("workers%d", workers), func(b *testing.B) {
			p := openPool(b, worker.Config{Command: commandOf(b, c), Workers: workers})
			benchmarkToken(b, p, p, s)
		})
	}
}

func benchmarkToken(b *testing.B, token hsm.Token, p *worker.Pool, s sample) {
	for range 50 { // warm, on each worker
		s.do(b, token, 256)
	}
	for _, flight := range []int{1, 4} {
		b.Run(fmt.Sprintf("batch1024x%d", flight), func(b *testing.B) {
			measure(b, p, func(n int) int {
				var left atomic.Int64
				left.Store(int64(n))
				var wg sync.WaitGroup
				for range flight {
					wg.Go(func() {
						ops := s.unwraps(1024)
						for left.Add(-1024) > -1024 {
							token.Do(context.Background(), ops)
							if n, err := s.wrong(ops); n > 0 {
								b.Error(n, err)
								return
							}
						}
					})
				}
				wg.Wait()
				return (n + 1023) / 1024 * 1024
			})
		})
	}
	for _, callers := range []int{1, 64} {
		b.Run(fmt.Sprintf("unary%d", callers), func(b *testing.B) {
			var took []time.Duration
			var mu sync.Mutex
			measure(b, p, func(n int) int {
				took = make([]time.Duration, 0, n)
				var left atomic.Int64
				left.Store(int64(n))
				var wg sync.WaitGroup
				for range callers {
					wg.Go(func() {
						var mine []time.Duration
						ops := s.unwraps(1)
						for left.Add(-1) >= 0 {
							from := time.Now()
							token.Do(context.Background(), ops)
							mine = append(mine, time.Since(from))
							if n, err := s.wrong(ops); n > 0 {
								b.Error(n, err)
								return
							}
						}
						mu.Lock()
						took = append(took, mine...)
						mu.Unlock()
					})
				}
				wg.Wait()
				return n
			})
			b.ReportMetric(float64(quantile(took, 0.5))/1000, "p50-us")
			b.ReportMetric(float64(quantile(took, 0.99))/1000, "p99-us")
		})
	}
}

// BenchmarkNetwork runs through a network HSM that takes 1 ms and does 16 things at once: 16,000
// operations a second are its ceiling. It is reached with more sessions than that.
func BenchmarkNetwork(b *testing.B) {
	for _, sessions := range []int{16, 24} {
		b.Run(fmt.Sprintf("sessions%d", sessions), func(b *testing.B) { benchmarkNetwork(b, sessions, 16_000) })
	}
}

func benchmarkNetwork(b *testing.B, sessions int, ceiling float64) {
	m := faultmodule.New(b)
	c := kept(b)
	c.Module, c.Parallel = m.Path, sessions
	p := openPool(b, worker.Config{Command: commandOf(b, c, m.Env()...)})
	s := mint(b, p, acme, 1)
	s.do(b, p, 256)
	m.Control.Set(faultmodule.NetworkHSM().Rules...)
	for _, callers := range []int{4, 64} {
		b.Run(fmt.Sprintf("callers%dx%d", callers, 256/callers), func(b *testing.B) {
			defer func() { b.ReportMetric(float64(b.N)/b.Elapsed().Seconds()/ceiling, "of-ceiling") }()
			measure(b, p, func(n int) int {
				var ran atomic.Int64
				var wg sync.WaitGroup
				for range callers {
					wg.Go(func() {
						for ran.Add(int64(256/callers)) <= int64(n) {
							s.do(b, p, 256/callers)
						}
					})
				}
				wg.Wait()
				return n
			})
		})
	}
}

func quantile(d []time.Duration, q float64) time.Duration {
	if len(d) == 0 {
		return 0
	}
	slices.Sort(d)
	return d[int(q*float64(len(d)-1))]
}

func (s sample) do(b testing.TB, p hsm.Token, n int) {
	b.Helper()
	ops := s.unwraps(n)
	p.Do(soon(b), ops)
	if n, err := s.wrong(ops); n > 0 {
		b.Fatal(n, err)
	}
}

func benchmarkRaw(b *testing.B, s sample) {
	ctx := pkcs11.New(hsmtest.Module)
	must(b, ctx.Initialize())
	defer ctx.Finalize()
	slots, err := ctx.GetSlotList(true)
	must(b, err)
	session, err := ctx.OpenSession(slots[0], pkcs11.CKF_SERIAL_SESSION)
	must(b, err)
	must(b, ctx.Login(session, pkcs11.CKU_USER, hsmtest.UserPIN))
	must(b, ctx.FindObjectsInit(session, []*pkcs11.Attribute{pkcs11.NewAttribute(pkcs11.CKA_ID, s.key.ID[:])}))
	found, _, err := ctx.FindObjects(session, 1)
	must(b, err)
	must(b, ctx.FindObjectsFinal(session))
	key, err := ctx.CopyObject(session, found[0], []*pkcs11.Attribute{pkcs11.NewAttribute(pkcs11.CKA_TOKEN, false)})
	must(b, err)
	measure(b, nil, func(n int) int {
		for range n {
			gcm := pkcs11.NewGCMParams(s.sealed.IV, aad, 128)
			must(b, ctx.DecryptInit(session, []*pkcs11.Mechanism{pkcs11.NewMechanism(pkcs11.CKM_AES_GCM, gcm)}, key))
			if _, err := ctx.Decrypt(session, s.sealed.Ciphertext); err != nil {
				b.Fatal(err)
			}
			gcm.Free()
		}
		return n
	})
}
