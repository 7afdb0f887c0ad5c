package softhsmtests

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/kekd/kekd/softhsm-tests/devcluster"
	"github.com/kekd/kekd/unix-socket-api/kekdv1"
)

// A voter whose data directory is put back from before a disable that it has acknowledged does not take part again:
// it could elect a leader that has not heard of the disable. It is removed, and joins under a new ID.
func TestAVoterIsRolledBack(t *testing.T) {
	t.Parallel()
	c := startCluster(t, "eu=voting*2")
	by := c.Nodes[0]
	n := applicant(t, c, "eu-3", "eu")
	n.inRegionOf(by)
	n.join(n.invite(by, "", time.Hour))
	d := n.serve()
	setUp(t, by, "acme")
	eventually(t, 20*time.Second, "it votes", func() bool { l := listed(t, by, n.Name); return l != nil && l.GetVotes() })
	caughtUp(t, []devcluster.Node{by, n.Node})
	was := statusOf(t, n).NodeId
	d.stop()
	yesterday := filepath.Join(n.Dir, "yesterday")
	runTool(t, "cp", "-a", n.DataDir, yesterday)

	d = n.serve()
	if r := closeAt(t, c.Nodes[1], "tenant", "disable", "acme", "--reason", "stolen"); !r.Fenced || r.how(n.Name) != "acknowledged" {
		t.Fatalf("%+v", r)
	}
	d.stop()
	today := filepath.Join(n.Dir, "today")
	move(t, n.DataDir, today)
	runTool(t, "cp", "-a", yesterday, n.DataDir)
	for range 2 { // as systemd would
		n.refused(1, []string{"is older than what this node has answered for", "Nothing was started or changed", "kekctl node remove"}, "serve")
	}

	// The directory of today is that of a healthy node.
	move(t, n.DataDir, filepath.Join(n.Dir, "refused"))
	move(t, today, n.DataDir)
	n.serve().stop()

	// Without it, what the message says.
	move(t, n.DataDir, filepath.Join(n.Dir, "lost"))
	move(t, yesterday, n.DataDir)
	n.refused(1, []string{"is older than what this node has answered for"}, "serve")
	if _, err := admin(t, by).RemoveNode(within(t, 20*time.Second), &kekdv1.RemoveNodeRequest{Name: n.Name}); err != nil {
		t.Fatal(err)
	}
	move(t, n.DataDir, filepath.Join(n.Dir, "aside"))
	n.join(n.invite(by, "", time.Hour))
	n.serve()
	caughtUp(t, []devcluster.Node{by, n.Node})
	if is := statusOf(t, n).NodeId; is == was {
		t.Errorf("it is still node %s", is)
	}
	if tenant := tenantOf(t, n.Node, "acme"); tenant.State != "disabled" {
		t.Errorf("the tenant is %s", tenant.State)
	}
	eventually(t, 20*time.Second, "it votes again", func() bool { l := listed(t, by, n.Name); return l != nil && l.GetVotes() })
}

func move(t *testing.T, from, to string) {
	t.Helper()
	if err := os.Rename(from, to); err != nil {
		t.Fatal(err)
	}
}
