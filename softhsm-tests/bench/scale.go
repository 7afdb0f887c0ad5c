package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/kekd/kekd/softhsm-tests/devcluster"
	"github.com/kekd/kekd/unix-socket-api/client"
	"github.com/kekd/kekd/unix-socket-api/kekdv1"
)

// scale measures what grows with the number of tenants: the rate of unwraps spread evenly over
// all of them, the time from the start until the node serves, and memory.
func scale(ctx context.Context, o options, out io.Writer) error {
	dir := o.dir
	if dir == "" {
		temporary, err := os.MkdirTemp("", "kekd-scale-")
		if err != nil {
			return err
		}
		defer os.RemoveAll(temporary)
		dir = temporary
	}
	w := tabwriter.NewWriter(out, 0, 4, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(w, "tenants\tmade in\tstart to serving\tidle: daemon\tworkers\tunwraps/s\t/ 10 tenants\tafter: daemon\tworkers\t")
	base := 0.0
	for _, n := range slices.Compact([]int{10, 1_000, max(1_000, o.tenants)}) {
		size := filepath.Join(dir, strconv.Itoa(n))
		path, kept := filepath.Join(size, "kekd"), filepath.Join(size, "envelopes.json")
		if err := os.MkdirAll(size, 0o700); err != nil {
			return err
		}
		envelopes, err := readEnvelopes(kept)
		if err != nil {
			return err
		}
		began := time.Now()
		cluster, err := devcluster.Start(ctx, o.kekd, path)
		if err != nil {
			return err
		}
		if envelopes, err = grow(ctx, cluster.Nodes[0], envelopes, n); err != nil {
			return fmt.Errorf("%d tenants: %w", n, joinStop(err, cluster))
		}
		made := time.Since(began)
		if err := errors.Join(cluster.Stop(), writeEnvelopes(kept, envelopes)); err != nil {
			return err
		}

		began = time.Now()
		if cluster, err = devcluster.Start(ctx, o.kekd, path); err != nil {
			return err
		}
		started := time.Since(began)
		m, idle, after, err := spread(ctx, o, cluster.Nodes[0], envelopes)
		if err = joinStop(err, cluster); err != nil {
			return fmt.Errorf("%d tenants: %w", n, err)
		}
		if base == 0 {
			base = m.rate
		}
		fmt.Fprintf(w, "%d\t%s\t%s\t%d MB\t%d MB\t%.0f\t%.2f\t%d MB\t%d MB\t\n", n, short(made), short(started),
			idle.daemon>>20, idle.workers>>20, m.rate, m.rate/base, after.daemon>>20, after.workers>>20)
		w.Flush()
	}
	return nil
}

func joinStop(err error, c *devcluster.Cluster) error {
	if stopped := c.Stop(); err == nil {
		return stopped
	}
	return err
}

// readEnvelopes gives what an earlier run on the same directory has sealed, one for each tenant; none if there was none.
func readEnvelopes(path string) (envelopes [][]byte, err error) {
	kept, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	return envelopes, json.Unmarshal(kept, &envelopes)
}

func writeEnvelopes(path string, envelopes [][]byte) error {
	kept, err := json.Marshal(envelopes)
	if err != nil {
		return err
	}
	return os.WriteFile(path, kept, 0o600)
}

// grow makes tenants until there are n.
func grow(ctx context.Context, n devcluster.Node, envelopes [][]byte, to int) ([][]byte, error) {
	admin, done, err := n.Admin()
	if err != nil {
		return nil, err
	}
	defer done()
	keys, closer, err := client.DialKeys(n.Socket)
	if err != nil {
		return nil, err
	}
	defer closer.Close()
	if len(envelopes) == 0 {
		uid := uint32(os.Getuid())
		if _, err := admin.CreateService(ctx, &kekdv1.CreateServiceRequest{Name: "bench", Uid: &uid}); err != nil {
			return nil, err
		}
		if _, err := admin.AllowPolicy(ctx, &kekdv1.AllowPolicyRequest{Rule: &kekdv1.Rule{
			Service: "bench", Pattern: "*/data", Ops: []string{"unwrap", "datakey"},
		}}); err != nil {
			return nil, err
		}
	}
	if len(envelopes) >= to {
		return envelopes, nil
	}
	more, err := populate(ctx, admin, keys, len(envelopes), to)
	return append(envelopes, more...), err
}

// settle is how long a node idles before its memory is read: the collector and the kernel take
// back what the start used.
const settle = 5 * time.Second

// spread unwraps envelopes, evenly drawn from all, in batches of 1024 with four in flight.
func spread(ctx context.Context, o options, n devcluster.Node, envelopes [][]byte) (m measurement, idle, after memory, err error) {
	keys, closer, err := client.DialKeys(n.Socket)
	if err != nil {
		return m, idle, after, err
	}
	defer closer.Close()
	time.Sleep(settle)
	if idle, err = resident(n.PID); err != nil {
		return m, idle, after, err
	}
	const size = 1024
	l := load{callers: 4, size: size, prepare: func(ctx context.Context) (func() error, error) {
		random := rand.New(rand.NewPCG(rand.Uint64(), rand.Uint64()))
		return func() error {
			req := &kekdv1.BatchRequest{Operations: make([]*kekdv1.Operation, size)}
			for i := range req.Operations {
				req.Operations[i] = &kekdv1.Operation{Op: &kekdv1.Operation_Unwrap{Unwrap: &kekdv1.UnwrapRequest{Envelope: envelopes[random.IntN(len(envelopes))]}}}
			}
			resp, err := keys.Batch(ctx, req)
			if err != nil {
				return err
			}
			return check(resp, size)
		}, nil
	}}
	d := &daemon{node: n}
	// In the first one each key is used often enough to get a session copy from each worker.
	hot := max(10*o.round, time.Duration(len(envelopes))*2*time.Millisecond)
	if _, err = l.run(ctx, d, hot); err == nil {
		m, err = l.run(ctx, d, 6*o.round)
	}
	if err == nil {
		after, err = resident(n.PID)
	}
	return m, idle, after, err
}

// memory is resident memory in bytes.
type memory struct{ daemon, workers int64 }

func resident(daemon int) (m memory, err error) {
	for i, pid := range family(daemon) {
		f, err := os.Open(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
		if err != nil {
			return m, err
		}
		// Pss counts pages that the processes share once.
		bytes := int64(0)
		for s := bufio.NewScanner(f); s.Scan(); {
			if rest, ok := strings.CutPrefix(s.Text(), "Pss:"); ok {
				kb, _ := strconv.ParseInt(strings.TrimSpace(strings.TrimSuffix(rest, "kB")), 10, 64)
				bytes = kb << 10
			}
		}
		f.Close()
		if i == 0 {
			m.daemon = bytes
		} else {
			m.workers += bytes
		}
	}
	return m, nil
}
