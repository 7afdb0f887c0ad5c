package softhsmtests

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/kekd/kekd/unix-socket-api/kekdv1"
)

// snapshotOf saves the hierarchy as a node has it.
func (n *node) snapshotOf() (path string) {
	n.t.Helper()
	chunks, err := admin(n.t, n.Node).SaveSnapshot(within(n.t, 10*time.Second), &kekdv1.SaveSnapshotRequest{})
	if err != nil {
		n.t.Fatal(err)
	}
	var whole []byte
	for {
		m, err := chunks.Recv()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			n.t.Fatal(err)
		}
		whole = append(whole, m.Data...)
	}
	path = filepath.Join(n.Dir, "snapshot")
	if err := os.WriteFile(path, whole, 0o600); err != nil {
		n.t.Fatal(err)
	}
	return path
}

// kekd restore closes again what was closed in the snapshot, says so, and takes nothing that is not whole
// or of another cluster.
func TestRestore(t *testing.T) {
	t.Parallel()
	n := initialised(t)
	n.serve()
	setUp(t, n.Node, "acme", "globex")
	a := admin(t, n.Node)
	if _, err := a.DisableTenant(within(t, 10*time.Second), &kekdv1.DisableTenantRequest{Name: "acme", Reason: "incident 4711"}); err != nil {
		t.Fatal(err)
	}
	snapshot := n.snapshotOf()
	if _, err := a.EnableTenant(within(t, 10*time.Second), &kekdv1.EnableTenantRequest{Name: "acme"}); err != nil {
		t.Fatal(err)
	}

	whole, err := os.ReadFile(snapshot)
	if err != nil {
		t.Fatal(err)
	}
	cutOff := filepath.Join(n.Dir, "cut-off")
	if err := os.WriteFile(cutOff, whole[:len(whole)/2], 0o600); err != nil {
		t.Fatal(err)
	}
	n.refused(1, []string{"the snapshot cannot be used"}, "restore", cutOff)
	other := newNode(t)
	other.init()
	other.serve()
	n.refused(1, []string{"of cluster"}, "restore", other.snapshotOf())
	if state := tenantOf(t, n.Node, "acme").State; state != "enabled" {
		t.Fatalf("what was refused has an effect: acme is %s", state)
	}

	for range 2 { // the second time changes nothing
		out, status := n.run("restore", snapshot)
		if status != 0 {
			t.Fatalf("kekd restore: status %d\n%s", status, out)
		}
		if state := tenantOf(t, n.Node, "acme").State; state != "disabled" {
			t.Errorf("acme is %s after the restore:\n%s", state, out)
		}
		if want := "tenant acme: state: enabled -> disabled"; !strings.Contains(out, want) && !strings.Contains(out, "0 changes") {
			t.Errorf("it does not say %q:\n%s", want, out)
		}
	}
	if state := tenantOf(t, n.Node, "globex").State; state != "enabled" {
		t.Errorf("globex is %s", state)
	}
	sealAndOpen(t, n, "globex/orders")
}
