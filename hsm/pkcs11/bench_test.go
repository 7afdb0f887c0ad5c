package pkcs11_test

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/miekg/pkcs11"

	"github.com/kekd/kekd/hierarchy"
	"github.com/kekd/kekd/hsm"
	"github.com/kekd/kekd/hsm/hsmtest"
	kekd "github.com/kekd/kekd/hsm/pkcs11"
)

// The AAD of a real envelope has about this many bytes.
var benchAAD = make([]byte, 180)

type bench struct {
	token  *kekd.Token
	ref    hsm.KeyRef
	sealed hsm.Sealed
}

func newBench(b *testing.B, cfg kekd.Config) bench {
	h := hsmtest.NewSoftHSM(b)
	cfg.Manager = true
	token := h.Open(b, 0, cfg)
	obj, err := token.Generate(b.Context(), hierarchy.ObjectID{1}, "kekd/bench")
	if err != nil {
		b.Fatal(err)
	}
	x := bench{token: token, ref: hsm.KeyRef{ID: obj.ID, Check: obj.Check}}
	for range 10 {
		op := []hsm.Operation{{Plaintext: make([]byte, 32), To: []hsm.Target{{Key: x.ref, AAD: benchAAD}}}}
		token.Do(b.Context(), op)
		if op[0].Err != nil {
			b.Fatal(op[0].Err)
		}
		x.sealed = op[0].Sealed[0]
	}
	return x
}

func (x bench) unwraps(n int) []hsm.Operation {
	ops := make([]hsm.Operation, n)
	for i := range ops {
		ops[i] = hsm.Operation{Reveal: true, Open: &hsm.Opening{Key: x.ref, AAD: benchAAD, Sealed: x.sealed}}
	}
	return ops
}

func (x bench) do(b *testing.B, ops []hsm.Operation) {
	x.token.Do(context.Background(), ops)
	for i := range ops {
		if ops[i].Err != nil {
			b.Error(ops[i].Err)
			return
		}
		clear(ops[i].Revealed)
	}
}

// start and rate report operations per second, and the processor time of each, which a busy
// machine disturbs less.
func start(b *testing.B) syscall.Rusage {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	b.ResetTimer()
	return u
}

func rate(b *testing.B, from syscall.Rusage, n int) {
	b.ReportMetric(float64(n)/b.Elapsed().Seconds(), "op/s")
	var to syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &to); err != nil {
		b.Fatal(err)
	}
	cpu := func(u syscall.Rusage) float64 { return float64(u.Utime.Nano() + u.Stime.Nano()) }
	b.ReportMetric((cpu(to)-cpu(from))/float64(n)/1000, "cpu-us/op")
}

// BenchmarkRaw is the loop of C_DecryptInit and C_Decrypt that everything else is compared
// with, through miekg/pkcs11, and the same through the machine.
func BenchmarkRaw(b *testing.B) {
	b.Run("token", func(b *testing.B) { benchmarkRaw(b, false) })
	b.Run("copy", func(b *testing.B) { benchmarkRaw(b, true) })
}

func benchmarkRaw(b *testing.B, copied bool) {
	x := newBench(b, kekd.Config{Copies: -1})
	ctx := pkcs11.New(hsmtest.Module)
	slots, err := ctx.GetSlotList(true)
	if err != nil {
		b.Fatal(err)
	}
	s, err := ctx.OpenSession(slots[0], pkcs11.CKF_SERIAL_SESSION)
	if err != nil {
		b.Fatal(err)
	}
	id := x.ref.ID
	if err := ctx.FindObjectsInit(s, []*pkcs11.Attribute{pkcs11.NewAttribute(pkcs11.CKA_ID, id[:])}); err != nil {
		b.Fatal(err)
	}
	found, _, err := ctx.FindObjects(s, 1)
	if err != nil || len(found) != 1 {
		b.Fatal(found, err)
	}
	ctx.FindObjectsFinal(s)
	key := found[0]
	if copied {
		if key, err = ctx.CopyObject(s, key, []*pkcs11.Attribute{pkcs11.NewAttribute(pkcs11.CKA_TOKEN, false)}); err != nil {
			b.Fatal(err)
		}
	}
	b.Run("miekg", func(b *testing.B) {
		from := start(b)
		for range b.N {
			gcm := pkcs11.NewGCMParams(x.sealed.IV, benchAAD, 128)
			if err := ctx.DecryptInit(s, []*pkcs11.Mechanism{pkcs11.NewMechanism(pkcs11.CKM_AES_GCM, gcm)}, key); err != nil {
				b.Fatal(err)
			}
			if _, err := ctx.Decrypt(s, x.sealed.Ciphertext); err != nil {
				b.Fatal(err)
			}
			gcm.Free()
		}
		rate(b, from, b.N)
	})
	for _, batch := range []int{1, 64} {
		b.Run(fmt.Sprintf("machine/%d", batch), func(b *testing.B) {
			fns, err := kekd.LoadFunctions(hsmtest.Module)
			if err != nil {
				b.Fatal(err)
			}
			m := kekd.NewMachine(fns)
			from := start(b)
			for done := 0; done < b.N; done += batch {
				m.Reset()
				for range batch {
					m.Open(key, x.sealed.IV, benchAAD, x.sealed.Ciphertext)
				}
				m.Run(s)
				if m.RV(batch-1) != 0 {
					b.Fatal(m.RV(batch - 1))
				}
			}
			rate(b, from, b.N)
		})
	}
}
func BenchmarkDo(b *testing.B) {
	b.Run("token", func(b *testing.B) { benchmarkDo(b, -1) })
	b.Run("copy", func(b *testing.B) { benchmarkDo(b, 0) })
}

func benchmarkDo(b *testing.B, copies int) {
	x := newBench(b, kekd.Config{Copies: copies})
	for _, flight := range []int{1, 4} {
		b.Run(fmt.Sprintf("batch1024x%d", flight), func(b *testing.B) {
			from := start(b)
			var left atomic.Int64
			left.Store(int64(b.N))
			var wg sync.WaitGroup
			for range flight {
				wg.Go(func() {
					ops := x.unwraps(1024)
					for left.Add(-1024) > -1024 {
						x.do(b, ops)
					}
				})
			}
			wg.Wait()
			rate(b, from, (b.N+1023)/1024*1024)
		})
	}
	for _, callers := range []int{1, 16, 64} {
		b.Run(fmt.Sprintf("unary%d", callers), func(b *testing.B) {
			from := start(b)
			var left atomic.Int64
			left.Store(int64(b.N))
			var wg sync.WaitGroup
			for range callers {
				wg.Go(func() {
					ops := x.unwraps(1)
					for left.Add(-1) >= 0 {
						x.do(b, ops)
					}
				})
			}
			wg.Wait()
			rate(b, from, b.N)
		})
	}
}
