package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"text/tabwriter"
	"time"

	"github.com/kekd/kekd/softhsm-tests/devcluster"
	"github.com/kekd/kekd/unix-socket-api/client"
	"github.com/kekd/kekd/unix-socket-api/kekdv1"
)

// measureCluster measures what a cluster of nodes costs, how soon a disable is effective at all of them, and how soon they go on
// without their leader.
func measureCluster(ctx context.Context, o options, out io.Writer) error {
	dir, err := os.MkdirTemp("", "kekd-bench-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	w := tabwriter.NewWriter(out, 0, 4, 2, ' ', tabwriter.AlignRight)
	defer w.Flush()
	if err := compareFollower(ctx, o, dir, w); err != nil {
		return fmt.Errorf("a follower against a single node: %w", err)
	}
	m, err := startMembers(ctx, o.kekd, filepath.Join(dir, "five"))
	if err != nil {
		return err
	}
	for _, part := range []func(context.Context, *tabwriter.Writer) error{
		m.idle, m.fences, func(ctx context.Context, w *tabwriter.Writer) error { return m.kills(ctx, w, o.kills) },
	} {
		if err = part(ctx, w); err != nil {
			break
		}
		w.Flush()
	}
	return errors.Join(err, m.close())
}

// members is a cluster of five nodes, of which three vote. All of them serve.
type members struct {
	cluster *devcluster.Cluster
	admins  []kekdv1.AdminServiceClient
	clients []*client.Client
	closers []io.Closer
	sealed  []byte // of tenant acme, which nobody disables
}

func startMembers(ctx context.Context, kekd, dir string) (*members, error) {
	const nodes, voters = 5, 3
	cluster, err := devcluster.Start(ctx, kekd, dir, "--region", fmt.Sprintf("bench=voting*%d", nodes))
	if err != nil {
		return nil, err
	}
	m := &members{cluster: cluster}
	for _, n := range cluster.Nodes {
		admin, closer, err := client.DialAdmin(n.AdminSocket)
		if err != nil {
			return nil, errors.Join(err, m.close())
		}
		m.admins, m.closers = append(m.admins, admin), append(m.closers, closer)
		keys, err := client.Dial(n.Socket)
		if err != nil {
			return nil, errors.Join(err, m.close())
		}
		m.clients, m.closers = append(m.clients, keys), append(m.closers, keys)
	}
	d, err := newDaemon(ctx, cluster.Nodes[0])
	if err != nil {
		return nil, errors.Join(err, m.close())
	}
	m.sealed = d.envelope
	d.close()
	for _, n := range cluster.Nodes[voters:] {
		if _, err := m.admins[0].DemoteNode(ctx, &kekdv1.DemoteNodeRequest{Name: n.Name}); err != nil {
			return nil, errors.Join(err, m.close())
		}
	}
	return m, m.serving(ctx)
}

func (m *members) close() error {
	for _, c := range m.closers {
		_ = c.Close()
	}
	return m.cluster.Stop()
}

func (m *members) unwrap(ctx context.Context, node int) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	_, err := m.clients[node].Unwrap(ctx, m.sealed, client.Options{Context: map[string]string{"app": "bench"}})
	return err
}

// serving waits until each node opens what was sealed.
func (m *members) serving(ctx context.Context) error {
	for node := range m.clients {
		for deadline := time.Now().Add(time.Minute); ; time.Sleep(10 * time.Millisecond) {
			err := m.unwrap(ctx, node)
			if err == nil {
				break
			}
			if time.Now().After(deadline) || ctx.Err() != nil {
				return fmt.Errorf("%s does not serve: %w", m.cluster.Nodes[node].Name, err)
			}
		}
	}
	return nil
}

// leader is the index of the node that two others, or itself and one, call the leader.
func (m *members) leader(ctx context.Context) (int, error) {
	for ctx.Err() == nil {
		named := map[string]int{}
		for node := range m.admins {
			if s, err := m.admins[node].GetStatus(ctx, &kekdv1.GetStatusRequest{}); err == nil && s.Leader != "" {
				named[s.Leader]++
			}
		}
		for i, n := range m.cluster.Nodes {
			if named[n.ID] == len(m.admins) {
				return i, nil
			}
		}
		time.Sleep(10 * time.Millisecond)
	}
	return 0, ctx.Err()
}

// load has one caller at each node, one call after the other, until stop is called, which tells how many calls were answered and which
// failed. What a node that is gone does not answer is no failure.
func (m *members) load(ctx context.Context, gone []atomic.Bool) (stop func() (int, []error)) {
	ctx, cancel := context.WithCancel(ctx)
	var (
		wg     sync.WaitGroup
		served atomic.Int64
		mu     sync.Mutex
		failed []error
	)
	for node := range m.clients {
		wg.Go(func() {
			for ctx.Err() == nil {
				switch err := m.unwrap(ctx, node); {
				case err == nil:
					served.Add(1)
				case ctx.Err() != nil:
				case gone != nil && gone[node].Load():
					time.Sleep(5 * time.Millisecond)
				default:
					mu.Lock()
					failed = append(failed, fmt.Errorf("%s: %w", m.cluster.Nodes[node].Name, err))
					mu.Unlock()
				}
			}
		})
	}
	return func() (int, []error) {
		cancel()
		wg.Wait()
		return int(served.Load()), failed
	}
}

// idle measures what the nodes use while nobody calls them: with leases of the default, and with those of a tenant that allows a
// second, which are renewed twice as often. The difference is what renewals cost.
func (m *members) idle(ctx context.Context, w *tabwriter.Writer) error {
	const length = 30 * time.Second
	fmt.Fprintln(w, "nobody calls\tleader\tfollowers\t")
	for _, staleness := range []time.Duration{2 * time.Second, time.Second} {
		if _, err := m.admins[0].SetTenant(ctx, &kekdv1.SetTenantRequest{Name: "acme", MaxStaleness: ptr(int64(staleness))}); err != nil {
			return err
		}
		leads, err := m.leader(ctx)
		if err != nil {
			return err
		}
		time.Sleep(settle)
		before := m.cpus()
		time.Sleep(length)
		var leader, others time.Duration
		for i, after := range m.cpus() {
			if used := after - before[i]; i == leads {
				leader = used
			} else {
				others += used
			}
		}
		percent := func(used time.Duration) string { return fmt.Sprintf("%.2f %%", 100*used.Seconds()/length.Seconds()) }
		fmt.Fprintf(w, "renewed every %v\t%s\t%s each\t\n", staleness/8, percent(leader), percent(others/time.Duration(len(before)-1)))
	}
	_, err := m.admins[0].SetTenant(ctx, &kekdv1.SetTenantRequest{Name: "acme", MaxStaleness: ptr(int64(2 * time.Second))})
	return err
}

// cpus is what each node's processes have used.
func (m *members) cpus() (used []time.Duration) {
	for _, n := range m.cluster.Nodes {
		used = append(used, (&daemon{node: n}).cpu())
	}
	return used
}

func ptr[T any](v T) *T { return &v }

// fences measures how long a disable takes until no node serves the tenant, at the node that was asked, with callers of another
// tenant at each node.
func (m *members) fences(ctx context.Context, w *tabwriter.Writer) error {
	const times = 300
	if _, err := m.admins[0].CreateTenant(ctx, &kekdv1.CreateTenantRequest{Name: "victim"}); err != nil {
		return err
	}
	fmt.Fprintln(w, "a tenant is disabled\ttimes\tp50\tp99\tlongest\tacknowledged by all\t")
	for _, busy := range []bool{false, true} {
		what, stop := "nobody calls", func() (int, []error) { return 0, nil }
		if busy {
			what, stop = "a caller at each node", m.load(ctx, nil)
		}
		took, all := make([]time.Duration, 0, times), 0
		for i := range times {
			admin := m.admins[i%len(m.admins)]
			from := time.Now()
			t, err := admin.DisableTenant(ctx, &kekdv1.DisableTenantRequest{Name: "victim", Reason: "measured"})
			if err != nil {
				return err
			}
			took = append(took, time.Since(from))
			if !t.GetFence().GetFenced() {
				return errors.New("a disable returned before its fence")
			}
			if !slices.ContainsFunc(t.Fence.Nodes, func(n *kekdv1.FencedNode) bool { return n.How != "acknowledged" }) {
				all++
			}
			if _, err := admin.EnableTenant(ctx, &kekdv1.EnableTenantRequest{Name: "victim", Reason: "measured"}); err != nil {
				return err
			}
		}
		if _, failed := stop(); len(failed) > 0 {
			return fmt.Errorf("%d calls failed, one of them: %w", len(failed), failed[0])
		}
		slices.Sort(took)
		fmt.Fprintf(w, "%s\t%d\t%s\t%s\t%s\t%d\t\n", what, times, short(took[times/2]), short(took[times*99/100]), short(took[times-1]), all)
	}
	return nil
}

// compareFollower measures unary unwraps at a single node and at a follower of three, in rounds that take turns.
func compareFollower(ctx context.Context, o options, dir string, w *tabwriter.Writer) (err error) {
	daemons := make([]*daemon, 2)
	for i, region := range []string{"bench=voting", "bench=voting*3"} {
		c, err := devcluster.Start(ctx, o.kekd, filepath.Join(dir, fmt.Sprint(i)), "--region", region)
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, c.Stop()) }()
		// The envelope is made at the node that leads a new cluster.
		d, err := newDaemon(ctx, c.Nodes[0])
		if err != nil {
			return err
		}
		d.close()
		if d.node = c.Nodes[len(c.Nodes)-1]; len(c.Nodes) > 1 {
			if err := follows(ctx, d.node); err != nil {
				return err
			}
		}
		if err := d.dial(); err != nil {
			return err
		}
		defer d.close()
		daemons[i] = d
	}
	fmt.Fprintln(w, "unary unwrap\tsingle node\tfollower of three\tfollower / single\t")
	for _, callers := range []int{1, 64} {
		rates := make([][]measurement, 3)
		for range o.rounds {
			var round [2]measurement
			for i, d := range daemons {
				l := load{"unwrap", false, callers, 1, func(ctx context.Context) (func() error, error) {
					return func() error {
						_, err := d.api.Unwrap(ctx, &kekdv1.UnwrapRequest{Envelope: d.envelope, Context: d.context})
						return err
					}, nil
				}}
				if round[i], err = l.run(ctx, d, o.round); err != nil {
					return err
				}
				rates[i] = append(rates[i], round[i])
			}
			rates[2] = append(rates[2], measurement{rate: round[1].rate / round[0].rate})
		}
		rate := func(m measurement) float64 { return m.rate }
		fmt.Fprintf(w, "%d callers\t%.0f/s\t%.0f/s\t%.2f\t\n", callers, median(rates[0], rate), median(rates[1], rate), median(rates[2], rate))
	}
	return w.Flush()
}

// follows fails if the node leads.
func follows(ctx context.Context, n devcluster.Node) error {
	admin, done, err := n.Admin()
	if err != nil {
		return err
	}
	defer done()
	s, err := admin.GetStatus(ctx, &kekdv1.GetStatusRequest{})
	if err == nil && s.Leader == n.ID {
		_, err = admin.TransferLeadership(ctx, &kekdv1.TransferLeadershipRequest{})
	}
	return err
}
