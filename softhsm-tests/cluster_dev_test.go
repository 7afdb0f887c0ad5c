package softhsmtests

import (
	"bytes"
	"os/exec"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/kekd/kekd/softhsm-tests/devcluster"
	"github.com/kekd/kekd/unix-socket-api/client"
)

// All nodes of a directory are started again, together, since one alone has no majority: after an orderly stop and
// after kill -9, with nothing lost.
func TestDevGoesOnWithACluster(t *testing.T) {
	t.Parallel()
	dir := tempDir(t)
	c := start(t, dir, "--region", "eu=voting*3", "--region", "w=witness")
	setUp(t, c.Nodes[0], "acme")
	sealed, err := keys(t, c.Nodes[0]).GenerateDataKey(within(t, 10*time.Second), "acme/orders", 32, client.Options{})
	if err != nil {
		t.Fatal(err)
	}
	ids := idsOf(c)
	for _, how := range []string{"stopped", "killed"} {
		was := c.Nodes
		if how == "killed" {
			c.Kill()
		} else if err := c.Stop(); err != nil {
			t.Fatal(err)
		}
		for _, n := range was {
			eventually(t, 2*time.Second, "node "+n.Name+" ends with kekd dev, "+how, func() bool { return !alive(n.PID) })
		}
		c = start(t, dir)
		if diff := cmp.Diff(ids, idsOf(c)); diff != "" {
			t.Fatalf("%s: other nodes (-want +got):\n%s", how, diff)
		}
		opened, err := keys(t, c.Nodes[2]).Unwrap(within(t, 10*time.Second), sealed.Envelope, client.Options{})
		if err != nil || !bytes.Equal(opened.Plaintext, sealed.Plaintext) {
			t.Fatalf("%s: the envelope does not open any more: %v", how, err)
		}
	}
}

func idsOf(c *devcluster.Cluster) map[string]string {
	ids := map[string]string{}
	for _, n := range c.Nodes {
		ids[n.Name] = n.ID
	}
	return ids
}

// A kekd dev that is killed while it makes the cluster is finished by the next one.
func TestDevKilledWhileItMakesACluster(t *testing.T) {
	t.Parallel()
	random := moments(t)
	for range loops(2, 20) {
		dir := tempDir(t)
		for range 2 {
			cmd := exec.Command(kekd, "dev", "--dir", dir, "--region", "eu=voting*2", "--region", "us=replica")
			cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			time.Sleep(200*time.Millisecond + time.Duration(random.Int64N(int64(3*time.Second))))
			_ = cmd.Process.Kill()
			_ = cmd.Wait()
		}
		c := start(t, dir)
		setUp(t, c.Nodes[1], "acme")
		servesAlike(t, c.Nodes[:2], "acme/orders")
		if err := c.Stop(); err != nil {
			t.Error(err)
		}
	}
}
