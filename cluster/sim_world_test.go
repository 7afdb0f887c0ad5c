package cluster_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/raft"

	"github.com/kekd/kekd/cluster"
	"github.com/kekd/kekd/cluster/peerpb"
	"github.com/kekd/kekd/hierarchy"
	"github.com/kekd/kekd/hierarchy/commandpb"
	"github.com/kekd/kekd/hierarchy/state"
)

var (
	simClusterID = hierarchy.ClusterID{ID: hierarchy.ID(id("cluster"))}
	simRegion    = hierarchy.RegionID{ID: hierarchy.ID(id("region"))}
)

// simWorld is a cluster in one bubble of time, with clients at each node, and what they were told.
type simWorld struct {
	t    testing.TB
	dir  string
	seed uint64
	net  *simNet

	ctx     context.Context
	stop    context.CancelFunc
	running sync.WaitGroup
	release chan struct{}
	began   time.Time

	*simDice          // of all that has none of its own
	plan     *simDice // of what goes wrong

	mu       sync.Mutex
	machines []*simMachine
	joined   int
	rolled   bool // a directory was put back: what it had answered for without a mark may be lost
	log      bytes.Buffer
	faults   []string

	told   *simHistory
	names  []string          // of tenants
	sealed map[string][]byte // an envelope of each
	// adjust is what a family of schedules wants of raft.
	adjust  func(name string, c *raft.Config)
	clients time.Duration // how long a client waits until it asks again, at most
}

// newSimWorld is one node "a", which leads.
func newSimWorld(t *testing.T, seed uint64) *simWorld {
	w := &simWorld{t: t, dir: memoryDir(t), seed: seed, net: newSimNet(newSimDice(seed, "network")),
		simDice: newSimDice(seed, "world"), plan: newSimDice(seed, "plan"),
		release: make(chan struct{}), sealed: map[string][]byte{}, began: time.Now(), clients: 60 * time.Millisecond}
	w.told = newSimHistory(w.began)
	w.ctx, w.stop = context.WithCancel(context.Background())
	t.Cleanup(w.end)
	return w
}

func (w *simWorld) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.log.Write(p)
}

func (w *simWorld) note(format string, args ...any) {
	fmt.Fprintf(w, "%9.3f %s\n", time.Since(w.began).Seconds(), fmt.Sprintf(format, args...))
}

// fail takes down what must not be.
func (w *simWorld) fail(format string, args ...any) {
	w.note("FAULT: "+format, args...)
	w.mu.Lock()
	defer w.mu.Unlock()
	w.faults = append(w.faults, fmt.Sprintf(format, args...))
}

// first makes the cluster.
func (w *simWorld) first() *simMachine {
	m := w.machine("a")
	first := initCluster()
	first.Node.Address = "a:1"
	if err := cluster.Init(w.config(m), first); err != nil {
		w.t.Fatal(err)
	}
	if _, err := w.open(m); err != nil {
		w.t.Fatal(err)
	}
	return m
}

// join makes another machine a member through one that is. It may fail, as the cluster may have no leader.
func (w *simWorld) join(ctx context.Context, by *simRun, name string, voter bool) (*simMachine, error) {
	secret, invitation := hierarchy.NewID(), hierarchy.NewID()
	proof := state.Proof(append(secret[:], secret[:]...))
	hash := state.ProofHash(proof[:])
	_, err := by.node.Load().Propose(ctx, &commandpb.Command{Body: &commandpb.Command_InviteNode{InviteNode: &commandpb.InviteNode{Invitation: &commandpb.Invitation{
		Id: invitation[:], ProofHash: hash[:], Node: name, Region: "eu-west", Role: commandpb.RegionRole_REGION_ROLE_VOTING, Voter: voter,
		ExpiresAt: time.Now().Add(time.Hour).UnixNano(),
	}}}})
	if err != nil {
		return nil, err
	}
	m := w.machine(name)
	answer := by.node.Load().JoinAs(ctx, name, &peerpb.JoinRequest{
		InvitationId: invitation[:], Proof: proof[:], NodeId: m.id.ID[:], RegionId: simRegion.ID[:], Name: name, Region: "eu-west", Address: name + ":1", Identity: []byte("identity"),
	})
	if answer.GetErrorCode() != "" {
		m.gone = true
		return nil, fmt.Errorf("%s: %s", answer.GetErrorCode(), answer.GetErrorMessage())
	}
	cfg := w.config(m)
	if err := cluster.JoinAnswered(cfg, simClusterID, m.id, answer); err != nil {
		return nil, err
	}
	if _, err := w.open(m); err != nil {
		return nil, err
	}
	return m, nil
}

// grown is the cluster that schedules begin with: three voters, and up to two more nodes that do not vote.
func (w *simWorld) grown(others int) {
	a := w.first()
	for i, name := range []string{"b", "c", "d", "e"}[:2+others] {
		if _, err := w.join(w.patience(), a.run, name, i < 2); err != nil {
			w.t.Fatal(err)
		}
	}
	w.until("all have leases and votes", func() bool {
		votes := 0
		for _, s := range a.run.node.Load().Members(w.ctx) {
			if s.Votes {
				votes++
			}
		}
		for _, m := range w.machines {
			if m.run.node.Load().Lease().Index == 0 {
				return false
			}
		}
		return votes == 3
	})
}

func (w *simWorld) patience() context.Context {
	ctx, cancel := context.WithTimeout(w.ctx, 30*time.Second)
	context.AfterFunc(w.ctx, cancel)
	return ctx
}

// until waits for what has to come to pass.
func (w *simWorld) until(what string, holds func() bool) {
	for deadline := time.Now().Add(time.Minute); !holds(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			w.fail("not within a minute: %s", what)
			return
		}
	}
}

// alive are the runs that are the nodes' own.
func (w *simWorld) alive() (runs []*simRun) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, m := range w.machines {
		if m.run != nil && !m.gone {
			runs = append(runs, m.run)
		}
	}
	return runs
}

// any is one of them; nil if there is none.
func (w *simWorld) any(d *simDice) *simRun {
	runs := w.alive()
	if len(runs) == 0 {
		return nil
	}
	return runs[d.draw(len(runs))]
}

// watch tells of a node that ends by itself. After a directory was put back that may be: the others see
// that it has forgotten what it had answered for, and say so.
func (w *simWorld) watch(r *simRun) {
	select {
	case err := <-r.node.Load().Failed():
		if r.cutOff() {
			return
		}
		w.mu.Lock()
		allowed := w.rolled && errors.Is(err, state.ErrDiverged)
		w.mu.Unlock()
		if !allowed {
			w.fail("%s ends: %v", r.machine.name, err)
		} else {
			w.note("%s ends: %v", r.machine.name, err)
		}
		r.apart.Store(true)
	case <-r.ctx.Done():
	}
}

// image copies a machine's directory as a crash would leave it at this moment.
func (w *simWorld) image(m *simMachine) string {
	synctest.Wait() // nobody writes
	to, err := os.MkdirTemp(w.dir, m.name+"-")
	if err == nil {
		err = os.CopyFS(filepath.Join(to, "raft"), os.DirFS(filepath.Join(m.dir, "raft")))
	}
	if err != nil {
		w.t.Fatal(err)
	}
	return to
}

// kill ends a machine's process as kill -9 would. If it leaves a ghost, that process goes on, for nobody knows that it
// does: it serves whoever is beside it, and is not heard by the others any more.
func (w *simWorld) kill(m *simMachine, ghost time.Duration) {
	if m.run == nil {
		return
	}
	w.note("kill %s, ghost %v", m.name, ghost)
	r, to := m.run, w.image(m)
	if ghost == 0 {
		// The lock's file is the same, by which the next run knows that this one is over.
		if err := os.Link(filepath.Join(m.dir, "lock"), filepath.Join(to, "lock")); err != nil {
			w.t.Fatal(err)
		}
	}
	r.apart.Store(true)
	w.net.answered(m.id, nil)
	w.mu.Lock()
	m.run, m.dir = nil, to
	w.mu.Unlock()
	if ghost == 0 {
		r.stop()
	}
	w.running.Go(func() {
		time.Sleep(ghost)
		r.end()
	})
	if ghost == 0 {
		<-r.ended
	}
}

// start starts a machine's process again.
func (w *simWorld) start(m *simMachine) bool {
	if m.run != nil || m.gone {
		return true
	}
	_, err := w.open(m)
	w.note("start %s: %v", m.name, err)
	if errors.Is(err, cluster.ErrRolledBack) {
		return false
	}
	if err != nil {
		w.fail("start %s: %v", m.name, err)
	}
	return true
}

// putBack has a machine start from an older copy of its directory.
func (w *simWorld) putBack(m *simMachine, image string) bool {
	w.note("%s has an older directory", m.name)
	w.kill(m, 0)
	to, err := os.MkdirTemp(w.dir, m.name+"-")
	if err == nil {
		err = os.CopyFS(filepath.Join(to, "raft"), os.DirFS(filepath.Join(image, "raft")))
	}
	if err != nil {
		w.t.Fatal(err)
	}
	w.mu.Lock()
	w.rolled, m.dir = true, to
	w.mu.Unlock()
	return w.start(m)
}

// end ends everything: a bubble has to be empty in the end.
func (w *simWorld) end() {
	if w.ctx.Err() != nil {
		return
	}
	for _, r := range w.alive() {
		w.running.Go(r.end)
	}
	time.Sleep(time.Second) // handing leadership on
	w.stop()
	close(w.release)
	w.running.Wait()
	time.Sleep(time.Minute) // what is still on its way, and has nobody who waits for it
}

// finish ends everything, judges, and saves what was told if it cannot be.
func (w *simWorld) finish(name string) {
	w.end()
	found := slices.Concat(w.faults, w.told.judge())
	if len(found) == 0 {
		return
	}
	path := w.told.save(w.t, name, w.seed)
	logPath := path + ".log"
	if err := os.WriteFile(logPath, w.log.Bytes(), 0o600); err != nil {
		w.t.Error(err)
	}
	w.t.Errorf("%s, seed %d: history in %s, log in %s", name, w.seed, path, logPath)
	for i, f := range found {
		if i == 5 {
			w.t.Errorf("and %d more", len(found)-i)
			break
		}
		w.t.Error(f)
	}
}
