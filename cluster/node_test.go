package cluster_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/raft"

	"github.com/kekd/kekd/cluster"
	"github.com/kekd/kekd/hierarchy"
	"github.com/kekd/kekd/hierarchy/commandpb"
	"github.com/kekd/kekd/hierarchy/state"
)

func TestInitOpenProposeReopen(t *testing.T) {
	t.Parallel()
	dir := initialised(t)
	n := open(t, config(dir))
	if got := n.ID(); got.ID != hierarchy.ID(id("node")) {
		t.Errorf("node %s", got)
	}
	if got := n.ClusterID(); got.ID != hierarchy.ID(id("cluster")) {
		t.Errorf("cluster %s", got)
	}
	index := propose(t, n, createTenant("acme"))
	if got := n.State().Index(); got < index {
		t.Errorf("the state is at %d, and %d was acknowledged", got, index)
	}
	if leader, ok := n.Leader(); !ok || leader != n.ID() || !n.IsLeader() {
		t.Errorf("leader %s, %v", leader, ok)
	}
	hash, at := n.State().Hash(), n.State().Index()
	shut(t, n)

	n = open(t, config(dir))
	if err := n.WaitFor(patience(t), at); err != nil {
		t.Fatal(err)
	}
	if tenant, ok := n.State().TenantByName("acme"); !ok || tenant.State != hierarchy.TenantEnabled {
		t.Errorf("after reopening: %+v", tenant)
	}
	if !n.State().Initialised() {
		t.Error("the cluster is not initialised after reopening")
	}
	if n.State().Index() == at && n.State().Hash() != hash {
		t.Error("the same index has another state after reopening")
	}
	// And it goes on.
	propose(t, n, createTenant("globex"))
}

func TestInitRefusals(t *testing.T) {
	t.Run("again", func(t *testing.T) {
		dir := initialised(t)
		if err := cluster.Init(config(dir), initCluster()); !errors.Is(err, hierarchy.ErrAlreadyExists) {
			t.Errorf("got error %v", err)
		}
		open(t, config(dir)) // nothing was touched
	})
	t.Run("where something is", func(t *testing.T) {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, "precious"), nil, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := cluster.Init(config(dir), initCluster()); !errors.Is(err, hierarchy.ErrAlreadyExists) || !strings.Contains(err.Error(), "precious") {
			t.Errorf("got error %v", err)
		}
		if there, _ := os.ReadDir(dir); len(there) != 1 {
			t.Errorf("left %v", there)
		}
	})
	t.Run("a command that is refused", func(t *testing.T) {
		dir := t.TempDir()
		bad := initCluster()
		bad.Node.Voter = false
		if err := cluster.Init(config(dir), bad); !errors.Is(err, hierarchy.ErrInvalidArgument) {
			t.Errorf("got error %v", err)
		}
		if there, _ := os.ReadDir(dir); len(there) != 0 {
			t.Errorf("left %v", there)
		}
	})
	t.Run("after one that was interrupted", func(t *testing.T) {
		dir := t.TempDir()
		if err := os.MkdirAll(filepath.Join(dir, "raft.new", "snapshots"), 0o700); err != nil {
			t.Fatal(err)
		}
		if _, err := cluster.Open(config(dir)); !errors.Is(err, cluster.ErrUninitialised) {
			t.Errorf("open: got error %v", err)
		}
		if err := cluster.Init(config(dir), initCluster()); err != nil {
			t.Fatal(err)
		}
		propose(t, open(t, config(dir)), tick())
	})
	t.Run("a transport without pre-votes", func(t *testing.T) {
		cfg := config(initialised(t))
		_, memory := raft.NewInmemTransport("one")
		cfg.Network(struct{ raft.Transport }{memory}, nil)
		if _, err := cluster.Open(cfg); err == nil || !strings.Contains(err.Error(), "pre-vote") {
			t.Errorf("open: got error %v", err)
		}
	})
}

func TestOpenRefusesWhatIsNotInitialised(t *testing.T) {
	for name, dir := range map[string]string{"empty": t.TempDir(), "missing": filepath.Join(t.TempDir(), "nothing")} {
		if _, err := cluster.Open(config(dir)); !errors.Is(err, cluster.ErrUninitialised) {
			t.Errorf("%s: got error %v", name, err)
		}
		if there, _ := os.ReadDir(dir); len(there) > 0 {
			t.Errorf("%s: it made %v", name, there)
		}
	}
}

func TestSecondProcess(t *testing.T) {
	dir := initialised(t)
	n := open(t, config(dir))
	_, err := cluster.Open(config(dir))
	if !errors.Is(err, cluster.ErrInUse) || !strings.Contains(err.Error(), fmt.Sprint("PID ", os.Getpid())) {
		t.Errorf("got error %v", err)
	}
	propose(t, n, createTenant("acme")) // the first is not disturbed
	shut(t, n)
	open(t, config(dir))
}

func TestProposals(t *testing.T) {
	t.Parallel()
	n := open(t, config(initialised(t)))
	t.Run("refused by the state machine", func(t *testing.T) {
		propose(t, n, createTenant("twice"))
		res, err := n.Propose(patience(t), createTenant("twice"))
		if !errors.Is(err, hierarchy.ErrAlreadyExists) || !errors.Is(res.Err, hierarchy.ErrAlreadyExists) {
			t.Errorf("got %+v, %v", res, err)
		}
	})
	t.Run("repeated", func(t *testing.T) {
		c := createTenant("once")
		c.Id = id("a command")
		first := propose(t, n, c)
		res, err := n.Propose(patience(t), c)
		if err != nil || !res.Replayed || res.Index != first {
			t.Errorf("got %+v, %v", res, err)
		}
	})
	t.Run("is not changed", func(t *testing.T) {
		c := createTenant("kept")
		propose(t, n, c)
		if c.Id != nil || c.Stamp != 0 || c.Format != 0 {
			t.Errorf("the proposer's command became %v", c)
		}
	})
	t.Run("too large", func(t *testing.T) {
		c := tick()
		c.GetTick().StateHash = make([]byte, cluster.MaxCommand)
		if _, err := n.Propose(patience(t), c); !errors.Is(err, hierarchy.ErrInvalidArgument) {
			t.Errorf("got error %v", err)
		}
		propose(t, n, tick())
	})
	t.Run("many at once", func(t *testing.T) {
		var wg sync.WaitGroup
		for i := range 50 {
			wg.Go(func() {
				name := fmt.Sprint("many-", i)
				if _, err := n.Propose(patience(t), createTenant(name)); err != nil {
					t.Error(err)
				} else if _, ok := n.State().TenantByName(name); !ok {
					t.Errorf("%s was acknowledged and is not in the state", name)
				}
			})
		}
		wg.Wait()
	})
	t.Run("cluster time", func(t *testing.T) {
		before := time.Now()
		propose(t, n, tick())
		if s := n.State().Stamp(); s.Before(before) || s.After(time.Now()) {
			t.Errorf("cluster time is %v, at %v", s, before)
		}
	})
	t.Run("after the end", func(t *testing.T) {
		shut(t, n)
		if _, err := n.Propose(patience(t), tick()); !errors.Is(err, cluster.ErrNotLeader) {
			t.Errorf("got error %v", err)
		}
		if err := n.WaitFor(patience(t), 1<<40); !errors.Is(err, hierarchy.ErrStale) {
			t.Errorf("waiting: got error %v", err)
		}
	})
}

// Which of raft's errors are definite was read in its source; the rest may have taken effect.
func TestOutcomes(t *testing.T) {
	command := id("a command")
	for _, err := range []error{raft.ErrNotLeader, raft.ErrEnqueueTimeout, raft.ErrLeadershipTransferInProgress} {
		if got := cluster.OutcomeOf(err, command); !errors.Is(got, cluster.ErrNotLeader) || errors.Is(got, hierarchy.ErrOutcomeUnknown) {
			t.Errorf("%v: got %v", err, got)
		}
	}
	for _, err := range []error{raft.ErrLeadershipLost, raft.ErrRaftShutdown, raft.ErrAbortedByRestore, context.DeadlineExceeded, errors.New("no space left on device")} {
		got := cluster.OutcomeOf(err, command)
		if !errors.Is(got, hierarchy.ErrOutcomeUnknown) || errors.Is(got, cluster.ErrNotLeader) || !strings.Contains(got.Error(), fmt.Sprintf("%x", command)) {
			t.Errorf("%v: got %v", err, got)
		}
	}
}

func TestNoLeader(t *testing.T) {
	cfg := config(initialised(t))
	cfg.Adjust(func(c *raft.Config) { c.HeartbeatTimeout, c.ElectionTimeout = time.Hour, time.Hour })
	n := open(t, cfg)
	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	if _, err := n.Propose(ctx, tick()); !errors.Is(err, cluster.ErrNotLeader) || errors.Is(err, hierarchy.ErrOutcomeUnknown) {
		t.Errorf("got error %v", err)
	}
	if l := n.Lease(); l.Index != 0 {
		t.Errorf("it has a lease: %+v", l)
	}
}

func TestWaiting(t *testing.T) {
	n := open(t, config(initialised(t)))
	<-n.Renewed() // for its first lease it registers this run, which is more than a tick
	changed := n.Changed()
	next := n.State().Index() + 1
	for range 3 {
		propose(t, n, tick())
	}
	if err := n.WaitFor(patience(t), next); err != nil {
		t.Fatal(err)
	}
	select {
	case <-changed:
		t.Error("ticks woke who waits for something to do")
	default:
	}
	propose(t, n, createTenant("acme"))
	select {
	case <-changed:
	case <-patience(t).Done():
		t.Error("a new tenant woke nobody")
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Millisecond)
	defer cancel()
	if err := n.WaitFor(ctx, 1<<40); !errors.Is(err, hierarchy.ErrStale) || !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got error %v", err)
	}
}

// inject puts an entry into the log that no proposal makes: as a newer or a broken leader would.
func inject(t *testing.T, n *cluster.Node, c *commandpb.Command) {
	t.Helper()
	data, err := c.MarshalVT()
	if err != nil {
		t.Fatal(err)
	}
	n.Raft().Apply(data, time.Second)
}

func TestWhatStopsTheNode(t *testing.T) {
	t.Parallel()
	future := tick()
	future.Format, future.Id = state.Format+1, id("x")
	diverged := tick()
	diverged.Format, diverged.Id = state.Format, id("x")
	for _, c := range []struct {
		name    string
		command func(index uint64) *commandpb.Command
		want    error
	}{
		{"unknown command", func(uint64) *commandpb.Command { return future }, state.ErrUnknownCommand},
		{"other hash", func(index uint64) *commandpb.Command {
			diverged.GetTick().StateIndex, diverged.GetTick().StateHash = index, make([]byte, 32)
			return diverged
		}, state.ErrDiverged},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := initialised(t)
			cfg := config(dir)
			n := open(t, cfg)
			propose(t, n, createTenant("acme"))
			stop := make(chan struct{})
			var err error
			go func() {
				defer close(stop)
				err = failed(t, n)
			}()
			// Again if a renewal moved the state on between reading its index and naming it.
			for done := false; !done; {
				inject(t, n, c.command(n.State().Index()))
				select {
				case <-stop:
					done = true
				case <-time.After(5 * time.Millisecond):
				}
			}
			if !errors.Is(err, c.want) {
				t.Fatalf("got error %v, want %v", err, c.want)
			}
			at := n.State().Index()
			ctx, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond)
			defer cancel()
			if _, err := n.Propose(ctx, createTenant("globex")); err == nil {
				t.Error("it takes commands still")
			}
			if n.State().Index() != at {
				t.Error("it skipped the entry")
			}
		})
	}
}
