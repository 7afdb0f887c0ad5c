package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"text/tabwriter"
	"time"

	"github.com/kekd/kekd/unix-socket-api/client"
	"github.com/kekd/kekd/unix-socket-api/kekdv1"
)

// kills kills the leader at random moments, with a caller at each node, and measures how soon a command is accepted again and how soon
// each other node has renewed its lease; and counts the calls that fail at those.
func (m *members) kills(ctx context.Context, w *tabwriter.Writer, times int) error {
	gone := make([]atomic.Bool, len(m.clients))
	stop := m.load(ctx, gone)
	var accepted, renewed []time.Duration
	for i := range times {
		leader, err := m.leader(ctx)
		if err != nil {
			return err
		}
		time.Sleep(rand.N(500 * time.Millisecond))
		gone[leader].Store(true)
		if err := syscall.Kill(m.cluster.Nodes[leader].PID, syscall.SIGKILL); err != nil {
			return err
		}
		killed := time.Now()
		var wg sync.WaitGroup
		after, errs := make([]time.Duration, len(m.clients)), make([]error, len(m.clients))
		for node := range m.clients {
			wg.Go(func() {
				if node == leader {
					// Its successor in the list is asked for the command: any node answers.
					after[node], errs[node] = m.accepted(ctx, m.admins[(node+1)%len(m.admins)], fmt.Sprintf("k%d", i), killed)
				} else {
					after[node], errs[node] = m.renewed(ctx, node, killed)
				}
			})
		}
		wg.Wait()
		if err := errors.Join(errs...); err != nil {
			return err
		}
		for node, took := range after {
			if node == leader {
				accepted = append(accepted, took)
			} else {
				renewed = append(renewed, took)
			}
		}
		if err := m.cluster.Restart(ctx, m.cluster.Nodes[leader].Name); err != nil {
			return err
		}
		if err := m.serving(ctx); err != nil {
			return err
		}
		gone[leader].Store(false)
	}
	served, failed := stop()
	fmt.Fprintln(w, "leader killed\ttimes\tp50\tp99\tlongest\t")
	for _, l := range []struct {
		what string
		took []time.Duration
	}{{"command accepted again", accepted}, {"lease renewed on another node", renewed}} {
		slices.Sort(l.took)
		fmt.Fprintf(w, "%s\t%d\t%s\t%s\t%s\t\n", l.what, len(l.took), short(l.took[len(l.took)/2]), short(l.took[len(l.took)*99/100]), short(l.took[len(l.took)-1]))
	}
	fmt.Fprintf(w, "unwraps on the others\t%d\tfailed\t%d\t\t\n", served+len(failed), len(failed))
	if len(failed) > 0 {
		fmt.Fprintf(w, "one of them: %v\n", failed[0])
	}
	return w.Flush()
}

// accepted is how long after the kill a command is accepted that was sent after it.
func (m *members) accepted(ctx context.Context, admin kekdv1.AdminServiceClient, name string, killed time.Time) (time.Duration, error) {
	var err error
	for try := range 100 {
		if err = creates(ctx, admin, fmt.Sprintf("%s-%d", name, try)); err == nil {
			return time.Since(killed), nil
		}
		time.Sleep(5 * time.Millisecond)
	}
	return 0, fmt.Errorf("no command is accepted: %w", err)
}

func creates(ctx context.Context, admin kekdv1.AdminServiceClient, name string) error {
	ctx, cancel := context.WithTimeout(ctx, 3*time.Second)
	defer cancel()
	_, err := admin.CreateTenant(ctx, &kekdv1.CreateTenantRequest{Name: name})
	return err
}

// renewed is how long after the kill a node has a lease that it asked for after it.
func (m *members) renewed(ctx context.Context, node int, killed time.Time) (time.Duration, error) {
	for {
		text, err := client.Metrics(ctx, m.cluster.Nodes[node].AdminSocket)
		if err != nil {
			return 0, err
		}
		now := time.Since(killed)
		age, err := metric(text, "kekd_lease_age_seconds")
		if err != nil {
			return 0, err
		}
		if age < now.Seconds() {
			return now, nil
		}
		if now > time.Minute {
			return 0, fmt.Errorf("%s has had no lease for a minute", m.cluster.Nodes[node].Name)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// metric reads one value without labels.
func metric(text []byte, name string) (float64, error) {
	for s := bufio.NewScanner(bytes.NewReader(text)); s.Scan(); {
		if value, ok := strings.CutPrefix(s.Text(), name+" "); ok {
			return strconv.ParseFloat(value, 64)
		}
	}
	return 0, fmt.Errorf("the node shows no %s", name)
}
