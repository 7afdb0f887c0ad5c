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

// A node that has ended, or one that runs, is started again when somebody says so, and is in the list with
// its new PID.
func TestDevRestart(t *testing.T) {
	t.Parallel()
	c := start(t, tempDir(t))
	setUp(t, c.Nodes[0], "acme")
	was := c.Nodes[0]
	restart := func(args ...string) (string, error) {
		out, err := exec.CommandContext(within(t, 30*time.Second), args[0], args[1:]...).CombinedOutput()
		return string(out), err
	}
	for how, name := range map[string]string{"running": was.Name, "killed": was.ID} {
		pid := c.Nodes[0].PID
		if how == "killed" {
			if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
				t.Fatal(err)
			}
			eventually(t, 5*time.Second, "it has ended", func() bool { return c.Reload() == nil && c.Nodes[0].PID == 0 })
		}
		if err := c.Restart(within(t, 60*time.Second), name); err != nil {
			t.Fatalf("%s: %v", how, err)
		}
		n := c.Nodes[0]
		if n.PID == pid || !alive(n.PID) || alive(pid) || n.ID != was.ID {
			t.Errorf("%s: PID %d has become %d", how, pid, n.PID)
		}
		sealed, err := keys(t, n).GenerateDataKey(within(t, 10*time.Second), "acme/orders", 32, client.Options{})
		if err == nil {
			_, err = keys(t, n).Unwrap(within(t, 10*time.Second), sealed.Envelope, client.Options{})
		}
		if err != nil {
			t.Errorf("%s: it does not serve: %v", how, err)
		}
	}

	out, err := restart(kekd, "dev", "restart", "--dir", c.Dir, "nobody")
	if err == nil || !strings.Contains(out, "no node nobody") || !strings.Contains(out, "local-1") {
		t.Errorf("of no node: %v: %s", err, out)
	}
	if err := os.Chmod(filepath.Join(c.Dir, "dev.sock"), 0o666); err != nil {
		t.Fatal(err)
	}
	out, err = restart("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--", kekd, "dev", "restart", "--dir", c.Dir, was.Name)
	if err == nil || !strings.Contains(out, "takes no orders from uid 65534") {
		t.Errorf("by somebody else: %v: %s", err, out)
	}
	if err := c.Reload(); err != nil || !alive(c.Nodes[0].PID) {
		t.Errorf("the node was touched: %v", err)
	}
	if err := c.Stop(); err != nil {
		t.Fatal(err)
	}
	out, err = restart(kekd, "dev", "restart", "--dir", c.Dir, was.Name)
	if err == nil || !strings.Contains(out, "no kekd dev runs in "+c.Dir) {
		t.Errorf("where none runs: %v: %s", err, out)
	}
}

// What was made of some regions is not gone on with as one of others.
func TestDevWithOtherRegions(t *testing.T) {
	t.Parallel()
	dir := tempDir(t)
	if err := start(t, dir).Stop(); err != nil {
		t.Fatal(err)
	}
	out, err := exec.CommandContext(within(t, 20*time.Second), kekd, "dev", "--dir", dir, "--region", "eu=voting*3").CombinedOutput()
	if err == nil || !strings.Contains(string(out), "cluster of other regions") || !strings.Contains(string(out), "--region local=voting") {
		t.Fatalf("%v: %s", err, out)
	}
	start(t, dir, "--region", "local=voting")
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

// A directory that was copied or moved says where it has come from, and leaves that place alone. With
// the new paths in its files it goes on.
func TestDevInADirectoryThatWasCopiedOrMoved(t *testing.T) {
	t.Parallel()
	top := tempDir(t)
	was, copied, moved := filepath.Join(top, "was"), filepath.Join(top, "copied"), filepath.Join(top, "moved")
	c := start(t, was)
	id := c.Nodes[0].ID
	if err := c.Stop(); err != nil {
		t.Fatal(err)
	}
	config := filepath.Join("nodes", "local-1", "kekd.toml")
	refused := func(dir string) {
		t.Helper()
		out, err := exec.CommandContext(within(t, 20*time.Second), kekd, "dev", "--dir", dir).CombinedOutput()
		for _, w := range []string{filepath.Join(dir, config) + " has data_dir", filepath.Join(was, "nodes"), "copied or moved", "softhsm2.conf"} {
			if err == nil || !strings.Contains(string(out), w) {
				t.Errorf("%v, and not %q: %s", err, w, out)
			}
		}
		if _, err := os.Stat(filepath.Join(dir, "cluster.json")); !os.IsNotExist(err) {
			t.Errorf("it has a cluster.json: %v", err)
		}
	}
	runTool(t, "cp", "-a", was, copied)
	before := tree(t, was)
	refused(copied)
	if after := tree(t, was); before != after {
		t.Errorf("it has changed where it was copied from:\n%s\nafter:\n%s", before, after)
	}

	if err := os.Rename(was, moved); err != nil {
		t.Fatal(err)
	}
	refused(moved)
	if _, err := os.Stat(was); !os.IsNotExist(err) {
		t.Errorf("there is something again where it was: %v", err)
	}

	conf := filepath.Join("regions", "local", "softhsm", "softhsm2.conf")
	runTool(t, "sed", "-i", "s|"+was+"|"+moved+"|", filepath.Join(moved, config), filepath.Join(moved, conf))
	if c = start(t, moved); c.Nodes[0].ID != id {
		t.Error("another node")
	}
}

// Where a user works with others, a group can write to the directories above. By another name it is
// the same directory.
func TestDevInADirectoryOfAGroup(t *testing.T) {
	t.Parallel()
	top := tempDir(t)
	if err := os.Chmod(top, 0o775); err != nil {
		t.Fatal(err)
	}
	dir, link := filepath.Join(top, "dev"), filepath.Join(top, "link")
	if err := os.Symlink(dir, link); err != nil {
		t.Fatal(err)
	}
	if err := start(t, dir).Stop(); err != nil {
		t.Fatal(err)
	}
	start(t, link)
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
