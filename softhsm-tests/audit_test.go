package softhsmtests

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/kekd/kekd/hierarchy/audit"
	"github.com/kekd/kekd/hierarchy/quota"
	"github.com/kekd/kekd/unix-socket-api/kekdv1"
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

// What was only counted of a user's refusals in the second in which the node is stopped is in its journal.
func TestRefusalsAreRecordedAtAStop(t *testing.T) {
	t.Parallel()
	n := initialised(t)
	d := n.serve()
	setUp(t, n.Node, "acme")
	const refused = 2 * quota.RefusalsPerSecond
	batch := &kekdv1.BatchRequest{}
	for range refused {
		batch.Operations = append(batch.Operations, &kekdv1.Operation{Op: &kekdv1.Operation_GenerateDataKey{
			GenerateDataKey: &kekdv1.GenerateDataKeyRequest{Key: "acme/orders"}}})
	}
	if _, err := keysAs(t, n, floodUID).Batch(within(t, 20*time.Second), batch); err != nil {
		t.Fatal(err)
	}
	d.stop()

	refusals, single := "", 0
	for _, e := range journalOf(t, n) {
		switch {
		case e.Caller == nil || e.Caller.UID != floodUID:
		case e.Kind == "refusals":
			refusals = e.Detail
		case e.Outcome == audit.OutcomeDenied:
			single++
		}
	}
	if want := fmt.Sprintf("%d more refusals", refused-single); single == refused || !strings.HasPrefix(refusals, want) {
		t.Errorf("of %d refusals %d have a record, and one of them all says %q, not %q", refused, single, refusals, want)
	}
	runTool(t, kekctl, "audit", "verify", "--dir", n.DataDir, "--public-key", filepath.Join(n.DataDir, "identity.pub"))
	d = n.serve()
	if out := runTool(t, kekctl, "--admin-socket", n.AdminSocket, "audit", "tail", "-n", "1000"); !strings.Contains(out, refusals) {
		t.Errorf("kekctl does not show it:\n%s", out)
	}
	d.stop()
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
