package cluster_test

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/raft"

	"github.com/kekd/kekd/hierarchy"
)

// simScenarios are written out, and not drawn: what a rule of leases and fences is for, and drawn faults seldom bring about.
// In each, "a" leads at first, "b" and "c" vote too, and what is disabled is "acme".
var simScenarios = map[string]struct {
	staleness time.Duration
	adjust    func(name string, c *raft.Config)
	play      func(*simWorld)
}{
	"a leader that is cut off, with two who do not vote":   {time.Second, lateLeader, (*simWorld).leaderWithoutVoters},
	"a tick that is committed late":                        {time.Second, lateLeader, (*simWorld).lateTick},
	"a leader whose ticks are never committed":             {time.Second, lateAndSlow, (*simWorld).ticksOverwritten},
	"a snapshot that comes again after an acknowledgement": {time.Minute, compacting, (*simWorld).snapshotAgain},
	"a node that joins, and is not registered yet":         {time.Minute, nil, (*simWorld).joinsUnregistered},
}

// TestSimulatedScenarios judges each of them as a schedule is judged.
func TestSimulatedScenarios(t *testing.T) {
	t.Parallel()
	first := simSeed(t)
	for name, s := range simScenarios {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			for i := range simCount(t, 3, 30) {
				if t.Failed() {
					return
				}
				synctest.Test(t, func(t *testing.T) {
					w := newSimWorld(t, first+uint64(i))
					w.adjust = s.adjust
					w.clients = 20 * time.Millisecond
					w.grown(2)
					w.tenant(w.alive()[0], "acme", s.staleness)
					time.Sleep(time.Second) // all are idle, and have leases
					s.play(w)
					time.Sleep(3 * time.Second)
					w.finish("TestSimulatedScenarios")
					if len(w.told.closed["acme"]) == 0 {
						t.Errorf("seed %d: nothing was disabled\n%s", w.seed, w.log.String())
					}
				})
			}
		})
	}
}

// lateLeader has "a" find out seconds late that it leads no longer, as a process does whose timers are late. "b" is the
// first who misses it.
func lateLeader(name string, c *raft.Config) {
	election := time.Second
	switch name {
	case "a":
		election = 5 * time.Second
	case "b":
		election = 200 * time.Millisecond
	}
	c.HeartbeatTimeout, c.ElectionTimeout, c.LeaderLeaseTimeout = election, election, election
	c.TrailingLogs, c.SnapshotThreshold = 1<<20, 1<<20
}

// lateAndSlow has each follower catch up by one entry at a time as well.
func lateAndSlow(name string, c *raft.Config) {
	lateLeader(name, c)
	c.MaxAppendEntries = 1
}

// compacting leaves nothing of the log beside a snapshot, which only comes when it is asked for.
func compacting(_ string, c *raft.Config) {
	c.HeartbeatTimeout, c.ElectionTimeout, c.LeaderLeaseTimeout = electionTimeout, electionTimeout, electionTimeout
	c.TrailingLogs, c.SnapshotThreshold, c.MaxAppendEntries = 1, 1<<20, 64
}

// of finds the run of a node.
func (w *simWorld) of(name string) *simRun {
	for _, r := range w.alive() {
		if r.machine.name == name {
			return r
		}
	}
	w.t.Fatalf("%s does not run", name)
	return nil
}

// link sets both directions between each of some nodes and each of others.
func (w *simWorld) link(some, others []string, f simFaults) {
	for _, a := range some {
		for _, b := range others {
			w.net.set(simLink{w.of(a).id, w.of(b).id}, f)
			w.net.set(simLink{w.of(b).id, w.of(a).id}, f)
		}
	}
}

// disabledAt has acme disabled at one node, which tries until that is effective.
func (w *simWorld) disabledAt(name string) {
	ctx, cancel := context.WithTimeout(w.ctx, 20*time.Second)
	defer cancel()
	o := w.operator("acme", 0)
	o.at = w.of(name)
	o.disable(ctx)
}

func (w *simWorld) leads(name string) {
	w.until(name+" leads", func() bool {
		r := w.of(name).node.Load()
		leader, ok := r.Leader()
		return ok && leader == w.of(name).id && r.IsLeader()
	})
}

// leaderWithoutVoters: what "a" hears of those who do not vote does not show that it leads.
func (w *simWorld) leaderWithoutVoters() {
	w.leads("a")
	w.link([]string{"a", "d", "e"}, []string{"b", "c"}, simFaults{cut: true})
	time.Sleep(700 * time.Millisecond)
	w.disabledAt("b")
}

// lateTick: a Tick of "a" is stored by the other voters, who tell it late. Meanwhile they have another leader, which commits that Tick
// and the disable; and "e" asks "a", which commits that Tick too, when it hears of it.
func (w *simWorld) lateTick() {
	w.leads("a")
	w.link([]string{"d", "e"}, []string{"b", "c"}, simFaults{cut: true})
	resume := w.of("e").pause()
	for _, name := range []string{"b", "c"} {
		w.net.set(simLink{w.of(name).id, w.of("a").id}, simFaults{only: simEntries, least: 900 * time.Millisecond, delay: 30 * time.Millisecond})
	}
	time.Sleep(100 * time.Millisecond) // a Tick is sent meanwhile
	for _, name := range []string{"b", "c"} {
		w.net.set(simLink{w.of("a").id, w.of(name).id}, simFaults{cut: true})
	}
	w.running.Go(func() {
		time.Sleep(620 * time.Millisecond)
		resume()
	})
	w.disabledAt("b")
}

// ticksOverwritten: "a" leads nobody, and asks itself. What it has not committed is replaced by others' entries at
// the very indexes; it comes back, and has those one by one, with the disable last.
func (w *simWorld) ticksOverwritten() {
	w.leads("a")
	w.link([]string{"a"}, []string{"b", "c", "d", "e"}, simFaults{cut: true})
	time.Sleep(700 * time.Millisecond)
	for range 60 {
		w.must(w.of("b"), createTenant("t"+hierarchy.NewID().String()[:8]))
	}
	w.disabledAt("b")
	w.link([]string{"a"}, []string{"b", "c", "d", "e"}, simFaults{least: 5 * time.Millisecond})
}

// snapshotAgain: "e" has a snapshot installed, then applies and acknowledges the disable; then the snapshot comes again.
func (w *simWorld) snapshotAgain() {
	w.leads("a")
	all := []string{"a", "b", "c", "d"}
	w.link([]string{"e"}, all, simFaults{cut: true})
	for range 10 {
		w.must(w.of("a"), createTenant("t"+hierarchy.NewID().String()[:8]))
	}
	if err := w.of("a").node.Load().Snapshot(w.patience()); err != nil {
		w.t.Fatal(err)
	}
	// Its lease is good for a minute, and is not to be renewed.
	for _, name := range all {
		w.net.set(simLink{w.of("e").id, w.of(name).id}, simFaults{cut: true, only: simRenew})
		w.net.set(simLink{w.of(name).id, w.of("e").id}, simFaults{repeat: 1})
	}
	w.until("e has caught up", func() bool {
		return w.of("e").node.Load().State().Index()+3 >= w.of("a").node.Load().State().Index()
	})
	w.disabledAt("a")
}

// joinsUnregistered: the registration of a node that joins is lost, and then all that it says.
func (w *simWorld) joinsUnregistered() {
	w.leads("a")
	f := hierarchy.NodeID{ID: hierarchy.ID(id(nodeName("f")))}
	for _, r := range w.alive() {
		w.net.set(simLink{f, r.id}, simFaults{cut: true, only: simPropose})
	}
	if _, err := w.join(w.patience(), w.of("a"), "f", false); err != nil {
		w.t.Fatal(err)
	}
	time.Sleep(time.Second)
	w.link([]string{"f"}, []string{"a", "b", "c", "d", "e"}, simFaults{cut: true})
	w.disabledAt("a")
}
