package cluster_test

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"

	"github.com/kekd/kekd/cluster"
	"github.com/kekd/kekd/cluster/lease"
	"github.com/kekd/kekd/cluster/peerpb"
	"github.com/kekd/kekd/cluster/view"
	"github.com/kekd/kekd/hierarchy"
	"github.com/kekd/kekd/hierarchy/audit"
	"github.com/kekd/kekd/hierarchy/custody"
	"github.com/kekd/kekd/hierarchy/state"
	"github.com/kekd/kekd/hsm"
)

// simRun is one run of a node's process.
type simRun struct {
	machine *simMachine
	id      hierarchy.NodeID
	n       int
	world   *simWorld

	ctx  context.Context // ends with the process
	stop context.CancelFunc
	// apart is a process that nobody hears and that hears nobody, and whose disk is no longer the node's: one that
	// was killed, or one whose successor was started while it lives.
	apart atomic.Bool

	transport *simTransport
	node      atomic.Pointer[cluster.Node]
	custody   *custody.Custody
	replica   *view.Replica
	ended     chan struct{} // closed when its directory is free

	mu     sync.Mutex
	paused chan struct{} // closed when it goes on; nil: it runs
	looks  map[chan struct{}]bool
}

func (r *simRun) cutOff() bool { return r.apart.Load() || r.ctx.Err() != nil }

// awake returns when the process is not stopped, and tells whether it was.
func (r *simRun) awake() (waited bool) {
	for ; ; waited = true {
		r.mu.Lock()
		paused := r.paused
		r.mu.Unlock()
		if paused == nil {
			return waited
		}
		<-paused
	}
}

// pause stops the process as SIGSTOP would, as far as that can be seen: what it sends and receives waits, and so does
// whoever looks at its state. Its clocks go on.
func (r *simRun) pause() (resume func()) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.paused != nil {
		return func() {}
	}
	paused := make(chan struct{})
	r.paused = paused
	return func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		if r.paused == paused {
			r.paused = nil
			close(paused)
		}
	}
}

// simStops is what a look at a node reads, with the process stopped for a moment, or for long, before any of it.
type simStops struct{ run *simRun }

func (s simStops) stop() {
	s.run.world.perhaps(0.05, 3*time.Millisecond)
	s.run.world.perhaps(0.01, 100*time.Millisecond)
	s.run.awake()
}

func (s simStops) Lease() lease.Lease        { s.stop(); return s.run.node.Load().Lease() }
func (s simStops) State() *state.State       { s.stop(); return s.run.node.Load().State() }
func (s simStops) Now() time.Duration        { s.stop(); return s.run.node.Load().Now() }
func (s simStops) Incarnation() hierarchy.ID { return s.run.node.Load().Incarnation() }
func (s simStops) Acknowledged() uint64      { return s.run.node.Load().Acknowledged() }
func (s simStops) Fault() error              { return s.run.node.Load().Fault() }
func (s simStops) Unwell() error             { return s.run.node.Load().Unwell() }

// View is custody's look. Nothing takes time between its reading of the clock, which decides, and its end.
func (r *simRun) View() custody.View {
	done := make(chan struct{})
	r.mu.Lock()
	r.looks[done] = true
	r.mu.Unlock()
	v := r.replica.Look()
	r.mu.Lock()
	delete(r.looks, done)
	r.mu.Unlock()
	close(done)
	return custody.View{State: v.State, Age: v.Age, Fault: v.Fault, Unwell: v.Unwell, Now: v.Now}
}

// Renewed is for who waits for a lease that has run out.
func (r *simRun) Renewed() <-chan struct{} { return r.node.Load().Renewed() }

// Drained stands in for custody's, whose lock is none that a bubble's time goes on behind.
func (r *simRun) Drained(ctx context.Context) error {
	r.mu.Lock()
	var began []chan struct{}
	for done := range r.looks {
		began = append(began, done)
	}
	r.mu.Unlock()
	for _, done := range began {
		select {
		case <-done:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

// simDataKey is the length of the data keys that are wrapped, in bytes.
const simDataKey = 16

// The token, journal and budget take time, and nothing else: what they do is not what is simulated.

func (r *simRun) Do(_ context.Context, ops []hsm.Operation) {
	r.world.perhaps(0.1, 700*time.Millisecond)
	r.world.perhaps(1, 5*time.Millisecond)
	for i := range ops {
		for range ops[i].To {
			ops[i].Sealed = append(ops[i].Sealed, hsm.Sealed{IV: make([]byte, hsm.IVSize), Ciphertext: make([]byte, simDataKey+hsm.TagSize)})
		}
		if ops[i].Reveal {
			ops[i].Revealed = make([]byte, simDataKey)
		}
	}
}

func (r *simRun) Append(context.Context, []audit.Record) (audit.Position, error) {
	return audit.Position{}, nil
}

func (r *simRun) Wait(context.Context, audit.Position) error {
	r.world.perhaps(0.1, 700*time.Millisecond)
	r.world.perhaps(1, 5*time.Millisecond)
	return nil
}

func (r *simRun) Take(context.Context, hierarchy.TenantID, hierarchy.KeyID, uint32, int) error {
	return nil
}

// open starts a process in the machine's directory.
func (w *simWorld) open(m *simMachine) (*simRun, error) {
	m.runs++
	r := &simRun{machine: m, id: m.id, n: m.runs, world: w, looks: map[chan struct{}]bool{}, ended: make(chan struct{})}
	r.ctx, r.stop = context.WithCancel(w.ctx)
	r.transport = &simTransport{net: w.net, run: r, rpcs: make(chan raft.RPC)}
	cfg := w.config(m)
	cfg.Marks, cfg.Clock = runMarks{r}, runClock{m.clock, r}
	cfg.Drained = r.Drained
	cfg.WrapLog(func(s raft.LogStore) raft.LogStore { return slowLog{s, r} })
	cfg.Network(r.transport, func(ctx context.Context, to hierarchy.NodeID) (peerpb.PeerClient, error) {
		return w.net.reach(ctx, r, to)
	})
	node, err := cluster.Open(cfg)
	if err != nil {
		r.stop()
		close(r.ended)
		return nil, err
	}
	r.node.Store(node)
	r.replica = view.New(simStops{r}, m.id)
	r.custody = custody.New(custody.Self{Cluster: simClusterID, Region: simRegion, Node: m.id}, r, r, r, nil, r, time.Now)
	m.run = r
	w.net.answered(m.id, r)
	w.running.Go(func() { w.watch(r) })
	w.serve(r)
	return r, nil
}

// end stops a process. One that was killed is made to be apart first, so that nothing of its end is seen.
func (r *simRun) end() {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	r.mu.Lock()
	if r.paused != nil {
		close(r.paused)
		r.paused = nil
	}
	r.mu.Unlock()
	if r.apart.Load() {
		r.stop()
	}
	err := r.node.Load().Close(ctx)
	r.stop()
	if err != nil && !errors.Is(err, cluster.ErrFailed) {
		r.world.fail("close %s: %v", r.machine.name, err)
	}
	if errors.Is(err, cluster.ErrFailed) {
		r.node.Load().Bury()
	}
	close(r.ended)
}
