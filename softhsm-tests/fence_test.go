package softhsmtests

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/kekd/kekd/hierarchy"
	"github.com/kekd/kekd/softhsm-tests/devcluster"
	"github.com/kekd/kekd/unix-socket-api/client"
	"github.com/kekd/kekd/unix-socket-api/kekdv1"
)

// closed is what kekctl says of a change that closes.
type closed struct {
	Fenced    bool   `json:"fenced"`
	Index     uint64 `json:"index"`
	ElapsedMS int64  `json:"elapsed_ms"`
	Nodes     []struct{ ID, Name, How string }

	// Of one that is not known to be complete.
	Code          string `json:"code"`
	Message       string `json:"message"`
	IdempotencyID string `json:"idempotency_id"`

	status int
	took   time.Duration // from the start of kekctl to its end
}

// how tells it of one node; empty: it was not waited for.
func (c closed) how(node string) string {
	for _, n := range c.Nodes {
		if n.Name == node {
			return n.How
		}
	}
	return ""
}

// closeAt runs kekctl at one node.
func closeAt(t *testing.T, n devcluster.Node, args ...string) (c closed) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), kekctl, append(args, "-o", "json", "--admin-socket", n.AdminSocket)...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	begun := time.Now()
	err := cmd.Run()
	c.took = time.Since(begun)
	if _, exited := errors.AsType[*exec.ExitError](err); err != nil && !exited {
		t.Fatal(err)
	}
	c.status = cmd.ProcessState.ExitCode()
	if err := json.Unmarshal(append(stdout.Bytes(), stderr.Bytes()...), &c); err != nil {
		t.Fatalf("kekctl %q: %v\n%s%s", args, err, stdout.String(), stderr.String())
	}
	t.Logf("kekctl %s at %s: status %d after %v: %s%s", strings.Join(args, " "), n.Name, c.status, c.took.Round(time.Millisecond), stdout.String(), stderr.String())
	return c
}

// The bound of a tenant with the default max_staleness, and what kekctl waits beyond it.
const (
	defaultBound = 2*time.Second + 20*time.Millisecond + 500*time.Millisecond
	beyondBound  = 5 * time.Second
	// starts is what a kekctl may take to start, to ask for the bound, and to commit, on a busy machine.
	starts = 500 * time.Millisecond
)

func signal(t *testing.T, sig syscall.Signal, nodes ...devcluster.Node) {
	t.Helper()
	for _, n := range nodes {
		if err := syscall.Kill(n.PID, sig); err != nil {
			t.Fatal(err)
		}
	}
}

// stands waits until every thread of a process has stopped, which is a little after the signal.
func stands(t *testing.T, pid int) {
	t.Helper()
	eventually(t, 10*time.Second, "it stands still", func() bool {
		threads, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/[0-9]*/stat", pid))
		return len(threads) > 0 && !slices.ContainsFunc(threads, func(path string) bool {
			stat, err := os.ReadFile(path)
			_, rest, _ := strings.Cut(string(stat), ") ")
			return err == nil && !strings.HasPrefix(rest, "T")
		})
	})
}

// queue is requests that are sent to a node, and wait for it.
type queue struct {
	asking  sync.WaitGroup
	mu      sync.Mutex
	answers map[string]int // by code; empty: it succeeded
}

// queueAt stops a node and sends it requests to open an envelope: they lie in its sockets.
func queueAt(t *testing.T, n devcluster.Node, envelope []byte, requests int) *queue {
	t.Helper()
	q := &queue{answers: map[string]int{}}
	var callers []*client.Client
	for range requests {
		c := keys(t, n)
		if _, err := c.Unwrap(within(t, 20*time.Second), envelope, client.Options{}); err != nil {
			t.Fatal(err)
		}
		callers = append(callers, c)
	}
	signal(t, syscall.SIGSTOP, n)
	stands(t, n.PID)
	for _, c := range callers {
		q.asking.Go(func() {
			_, err := c.Unwrap(within(t, 30*time.Second), envelope, client.Options{})
			q.mu.Lock()
			defer q.mu.Unlock()
			q.answers[hierarchy.Code(err)]++
		})
	}
	return q
}

// answered waits for all answers.
func (q *queue) answered() map[string]int {
	q.asking.Wait()
	return q.answers
}

// A disable returns when it is effective on every node: at once where all are well, after the lease of one that is
// stopped, and not at all where no majority is reached.
func TestDisableIsFenced(t *testing.T) {
	t.Parallel()
	c := startCluster(t, "eu=voting*3")
	setUp(t, c.Nodes[0], "acme")
	caughtUp(t, c.Nodes)
	sealed, err := keys(t, c.Nodes[0]).GenerateDataKey(within(t, 20*time.Second), "acme/orders", 32, client.Options{})
	if err != nil {
		t.Fatal(err)
	}
	enable := func(t *testing.T) {
		t.Helper()
		eventually(t, 30*time.Second, "it is enabled again everywhere", func() bool {
			_, err := admin(t, c.Nodes[0]).EnableTenant(within(t, 10*time.Second), &kekdv1.EnableTenantRequest{Name: "acme"})
			return err == nil && !slices.ContainsFunc(c.Nodes, func(n devcluster.Node) bool {
				_, err := keys(t, n).Unwrap(within(t, 5*time.Second), sealed.Envelope, client.Options{})
				return err != nil
			})
		})
	}
	refused := func(t *testing.T, nodes ...devcluster.Node) {
		t.Helper()
		for _, n := range nodes {
			if _, err := keys(t, n).Unwrap(within(t, 10*time.Second), sealed.Envelope, client.Options{}); !errors.Is(err, hierarchy.ErrTenantDisabled) && !errors.Is(err, hierarchy.ErrStale) {
				t.Errorf("node %s, once the disable has returned: %v", n.Name, err)
			}
		}
	}

	t.Run("all are well", func(t *testing.T) {
		for _, n := range c.Nodes {
			got := closeAt(t, n, "tenant", "disable", "acme", "--reason", "test")
			refused(t, c.Nodes...)
			if got.status != 0 || !got.Fenced || got.Index == 0 || len(got.Nodes) != 3 {
				t.Errorf("at %s: %+v", n.Name, got)
			}
			for _, other := range c.Nodes {
				if how := got.how(other.Name); how != "acknowledged" {
					t.Errorf("at %s: node %s: %q", n.Name, other.Name, how)
				}
			}
			// It is closed, and recorded as that.
			eventually(t, 10*time.Second, "again, there is nobody to wait for", func() bool {
				again := closeAt(t, n, "tenant", "disable", "acme", "--reason", "test")
				return again.status == 0 && again.Fenced && len(again.Nodes) == 0
			})
			enable(t)
		}
	})

	t.Run("one is stopped", func(t *testing.T) {
		leader := leaderOf(t, c, c.Nodes[0])
		stopped, through := others(c, leader)[0], others(c, leader)[1]
		q := queueAt(t, stopped, sealed.Envelope, 8)
		got := closeAt(t, through, "tenant", "disable", "acme", "--reason", "test")
		refused(t, leader, through)
		signal(t, syscall.SIGCONT, stopped)
		if answers := q.answered(); answers["TENANT_DISABLED"]+answers["STALE"] != 8 {
			t.Errorf("what was queued at the stopped node: %v", answers)
		}
		if got.status != 0 || !got.Fenced || got.how(stopped.Name) != "lease-expired" || got.how(leader.Name) != "acknowledged" || got.how(through.Name) != "acknowledged" {
			t.Errorf("got %+v", got)
		}
		if elapsed := time.Duration(got.ElapsedMS) * time.Millisecond; elapsed < 2*time.Second || elapsed > defaultBound || got.took > defaultBound+starts {
			t.Errorf("fenced after %v, and answered after %v; the bound is %v", elapsed, got.took, defaultBound)
		}
		eventually(t, 20*time.Second, "the stopped one has heard of it", func() bool {
			_, err := keys(t, stopped).Unwrap(within(t, 10*time.Second), sealed.Envelope, client.Options{})
			if err == nil {
				t.Error("the stopped one has opened it")
			}
			return errors.Is(err, hierarchy.ErrTenantDisabled)
		})
		enable(t)
	})

	for who, of := range map[string]func(leader devcluster.Node) devcluster.Node{
		"the leader is alone": func(leader devcluster.Node) devcluster.Node { return leader },
		"another is alone":    func(leader devcluster.Node) devcluster.Node { return others(c, leader)[0] },
	} {
		t.Run(who, func(t *testing.T) {
			caughtUp(t, c.Nodes)
			alone := of(leaderOf(t, c, c.Nodes[0]))
			signal(t, syscall.SIGSTOP, others(c, alone)...)
			got := closeAt(t, alone, "tenant", "disable", "acme", "--reason", "test")
			signal(t, syscall.SIGCONT, others(c, alone)...)
			if got.status != 3 || got.Code != "OUTCOME_UNKNOWN" || got.IdempotencyID == "" || got.Fenced {
				t.Errorf("got %+v", got)
			}
			if got.took > defaultBound+beyondBound {
				t.Errorf("it took %v", got.took)
			}
			eventually(t, 30*time.Second, "there is a leader again", func() bool {
				ctx, cancel := context.WithTimeout(t.Context(), time.Second)
				defer cancel()
				s, err := admin(t, alone).GetStatus(ctx, &kekdv1.GetStatusRequest{})
				return err == nil && s.Leader != "" && s.Fresh
			})
			again := closeAt(t, alone, "tenant", "disable", "acme", "--reason", "test", "--idempotency-id", got.IdempotencyID)
			if again.status != 0 || !again.Fenced {
				t.Errorf("again under the same ID: %+v", again)
			}
			refused(t, c.Nodes...)
			enable(t)
		})
	}
	for _, n := range c.Nodes {
		verifyAudit(t, asNode(t, n))
	}
}
