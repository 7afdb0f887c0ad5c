package softhsmtests

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/kekd/kekd/softhsm-tests/devcluster"
	"github.com/kekd/kekd/unix-socket-api/client"
	"github.com/kekd/kekd/unix-socket-api/kekdv1"
)

// startCluster runs nodes of these regions until the test ends.
func startCluster(t *testing.T, regions ...string) *devcluster.Cluster {
	t.Helper()
	var args []string
	for _, r := range regions {
		args = append(args, "--region", r)
	}
	return start(t, tempDir(t), args...)
}

// called is the node of a name.
func called(t *testing.T, c *devcluster.Cluster, name string) devcluster.Node {
	t.Helper()
	for _, n := range c.Nodes {
		if n.Name == name {
			return n
		}
	}
	t.Fatalf("there is no node %s", name)
	return devcluster.Node{}
}

// others are the nodes that run, but for one.
func others(c *devcluster.Cluster, n devcluster.Node) (list []devcluster.Node) {
	for _, other := range c.Nodes {
		if other.ID != n.ID && other.PID != 0 {
			list = append(list, other)
		}
	}
	return list
}

// leaderOf asks a node who leads, until it knows of one that runs.
func leaderOf(t *testing.T, c *devcluster.Cluster, asked devcluster.Node) (leader devcluster.Node) {
	t.Helper()
	a := admin(t, asked)
	eventually(t, 20*time.Second, "a node that runs leads", func() bool {
		s, err := a.GetStatus(within(t, 5*time.Second), &kekdv1.GetStatusRequest{})
		if err != nil || c.Reload() != nil {
			return false
		}
		for _, n := range c.Nodes {
			if n.ID == s.Leader && n.PID != 0 {
				leader = n
			}
		}
		return leader.ID != ""
	})
	return leader
}

func killNode(t *testing.T, c *devcluster.Cluster, n devcluster.Node) {
	t.Helper()
	if err := syscall.Kill(n.PID, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	eventually(t, 5*time.Second, "cluster.json says that the node has ended", func() bool {
		return c.Reload() == nil && called(t, c, n.Name).PID == 0
	})
}

// makeTenant tries until it is done: under one idempotency ID, as whoever does not hear of an outcome does.
func makeTenant(t *testing.T, n devcluster.Node, name string, d time.Duration) {
	t.Helper()
	a, ctx, id := admin(t, n), within(t, d), randomBytes(16)
	for {
		_, err := a.CreateTenant(ctx, &kekdv1.CreateTenantRequest{Name: name, IdempotencyId: id})
		if err == nil {
			return
		}
		if ctx.Err() != nil {
			t.Fatalf("node %s takes no command within %v: %v", n.Name, d, err)
		}
		select {
		case <-time.After(20 * time.Millisecond):
		case <-ctx.Done():
		}
	}
}

// caughtUp returns when each of some nodes has what any of them has now: a read is of the node's own copy, which
// may be some milliseconds behind that of the node that took a command.
func caughtUp(t *testing.T, nodes []devcluster.Node) {
	t.Helper()
	var newest uint64
	admins := make([]kekdv1.AdminServiceClient, len(nodes))
	for i, n := range nodes {
		admins[i] = admin(t, n)
		s, err := admins[i].GetStatus(within(t, 5*time.Second), &kekdv1.GetStatusRequest{})
		if err != nil {
			t.Fatal(err)
		}
		newest = max(newest, s.AppliedIndex)
	}
	for i, n := range nodes {
		eventually(t, 10*time.Second, "node "+n.Name+" has caught up", func() bool {
			s, err := admins[i].GetStatus(within(t, 5*time.Second), &kekdv1.GetStatusRequest{})
			return err == nil && s.AppliedIndex >= newest
		})
	}
}

// servesAlike has each of some nodes open what each has sealed.
func servesAlike(t *testing.T, nodes []devcluster.Node, key string) {
	t.Helper()
	caughtUp(t, nodes)
	sealed := map[string]client.Result{}
	for _, n := range nodes {
		var err error
		if sealed[n.Name], err = keys(t, n).GenerateDataKey(within(t, 20*time.Second), key, 32, client.Options{}); err != nil {
			t.Fatalf("node %s does not seal: %v", n.Name, err)
		}
	}
	for _, n := range nodes {
		for by, s := range sealed {
			opened, err := keys(t, n).Unwrap(within(t, 20*time.Second), s.Envelope, client.Options{})
			if err != nil || !bytes.Equal(opened.Plaintext, s.Plaintext) {
				t.Errorf("node %s does not open what node %s has sealed: %v", n.Name, by, err)
			}
		}
	}
}

// asNode is a node of a dev cluster for what is written for single ones.
func asNode(t *testing.T, n devcluster.Node) *node {
	return &node{t: t, Node: n, Dir: filepath.Dir(n.DataDir), Name: n.Name, Token: n.TokenURI}
}

// Five nodes, of which three vote and two are of a region that does not. Any of them takes a command, and each of
// the tenant's region serves its keys; whoever dies is done without, and comes back.
func TestAnyNodeOfAClusterAnswers(t *testing.T) {
	t.Parallel()
	c := startCluster(t, "eu=voting*3", "us=replica*2")
	eu := []devcluster.Node{called(t, c, "eu-1"), called(t, c, "eu-2"), called(t, c, "eu-3")}
	setUp(t, called(t, c, "us-2"), "acme")
	for i, n := range c.Nodes {
		name := fmt.Sprintf("tenant-%d", i)
		makeTenant(t, n, name, 10*time.Second)
		// Who was told has it: no node answers before its own copy does.
		if _, err := admin(t, n).GetTenant(within(t, 5*time.Second), &kekdv1.GetTenantRequest{Name: name}); err != nil {
			t.Errorf("node %s does not know what it has just done: %v", n.Name, err)
		}
	}
	servesAlike(t, eu, "acme/orders")

	// The keys are in one region. The others say so.
	caughtUp(t, c.Nodes)
	sealed, err := keys(t, eu[0]).GenerateDataKey(within(t, 10*time.Second), "acme/orders", 32, client.Options{})
	if err != nil {
		t.Fatal(err)
	}
	_, err = keys(t, called(t, c, "us-1")).Unwrap(within(t, 10*time.Second), sealed.Envelope, client.Options{})
	if err == nil || !strings.Contains(err.Error(), "region") {
		t.Errorf("a node of a region without the key says: %v", err)
	}

	leader := leaderOf(t, c, eu[0])
	killNode(t, c, leader)
	for _, n := range others(c, leader) {
		makeTenant(t, n, "after-"+n.Name, 10*time.Second)
	}
	servesAlike(t, others(c, leader)[:2], "acme/orders")
	if err := c.Restart(within(t, 90*time.Second), leader.Name); err != nil {
		t.Fatal(err)
	}
	leader = called(t, c, leader.Name)
	makeTenant(t, leader, "again", 10*time.Second)
	servesAlike(t, []devcluster.Node{eu[0], eu[1], eu[2]}, "acme/orders")
	caughtUp(t, c.Nodes)
	for _, n := range c.Nodes {
		verifyAudit(t, asNode(t, n))
		list, err := admin(t, n).ListTenants(within(t, 5*time.Second), &kekdv1.ListTenantsRequest{})
		if err != nil || len(list.Tenants) != 11 {
			t.Errorf("node %s knows %d tenants: %v", n.Name, len(list.GetTenants()), err)
		}
	}
}

// What an administrator does at a follower is in that node's journal and in the leader's, asked for and done.
func TestForwardedCommandsAreInBothJournals(t *testing.T) {
	t.Parallel()
	c := startCluster(t, "eu=voting*2")
	leader := leaderOf(t, c, c.Nodes[0])
	follower := others(c, leader)[0]
	setUp(t, follower, "acme")
	if _, err := admin(t, follower).DisableTenant(within(t, 10*time.Second), &kekdv1.DisableTenantRequest{Name: "acme", Reason: "incident 4711"}); err != nil {
		t.Fatal(err)
	}
	for _, n := range []devcluster.Node{follower, leader} {
		var outcomes []string
		for _, e := range journalOf(t, asNode(t, n)) {
			if e.Kind != "tenant-disable" {
				continue
			}
			outcomes = append(outcomes, string(e.Outcome))
			if e.Reason != "incident 4711" || e.Caller == nil || e.Caller.UID != uint32(os.Getuid()) || e.TenantName != "acme" {
				t.Errorf("node %s: the record lacks something: %+v", n.Name, e.Record)
			}
			if fromAfar := strings.Contains(e.Detail, "at node "+follower.Name); fromAfar != (n.ID == leader.ID) {
				t.Errorf("node %s: the record says of where it was asked for: %q", n.Name, e.Detail)
			}
		}
		if got := strings.Join(outcomes, " "); got != "requested ok" {
			t.Errorf("node %s has recorded: %s", n.Name, got)
		}
	}
}

// A leader that is told to stop hands leadership on first, so that commands go on without an election.
func TestALeaderThatStopsHandsOn(t *testing.T) {
	t.Parallel()
	c := startCluster(t, "eu=voting*3")
	leader := leaderOf(t, c, c.Nodes[0])
	rest := others(c, leader)
	if err := syscall.Kill(leader.PID, syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	eventually(t, 10*time.Second, "it stops", func() bool { return c.Reload() == nil && called(t, c, leader.Name).PID == 0 })
	makeTenant(t, rest[0], "acme", 10*time.Second)
	for _, n := range rest {
		log, err := os.ReadFile(logOf(n))
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(string(log), "heartbeat timeout reached, starting election") {
			t.Errorf("node %s had to elect a leader", n.Name)
		}
	}
	log, err := os.ReadFile(logOf(leader))
	if err != nil || strings.Contains(string(log), "was not handed on") {
		t.Errorf("it has not handed leadership on: %v", err)
	}
}

// A witness votes and serves nobody; with one of two others it is a majority.
func TestAWitnessVotesAndServesNobody(t *testing.T) {
	t.Parallel()
	c := startCluster(t, "eu=voting*2", "site-w=witness")
	setUp(t, c.Nodes[0], "acme")
	w := called(t, c, "site-w-1")
	caughtUp(t, c.Nodes)
	_, err := keys(t, w).GenerateDataKey(within(t, 10*time.Second), "acme/orders", 32, client.Options{})
	if err == nil || !strings.Contains(err.Error(), "has no HSM, and serves no keys: ask a node of region eu") {
		t.Errorf("it says to who asks for a data key: %v", err)
	}
	makeTenant(t, w, "globex", 10*time.Second)
	s, err := admin(t, w).GetStatus(within(t, 5*time.Second), &kekdv1.GetStatusRequest{})
	if err != nil || s.Hsm != nil || s.Role != "witness" || !s.AuditHealthy || !s.Fresh {
		t.Errorf("its status: %v, %v", s, err)
	}
	d, err := admin(t, w).Doctor(within(t, 10*time.Second), &kekdv1.DoctorRequest{})
	if err != nil {
		t.Fatal(err)
	}
	for _, check := range d.Checks {
		if check.Status == "missing" {
			t.Errorf("its doctor: %v", check)
		}
	}
	verifyAudit(t, asNode(t, w))
	for _, file := range []string{filepath.Join(filepath.Dir(w.DataDir), "witness", "identity.key"), filepath.Join(filepath.Dir(w.DataDir), "peer.key")} {
		if info, err := os.Stat(file); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v, %v", file, info.Mode(), err)
		}
	}

	leader := leaderOf(t, c, w)
	if leader.ID == w.ID {
		leader = c.Nodes[0]
	}
	killNode(t, c, leader)
	makeTenant(t, w, "initech", 10*time.Second)
	rest := others(c, leader)[0]
	caughtUp(t, []devcluster.Node{w, rest})
	sealed, err := keys(t, rest).GenerateDataKey(within(t, 10*time.Second), "acme/orders", 32, client.Options{})
	if err == nil {
		_, err = keys(t, rest).Unwrap(within(t, 10*time.Second), sealed.Envelope, client.Options{})
	}
	if err != nil {
		t.Errorf("with the witness node %s does not serve: %v", rest.Name, err)
	}
	if err := c.Restart(within(t, 90*time.Second), w.Name); err != nil {
		t.Error(err)
	}
	verifyAudit(t, asNode(t, called(t, c, w.Name)))
}

// A node that reaches nobody waits for the others, says so to who asks, and goes on when they are there.
func TestANodeWaitsForTheOthers(t *testing.T) {
	t.Parallel()
	c := startCluster(t, "eu=voting*3")
	setUp(t, c.Nodes[0], "acme")
	for _, n := range c.Nodes {
		killNode(t, c, n)
	}
	lone := c.Nodes[0]
	restarted := make(chan error, 1)
	go func() { restarted <- c.Restart(context.WithoutCancel(t.Context()), lone.Name) }()
	eventually(t, 30*time.Second, "it says what it waits for", func() bool {
		a, done, err := lone.Admin()
		if err != nil {
			return false
		}
		defer done()
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		s, err := a.GetStatus(ctx, &kekdv1.GetStatusRequest{})
		if err != nil || s.Fresh {
			return false
		}
		said := strings.Join(s.Warnings, "\n")
		return strings.Contains(said, "does not serve yet: it waits for a leader") && s.NodeName == lone.Name
	})
	a := admin(t, lone)
	if _, err := a.CreateTenant(within(t, 5*time.Second), &kekdv1.CreateTenantRequest{Name: "early"}); err == nil || !strings.Contains(err.Error(), "starting") {
		t.Errorf("who wants to change something is told: %v", err)
	}
	if conn, err := net.Dial("unix", lone.Socket); err == nil {
		conn.Close()
		t.Error("kekd.sock is served already")
	}
	if err := c.Restart(within(t, 90*time.Second), c.Nodes[1].Name); err != nil {
		t.Fatal(err)
	}
	if err := <-restarted; err != nil {
		t.Fatal(err)
	}
	log, err := os.ReadFile(logOf(lone))
	if n := strings.Count(string(log), "it waits for a leader"); err != nil || n != 1 {
		t.Errorf("the log says %d times what it waits for: %v", n, err)
	}
	if err := c.Reload(); err != nil {
		t.Fatal(err)
	}
	servesAlike(t, others(c, c.Nodes[2]), "acme/orders")
}
