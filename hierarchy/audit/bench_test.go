package audit_test

import (
	"fmt"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/kekd/kekd/hierarchy/audit"
)

// A journal on a RAM disk would flatter; these run where the tests' temporary files are.

func benchRig(b *testing.B) *rig {
	return newRig(b, func(o *audit.Options) {
		o.SegmentSize, o.CheckpointRecords, o.CheckpointInterval = audit.DefaultSegmentSize, 0, 0
	})
}

// meter reports wall and processor time a record, the flusher's included: on a machine that is
// shared, only the second says what the journal costs.
func meter(b *testing.B) func(records uint64) {
	b.Helper()
	cpu := func() time.Duration {
		var u syscall.Rusage
		if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
			b.Fatal(err)
		}
		return time.Duration(u.Utime.Nano() + u.Stime.Nano())
	}
	before := cpu()
	b.ResetTimer()
	return func(records uint64) {
		b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(records), "ns/record")
		b.ReportMetric(float64((cpu()-before).Nanoseconds())/float64(records), "cpu-ns/record")
		b.ReportMetric(float64(records)/b.Elapsed().Seconds(), "records/s")
		b.ReportMetric(0, "ns/op")
	}
}

// BenchmarkAppend is what one record costs its caller, the disk left aside.
func BenchmarkAppend(b *testing.B) {
	for _, n := range []int{1, 128, 1024} {
		b.Run(fmt.Sprintf("batch=%d", n), func(b *testing.B) {
			r := benchRig(b)
			r.close()
			r.opts = r.opts.WithFiles(func(f audit.File) audit.File { return nowhere{f} })
			r.open()
			recs := make([]audit.Record, n)
			for i := range recs {
				recs[i] = unwrap(i % 100)
			}
			ctx := b.Context()
			done := meter(b)
			for b.Loop() {
				if _, err := r.j.Append(ctx, recs); err != nil {
					b.Fatal(err)
				}
			}
			done(uint64(b.N * n))
		})
	}
}

// nowhere takes writes for done.
type nowhere struct{ audit.File }

func (nowhere) WriteAt(b []byte, _ int64) (int, error) { return len(b), nil }
func (nowhere) Datasync() error                        { return nil }

// BenchmarkWrite is records made durable, by so many callers at once.
func BenchmarkWrite(b *testing.B) {
	for _, writers := range []int{1, 16, 64} {
		b.Run(fmt.Sprintf("writers=%d", writers), func(b *testing.B) {
			r := benchRig(b)
			ctx := b.Context()
			var left atomic.Int64
			left.Store(int64(b.N))
			var wg sync.WaitGroup
			done := meter(b)
			for w := range writers {
				wg.Go(func() {
					recs := []audit.Record{unwrap(w)}
					for left.Add(-1) >= 0 {
						if _, err := r.j.Write(ctx, recs); err != nil {
							b.Error(err)
							return
						}
					}
				})
			}
			wg.Wait()
			done(uint64(b.N))
		})
	}
}

// BenchmarkWriteBatches is batches of 1024 made durable, four in flight.
func BenchmarkWriteBatches(b *testing.B) {
	r := benchRig(b)
	ctx := b.Context()
	var left atomic.Int64
	left.Store(int64(b.N))
	var wg sync.WaitGroup
	done := meter(b)
	for range 4 {
		wg.Go(func() {
			recs := manyRecords(1024)
			for left.Add(-1) >= 0 {
				if _, err := r.j.Write(ctx, recs); err != nil {
					b.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	done(uint64(b.N) * 1024)
}

// BenchmarkVerify reads a journal, per record.
func BenchmarkVerify(b *testing.B) {
	r := benchRig(b)
	for range 100 {
		r.write(manyRecords(1024)...)
	}
	r.close()
	done := meter(b)
	var records uint64
	for b.Loop() {
		records += r.mustVerify().Last
	}
	done(records)
}
