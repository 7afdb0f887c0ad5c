package softhsmtests

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/kekd/kekd/unix-socket-api/client"
	"github.com/kekd/kekd/unix-socket-api/kekdv1"
)

// What was there is there again, after an orderly stop and after kill -9.
func TestDevGoesOnWithWhatIsThere(t *testing.T) {
	t.Parallel()
	dir := tempDir(t)
	c := start(t, dir)
	setUp(t, c.Nodes[0], "acme")
	sealed, err := keys(t, c.Nodes[0]).GenerateDataKey(within(t, 10*time.Second), "acme/orders", 32, client.Options{})
	if err != nil {
		t.Fatal(err)
	}
	id := c.Nodes[0].ID
	for _, how := range []string{"stopped", "killed"} {
		node := c.Nodes[0].PID
		if how == "stopped" {
			if err := c.Stop(); err != nil {
				t.Fatal(err)
			}
		} else {
			c.Kill()
		}
		eventually(t, 2*time.Second, "what kekd dev started ends when it ends, "+how, func() bool { return !alive(node) })
		c = start(t, dir)
		if c.Nodes[0].ID != id {
			t.Fatalf("%s: another node", how)
		}
		opened, err := keys(t, c.Nodes[0]).Unwrap(within(t, 10*time.Second), sealed.Envelope, client.Options{})
		if err != nil || !bytes.Equal(opened.Plaintext, sealed.Plaintext) {
			t.Fatalf("%s: the envelope does not open any more: %v", how, err)
		}
		verified, err := admin(t, c.Nodes[0]).VerifyAudit(within(t, 10*time.Second), &kekdv1.VerifyAuditRequest{})
		if err != nil || !verified.Ok {
			t.Fatalf("%s: the audit: %v %v", how, verified, err)
		}
	}
}

func TestDevKeepsDeadNodesInTheList(t *testing.T) {
	t.Parallel()
	c := start(t, tempDir(t))
	id := c.Nodes[0].ID
	if err := syscall.Kill(c.Nodes[0].PID, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	eventually(t, 5*time.Second, "cluster.json says that the node has ended", func() bool {
		return c.Reload() == nil && len(c.Nodes) == 1 && c.Nodes[0].PID == 0 && c.Nodes[0].ID == id
	})
	select {
	case <-c.Exited():
		t.Fatal("kekd dev ended with its node")
	default:
	}
}

func TestASecondDevInTheSameDirectory(t *testing.T) {
	t.Parallel()
	c := start(t, tempDir(t))
	out, err := exec.Command(kekd, "dev", "--dir", c.Dir).CombinedOutput()
	if err == nil || !strings.Contains(string(out), "another kekd dev runs in "+c.Dir) {
		t.Fatalf("%v: %s", err, out)
	}
	if _, err := admin(t, c.Nodes[0]).GetStatus(within(t, 5*time.Second), &kekdv1.GetStatusRequest{}); err != nil {
		t.Fatalf("the first one does not serve on: %v", err)
	}
}

// What is secret is closed to other users, though they may reach the socket.
func TestFilesAreClosed(t *testing.T) {
	t.Parallel()
	c := start(t, tempDir(t))
	for _, path := range []string{c.Nodes[0].PINFile, c.Nodes[0].DataDir, filepath.Dir(c.Nodes[0].PINFile), c.Nodes[0].SoftHSM2Conf, logOf(c.Nodes[0])} {
		info, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		if info.Mode().Perm()&0o077 != 0 {
			t.Errorf("%s has mode %v", path, info.Mode().Perm())
		}
	}
}
