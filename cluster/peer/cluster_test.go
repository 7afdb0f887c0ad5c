package peer_test

import (
	"fmt"
	"io"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"
)

// words is a state machine that remembers what was said.
type words struct {
	mu   sync.Mutex
	said []string
}

func (w *words) Apply(l *raft.Log) any {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.said = append(w.said, string(l.Data))
	return nil
}

func (w *words) all() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return append([]string(nil), w.said...)
}

func (w *words) Snapshot() (raft.FSMSnapshot, error) { return &wordsSnapshot{w.all()}, nil }

func (w *words) Restore(r io.ReadCloser) error {
	defer r.Close()
	var said []string
	for {
		var word string
		if _, err := fmt.Fscanln(r, &word); err == io.EOF {
			break
		} else if err != nil {
			return err
		}
		said = append(said, word)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.said = said
	return nil
}

type wordsSnapshot struct{ said []string }

func (s *wordsSnapshot) Persist(sink raft.SnapshotSink) error {
	for _, word := range s.said {
		if _, err := fmt.Fprintln(sink, word); err != nil {
			sink.Cancel()
			return err
		}
	}
	return sink.Close()
}

func (*wordsSnapshot) Release() {}

// spy sees which messages get to a node.
type spy struct {
	raft.Transport
	rpcs chan raft.RPC
	seen sync.Map
}

func newSpy(t *testing.T, inner raft.Transport) *spy {
	s := &spy{Transport: inner, rpcs: make(chan raft.RPC)}
	stop := make(chan struct{})
	t.Cleanup(func() { close(stop) })
	go func() {
		for {
			select {
			case rpc := <-inner.Consumer():
				s.seen.Store(fmt.Sprintf("%T", rpc.Command), true)
				select {
				case s.rpcs <- rpc:
				case <-stop:
					return
				}
			case <-stop:
				return
			}
		}
	}()
	return s
}

func (s *spy) Consumer() <-chan raft.RPC { return s.rpcs }

func (s *spy) RequestPreVote(id raft.ServerID, target raft.ServerAddress, req *raft.RequestPreVoteRequest, resp *raft.RequestPreVoteResponse) error {
	return s.Transport.(raft.WithPreVote).RequestPreVote(id, target, req, resp)
}

func (s *spy) saw(kind any) bool {
	_, ok := s.seen.Load(fmt.Sprintf("%T", kind))
	return ok
}

// raftNode is a node of Raft on a port. Its stores outlive it, as a disk does.
type raftNode struct {
	*node
	raft  *raft.Raft
	words *words
	store *raft.InmemStore
	snaps *raft.InmemSnapshotStore
	spy   *spy
	shut  func()
	// timeout is Raft's, for heartbeats, elections and the leader's lease.
	timeout time.Duration
}

// start starts Raft on the node's port, which is open.
func (n *raftNode) start(t *testing.T) {
	t.Helper()
	if _, ok := n.Transport().(raft.WithPreVote); !ok {
		t.Fatal("the transport cannot ask for pre-votes")
	}
	if _, ok := n.Transport().(raft.WithClose); !ok {
		t.Fatal("the transport cannot be closed")
	}
	notify := make(chan bool, 16)
	cfg := raft.DefaultConfig()
	cfg.LocalID = serverID(n.id)
	cfg.HeartbeatTimeout, cfg.ElectionTimeout, cfg.LeaderLeaseTimeout = n.timeout, n.timeout, n.timeout
	cfg.CommitTimeout = 20 * time.Millisecond
	cfg.TrailingLogs = 1
	cfg.SnapshotThreshold = 1 << 30 // only when told to
	cfg.NotifyCh = notify
	cfg.Logger = hclog.NewNullLogger()
	n.words = &words{}
	n.spy = newSpy(t, n.Transport())
	r, err := raft.NewRaft(cfg, n.words, n.store, n.store, n.snaps, n.spy)
	if err != nil {
		t.Fatal(err)
	}
	n.raft = r
	port := n.Port
	stop := make(chan struct{})
	go func() {
		for {
			select {
			case leads := <-notify:
				port.Lead(leads)
			case <-stop:
				return
			}
		}
	}()
	var once sync.Once
	n.shut = func() { once.Do(func() { n.halt(t); close(stop) }) }
	t.Cleanup(n.shut)
}

// halt stops Raft and the port.
func (n *raftNode) halt(t *testing.T) {
	closePort(t, n.Port) // others see it at once, as if the process had been killed
	if err := n.raft.Shutdown().Error(); err != nil {
		t.Error(err)
	}
}

const (
	// shortTimeout is what kekd has.
	shortTimeout = 250 * time.Millisecond
	// longTimeout is where a test tells that nothing was elected, on a machine that has more to do. With it
	// heartbeats to a peer that is away are tried every 375 ms.
	longTimeout = 750 * time.Millisecond
)

// startRaft is a cluster in which all vote.
func startRaft(t *testing.T, timeout time.Duration, names ...string) []*raftNode {
	t.Helper()
	var all []*raftNode
	var servers []raft.Server
	for _, n := range openNodes(t, authority(t), names...) {
		all = append(all, &raftNode{node: n, store: raft.NewInmemStore(), snaps: raft.NewInmemSnapshotStore(), timeout: timeout})
		servers = append(servers, raft.Server{ID: serverID(n.id), Address: raft.ServerAddress(n.id.String())})
	}
	for _, n := range all {
		n.start(t)
		if err := n.raft.BootstrapCluster(raft.Configuration{Servers: servers}).Error(); err != nil {
			t.Fatal(err)
		}
	}
	return all
}

// leaderOf waits for a leader among nodes that run.
func leaderOf(t *testing.T, nodes []*raftNode) (leader *raftNode) {
	t.Helper()
	eventually(t, "a node leads", func() bool {
		leader = nil
		for _, n := range nodes {
			if n.raft.State() == raft.Leader {
				leader = n
			}
		}
		return leader != nil
	})
	return leader
}

func (n *raftNode) say(t *testing.T, words ...string) {
	t.Helper()
	for _, w := range words {
		if err := n.raft.Apply([]byte(w), 5*time.Second).Error(); err != nil {
			t.Fatal(err)
		}
	}
}

func (n *raftNode) restart(t *testing.T) {
	t.Helper()
	n.cfg.Listen = n.Addr().String()
	n.open(t)
	n.start(t)
}

func except(nodes []*raftNode, not *raftNode) (rest []*raftNode) {
	for _, n := range nodes {
		if n != not {
			rest = append(rest, n)
		}
	}
	return rest
}

func heard(t *testing.T, n *raftNode, want ...string) {
	t.Helper()
	eventually(t, n.cfg.Name+" has heard all", func() bool { return len(n.words.all()) >= len(want) })
	if diff := cmp.Diff(want, n.words.all()); diff != "" {
		t.Errorf("%s: -want +got:\n%s", n.cfg.Name, diff)
	}
}

// Three nodes elect, replicate, and take a peer back that was away, without an election and without the
// seconds that Raft would wait: by entries, and by a snapshot.
func TestRaftSurvivesARestart(t *testing.T) {
	t.Parallel()
	nodes := startRaft(t, longTimeout, "a", "b", "c")
	leader := leaderOf(t, nodes)
	leader.say(t, "one", "two")
	for _, n := range nodes {
		heard(t, n, "one", "two")
	}
	term := leader.raft.Stats()["term"]
	away := except(nodes, leader)[0]
	want := []string{"one", "two"}
	for _, how := range []string{"entries", "snapshot"} {
		away.shut()
		leader.say(t, "while-away-"+how)
		want = append(want, "while-away-"+how)
		if how == "snapshot" {
			if err := leader.raft.Snapshot().Error(); err != nil {
				t.Fatal(err)
			}
			leader.say(t, "after-it", "and-more") // more than are left in the log
			want = append(want, "after-it", "and-more")
		}
		// By then Raft has failed often enough to wait for two seconds more.
		time.Sleep(3 * time.Second)
		away.restart(t)
		began := time.Now()
		heard(t, away, want...)
		if took := time.Since(began); took > 1500*time.Millisecond {
			t.Errorf("by %s it took %v", how, took)
		}
		if saw := away.spy.saw(&raft.InstallSnapshotRequest{}); saw != (how == "snapshot") {
			t.Errorf("by %s: a snapshot was sent: %v", how, saw)
		}
	}
	if now := leader.raft.Stats()["term"]; now != term {
		t.Errorf("the term went from %s to %s", term, now)
	}
}

// A leader that is killed is followed by another, and comes back.
func TestRaftSurvivesItsLeader(t *testing.T) {
	t.Parallel()
	nodes := startRaft(t, shortTimeout, "a", "b", "c")
	old := leaderOf(t, nodes)
	old.say(t, "one")
	began := time.Now()
	old.shut()
	next := leaderOf(t, except(nodes, old))
	next.say(t, "two")
	t.Logf("commands are taken again after %v", time.Since(began))
	old.restart(t)
	for _, n := range nodes {
		heard(t, n, "one", "two")
	}
}

// A leader whose peers are away ends its lead, and its raft ends, though replication to them is held back.
func TestRaftEndsWhilePeersAreAway(t *testing.T) {
	t.Parallel()
	nodes := startRaft(t, shortTimeout, "a", "b", "c")
	leader := leaderOf(t, nodes)
	rest := except(nodes, leader)
	rest[0].shut()
	leader.say(t, "one") // and goes on to lead, with replication to the first held back
	rest[1].shut()
	eventually(t, "it leads no more", func() bool { return leader.raft.State() != raft.Leader })
	began := time.Now()
	if err := leader.raft.Shutdown().Error(); err != nil {
		t.Error(err)
	}
	if took := time.Since(began); took > 3*time.Second {
		t.Errorf("its end took %v", took)
	}
}

// An election begins with a pre-vote: a node that was cut off does not raise the term of the others.
func TestPreVote(t *testing.T) {
	t.Parallel()
	nodes := startRaft(t, shortTimeout, "a", "b")
	leader := leaderOf(t, nodes)
	follower := except(nodes, leader)[0]
	leader.say(t, "one")
	heard(t, follower, "one")
	if !follower.spy.saw(&raft.RequestPreVoteRequest{}) || !follower.spy.saw(&raft.RequestVoteRequest{}) {
		t.Error("the follower was asked for no pre-vote, or for no vote")
	}
	term := follower.raft.Stats()["term"]
	leader.shut()
	eventually(t, "the follower looks for a leader", func() bool { return follower.raft.State() == raft.Candidate })
	time.Sleep(time.Second) // for two to four elections in vain: nothing may come of them
	if now := follower.raft.Stats()["term"]; now != term {
		t.Errorf("alone, it raised the term from %s to %s", term, now)
	}
	leader.restart(t)
	leaderOf(t, nodes).say(t, "two")
	for _, n := range nodes {
		heard(t, n, "one", "two")
	}
}
