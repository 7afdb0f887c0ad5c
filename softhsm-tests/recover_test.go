package softhsmtests

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/kekd/kekd/softhsm-tests/devcluster"
	"github.com/kekd/kekd/unix-socket-api/kekdv1"
)

// Two of three voters are lost for ever, and the third goes on alone. What it has in its log and nobody knows to have
// been committed closes, and opens nothing; who was lost is refused when he comes back; and others join.
func TestRecover(t *testing.T) {
	t.Parallel()
	c := startCluster(t, "eu=voting*3")
	setUp(t, c.Nodes[0], "acme", "beta", "gamma")
	if r := closeAt(t, c.Nodes[0], "tenant", "disable", "acme", "--reason", "before"); !r.Fenced {
		t.Fatalf("%+v", r)
	}
	if r := closeAt(t, c.Nodes[0], "tenant", "disable", "gamma", "--reason", "stays"); !r.Fenced {
		t.Fatalf("%+v", r)
	}
	survivor := alone(t, c)
	config := filepath.Join(filepath.Dir(survivor.DataDir), "kekd.toml")
	plan := runTool(t, kekd, "recover", "--config", config)
	for _, want := range []string{
		"set_tenant_state: applied as far as it closes", "set_tenant_state: left out", "a member no longer", "nothing was changed",
	} {
		if !strings.Contains(plan, want) {
			t.Fatalf("no %q in\n%s", want, plan)
		}
	}
	if again := runTool(t, kekd, "recover", "--config", config); again != plan {
		t.Errorf("a look has changed something: it said\n%sand says\n%s", plan, again)
	}
	said := runTool(t, kekd, "recover", "--config", config, "--reason", "the others burnt")
	if !strings.Contains(said, "epoch 1 has begun") {
		t.Fatalf("it says\n%s", said)
	}

	if err := c.Restart(t.Context(), survivor.Name); err != nil {
		t.Fatal(err)
	}
	survivor = called(t, c, survivor.Name)
	for tenant, want := range map[string]string{"acme": "disabled", "beta": "disabled", "gamma": "disabled"} {
		if got := tenantOf(t, survivor, tenant); got.State != want {
			t.Errorf("tenant %s is %s, want %s", tenant, got.State, want)
		}
	}
	makeTenant(t, survivor, "delta", 20*time.Second)

	// Those who were lost are still of the epoch before, and are nobody's peers any more.
	back := allBut(c, survivor)
	for _, n := range back {
		cmd := exec.Command(kekd, "serve", "--config", filepath.Join(filepath.Dir(n.DataDir), "kekd.toml"), "--within", c.Dir)
		log, err := os.OpenFile(logOf(n), os.O_APPEND|os.O_WRONLY, 0o600)
		if err != nil {
			t.Fatal(err)
		}
		cmd.Stdout, cmd.Stderr = log, log
		cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		defer func() {
			_ = cmd.Process.Kill()
			_ = cmd.Wait()
			log.Close()
		}()
		eventually(t, 30*time.Second, "node "+n.Name+" hears that the cluster went on without it", func() bool {
			b, err := os.ReadFile(logOf(n))
			return err == nil && strings.Contains(string(b), "the cluster went on without this node")
		})
	}
	if l := listed(t, survivor, back[0].Name); l != nil {
		t.Errorf("it is a member again: %v", l)
	}

	next := applicant(t, c, back[0].Name, "eu")
	next.inRegionOf(survivor)
	next.join(next.invite(survivor, "", time.Hour))
	next.serve()
	caughtUp(t, []devcluster.Node{survivor, next.Node})
	if got := tenantOf(t, next.Node, "beta"); got.State != "disabled" {
		t.Errorf("tenant beta is %s at the node that joined", got.State)
	}
	eventually(t, 20*time.Second, "it votes", func() bool { l := listed(t, survivor, next.Name); return l != nil && l.GetVotes() })
	verifyAudit(t, next)

	// What was before the recovery is not started again.
	killNode(t, c, survivor)
	raft := filepath.Join(survivor.DataDir, "raft")
	old, err := filepath.Glob(filepath.Join(raft, "raft.epoch-0-*"))
	if err != nil || len(old) != 1 {
		t.Fatalf("what was before is in %v, %v", old, err)
	}
	move(t, filepath.Join(raft, "raft"), filepath.Join(raft, "aside"))
	move(t, old[0], filepath.Join(raft, "raft"))
	out, err := exec.Command(kekd, "serve", "--config", config, "--within", c.Dir).CombinedOutput()
	if err == nil || !strings.Contains(string(out), "is older than what this node has answered for") {
		t.Errorf("the directory of the epoch before is started: %v\n%s", err, out)
	}
}

// allBut are all nodes but one, whether they run or not.
func allBut(c *devcluster.Cluster, n devcluster.Node) (list []devcluster.Node) {
	for _, other := range c.Nodes {
		if other.ID != n.ID {
			list = append(list, other)
		}
	}
	return list
}

// alone leaves the leader alone with a disable of beta and an enable of acme that it has written and nobody else has
// seen, and all three nodes dead.
func alone(t *testing.T, c *devcluster.Cluster) (survivor devcluster.Node) {
	t.Helper()
	leader := leaderOf(t, c, c.Nodes[0])
	away := others(c, leader)
	a := admin(t, leader)
	signal(t, syscall.SIGSTOP, away...)
	var under sync.WaitGroup
	// Before it notices that it leads nobody, which takes it a quarter of a second.
	under.Go(func() {
		_, _ = a.DisableTenant(within(t, 2*time.Second), &kekdv1.DisableTenantRequest{Name: "beta", Reason: "after"})
	})
	under.Go(func() {
		_, _ = a.EnableTenant(within(t, 2*time.Second), &kekdv1.EnableTenantRequest{Name: "acme"})
	})
	under.Wait()
	for _, n := range append(away, leader) {
		killNode(t, c, n)
	}
	return leader
}
