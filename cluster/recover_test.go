package cluster_test

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/kekd/kekd/cluster"
	"github.com/kekd/kekd/hierarchy"
	"github.com/kekd/kekd/hierarchy/commandpb"
)

func enable(tenant string) *commandpb.Command {
	return &commandpb.Command{Body: &commandpb.Command_SetTenantState{SetTenantState: &commandpb.SetTenantState{
		TenantId: id(tenant), State: commandpb.TenantState_TENANT_STATE_ENABLED,
	}}}
}

// planned looks at what a recovery would do.
func planned(t *testing.T, cfg cluster.Config, blind bool) *cluster.Recovery {
	t.Helper()
	r, err := cluster.PlanRecovery(cfg, blind)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close() })
	return r
}

// proved waits until the log shows that all was committed that is now: a Tick that was proposed since.
func proved(t *testing.T, n *cluster.Node) {
	t.Helper()
	after := n.State().Index()
	for range 2 { // the first may have been proposed before
		for {
			next := n.Renewed()
			if at := n.Lease().Index; at > after {
				after = at
				break
			}
			select {
			case <-next:
			case <-patience(t).Done():
				t.Fatal("no lease is renewed")
			}
		}
	}
}

func stateOf(t *testing.T, n *cluster.Node, tenant string) hierarchy.TenantState {
	t.Helper()
	got, ok := n.State().TenantByName(tenant)
	if !ok {
		t.Fatalf("there is no tenant %s", tenant)
	}
	return got.State
}

// A node goes on in the next epoch. What it does not know to have been committed closes, and opens nothing.
func TestRecover(t *testing.T) {
	t.Parallel()
	cfg, _ := markedConfig(t)
	n := open(t, cfg)
	for _, tenant := range []string{"open", "closed", "closing"} {
		propose(t, n, createTenant(tenant))
	}
	fencedDisable(t, n, "closed")
	proved(t, n)
	shut(t, n)
	if err := cluster.AppendUnproved(cfg, disable("closing"), enable("closed"), createTenant("new")); err != nil {
		t.Fatal(err)
	}

	r := planned(t, cfg, false)
	tail := r.Unproved[len(r.Unproved)-3:]
	if names := []string{tail[0].What, tail[1].What, tail[2].What}; !slices.Equal(names, []string{"set_tenant_state", "set_tenant_state", "create_tenant"}) {
		t.Errorf("not proved: %v", names)
	}
	if !tail[0].Taken || tail[1].Taken || tail[2].Taken {
		t.Errorf("what is taken of it: %+v", tail)
	}
	if _, err := cluster.Open(cfg); !errors.Is(err, cluster.ErrInUse) {
		t.Errorf("a node is started meanwhile: %v", err)
	}
	before, err := r.Do("a fire")
	if err != nil {
		t.Fatal(err)
	}
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}

	n = open(t, cfg)
	propose(t, n, createTenant("later"))
	for tenant, want := range map[string]hierarchy.TenantState{
		"open": hierarchy.TenantEnabled, "closed": hierarchy.TenantDisabled, "closing": hierarchy.TenantDisabled,
	} {
		if got := stateOf(t, n, tenant); got != want {
			t.Errorf("tenant %s is %v, want %v", tenant, got, want)
		}
	}
	if _, ok := n.State().TenantByName("new"); ok {
		t.Error("a tenant was made")
	}
	if n.State().Epoch() != 1 {
		t.Errorf("epoch %d", n.State().Epoch())
	}
	shut(t, n)

	// What was before is behind the mark.
	raftDir := filepath.Join(cfg.Dir, "raft")
	if err := errors.Join(os.Rename(raftDir, raftDir+".aside"), os.Rename(before, raftDir)); err != nil {
		t.Fatal(err)
	}
	if n, err := cluster.Open(cfg); !errors.Is(err, cluster.ErrRolledBack) {
		t.Errorf("the epoch before goes on: %v", err)
		shut(t, n)
	}
}

// Two recoveries of one cluster are of one epoch's number, and not of one epoch.
func TestTwoRecoveriesHaveParted(t *testing.T) {
	t.Parallel()
	cfg, _ := markedConfig(t)
	shut(t, open(t, cfg))
	other, _ := markedConfig(t)
	other.Dir = copied(t, cfg.Dir)
	other.Marks, cfg.Marks = nil, nil
	var statements [2][32]byte
	for i, c := range []cluster.Config{cfg, other} {
		r := planned(t, c, false)
		if _, err := r.Do("the same reason"); err != nil {
			t.Fatal(err)
		}
		if err := r.Close(); err != nil {
			t.Fatal(err)
		}
		n := open(t, c)
		statements[i] = n.State().EpochStatement()
		if n.State().Epoch() != 1 {
			t.Errorf("epoch %d", n.State().Epoch())
		}
		shut(t, n)
	}
	if statements[0] == statements[1] {
		t.Errorf("both were raised by %x", statements[0])
	}
}

// A directory that is behind its mark is recovered when nothing else is left, with everything closed.
func TestRecoverWhatWasRolledBack(t *testing.T) {
	t.Parallel()
	cfg, k := markedConfig(t)
	n := open(t, cfg)
	propose(t, n, createTenant("acme"))
	propose(t, n, createTenant("globex"))
	proved(t, n)
	shut(t, n)
	yesterday := cfg
	yesterday.Dir = copied(t, cfg.Dir)
	n = open(t, cfg)
	fencedDisable(t, n, "acme")
	shut(t, n)

	if _, err := cluster.PlanRecovery(yesterday, false); !errors.Is(err, cluster.ErrRolledBack) {
		t.Fatalf("got error %v", err)
	}
	unmarked := yesterday
	unmarked.Marks = new(kept)
	if _, err := cluster.PlanRecovery(unmarked, false); !errors.Is(err, cluster.ErrUnmarked) {
		t.Fatalf("without a mark: got error %v", err)
	}
	r := planned(t, yesterday, true)
	if !r.Blind {
		t.Error("it does not say that it is blind")
	}
	if _, err := r.Do("the disk is lost"); err != nil {
		t.Fatal(err)
	}
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	n = open(t, yesterday)
	propose(t, n, createTenant("later"))
	for _, tenant := range []string{"acme", "globex"} {
		if got := stateOf(t, n, tenant); got != hierarchy.TenantDisabled {
			t.Errorf("tenant %s is %v", tenant, got)
		}
	}
	shut(t, n)
	if _, err := cluster.Open(cfg); !errors.Is(err, cluster.ErrRolledBack) {
		t.Errorf("the newer directory of the epoch before is started as well: %v; the mark is %v", err, k.is())
	}
}
