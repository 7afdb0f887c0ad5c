package cluster_test

import (
	"context"
	"errors"
	"slices"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/kekd/kekd/cluster"
	"github.com/kekd/kekd/cluster/peerpb"
	"github.com/kekd/kekd/hierarchy"
	"github.com/kekd/kekd/hierarchy/commandpb"
	"github.com/kekd/kekd/hierarchy/state"
)

func disable(name string) *commandpb.Command {
	return &commandpb.Command{Body: &commandpb.Command_SetTenantState{SetTenantState: &commandpb.SetTenantState{
		TenantId: id(name), State: commandpb.TenantState_TENANT_STATE_DISABLED, Reason: "incident",
	}}}
}

// allRegistered waits until every running node holds a lease.
func (m *many) allRegistered() {
	m.t.Helper()
	for name, is := range m.nodes {
		if is.node != nil {
			m.until(name+" holds a lease", func() bool { return is.node.Lease().Index > 0 })
		}
	}
}

// Every node acknowledges a disable, and it is recorded that they have.
func TestFenceIsAcknowledged(t *testing.T) {
	t.Parallel()
	m := threeVoters(t)
	m.join("a", "r", "us-east", commandpb.RegionRole_REGION_ROLE_REPLICA, false)
	m.allRegistered()
	through := m.nodes["r"].node
	propose(t, through, createTenant("acme"))
	index := propose(t, through, disable("acme"))
	report, err := through.Fence(patience(t), index)
	if err != nil {
		t.Fatal(err)
	}
	if !report.Fenced || len(report.Nodes) != 4 || len(report.Waiting) != 0 {
		t.Errorf("got %+v", report)
	}
	for _, is := range report.Nodes {
		if is.How != cluster.Acknowledged {
			t.Errorf("node %s: %s", is.Node, is.How)
		}
	}
	if report.Elapsed > time.Second {
		t.Errorf("it took %v", report.Elapsed)
	}
	for name, is := range m.nodes {
		if is.node.Acknowledged() < index {
			t.Errorf("%s has acknowledged %d", name, is.node.Acknowledged())
		}
		m.until(name+" has it recorded", func() bool { _, pending := is.node.State().Fence(index); return !pending })
	}
	// Again, there is nothing to wait for.
	if report, err := through.Fence(patience(t), index); err != nil || !report.Fenced || len(report.Nodes) != 0 {
		t.Errorf("again: %+v, %v", report, err)
	}
}

// A node that does not answer is waited out, by its tenant's max_staleness and on this node's clock.
func TestFenceWaitsOut(t *testing.T) {
	t.Parallel()
	m := threeVoters(t)
	m.allRegistered()
	gone := m.other(m.leader())
	through := m.other(gone)
	propose(t, m.nodes[through].node, createTenant("acme"))
	m.stop(gone)
	begun := time.Now()
	index := propose(t, m.nodes[through].node, disable("acme"))
	report, err := m.nodes[through].node.Fence(patience(t), index)
	if err != nil || !report.Fenced {
		t.Fatalf("%+v, %v", report, err)
	}
	if took, least := time.Since(begun), 2*time.Second; took < least || took > least+time.Second {
		t.Errorf("it took %v, max_staleness is %v", took, least)
	}
	var expired []hierarchy.NodeID
	for _, is := range report.Nodes {
		if is.How == cluster.LeaseExpired {
			expired = append(expired, is.Node)
		}
	}
	if !slices.Equal(expired, []hierarchy.NodeID{{ID: hierarchy.ID(id(nodeName(gone)))}}) {
		t.Errorf("waited out: %v", expired)
	}
}

// nodeName is what the first node's ID is made from.
func nodeName(name string) string {
	if name == "a" {
		return "node"
	}
	return name
}

// Without a majority nothing is fenced, however long one waits.
func TestFenceNeedsAMajority(t *testing.T) {
	t.Parallel()
	m := threeVoters(t)
	m.allRegistered()
	leader := m.leader()
	propose(t, m.nodes[leader].node, createTenant("acme"))
	// The others are stopped in the moment in which the closing is committed.
	index := propose(t, m.nodes[leader].node, disable("acme"))
	for name := range m.nodes {
		if name != leader {
			m.stop(name)
		}
	}
	if _, pending := m.nodes[leader].node.State().Fence(index); !pending {
		t.Fatal("it was recorded though nobody has waited")
	}
	ctx, cancel := context.WithTimeout(context.Background(), 2500*time.Millisecond)
	defer cancel()
	report, err := m.nodes[leader].node.Fence(ctx, index)
	if report.Fenced || !errors.Is(err, hierarchy.ErrOutcomeUnknown) {
		t.Errorf("got %+v, %v", report, err)
	}
}

// A member says that a fence is complete when it is not: the leader waits for itself, and nobody is told "fenced" early.
func TestAMemberEndsNoFence(t *testing.T) {
	t.Parallel()
	m := threeVoters(t)
	m.allRegistered()
	leader := m.leader()
	gone := m.other(leader)
	liar := m.nodes[m.other(leader, gone)].node
	propose(t, liar, createTenant("acme"))
	m.stop(gone) // its lease lasts for another two seconds, wherever it is
	begun := time.Now()
	index := propose(t, liar, disable("acme"))
	done := &commandpb.Command{Format: state.Format, Id: id("done"), Body: &commandpb.Command_CompleteFence{CompleteFence: &commandpb.CompleteFence{Index: index}}}
	said, err := proto.Marshal(done)
	if err != nil {
		t.Fatal(err)
	}
	answer, err := m.nodes[leader].node.Answers(liar.ID()).Propose(patience(t), &peerpb.ProposeRequest{Command: said})
	if err != nil || answer.Outcome != peerpb.Outcome_OUTCOME_DECIDED {
		t.Fatalf("%v, %v", answer, err)
	}
	if took := time.Since(begun); took < 2*time.Second {
		t.Errorf("it is recorded after %v: the lease of node %s had not run out", took, gone)
	}
	if _, pending := m.nodes[leader].node.State().Fence(index); pending {
		t.Error("it is not recorded, and was said to be")
	}
}

// Who proposed the closing is gone: the leader waits, and records it.
func TestFenceIsFinishedByTheLeader(t *testing.T) {
	t.Parallel()
	m := threeVoters(t)
	m.allRegistered()
	through := m.nodes[m.other(m.leader())].node
	propose(t, through, createTenant("acme"))
	index := propose(t, through, disable("acme"))
	m.until("it is recorded", func() bool { _, pending := through.State().Fence(index); return !pending })
}

// A restart on the same machine, in the same directory, proves that the run before is over.
func TestARestartLeavesNoTombstone(t *testing.T) {
	t.Parallel()
	m := threeVoters(t)
	m.allRegistered()
	before := m.nodes["c"].node.Incarnation()
	m.stop("c")
	c := m.start("c")
	m.until("it holds a lease", func() bool { return c.Lease().Index > 0 })
	if c.Incarnation() == before {
		t.Error("two runs are one")
	}
	for stone := range c.State().Tombstones() {
		t.Errorf("a tombstone of %s", stone.Incarnation)
	}
}

// A node's directory without word of the run before: that one is left behind, and counts for fences until it
// is waited out.
func TestAnUnprovenRunIsATombstone(t *testing.T) {
	t.Parallel()
	m := threeVoters(t)
	m.allRegistered()
	before := m.nodes["c"].node.Incarnation()
	m.stop("c")
	m.remove("c", "raft", "run.json")
	c := m.start("c")
	m.until("it holds a lease", func() bool { return c.Lease().Index > 0 })
	found := false
	for stone := range c.State().Tombstones() {
		found = found || stone.Incarnation == before
	}
	if !found {
		t.Fatal("the run before is forgotten")
	}
	m.until("it is waited out", func() bool {
		for range c.State().Tombstones() {
			return false
		}
		return true
	})
}
