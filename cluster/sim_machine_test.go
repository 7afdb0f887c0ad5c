package cluster_test

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/hashicorp/raft"

	"github.com/kekd/kekd/cluster"
	"github.com/kekd/kekd/hierarchy"
)

// simMachine is where a node runs: what is there whichever of its processes runs, or none.
type simMachine struct {
	id    hierarchy.NodeID
	name  string
	dir   string
	marks *simMarks
	clock simClock
	raft  func(*raft.Config)
	// slowest is how long its disk takes at most, and its token for a mark.
	slowest time.Duration

	runs    int
	run     *simRun // nil: it is down
	leaves  bool    // it is to be removed, and may be already
	gone    bool    // removed, and not to come back
	backups []string
}

// simClock is a node's own: it begins anywhere, and goes at its own rate. Of two, the rates differ by less than 1 %.
type simClock struct {
	began  time.Time
	offset time.Duration
	rate   float64
	wall   time.Duration // how wrong the wall clock is
}

func (c simClock) Now() time.Duration {
	return c.offset + time.Duration(float64(time.Since(c.began))*c.rate)
}

func (c simClock) Wall() time.Time { return time.Now().Add(c.wall) }

// machine makes the place of a node.
func (w *simWorld) machine(name string) *simMachine {
	m := &simMachine{id: hierarchy.NodeID{ID: hierarchy.ID(id(nodeName(name)))}, name: name, dir: filepath.Join(w.dir, name), marks: new(simMarks)}
	d := newSimDice(w.seed, "machine "+name)
	m.slowest = []time.Duration{0, time.Millisecond, 10 * time.Millisecond}[d.draw(3)]
	m.clock = simClock{began: w.began, offset: d.between(0, time.Hour), rate: 0.9955 + float64(d.draw(91))/10000, wall: d.between(-time.Second, time.Second)}
	m.raft = w.raft(name, d)
	w.mu.Lock()
	w.machines = append(w.machines, m)
	w.mu.Unlock()
	return m
}

// raft draws one node's settings of raft. Nothing that is promised may rest on them: a node may go on to lead for long
// after the others have another leader, as one whose timers are late does; and it may catch up in small
// steps, or by snapshots.
func (w *simWorld) raft(name string, d *simDice) func(*raft.Config) {
	election := electionTimeout
	if d.chance(0.3) {
		election = d.between(time.Second, 3*time.Second)
	}
	step, compacts := []int{1, 4, 16}[d.draw(3)], d.chance(0.5)
	return func(c *raft.Config) {
		c.HeartbeatTimeout, c.ElectionTimeout, c.LeaderLeaseTimeout = election, election, election
		c.MaxAppendEntries = step
		// A follower may have as many entries as one message has that its leader does not know it to have. If
		// it has compacted what is before them, a leader that has not never finds where they part.
		c.TrailingLogs = 32
		if compacts {
			c.SnapshotThreshold, c.SnapshotInterval = 48, time.Second
		}
		if w.adjust != nil {
			w.adjust(name, c)
		}
	}
}

const electionTimeout = 250 * time.Millisecond

func (w *simWorld) config(m *simMachine) cluster.Config {
	level := slog.LevelInfo
	if os.Getenv("KEKD_SIM_LOG") != "" {
		level = slog.LevelDebug
	}
	cfg := cluster.Config{
		Dir: m.dir, Clock: m.clock, Wall: m.clock.Wall, Marks: m.marks, TokenHealthy: func() bool { return true },
		Logger: slog.New(slog.NewTextHandler(w, &slog.HandlerOptions{Level: level, ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
			if a.Key == slog.TimeKey {
				return slog.String("at", fmt.Sprintf("%.3f", time.Since(w.began).Seconds()))
			}
			return a
		}})).With("of", m.name),
	}
	cfg.Adjust(m.raft)
	cfg.Release(w.release)
	return cfg
}

// runClock is the machine's clock as one run of a process has it, with timers that stand still while that is stopped, and are
// late when it goes on.
type runClock struct {
	simClock
	run *simRun
}

func (c runClock) Sleep(d time.Duration) {
	time.Sleep(d)
	if c.run.awake() {
		c.run.world.perhaps(1, 5*time.Millisecond)
	}
}

// simMarks are kept outside of the directory.
type simMarks struct {
	mu sync.Mutex
	m  cluster.Mark
	is bool
}

func (s *simMarks) Mark(context.Context) (cluster.Mark, bool, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.m, s.is, nil
}

func (s *simMarks) SetMark(_ context.Context, m cluster.Mark) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.is = true
	s.m.Term = max(s.m.Term, m.Term)
	if m.LastTerm > s.m.LastTerm || m.LastTerm == s.m.LastTerm && m.LastIndex > s.m.LastIndex {
		s.m.LastTerm, s.m.LastIndex = m.LastTerm, m.LastIndex
	}
	return nil
}

// runMarks are a machine's marks as one run of its process reaches them: not any more once that is apart.
type runMarks struct{ run *simRun }

func (m runMarks) Mark(ctx context.Context) (cluster.Mark, bool, error) {
	return m.run.machine.marks.Mark(ctx)
}

func (m runMarks) SetMark(ctx context.Context, to cluster.Mark) error {
	m.run.world.perhaps(1, m.run.machine.slowest)
	m.run.awake()
	if m.run.cutOff() {
		return nil // and nobody hears of it
	}
	return m.run.machine.marks.SetMark(ctx, to)
}

// slowLog is a disk: a crash may come before an entry is on it, and after, and before anybody hears of it.
type slowLog struct {
	raft.LogStore
	run *simRun
}

func (s slowLog) StoreLogs(logs []*raft.Log) error {
	s.run.world.perhaps(1, s.run.machine.slowest)
	err := s.LogStore.StoreLogs(logs)
	s.run.world.perhaps(1, s.run.machine.slowest)
	return err
}
