package cluster_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/raft"

	"github.com/kekd/kekd/cluster"
	"github.com/kekd/kekd/cluster/peerpb"
	"github.com/kekd/kekd/hierarchy"
	"github.com/kekd/kekd/hierarchy/commandpb"
)

// markedConfig is a new cluster of one with a mark.
func markedConfig(t *testing.T) (cluster.Config, *kept) {
	t.Helper()
	cfg, k := config(t.TempDir()), new(kept)
	cfg.Marks = k
	if err := cluster.Init(cfg, initCluster()); err != nil {
		t.Fatal(err)
	}
	return cfg, k
}

// fencedDisable disables a tenant, and waits for the fence.
func fencedDisable(t *testing.T, n *cluster.Node, tenant string) {
	t.Helper()
	index := propose(t, n, disable(tenant))
	if report, err := n.Fence(patience(t), index); err != nil || !report.Fenced {
		t.Fatalf("%+v, %v", report, err)
	}
}

// A cluster's first node has a mark from its first moment on.
func TestInitMarks(t *testing.T) {
	t.Parallel()
	cfg, k := markedConfig(t)
	if want := (cluster.Mark{Term: 1, LastTerm: 1, LastIndex: 2}); k.is() != want {
		t.Errorf("marked %v, want %v", k.is(), want)
	}
	shut(t, open(t, cfg))

	// One that cannot be marked is not made.
	cfg = config(t.TempDir())
	cfg.Marks = &kept{fails: errors.New("no token")}
	if err := cluster.Init(cfg, initCluster()); err == nil || !strings.Contains(err.Error(), "no token") {
		t.Errorf("got error %v", err)
	}
	if _, err := os.Stat(filepath.Join(cfg.Dir, "raft")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("it is there: %v", err)
	}
}

// A node's mark that is no longer there is an error, and not the mark of a new node.
func TestAMarkThatIsMissing(t *testing.T) {
	t.Parallel()
	cfg, _ := markedConfig(t)
	cfg.Marks = new(kept)
	if _, err := cluster.Open(cfg); !errors.Is(err, cluster.ErrUnmarked) {
		t.Errorf("got error %v", err)
	}
}

// A directory that is put back from before a disable that was fenced is refused, and today's is not.
func TestARolledBackDirectoryIsRefused(t *testing.T) {
	t.Parallel()
	cfg, _ := markedConfig(t)
	n := open(t, cfg)
	propose(t, n, createTenant("acme"))
	yesterday := cfg
	yesterday.Dir = copied(t, cfg.Dir)
	fencedDisable(t, n, "acme")
	shut(t, n)

	old, err := cluster.Open(yesterday)
	if err == nil {
		defer shut(t, old)
	}
	if !errors.Is(err, cluster.ErrRolledBack) {
		t.Fatalf("a rolled-back disk is not refused: %v", err)
	}
	for _, word := range []string{"Nothing was started or changed", "kekctl node remove", "kekd recover"} {
		if !strings.Contains(err.Error(), word) {
			t.Errorf("no %q in: %v", word, err)
		}
	}
	shut(t, open(t, cfg))
}

// An entry that has the index of what was marked, and an older term, is another entry.
func TestAMarkIsNoIndexAlone(t *testing.T) {
	t.Parallel()
	mark := cluster.Mark{Term: 7, LastTerm: 5, LastIndex: 100}
	for _, test := range []struct {
		disk   cluster.Mark
		behind bool
	}{
		{cluster.Mark{Term: 7, LastTerm: 5, LastIndex: 100}, false},
		{cluster.Mark{Term: 8, LastTerm: 5, LastIndex: 101}, false},
		{cluster.Mark{Term: 7, LastTerm: 6, LastIndex: 50}, false},
		{cluster.Mark{Term: 7, LastTerm: 5, LastIndex: 99}, true},
		{cluster.Mark{Term: 6, LastTerm: 5, LastIndex: 100}, true},
		{cluster.Mark{Term: 7, LastTerm: 4, LastIndex: 200}, true},
	} {
		if got := cluster.Behind(test.disk, mark); got != test.behind {
			t.Errorf("a disk at %v, a mark of %v: behind is %v", test.disk, mark, got)
		}
	}
}

// journal is what happened, in order.
type journal struct {
	mu    sync.Mutex
	lines []string
}

func (j *journal) add(format string, args ...any) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.lines = append(j.lines, fmt.Sprintf(format, args...))
}

func (j *journal) all() []string {
	j.mu.Lock()
	defer j.mu.Unlock()
	return slices.Clone(j.lines)
}

type loggedStable struct {
	raft.StableStore
	to *journal
}

func (s loggedStable) SetUint64(key []byte, value uint64) error {
	err := s.StableStore.SetUint64(key, value)
	s.to.add("disk %s %d", key, value)
	return err
}

// A term is on disk, then marked, and only then voted in.
func TestATermIsMarkedBeforeAVote(t *testing.T) {
	t.Parallel()
	cfg, k := markedConfig(t)
	j := new(journal)
	cfg.WrapStable(func(s raft.StableStore) raft.StableStore { return loggedStable{s, j} })
	k.on(func(m cluster.Mark) { j.add("mark %d", m.Term) })
	n := open(t, cfg)
	propose(t, n, createTenant("acme"))
	at := n.Raft().CurrentTerm()
	var order []string
	for _, line := range j.all() {
		switch line {
		case fmt.Sprintf("disk CurrentTerm %d", at), fmt.Sprintf("disk LastVoteTerm %d", at):
			order = append(order, line)
		case fmt.Sprintf("mark %d", at):
			if len(order) == 1 {
				order = append(order, line)
			}
		}
	}
	want := []string{fmt.Sprintf("disk CurrentTerm %d", at), fmt.Sprintf("mark %d", at), fmt.Sprintf("disk LastVoteTerm %d", at)}
	if !slices.Equal(order, want) {
		t.Errorf("in this order: %q", order)
	}
	// Without a mark there is no term, and no node.
	shut(t, n)
	k.failing(errors.New("the token is gone"))
	if _, err := cluster.Open(cfg); err == nil || !strings.Contains(err.Error(), "the token is gone") {
		t.Errorf("got error %v", err)
	}
}

// Who may hold a lease is marked before this node tells anybody, itself included, that it has the entry.
func TestARegistrationIsMarkedBeforeItCounts(t *testing.T) {
	t.Parallel()
	cfg, k := markedConfig(t)
	reached, gate := make(chan cluster.Mark, 64), make(chan struct{})
	begun := k.is()
	k.on(func(m cluster.Mark) {
		if m.LastIndex > begun.LastIndex {
			select {
			case reached <- m:
			default:
			}
			<-gate
		}
	})
	n := open(t, cfg)
	registered := func() bool {
		self, ok := n.State().Node(n.ID())
		return ok && self.Incarnation == n.Incarnation()
	}
	select {
	case <-reached:
	case <-leased(t, n):
		close(gate)
		t.Fatal("a run that was never marked holds a lease")
	}
	if registered() || n.Lease().Index != 0 {
		t.Error("it counts before it is marked")
	}
	close(gate)
	for !registered() {
		select {
		case <-n.Renewed():
		case <-patience(t).Done():
			t.Fatal("it is never registered")
		}
	}
	self, _ := n.State().Node(n.ID())
	if m := k.is(); m.LastIndex == begun.LastIndex || m.LastTerm != n.Raft().CurrentTerm() {
		t.Errorf("registered as %s, marked %v", self.Incarnation, m)
	}
}

// leased is closed when a node holds its first lease.
func leased(t *testing.T, n *cluster.Node) <-chan struct{} {
	held := make(chan struct{})
	go func() {
		for ctx := patience(t); ; {
			next := n.Renewed()
			if n.Lease().Index != 0 {
				close(held)
				return
			}
			select {
			case <-next:
			case <-ctx.Done():
				return
			}
		}
	}()
	return held
}

// So are a join, a change of max_staleness, and a change of who votes.
func TestWhatMustNotBeForgotten(t *testing.T) {
	t.Parallel()
	command := func(c *commandpb.Command) *raft.Log {
		data, err := c.MarshalVT()
		if err != nil {
			t.Fatal(err)
		}
		return &raft.Log{Type: raft.LogCommand, Data: data}
	}
	hour := int64(time.Hour)
	for _, test := range []struct {
		what string
		log  *raft.Log
		must bool
	}{
		{"a configuration", &raft.Log{Type: raft.LogConfiguration}, true},
		{"a barrier", &raft.Log{Type: raft.LogNoop}, false},
		{"a tick", command(tick()), false},
		{"a registration", command(&commandpb.Command{Body: &commandpb.Command_RegisterIncarnation{RegisterIncarnation: &commandpb.RegisterIncarnation{}}}), true},
		{"a join", command(&commandpb.Command{Body: &commandpb.Command_JoinNode{JoinNode: &commandpb.JoinNode{}}}), true},
		{"max_staleness", command(&commandpb.Command{Body: &commandpb.Command_SetTenant{SetTenant: &commandpb.SetTenant{MaxStaleness: &hour}}}), true},
		{"limits", command(&commandpb.Command{Body: &commandpb.Command_SetTenant{SetTenant: &commandpb.SetTenant{Limits: &commandpb.Limits{}}}}), false},
	} {
		if got := cluster.MustBeMarked(test.log); got != test.must {
			t.Errorf("%s: %v", test.what, got)
		}
	}
}

// An acknowledgement for the majority is given when the mark is kept, and not before.
func TestAnAcknowledgementIsMarkedFirst(t *testing.T) {
	t.Parallel()
	cfg, k := markedConfig(t)
	n := open(t, cfg)
	propose(t, n, createTenant("acme"))
	<-leased(t, n)
	index := propose(t, n, disable("acme"))
	reached, gate := make(chan struct{}), make(chan struct{})
	var once sync.Once
	k.on(func(cluster.Mark) { once.Do(func() { close(reached) }); <-gate })
	type answer struct {
		a   *peerpb.AwaitFenceResponse
		err error
	}
	answers := make(chan answer, 1)
	go func() {
		a, err := n.Answers(n.ID()).AwaitFence(patience(t), &peerpb.AwaitFenceRequest{Index: index})
		answers <- answer{a, err}
	}()
	select {
	case <-reached:
	case <-patience(t).Done():
		t.Fatal("nothing is marked")
	}
	select {
	case <-answers:
		close(gate)
		t.Fatal("it is acknowledged before it is marked")
	case <-time.After(200 * time.Millisecond): // there is nothing to wait for
	}
	close(gate)
	if got := <-answers; got.err != nil || !got.a.GetHeld() || k.is().LastIndex < index {
		t.Errorf("%v, %v, marked %v", got.a, got.err, k.is())
	}
}

// A node whose log ends in an older term holds nothing for good, however far it goes.
func TestAnEntryOfAnOlderTermIsNotHeld(t *testing.T) {
	t.Parallel()
	m := newMany(t)
	k := new(kept)
	a := m.nodes["a"]
	m.join("a", "b", "eu-west", commandpb.RegionRole_REGION_ROLE_VOTING, true)
	m.until("both vote", func() bool { return len(m.votes()) == 2 })
	index := propose(t, a.node, createTenant("acme"))
	m.until("b has it", func() bool { return m.nodes["b"].node.State().Index() >= index })
	if err := a.node.Snapshot(patience(t)); err != nil { // or it would have no state without a leader
		t.Fatal(err)
	}
	m.stop("b")
	m.stop("a")
	// An election that b has lost has brought a into a later term.
	if err := cluster.RaiseTerm(a.cfg); err != nil {
		t.Fatal(err)
	}
	k.marked = true
	a.cfg.Marks = k
	n := m.start("a")
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	answer, err := n.Answers(n.ID()).AwaitFence(ctx, &peerpb.AwaitFenceRequest{Index: index})
	if err != nil || answer.GetHeld() {
		t.Errorf("an entry of an older term is held: %v, %v", answer, err)
	}
	// With a leader there is one of the present term.
	m.start("b")
	answer, err = n.Answers(n.ID()).AwaitFence(patience(t), &peerpb.AwaitFenceRequest{Index: index})
	if err != nil || !answer.GetHeld() {
		t.Errorf("with a leader: %v, %v", answer, err)
	}
}

// A vote that was not cast when a term was marked is not cast after a restart either: the disk may have been put back to
// just before it.
func TestARestartForgoesItsVote(t *testing.T) {
	t.Parallel()
	cfg, _ := markedConfig(t)
	if err := cluster.RaiseTerm(cfg); err != nil {
		t.Fatal(err)
	}
	self := raft.ServerAddress(hierarchy.ID(id("node")).String())
	_, memory := raft.NewInmemTransport(self)
	_, other := raft.NewInmemTransport("other")
	other.Connect(self, memory)
	cfg.Network(memory, nil)
	cfg.Adjust(func(c *raft.Config) {
		c.HeartbeatTimeout, c.ElectionTimeout, c.LeaderLeaseTimeout = time.Hour, time.Hour, time.Hour
	})
	n := open(t, cfg)
	ask := func(term uint64) (answer raft.RequestVoteResponse) {
		// Raft takes votes for members alone, and this is the only one.
		err := other.RequestVote(raft.ServerID(self), self, &raft.RequestVoteRequest{
			RPCHeader: raft.RPCHeader{ProtocolVersion: raft.ProtocolVersionMax, ID: []byte(self), Addr: []byte(self)},
			Term:      term, LastLogIndex: 1000, LastLogTerm: term,
		}, &answer)
		if err != nil {
			t.Fatal(err)
		}
		return answer
	}
	term := n.Raft().CurrentTerm()
	if a := ask(term); a.Granted || a.Term != term {
		t.Errorf("in its own term: %+v", a)
	}
	if a := ask(term + 1); !a.Granted {
		t.Errorf("in the next: %+v", a)
	}
}
