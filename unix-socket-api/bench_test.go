package socketapi_test

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/kekd/kekd/hierarchy"
	"github.com/kekd/kekd/hierarchy/custody"
	"github.com/kekd/kekd/unix-socket-api/client"
	"github.com/kekd/kekd/unix-socket-api/kekdv1"
	"google.golang.org/grpc/health/grpc_health_v1"
)

// nothing is a custody that costs nothing: what is measured is the socket.
type nothing struct{}

func (nothing) Do(_ context.Context, _ hierarchy.Principal, reqs []custody.Request, resps []custody.Response) {
	for i := range reqs {
		resps[i] = custody.Response{Plaintext: make([]byte, 32), Key: hierarchy.KeyName{Tenant: "acme", Key: "orders"}, Version: 3}
	}
}

func (n nothing) DoInTurn(ctx context.Context, who hierarchy.Principal, reqs []custody.Request, resps []custody.Response, turn sync.Locker) func(ctx context.Context, from, to int) {
	n.Do(ctx, who, reqs, resps)
	turn.Lock()
	return func(context.Context, int, int) {}
}

// concurrently makes b.N calls by n goroutines, and reports the median, the 99th percentile, and
// what both ends cost in CPU time, which is worth more than the rest on a busy machine.
func concurrently(b *testing.B, n int, call func() error) {
	b.Helper()
	repeat(b, n, b.N, call)
}

func repeat(b *testing.B, n, times int, call func() error) {
	b.Helper()
	if err := call(); err != nil {
		b.Fatal(err)
	}
	var left atomic.Int64
	left.Store(int64(times))
	took := make([][]time.Duration, n)
	b.ReportAllocs()
	b.ResetTimer()
	cpu := cpuTime(b)
	var calls sync.WaitGroup
	for i := range n {
		calls.Go(func() {
			for left.Add(-1) >= 0 {
				start := time.Now()
				if err := call(); err != nil {
					b.Error(err)
					return
				}
				took[i] = append(took[i], time.Since(start))
			}
		})
	}
	calls.Wait()
	b.StopTimer()
	b.ReportMetric(float64((cpuTime(b)-cpu).Nanoseconds())/1e3/float64(b.N), "cpu-us/op")
	all := slices.Concat(took...)
	slices.Sort(all)
	b.ReportMetric(float64(all[len(all)/2].Nanoseconds())/1e3, "p50-us")
	b.ReportMetric(float64(all[len(all)*99/100].Nanoseconds())/1e3, "p99-us")
}

func cpuTime(b *testing.B) time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

func typicalUnwrap() *kekdv1.UnwrapRequest {
	return &kekdv1.UnwrapRequest{Envelope: make([]byte, 180), Context: entries("app", "billing", "tenant", "acme"), Reason: "bench"}
}

func BenchmarkCall(b *testing.B) {
	s := startKeys(b, nothing{}, nil)
	conn := raw(b, s.path)
	health := grpc_health_v1.NewHealthClient(conn)
	standard := kekdv1.NewKeyServiceClient(conn)
	ours, closer, err := client.DialKeys(s.path)
	if err != nil {
		b.Fatal(err)
	}
	defer closer.Close()
	coalescing := dial(b, s.path)
	ctx := context.Background()
	for _, n := range []int{1, 16, 64} {
		b.Run(fmt.Sprintf("empty/%d", n), func(b *testing.B) {
			concurrently(b, n, func() error { return second(health.Check(ctx, &grpc_health_v1.HealthCheckRequest{})) })
		})
		b.Run(fmt.Sprintf("unwrap-standard/%d", n), func(b *testing.B) {
			concurrently(b, n, func() error { return second(standard.Unwrap(ctx, typicalUnwrap())) })
		})
		b.Run(fmt.Sprintf("unwrap/%d", n), func(b *testing.B) {
			concurrently(b, n, func() error { return second(ours.Unwrap(ctx, typicalUnwrap())) })
		})
		b.Run(fmt.Sprintf("coalesced/%d", n), func(b *testing.B) {
			o := client.Options{Context: map[string]string{"app": "billing", "tenant": "acme"}, Reason: "bench"}
			envelope := make([]byte, 180)
			concurrently(b, n, func() error { return second(coalescing.Unwrap(ctx, envelope, o)) })
		})
	}
}

// BenchmarkBatch counts operations, not batches.
func BenchmarkBatch(b *testing.B) {
	s := startKeys(b, nothing{}, nil)
	api, closer, err := client.DialKeys(s.path)
	if err != nil {
		b.Fatal(err)
	}
	defer closer.Close()
	m := &kekdv1.BatchRequest{}
	for range custody.MaxBatch {
		m.Operations = append(m.Operations, &kekdv1.Operation{Op: &kekdv1.Operation_Unwrap{Unwrap: typicalUnwrap()}})
	}
	for _, n := range []int{1, 4} {
		b.Run(fmt.Sprintf("1024/%d", n), func(b *testing.B) {
			repeat(b, n, b.N/custody.MaxBatch+1, func() error { return second(api.Batch(context.Background(), m)) })
		})
	}
}

// BenchmarkStream is one caller with many single operations on their way.
func BenchmarkStream(b *testing.B) {
	s := startKeys(b, nothing{}, nil)
	api, closer, err := client.DialKeys(s.path)
	if err != nil {
		b.Fatal(err)
	}
	defer closer.Close()
	stream, err := api.Stream(context.Background())
	if err != nil {
		b.Fatal(err)
	}
	m := &kekdv1.BatchRequest{Operations: []*kekdv1.Operation{{Op: &kekdv1.Operation_Unwrap{Unwrap: typicalUnwrap()}}}}
	b.ReportAllocs()
	b.ResetTimer()
	cpu := cpuTime(b)
	defer func() {
		b.ReportMetric(float64((cpuTime(b)-cpu).Nanoseconds())/1e3/float64(b.N), "cpu-us/op")
	}()
	go func() {
		for range b.N {
			if stream.Send(m) != nil {
				return
			}
		}
	}()
	for range b.N {
		if _, err := stream.Recv(); err != nil {
			b.Fatal(err)
		}
	}
}
