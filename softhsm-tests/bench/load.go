package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/health/grpc_health_v1"

	"github.com/kekd/kekd/softhsm-tests/devcluster"
	"github.com/kekd/kekd/unix-socket-api/client"
	"github.com/kekd/kekd/unix-socket-api/kekdv1"
)

// daemon is the one that is measured, with a tenant, a key and an envelope.
type daemon struct {
	node     devcluster.Node
	api      kekdv1.KeyServiceClient
	health   grpc_health_v1.HealthClient
	client   *client.Client
	envelope []byte
	flood    []byte // an envelope of another tenant
	context  []*kekdv1.ContextEntry
	closers  []io.Closer
}

func newDaemon(ctx context.Context, n devcluster.Node) (*daemon, error) {
	d := &daemon{node: n, context: []*kekdv1.ContextEntry{{Key: "app", Value: "bench"}}}
	admin, done, err := n.Admin()
	if err != nil {
		return nil, err
	}
	defer done()
	uid := uint32(os.Getuid())
	if _, err = admin.CreateTenant(ctx, &kekdv1.CreateTenantRequest{Name: "acme"}); err == nil {
		_, err = admin.CreateKey(ctx, &kekdv1.CreateKeyRequest{Key: "acme/orders"})
	}
	if err == nil {
		_, err = admin.CreateService(ctx, &kekdv1.CreateServiceRequest{Name: "bench", Uid: &uid})
	}
	if err == nil {
		_, err = admin.AllowPolicy(ctx, &kekdv1.AllowPolicyRequest{Rule: &kekdv1.Rule{
			Service: "bench", Pattern: "acme/*", Ops: []string{"wrap", "unwrap", "datakey", "rewrap"},
			RequiredContext: []*kekdv1.RequiredContext{{Key: "app"}},
		}})
	}
	if err != nil {
		return nil, err
	}
	if err := d.dial(); err != nil {
		return nil, err
	}
	made, err := d.api.GenerateDataKey(ctx, &kekdv1.GenerateDataKeyRequest{Key: "acme/orders", Context: d.context})
	if err != nil {
		return nil, err
	}
	d.envelope = made.Envelope
	d.flood, err = d.floodTenant(ctx)
	return d, err
}

func (d *daemon) dial() error {
	api, closer, err := client.DialKeys(d.node.Socket)
	if err != nil {
		return err
	}
	d.closers = append(d.closers, closer)
	// The empty call goes over the very connection of the others.
	d.api, d.health = api, grpc_health_v1.NewHealthClient(closer)
	if d.client, err = client.Dial(d.node.Socket); err != nil {
		return err
	}
	d.closers = append(d.closers, d.client)
	return nil
}

func (d *daemon) close() {
	for _, c := range d.closers {
		_ = c.Close()
	}
	d.closers = nil
}

// load is one way of calling.
type load struct {
	name    string
	base    bool // measured always: others are compared with it
	callers int
	size    int // operations in each call
	// prepare returns a function that makes one call, for one caller.
	prepare func(ctx context.Context) (func() error, error)
}

// durableAppend is what the journal stands on: a record of 512 bytes, written into a file that has
// its blocks already, and synced.
func durableAppend() load {
	return load{durable, true, 1, 1, func(ctx context.Context) (func() error, error) {
		f, err := os.CreateTemp("", "kekd-bench-append-")
		if err != nil {
			return nil, err
		}
		context.AfterFunc(ctx, func() { f.Close() })
		if err := os.Remove(f.Name()); err != nil {
			return nil, err
		}
		const record, size = 512, 16 << 20
		zeros := make([]byte, size)
		if _, err := f.Write(zeros); err != nil {
			return nil, err
		}
		if err := f.Sync(); err != nil {
			return nil, err
		}
		at := int64(0)
		return func() error {
			if _, err := f.WriteAt(zeros[:record], at); err != nil {
				return err
			}
			at = (at + record) % size
			return unix.Fdatasync(int(f.Fd()))
		}, nil
	}}
}

const durable = "durable append x1"

// calls are the lines that are compared with an empty call, each next to its own: what a wake-up costs
// on a shared machine changes from one second to the next.
func (d *daemon) calls() []load {
	empty := func(callers int) load {
		return load{fmt.Sprintf("empty call x%d", callers), true, callers, 1, func(ctx context.Context) (func() error, error) {
			return func() error {
				_, err := d.health.Check(ctx, &grpc_health_v1.HealthCheckRequest{})
				return err
			}, nil
		}}
	}
	unwrap := func(callers int) load {
		return load{fmt.Sprintf("unary unwrap x%d", callers), false, callers, 1, func(ctx context.Context) (func() error, error) {
			return func() error {
				_, err := d.api.Unwrap(ctx, &kekdv1.UnwrapRequest{Envelope: d.envelope, Context: d.context})
				return err
			}, nil
		}}
	}
	dataKey := load{"unary data key x64", false, 64, 1, func(ctx context.Context) (func() error, error) {
		return func() error {
			_, err := d.api.GenerateDataKey(ctx, &kekdv1.GenerateDataKeyRequest{Key: "acme/orders", Context: d.context})
			return err
		}, nil
	}}
	goClient := load{"Go client unwrap x64", false, 64, 1, func(ctx context.Context) (func() error, error) {
		o := client.Options{Context: map[string]string{"app": "bench"}}
		return func() error {
			_, err := d.client.Unwrap(ctx, d.envelope, o)
			return err
		}, nil
	}}
	return []load{
		durableAppend(), empty(1), unwrap(1),
		empty(16), unwrap(16),
		unwrap(64), empty(64), goClient, dataKey,
	}
}

// batches are the lines that are compared with the raw loop, and those of a tenant that another floods.
func (d *daemon) batches() []load {
	var all []load
	for _, size := range []int{128, 1024} {
		all = append(all, d.batch(size, 1), d.batch(size, 4))
	}
	all = append(all,
		load{"stream of batches of 1024", false, 1, 1024, d.pipelined(1024, 4)},
		load{"stream of batches of 128", false, 1, 128, d.pipelined(128, 16)},
		load{"stream of single items", false, 1, 1, d.pipelined(1, 512)},
		d.victim("victim alone", ""),
		d.victim("victim, flood of 64 callers", "calls"),
		d.victim("victim, flood of 8 batches of 1024", "batches"),
	)
	return all
}

func (d *daemon) batch(size, flight int) load {
	return load{fmt.Sprintf("batch of %d, %d in flight", size, flight), false, flight, size, func(ctx context.Context) (func() error, error) {
		req := &kekdv1.BatchRequest{Operations: d.unwraps(size)}
		return func() error {
			resp, err := d.api.Batch(ctx, req)
			if err != nil {
				return err
			}
			return check(resp, size)
		}, nil
	}}
}

func (d *daemon) unwraps(n int) []*kekdv1.Operation {
	ops := make([]*kekdv1.Operation, n)
	for i := range ops {
		ops[i] = &kekdv1.Operation{Op: &kekdv1.Operation_Unwrap{Unwrap: &kekdv1.UnwrapRequest{Envelope: d.envelope, Context: d.context}}}
	}
	return ops
}

func check(resp *kekdv1.BatchResponse, n int) error {
	if e := resp.Error; e != nil {
		return fmt.Errorf("%s: %s", e.Code, e.Message)
	}
	if len(resp.Results) != n {
		return fmt.Errorf("%d results for %d operations", len(resp.Results), n)
	}
	for _, r := range resp.Results {
		if e := r.GetError(); e != nil {
			return fmt.Errorf("%s: %s", e.Code, e.Message)
		}
	}
	return nil
}

// pipelined keeps so many messages in flight on one stream; one call is one answer.
func (d *daemon) pipelined(size, flight int) func(context.Context) (func() error, error) {
	return func(ctx context.Context) (func() error, error) {
		stream, err := d.api.Stream(ctx)
		if err != nil {
			return nil, err
		}
		req := &kekdv1.BatchRequest{Operations: d.unwraps(size)}
		window := make(chan struct{}, flight)
		go func() {
			for {
				select {
				case window <- struct{}{}:
				case <-ctx.Done():
					return
				}
				if stream.Send(req) != nil {
					return
				}
			}
		}()
		return func() error {
			resp, err := stream.Recv()
			if err != nil {
				return err
			}
			<-window
			return check(resp, size)
		}, nil
	}
}

// warmUp is how long a load runs before it counts.
const warmUp = 100 * time.Millisecond

func (l load) run(ctx context.Context, d *daemon, length time.Duration) (measurement, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var (
		wg       sync.WaitGroup
		counting atomic.Bool
		ending   atomic.Bool
		times    = make([][]time.Duration, l.callers)
		errs     = make([]error, l.callers)
	)
	for i := range l.callers {
		call, err := l.prepare(ctx)
		if err != nil {
			return measurement{}, err
		}
		wg.Go(func() {
			for !ending.Load() {
				from := time.Now()
				if errs[i] = call(); errs[i] != nil {
					return
				}
				if counting.Load() {
					times[i] = append(times[i], time.Since(from))
				}
			}
		})
	}
	time.Sleep(warmUp)
	cpu := d.cpu()
	from := time.Now()
	counting.Store(true)
	time.Sleep(length)
	counting.Store(false)
	took := time.Since(from)
	used := d.cpu() - cpu
	ending.Store(true)
	wg.Wait()
	for _, err := range errs {
		if err != nil {
			return measurement{}, err
		}
	}
	all := slices.Concat(times...)
	if len(all) == 0 {
		return measurement{}, fmt.Errorf("no call ended in %v", length)
	}
	slices.Sort(all)
	n := len(all) * l.size
	return measurement{
		rate: float64(n) / took.Seconds(),
		p50:  all[len(all)/2], p99: all[len(all)*99/100],
		cpu: used / time.Duration(n),
	}, nil
}

// cpu is the processor time that the daemon and its children have used, from /proc.
func (d *daemon) cpu() time.Duration {
	var ticks int64
	for _, pid := range family(d.node.PID) {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil {
			continue
		}
		// The fields after the command's name, which may contain anything (proc(5)).
		f := strings.Fields(string(b[strings.LastIndexByte(string(b), ')')+1:]))
		for _, i := range []int{11, 12} { // utime and stime
			n, _ := strconv.ParseInt(f[i], 10, 64)
			ticks += n
		}
	}
	const hz = 100 // USER_HZ, the same on every Linux that Go runs on
	return time.Duration(ticks) * time.Second / hz
}

func family(pid int) []int {
	all := []int{pid}
	tasks, _ := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid))
	for _, t := range tasks {
		b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/task/%s/children", pid, t.Name()))
		for _, c := range strings.Fields(string(b)) {
			if n, err := strconv.Atoi(c); err == nil {
				all = append(all, family(n)...)
			}
		}
	}
	return all
}
