package cluster_test

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/raft"

	"github.com/kekd/kekd/cluster"
	"github.com/kekd/kekd/cluster/lease"
	"github.com/kekd/kekd/hierarchy"
	"github.com/kekd/kekd/hierarchy/commandpb"
	"github.com/kekd/kekd/hierarchy/state"
)

var errDisk = errors.New("input/output error")

// brokenLog fails a write of entries that hold a mark, before or after it reached the disk.
type brokenLog struct {
	raft.LogStore
	mark      string
	persisted bool
	hangs     chan struct{} // if set, the write hangs until it is closed, instead of failing
}

func (b *brokenLog) StoreLogs(logs []*raft.Log) error {
	hit := false
	for _, l := range logs {
		hit = hit || strings.Contains(string(l.Data), b.mark)
	}
	if !hit {
		return b.LogStore.StoreLogs(logs)
	}
	if b.persisted {
		if err := b.LogStore.StoreLogs(logs); err != nil {
			return err
		}
	}
	if b.hangs != nil {
		<-b.hangs
	}
	return errDisk
}

// Each fault of a write in both its forms. The proposer hears the same, since he cannot know; what
// the next start finds differs; and a retry with the same ID takes effect once.
func TestFailedWrite(t *testing.T) {
	t.Parallel()
	for _, persisted := range []bool{false, true} {
		t.Run(fmt.Sprintf("persisted=%v", persisted), func(t *testing.T) {
			dir := initialised(t)
			cfg := config(dir)
			cfg.WrapLog(func(s raft.LogStore) raft.LogStore {
				return &brokenLog{LogStore: s, mark: "globex", persisted: persisted}
			})
			n := open(t, cfg)
			propose(t, n, createTenant("acme"))

			c := createTenant("globex")
			c.Id = id("retry")
			_, err := n.Propose(patience(t), c)
			if !errors.Is(err, hierarchy.ErrOutcomeUnknown) || !strings.Contains(err.Error(), fmt.Sprintf("%x", c.Id)) {
				t.Errorf("got error %v, want %v with the ID", err, hierarchy.ErrOutcomeUnknown)
			}
			// From this moment on, and not when its lease ends, nobody may be served.
			if err := n.Fault(); !errors.Is(err, errDisk) || !errors.Is(err, cluster.ErrFailed) {
				t.Errorf("its fault is %v", err)
			}
			if err := failed(t, n); !errors.Is(err, errDisk) {
				t.Errorf("the node fails with %v", err)
			}
			if _, ok := n.State().TenantByName("globex"); ok {
				t.Error("it was applied without being on disk")
			}
			if err := n.Close(patience(t)); err == nil {
				t.Error("it closes as if nothing had been")
			}
			// The process ends here. Its stores are as open as those of a process that was killed.
			dir = copied(t, dir)

			n = open(t, config(dir))
			propose(t, n, tick())
			if _, ok := n.State().TenantByName("globex"); ok != persisted {
				t.Errorf("after a restart the tenant is there: %v, want %v", ok, persisted)
			}
			res, err := n.Propose(patience(t), c)
			if err != nil || res.Replayed != persisted {
				t.Errorf("the retry: %+v, %v", res, err)
			}
			if _, ok := n.State().TenantByName("acme"); !ok {
				t.Error("what was acknowledged is gone")
			}
		})
	}
}

// brokenStable fails to write a key.
type brokenStable struct {
	raft.StableStore
	name      string
	armed     *atomic.Bool
	persisted bool
}

func (b *brokenStable) SetUint64(key []byte, v uint64) error {
	if string(key) != b.name || !b.armed.Load() {
		return b.StableStore.SetUint64(key, v)
	}
	if b.persisted {
		if err := b.StableStore.SetUint64(key, v); err != nil {
			return err
		}
	}
	return errDisk
}

// A term or a vote that may not be on disk must not be answered with: the node ends before it leads.
func TestFailedVote(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"CurrentTerm", "LastVoteTerm"} {
		for _, persisted := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s persisted=%v", name, persisted), func(t *testing.T) {
				dir := initialised(t)
				cfg := config(dir)
				var armed atomic.Bool
				cfg.WrapStable(func(s raft.StableStore) raft.StableStore {
					return &brokenStable{s, name, &armed, persisted}
				})
				// NewRaft writes the term that it has just read; the failure is to meet an election.
				cfg.Adjust(func(c *raft.Config) {
					quick(c)
					c.HeartbeatTimeout, c.ElectionTimeout = 100*time.Millisecond, 100*time.Millisecond
				})
				n := open(t, cfg)
				armed.Store(true)
				if err := failed(t, n); !errors.Is(err, errDisk) {
					t.Errorf("the node fails with %v", err)
				}
				if n.IsLeader() {
					t.Error("it leads with a vote that is not on disk")
				}
				propose(t, open(t, config(copied(t, dir))), createTenant("acme"))
			})
		}
	}
}

// unreadableLog fails to read.
type unreadableLog struct{ raft.LogStore }

func (unreadableLog) GetLog(uint64, *raft.Log) error { return errDisk }

// Raft waits for ever for a store that fails while it starts. The node does not: it ends with the
// reason, and nobody else gets at what raft still has open.
func TestAStoreFailsAtTheStart(t *testing.T) {
	t.Parallel()
	for name, broken := range map[string]func(*cluster.Config){
		"read of the log": func(c *cluster.Config) {
			c.WrapLog(func(s raft.LogStore) raft.LogStore { return unreadableLog{s} })
		},
		"write of the term": func(c *cluster.Config) {
			var armed atomic.Bool
			armed.Store(true)
			c.WrapStable(func(s raft.StableStore) raft.StableStore { return &brokenStable{s, "CurrentTerm", &armed, false} })
		},
	} {
		t.Run(name, func(t *testing.T) {
			dir := initialised(t)
			cfg := config(dir)
			broken(&cfg)
			opened := make(chan error, 1)
			go func() { _, err := cluster.Open(cfg); opened <- err }()
			select {
			case err := <-opened:
				if !errors.Is(err, errDisk) || !errors.Is(err, cluster.ErrFailed) || !strings.Contains(err.Error(), dir) {
					t.Errorf("got error %v", err)
				}
			case <-time.After(10 * time.Second):
				t.Fatal("it still starts")
			}
			runtime.GC() // a lock that nobody holds a reference to ends with its file
			runtime.GC()
			if _, err := cluster.Open(config(dir)); !errors.Is(err, cluster.ErrInUse) {
				t.Errorf("a second node on the same directory: %v", err)
			}
			propose(t, open(t, config(copied(t, dir))), createTenant("acme"))
		})
	}
}

// While the disk hangs nothing is acknowledged, and no lease is renewed by what is not applied.
func TestHangingDisk(t *testing.T) {
	t.Parallel()
	cfg := config(initialised(t))
	hangs := make(chan struct{})
	cfg.WrapLog(func(s raft.LogStore) raft.LogStore {
		return &brokenLog{LogStore: s, mark: "globex", hangs: hangs}
	})
	n := open(t, cfg)
	propose(t, n, createTenant("acme"))
	<-n.Renewed()

	ctx, cancel := context.WithTimeout(context.Background(), 300*time.Millisecond)
	defer cancel()
	if _, err := n.Propose(ctx, createTenant("globex")); !errors.Is(err, hierarchy.ErrOutcomeUnknown) || !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got error %v", err)
	}
	had := n.Lease()
	if _, err := n.Renew(ctx); err == nil {
		t.Error("renewed by a tick that is not on disk")
	}
	// It leads as far as it knows, and still its lease runs out.
	for fresh(n, n.Lease(), 500*time.Millisecond) {
		select {
		case <-time.After(10 * time.Millisecond):
		case <-patience(t).Done():
			t.Fatal("the lease does not run out")
		}
	}
	if got := n.Lease(); got != had {
		t.Errorf("the lease went from %+v to %+v", had, got)
	}
	ctx, cancel = context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	if err := n.Close(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("closing: got error %v", err)
	}
	close(hangs)
	if err := failed(t, n); !errors.Is(err, errDisk) {
		t.Errorf("the node fails with %v", err)
	}
}

func TestLease(t *testing.T) {
	clock := new(setClock)
	cfg := config(initialised(t))
	cfg.Clock = clock
	n := open(t, cfg)
	<-n.Renewed()
	propose(t, n, tick())

	clock.advance(time.Hour)
	if fresh(n, n.Lease(), 2*time.Second) {
		t.Error("a lease of an hour ago is fresh")
	}
	ctx := patience(t)
	for n.Lease().T0 != time.Hour { // one may have been under way
		select {
		case <-n.Renewed(): // asks for one
		case <-ctx.Done():
			t.Fatal("no renewal")
		}
	}
	l := n.Lease()
	if !fresh(n, l, 2*time.Second) {
		t.Errorf("at %v the lease is %+v", n.Now(), l)
	}
	// The proof is a tick that was applied: nothing less is at its index.
	if n.State().Index() < l.Index {
		t.Errorf("the lease is of index %d, the state of %d", l.Index, n.State().Index())
	}

	// Without a leader there is no tick and no lease.
	if err := n.Raft().Shutdown().Error(); err != nil {
		t.Fatal(err)
	}
	l = n.Lease()
	short, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond)
	defer cancel()
	if _, err := n.Renew(short); err == nil {
		t.Error("renewed without raft")
	}
	clock.advance(3 * time.Second)
	if got := n.Lease(); got != l || fresh(n, got, 2*time.Second) {
		t.Errorf("the lease is %+v, and fresh", got)
	}
}

// setClock stands still until it is set on.
type setClock struct {
	mu  sync.Mutex
	now time.Duration
}

func (c *setClock) Now() time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

func (c *setClock) advance(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now += d
}

// Renewals go on by themselves, at the pace of the tenant that allows least.
func TestRenewalsFollowTheTenants(t *testing.T) {
	t.Parallel()
	n := open(t, config(initialised(t)))
	c := createTenant("acme")
	c.GetCreateTenant().MaxStaleness = int64(time.Second)
	propose(t, n, c)
	if got := n.State().MinStaleness(); got != time.Second {
		t.Fatalf("the smallest max_staleness is %v", got)
	}
	ctx := patience(t)
	last := n.Lease()
	for range 3 {
		if err := n.WaitFor(ctx, last.Index+1); err != nil { // of itself: nobody asks for it
			t.Fatal(err)
		}
		for n.Lease() == last {
			select {
			case <-time.After(time.Millisecond):
			case <-ctx.Done():
				t.Fatal("no renewal")
			}
		}
		next := n.Lease()
		if took := next.T0 - last.T0; last.Index > 0 && took > 2*time.Second {
			t.Errorf("%v from one renewal to the next, an eighth of 1s is expected", took)
		}
		last = next
	}
}

func TestRenewComparesStates(t *testing.T) {
	n := open(t, config(initialised(t)))
	propose(t, n, createTenant("acme"))
	for range 20 { // among them one with nothing between looking and proposing
		if _, err := n.Renew(patience(t)); err != nil {
			t.Fatal(err)
		}
	}
	select {
	case err := <-n.Failed():
		t.Errorf("a node differs from itself: %v", err)
	default:
	}
}

// The log as raft keeps it holds what was proposed, with time and ID filled in.
func TestWhatIsInTheLog(t *testing.T) {
	cfg := config(initialised(t))
	seen := make(chan *commandpb.Command, 100)
	cfg.WrapLog(func(s raft.LogStore) raft.LogStore { return &spy{s, seen} })
	n := open(t, cfg)
	before := time.Now()
	propose(t, n, createTenant("acme"))
	for c := range seen {
		if c.GetCreateTenant() == nil {
			continue
		}
		if c.GetFormat() != state.Format || len(c.GetId()) != hierarchy.IDSize || time.Unix(0, c.GetStamp()).Before(before) {
			t.Errorf("got %v", c)
		}
		return
	}
}

type spy struct {
	raft.LogStore
	seen chan *commandpb.Command
}

func (s *spy) StoreLogs(logs []*raft.Log) error {
	for _, l := range logs {
		if c, err := state.Decode(l.Data); err == nil && l.Type == raft.LogCommand {
			s.seen <- c
		}
	}
	return s.LogStore.StoreLogs(logs)
}

// fresh tells whether a node's state may be served from under a lease.
func fresh(n *cluster.Node, l lease.Lease, maxStaleness time.Duration) bool {
	age, err := l.Age(n.Now(), n.State().Index())
	return err == nil && age <= maxStaleness
}
