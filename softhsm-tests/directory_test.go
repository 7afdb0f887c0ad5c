package softhsmtests

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// A second daemon on a data directory that is served is refused, and disturbs nobody.
func TestASecondDaemonOnTheDataDirectory(t *testing.T) {
	t.Parallel()
	n := initialised(t)
	d := n.serve()
	setUp(t, n.Node, "acme")
	p := probe(t, n, "acme/orders")

	second := n.in(t)
	second.Socket, second.AdminSocket = filepath.Join(n.Dir, "second.sock"), filepath.Join(n.Dir, "second-admin.sock")
	m := second.behindFaults()
	for _, command := range []string{"serve", "init"} {
		second.refused(1, []string{fmt.Sprintf("another process uses %s: PID %d", n.DataDir, n.PID)}, command)
	}
	if m.Counters.Loaded() {
		t.Error("the second one has touched the token before it gave up")
	}
	n.writeConfig() // as it was

	p.stop()
	verifyAudit(t, n)
	d.stop()
	n.serve().stop()
}

func TestSocketPathOfALivingDaemon(t *testing.T) {
	t.Parallel()
	n := initialised(t)
	d := n.serve()
	setUp(t, n.Node, "acme")
	p := probe(t, n, "acme/orders")
	for _, which := range []string{"socket", "admin socket"} {
		other := initialised(t)
		taken := n.Socket
		if which == "socket" {
			other.Socket = taken
		} else {
			taken = n.AdminSocket
			other.AdminSocket = taken
		}
		other.refused(1, []string{"already exists", "another process listens on " + taken}, "serve")
	}
	p.stop()
	d.stop()
}

func TestSocketPathIsAFile(t *testing.T) {
	t.Parallel()
	n := initialised(t)
	if err := os.WriteFile(n.Socket, []byte("mine"), 0o600); err != nil {
		t.Fatal(err)
	}
	n.refused(1, []string{n.Socket + " is there and is not a socket"}, "serve")
	if b, err := os.ReadFile(n.Socket); err != nil || string(b) != "mine" {
		t.Fatalf("the file was touched: %q %v", b, err)
	}
}

func TestSocketDirectoryIsNotThere(t *testing.T) {
	t.Parallel()
	n := initialised(t)
	n.Socket = filepath.Join(n.Dir, "run", "kekd.sock")
	n.refused(1, []string{n.Socket, "no such file or directory"}, "serve")
}

// A socket that a killed daemon left is replaced by the next one.
func TestSocketOfAKilledDaemon(t *testing.T) {
	t.Parallel()
	n := initialised(t)
	n.serve().kill()
	if c, err := net.Dial("unix", n.Socket); err == nil {
		c.Close()
		t.Fatal("somebody listens")
	}
	for _, path := range []string{n.Socket, n.AdminSocket} {
		if info, err := os.Lstat(path); err != nil || info.Mode().Type() != os.ModeSocket {
			t.Fatalf("no stale socket: %v", err)
		}
	}
	d := n.serve()
	setUp(t, n.Node, "acme")
	sealAndOpen(t, n, "acme/orders")
	d.stop()
	for _, path := range []string{n.Socket, n.AdminSocket} {
		if _, err := os.Lstat(path); !os.IsNotExist(err) {
			t.Errorf("after an orderly stop %s is there: %v", path, err)
		}
	}
	if strings.Contains(d.says(), "level=ERROR") {
		t.Error("an error was logged")
	}
}
