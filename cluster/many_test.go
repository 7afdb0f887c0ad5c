package cluster_test

import (
	"context"
	"errors"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/kekd/kekd/cluster"
	"github.com/kekd/kekd/cluster/peerpb"
	"github.com/kekd/kekd/hierarchy"
	"github.com/kekd/kekd/hierarchy/commandpb"
	"github.com/kekd/kekd/hierarchy/state"
)

// Whatever node takes a command, all have it, and each has a lease of its own.
func TestAnyNodeTakesCommands(t *testing.T) {
	t.Parallel()
	m := threeVoters(t)
	m.join("b", "r", "us-east", commandpb.RegionRole_REGION_ROLE_REPLICA, false)
	for name, is := range m.nodes {
		res, err := is.node.Propose(patience(t), createTenant("of-"+name))
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if _, ok := is.node.State().TenantByName("of-" + name); !ok {
			t.Errorf("%s has not what it has answered at %d", name, res.Index)
		}
		// A refusal of the state machine is told as such, with its words.
		if _, err := is.node.Propose(patience(t), createTenant("of-"+name)); !errors.Is(err, hierarchy.ErrAlreadyExists) || !strings.Contains(err.Error(), "of-"+name) {
			t.Errorf("%s: again: %v", name, err)
		}
	}
	for name, is := range m.nodes {
		for of := range m.nodes {
			m.until(name+" has all", func() bool { _, ok := is.node.State().TenantByName("of-" + of); return ok })
		}
		renewed := is.node.Renewed()
		<-renewed
		if l := is.node.Lease(); is.node.Now()-l.T0 > 5*time.Second {
			t.Errorf("%s has a lease of %v ago", name, is.node.Now()-l.T0)
		}
	}
}

// A command with its idempotency ID takes effect once, through whichever node it is tried again.
func TestARetryThroughAnotherNode(t *testing.T) {
	t.Parallel()
	m := threeVoters(t)
	c := createTenant("acme")
	c.Id = id("once")
	first, err := m.nodes["b"].node.Propose(patience(t), c)
	if err != nil {
		t.Fatal(err)
	}
	again, err := m.nodes["c"].node.Propose(patience(t), c)
	if err != nil || again.Index != first.Index || !again.Replayed {
		t.Fatalf("first %+v, again %+v, %v", first, again, err)
	}
}

// The leader is gone: the others elect one, and commands are taken again.
func TestTheLeaderDies(t *testing.T) {
	t.Parallel()
	m := threeVoters(t)
	dead := m.leader()
	m.stop(dead)
	begun := time.Now()
	through := m.other(dead)
	c := createTenant("acme")
	c.Id = id("once more")
	_, err := m.nodes[through].node.Propose(patience(t), c)
	for errors.Is(err, hierarchy.ErrOutcomeUnknown) { // it was on its way to the leader that stopped
		_, err = m.nodes[through].node.Propose(patience(t), c)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("accepted again after %v", time.Since(begun))
	back := m.start(dead)
	m.until("it is back", func() bool { _, ok := back.State().TenantByName("acme"); return ok })
}

// Without a majority nothing is accepted, and who asks is told that it is not known to be complete, or that
// nothing was proposed.
func TestNoMajority(t *testing.T) {
	t.Parallel()
	m := threeVoters(t)
	for _, name := range []string{"b", "c"} {
		m.stop(name)
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	_, err := m.nodes["a"].node.Propose(ctx, createTenant("acme"))
	if !errors.Is(err, hierarchy.ErrOutcomeUnknown) && !errors.Is(err, cluster.ErrNotLeader) {
		t.Errorf("got %v", err)
	}
	had := m.nodes["a"].node.Lease()
	time.Sleep(600 * time.Millisecond)
	if l := m.nodes["a"].node.Lease(); l != had {
		t.Errorf("the lease went from %+v to %+v without a majority", had, l)
	}
}

func TestMembersComeAndGo(t *testing.T) {
	t.Parallel()
	m := threeVoters(t)
	w := m.join("c", "w", "site-w", commandpb.RegionRole_REGION_ROLE_WITNESS, true)
	m.until("the witness votes", func() bool { return len(m.votes()) == 4 })

	voter := false
	propose(t, w, &commandpb.Command{Body: &commandpb.Command_SetNode{SetNode: &commandpb.SetNode{NodeId: id("b"), Voter: &voter}}})
	m.until("b votes no longer", func() bool { return len(m.votes()) == 3 })

	propose(t, w, &commandpb.Command{Body: &commandpb.Command_RemoveNode{RemoveNode: &commandpb.RemoveNode{NodeId: id("b")}}})
	b := m.nodes["b"].node
	m.until("b is told", func() bool { return b.Refused() != nil })
	had := b.Lease()
	time.Sleep(600 * time.Millisecond)
	if b.Lease() != had {
		t.Error("a node that was removed renews its lease")
	}
	if _, err := b.Propose(shortly(t), createTenant("acme")); err == nil {
		t.Error("a node that was removed gets a command accepted")
	}
	m.until("three are left", func() bool { return len(w.Members(patience(t))) == 3 })

	// The one that leads: leadership goes to another, and then it is gone as well.
	leader := m.leaderOf("a", "c", "w")
	left := m.other(leader, "b")
	propose(t, m.nodes[left].node, &commandpb.Command{Body: &commandpb.Command_RemoveNode{RemoveNode: &commandpb.RemoveNode{NodeId: m.idOf(leader)}}})
	m.until("another leads", func() bool {
		id, ok := m.nodes[left].node.Leader()
		n, member := m.nodes[left].node.State().Node(id)
		return ok && member && n.Name != leader
	})
	propose(t, m.nodes[left].node, createTenant("globex"))
}

func TestTransferLeadership(t *testing.T) {
	t.Parallel()
	m := threeVoters(t)
	leader := m.leader()
	to := m.other(leader)
	through := m.other(leader, to)
	if err := m.nodes[through].node.TransferLeadership(patience(t), hierarchy.NodeID{ID: hierarchy.ID(m.idOf(to))}); err != nil {
		t.Fatal(err)
	}
	if got := m.leader(); got != to {
		t.Errorf("%s leads, not %s", got, to)
	}
	if err := m.nodes[to].node.TransferLeadership(patience(t), hierarchy.NodeID{}); err != nil {
		t.Fatal(err)
	}
	if got := m.leader(); got == to {
		t.Errorf("%s still leads", got)
	}
	if err := m.nodes[through].node.TransferLeadership(patience(t), hierarchy.NodeID{ID: hierarchy.ID{9}}); !errors.Is(err, hierarchy.ErrNotFound) {
		t.Errorf("to nobody: %v", err)
	}
}

// A node that was away while voters came does not know the leader any more. The voters that it does know
// introduce it.
func TestAwayWhileOthersCame(t *testing.T) {
	t.Parallel()
	m := threeVoters(t)
	m.stop("c")
	for _, name := range []string{"d", "e"} {
		m.join("a", name, "eu-west", commandpb.RegionRole_REGION_ROLE_VOTING, true)
	}
	m.until("five vote", func() bool { return len(m.votes()) == 5 })
	if leader := m.leader(); leader != "d" {
		if err := m.nodes[leader].node.TransferLeadership(patience(t), hierarchy.NodeID{ID: hierarchy.ID(id("d"))}); err != nil {
			t.Fatal(err)
		}
	}
	propose(t, m.nodes["d"].node, createTenant("acme"))
	c := m.start("c")
	m.until("it takes the log from a leader that it did not know", func() bool { _, ok := c.State().TenantByName("acme"); return ok })
}

// The minting node is silent: another of its region takes over, and mintings that are not recorded begin anew.
func TestTheMintingNodeIsSilent(t *testing.T) {
	t.Parallel()
	m := threeVoters(t)
	region := func(name string) string {
		s := m.nodes[name].node.State()
		r, _ := s.RegionByName("eu-west")
		if n, ok := s.Node(r.MintingNode); ok {
			return n.Name
		}
		return ""
	}
	propose(t, m.nodes["b"].node, createTenant("acme"))
	propose(t, m.nodes["b"].node, &commandpb.Command{Body: &commandpb.Command_CreateKey{CreateKey: &commandpb.CreateKey{TenantId: id("acme"), KeyId: id("orders"), Name: "orders"}}})
	if got := region("b"); got != "a" {
		t.Fatalf("%s mints", got)
	}
	m.stop("a")
	m.until("another mints", func() bool { return region("b") != "a" })
	k, _ := m.nodes["b"].node.State().Key(hierarchy.TenantID{ID: hierarchy.ID(id("acme"))}, hierarchy.KeyID{ID: hierarchy.ID(id("orders"))})
	if v, _ := k.Version(1); v.Attempt != 2 {
		t.Errorf("the minting is at attempt %d", v.Attempt)
	}
}

// A witness breaks ties, and does not lead for long.
func TestAWitnessHandsOn(t *testing.T) {
	t.Parallel()
	m := newMany(t)
	m.join("a", "w", "site-w", commandpb.RegionRole_REGION_ROLE_WITNESS, true)
	m.until("both vote", func() bool { return len(m.votes()) == 2 })
	if err := m.nodes["a"].node.TransferLeadership(patience(t), hierarchy.NodeID{ID: hierarchy.ID(id("w"))}); err != nil {
		t.Fatal(err)
	}
	m.until("the other leads again", func() bool { return m.nodes["a"].node.IsLeader() })
}

// A node that comes up at another address tells the others.
func TestANodeMoves(t *testing.T) {
	t.Parallel()
	m := threeVoters(t)
	m.stop("c")
	m.nodes["c"].cfg.Peers.Listen = freeAddress(t)
	c := m.start("c")
	m.until("all know where it is", func() bool {
		n, ok := m.nodes["a"].node.State().Node(c.ID())
		return ok && n.Address == m.nodes["c"].cfg.Peers.Listen
	})
	propose(t, m.nodes["a"].node, createTenant("acme"))
	m.until("it is reached", func() bool { _, ok := c.State().TenantByName("acme"); return ok })
}

func shortly(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	t.Cleanup(cancel)
	return ctx
}

func (m *many) idOf(name string) []byte {
	is := m.nodes[name].node.ID()
	return is.ID[:]
}

// leaderOf is the leader among some nodes.
func (m *many) leaderOf(names ...string) (leader string) {
	m.t.Helper()
	m.until("one of them leads", func() bool {
		for _, name := range names {
			if n := m.nodes[name].node; n != nil && n.IsLeader() {
				leader = name
				return true
			}
		}
		return false
	})
	return leader
}

// A node that could not serve takes no lease, and the others keep theirs. The leader hears of it all the same, and it serves again
// as soon as it could.
func TestAnUnwellNodeTakesNoLease(t *testing.T) {
	t.Parallel()
	m := threeVoters(t)
	var unwell atomic.Pointer[error]
	is := m.nodes[m.other(m.leader())]
	is.cfg.Healthy = func() error {
		if err := unwell.Load(); err != nil {
			return *err
		}
		return nil
	}
	m.stop(is.name)
	m.start(is.name)
	m.allRegistered()
	sick := errors.New("the token is on fire")
	unwell.Store(&sick)
	if err := is.node.Unwell(); !errors.Is(err, sick) {
		t.Fatalf("unwell: %v", err)
	}
	// A renewal that was under way may yet end well.
	m.until("it is refused", func() bool {
		_, err := is.node.Renew(shortly(t))
		return errors.Is(err, sick)
	})
	last := is.node.Lease()
	m.until("the others renew theirs", func() bool {
		for name, other := range m.nodes {
			if name != is.name && other.node.Lease().T0 <= last.T0+2*time.Second {
				return false
			}
		}
		return true
	})
	if now := is.node.Lease(); now != last {
		t.Errorf("it had %+v and has %+v", last, now)
	}
	for _, s := range m.nodes[m.leader()].node.Members(patience(t)) {
		if s.ID == is.node.ID() && (!s.Heard || s.HeardAgo > 2*time.Second) {
			t.Errorf("the leader has heard of it: %v, %v ago", s.Heard, s.HeardAgo)
		}
	}
	unwell.Store(nil)
	m.until("it has a lease again", func() bool { return is.node.Lease().T0 > last.T0 })
}

// A command that the leader cannot read, of a later version or of none, is proposed by nobody: it would stop all nodes.
func TestAForwardedCommandThatIsUnknown(t *testing.T) {
	t.Parallel()
	m := newMany(t)
	a := m.nodes["a"].node
	m.until("it leads", a.IsLeader)
	future := tick()
	future.Format, future.Id = state.Format+1, id("x")
	later, err := proto.Marshal(future)
	if err != nil {
		t.Fatal(err)
	}
	for name, command := range map[string][]byte{"of a later version": later, "garbage": []byte("\xff\xff"), "empty": nil} {
		answer, err := a.Answers(a.ID()).Propose(patience(t), &peerpb.ProposeRequest{Command: command})
		if err != nil || answer.Outcome != peerpb.Outcome_OUTCOME_NOT_PROPOSED || !strings.Contains(answer.ErrorMessage, "cannot read this command") {
			t.Errorf("%s: %v, %v", name, answer, err)
		}
	}
	propose(t, a, createTenant("acme"))
	if err := a.Fault(); err != nil {
		t.Error(err)
	}
}
