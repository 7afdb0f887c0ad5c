package cluster_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/hashicorp/raft"

	"github.com/kekd/kekd/cluster"
	"github.com/kekd/kekd/hierarchy"
	"github.com/kekd/kekd/hierarchy/commandpb"
	"github.com/kekd/kekd/hierarchy/state"
)

// eachCommand hands out the commands in a stopped node's log, and puts back those that were changed.
func eachCommand(t *testing.T, dir string, visit func(index uint64, c *commandpb.Command) (changed bool)) {
	t.Helper()
	s, err := cluster.NewLogStore(filepath.Join(dir, "raft/log.db"))
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	for _, l := range contents(t, s) {
		if l.Type != raft.LogCommand {
			continue
		}
		c, err := state.Decode(l.Data)
		if err != nil {
			t.Fatal(err)
		}
		if !visit(l.Index, c) {
			continue
		}
		if l.Data, err = c.MarshalVT(); err != nil {
			t.Fatal(err)
		}
		if err := s.StoreLog(&l); err != nil {
			t.Fatal(err)
		}
	}
}

// A version that words a refusal otherwise starts from the log of one that did not, in which ticks say
// what the state was. The other words come from another ID that the refused command has drawn: its
// refusal quotes it, and it decides nothing.
func TestRefusalWordedOtherwise(t *testing.T) {
	t.Parallel()
	dir := initialised(t)
	n := open(t, config(dir))
	propose(t, n, createTenant("acme"))
	propose(t, n, createTenant("globex"))
	taken := func(drawn string) *commandpb.Command {
		c := createTenant("hooli")
		c.Id, c.GetCreateTenant().TenantId = id("refused"), id(drawn)
		return c
	}
	res, err := n.Propose(patience(t), taken("acme"))
	if !errors.Is(err, hierarchy.ErrAlreadyExists) {
		t.Fatalf("got error %v", err)
	}
	refused := res.Index
	for range 5 {
		if _, err := n.Renew(patience(t)); err != nil {
			t.Fatal(err)
		}
	}
	at := n.State().Index()
	shut(t, n)

	compared, last, altered := 0, uint64(0), false
	eachCommand(t, dir, func(index uint64, c *commandpb.Command) bool {
		if tick := c.GetTick(); index > refused && tick != nil && tick.GetStateIndex() == last && len(tick.GetStateHash()) > 0 {
			compared++
		}
		last = index
		if index != refused {
			return false
		}
		c.GetCreateTenant().TenantId = id("globex")
		altered = true
		return true
	})
	if compared == 0 || !altered {
		t.Fatalf("%d ticks are compared after the refusal, which is altered: %v", compared, altered)
	}

	n = open(t, config(dir))
	if err := n.WaitFor(patience(t), at); err != nil {
		t.Fatalf("it does not come to where it was: %v", err)
	}
	res, err = n.Propose(patience(t), taken("acme"))
	if !res.Replayed || !errors.Is(err, hierarchy.ErrAlreadyExists) || !strings.Contains(err.Error(), fmt.Sprintf("%x", id("globex"))) {
		t.Errorf("got %+v, %v, want the other words", res, err)
	}
	// And from a snapshot.
	if err := n.Snapshot(patience(t)); err != nil {
		t.Fatal(err)
	}
	propose(t, n, createTenant("initech"))
	at = n.State().Index()
	shut(t, n)
	n = open(t, config(dir))
	if err := n.WaitFor(patience(t), at); err != nil {
		t.Fatal(err)
	}
}

// A log that says it is of another cluster is not applied: what stands in it is another's hierarchy.
func TestLogOfAnotherCluster(t *testing.T) {
	t.Parallel()
	dir := initialised(t)
	other := fmt.Appendf(nil, `{"format":1,"cluster_id":"%x","node_id":"%x"}`, id("other"), id("node"))
	if err := os.WriteFile(filepath.Join(dir, "raft/node.json"), other, 0o600); err != nil {
		t.Fatal(err)
	}
	n := open(t, config(dir))
	if err := failed(t, n); !errors.Is(err, state.ErrDiverged) || !strings.Contains(err.Error(), fmt.Sprintf("%x", id("other"))) {
		t.Errorf("the node fails with %v", err)
	}
	if n.State().Initialised() {
		t.Errorf("it has the state of cluster %s", n.State().ClusterID())
	}
}

// Nor is a snapshot of another cluster taken from a peer.
func TestSnapshotOfAnotherCluster(t *testing.T) {
	n := open(t, config(initialised(t)))
	propose(t, n, createTenant("acme"))
	var snapshot bytes.Buffer
	if err := state.Write(&snapshot, n.State()); err != nil {
		t.Fatal(err)
	}
	restore := func(of string) error {
		fsm := cluster.NewFSM(hierarchy.ClusterID{ID: hierarchy.ID(id(of))})
		return fsm.Restore(io.NopCloser(bytes.NewReader(snapshot.Bytes())))
	}
	if err := restore("cluster"); err != nil {
		t.Errorf("its own: %v", err)
	}
	if err := restore("other"); !errors.Is(err, state.ErrDiverged) {
		t.Errorf("another's: got error %v", err)
	}
}
