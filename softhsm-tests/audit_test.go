package softhsmtests

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/kekd/kekd/hierarchy/audit"
)

// A head that kekctl prints and that is kept elsewhere tells when the journal was cut off, which
// nothing else in a copy of it can.
func TestAuditHeadFindsWhatWasCutOff(t *testing.T) {
	t.Parallel()
	n := initialised(t)
	d := n.serve()
	setUp(t, n.Node, "acme")
	sealAndOpen(t, n, "acme/orders")
	var head []byte
	eventually(t, 20*time.Second, "a head that covers an unwrap is signed", func() bool {
		out, err := exec.Command(kekctl, "--admin-socket", n.AdminSocket, "audit", "head").Output()
		head = out
		return err == nil && sequenceOf(t, head) >= lastOf(t, n, "unwrap")
	})
	d.stop()

	kept := filepath.Join(n.Dir, "head.txt")
	if err := os.WriteFile(kept, head, 0o600); err != nil {
		t.Fatal(err)
	}
	key := filepath.Join(n.DataDir, "identity.pub")
	verify := func(dir string, flags ...string) (string, error) {
		out, err := exec.Command(kekctl, append([]string{"audit", "verify", "--dir", dir, "--public-key", key}, flags...)...).CombinedOutput()
		return string(out), err
	}
	if out, err := verify(n.DataDir, "--anchor", kept); err != nil || !strings.Contains(out, "by an anchor") {
		t.Errorf("the whole journal: %v\n%s", err, out)
	}

	// Cut off before its unwrap, as who can write the file would do it.
	cut := filepath.Join(n.Dir, "cut")
	runTool(t, "cp", "-a", filepath.Join(n.DataDir, "audit"), cut)
	files, err := filepath.Glob(filepath.Join(cut, "*.jsonl"))
	if err != nil || len(files) != 1 {
		t.Fatalf("segments: %q, %v", files, err)
	}
	b, err := os.ReadFile(files[0])
	if err != nil {
		t.Fatal(err)
	}
	at := bytes.LastIndexByte(b[:bytes.Index(b, []byte(`{"kind":"unwrap"`))], '\n') + 1
	if err := os.WriteFile(files[0], b[:at], 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := verify(cut); err != nil || !strings.Contains(out, "not proven") {
		t.Errorf("without the head it has to verify, and to say what that does not prove: %v\n%s", err, out)
	}
	if out, err := verify(cut, "--anchor", kept); err == nil || !strings.Contains(out, "truncated") {
		t.Errorf("with the head: %v\n%s", err, out)
	}
}

func lastOf(t *testing.T, n *node, kind string) (sequence uint64) {
	t.Helper()
	for _, e := range journalOf(t, n) {
		if e.Kind == kind {
			sequence = e.Sequence
		}
	}
	if sequence == 0 {
		t.Fatalf("the journal has no %s", kind)
	}
	return sequence
}

func sequenceOf(t *testing.T, head []byte) uint64 {
	t.Helper()
	var c audit.Checkpoint
	if err := c.UnmarshalText(head); err != nil {
		t.Fatal(err)
	}
	return c.Sequence
}
