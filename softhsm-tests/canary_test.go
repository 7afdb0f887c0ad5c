package softhsmtests

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/kekd/kekd/cluster"
	"github.com/kekd/kekd/hierarchy"
	"github.com/kekd/kekd/unix-socket-api/client"
	"github.com/kekd/kekd/unix-socket-api/kekdv1"
)

// No data key that a daemon ever saw in the clear stands in a file that it wrote: not in Raft's
// log and snapshots, not in the audit, and not in the log at its most talkative.
func TestNoDataKeyIsWrittenAnywhere(t *testing.T) {
	t.Parallel()
	n := initialised(t)
	m := n.behindFaults()
	n.Extra = `log.level = "debug"`
	d := n.serve()
	setUp(t, n.Node, "acme", "globex")
	c := keys(t, n.Node)
	ctx := within(t, 60*time.Second)
	reason := client.Options{Reason: "canary", Context: map[string]string{"app": "billing"}}

	var secrets [][]byte
	known := func() []byte { s := canary(); secrets = append(secrets, s); return s }
	// given adds what a daemon handed out.
	given := func(r client.Result, err error) client.Result {
		t.Helper()
		if err == nil {
			err = r.Err
		}
		if err != nil {
			t.Fatal(err)
		}
		if len(r.Plaintext) > 0 {
			secrets = append(secrets, r.Plaintext)
		}
		return r
	}
	refused := func(r client.Result, err error) {
		t.Helper()
		if err == nil && r.Err == nil {
			t.Fatal("it was not refused")
		}
	}

	// Each operation, unary and in a batch. The client itself sends single ones on a stream.
	k, closer, err := client.DialKeys(n.Socket)
	if err != nil {
		t.Fatal(err)
	}
	defer closer.Close()
	unary, err := k.Wrap(ctx, &kekdv1.WrapRequest{Key: "acme/orders", Plaintext: known()})
	if err != nil {
		t.Fatal(err)
	}
	opened, err := k.Unwrap(ctx, &kekdv1.UnwrapRequest{Envelope: unary.Envelope})
	if err != nil {
		t.Fatal(err)
	}
	made, err := k.GenerateDataKey(ctx, &kekdv1.GenerateDataKeyRequest{Key: "acme/orders"})
	if err != nil {
		t.Fatal(err)
	}
	secrets = append(secrets, opened.Plaintext, made.Plaintext)
	wrapped := given(c.Wrap(ctx, "acme/orders", known(), reason))
	given(c.GenerateDataKey(ctx, "acme/orders", 64, reason))
	if _, err := admin(t, n.Node).RotateKey(ctx, &kekdv1.RotateKeyRequest{Key: "acme/orders"}); err != nil {
		t.Fatal(err)
	}
	given(c.Unwrap(ctx, given(c.Rewrap(ctx, wrapped.Envelope, reason)).Envelope, reason))
	results, err := c.Batch(ctx, []client.Operation{
		{Op: hierarchy.OpWrap, Key: "acme/orders", Plaintext: known()},
		{Op: hierarchy.OpDataKey, Key: "acme/orders", Bytes: 16},
		{Op: hierarchy.OpUnwrap, Envelope: wrapped.Envelope, Options: reason},
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range results {
		given(r, nil)
	}

	// And with every kind of failure.
	refused(c.Wrap(ctx, "acme/nothing", known(), reason))
	refused(c.Wrap(ctx, "Not A Name", known(), reason))
	refused(c.Wrap(ctx, "acme/orders", known(), client.Options{Reason: strings.Repeat("x", 300)}))
	refused(c.Wrap(ctx, "acme/orders", bytes.Repeat(known(), 200), reason))
	refused(c.Unwrap(ctx, known(), reason)) // a plaintext where an envelope belongs
	refused(c.Unwrap(ctx, append([]byte("kekd:v1:"), known()...), reason))
	if _, err := keysAs(t, n, nobodyUID).Wrap(ctx, &kekdv1.WrapRequest{Key: "acme/orders", Plaintext: known()}); err == nil {
		t.Fatal("a stranger wraps")
	}
	if _, err := admin(t, n.Node).DisableTenant(ctx, &kekdv1.DisableTenantRequest{Name: "globex", Reason: "canary"}); err != nil {
		t.Fatal(err)
	}
	refused(c.Wrap(ctx, "globex/orders", known(), reason))
	m.Control.Set("C_Encrypt error=CKR_DEVICE_ERROR count=2", "C_Decrypt error=CKR_FUNCTION_FAILED count=2")
	_, _ = c.Wrap(ctx, "acme/orders", known(), reason)
	_, _ = c.Unwrap(ctx, wrapped.Envelope, reason)
	m.Control.Set("C_Encrypt crash count=1")
	_, _ = c.Wrap(ctx, "acme/orders", known(), reason)
	m.Control.Clear()
	sealAndOpen(t, n, "acme/orders")
	d.stop()
	takeSnapshot(t, n)

	found := search(t, n.Dir, secrets)
	for _, f := range found {
		t.Error(f)
	}
	if !strings.Contains(d.says(), "level=DEBUG") {
		t.Error("the log is not at its most talkative")
	}

	// What does not find them where they are would prove nothing.
	for i, form := range forms(secrets[0]) {
		path := filepath.Join(n.Dir, "planted")
		if err := os.WriteFile(path, slices.Concat([]byte("some text before "), form, []byte(" and after")), 0o600); err != nil {
			t.Fatal(err)
		}
		if len(search(t, n.Dir, secrets)) == 0 {
			t.Errorf("form %d of a data key is not found", i)
		}
		os.Remove(path)
	}
}

// forms are the ways in which a secret may stand in a text: raw, in hex, and in base64 at each of
// the three places that it may have in what was encoded with it, whose first and last characters
// depend on its neighbours.
func forms(secret []byte) [][]byte {
	lower := hex.EncodeToString(secret)
	all := [][]byte{secret, []byte(lower), []byte(strings.ToUpper(lower))}
	for before := range 3 {
		for _, e := range []*base64.Encoding{base64.RawStdEncoding, base64.RawURLEncoding} {
			text := e.EncodeToString(append(make([]byte, before), secret...))
			all = append(all, []byte(text[(before*8+5)/6:len(text)-1]))
		}
	}
	return all
}

// search looks for secrets in every file of a directory.
func search(t *testing.T, dir string, secrets [][]byte) (found []string) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil || !e.Type().IsRegular() {
			return err
		}
		b, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		b = bytes.TrimRight(b, "\x00")
		for i, secret := range secrets {
			for _, form := range forms(secret) {
				if bytes.Contains(b, form) {
					found = append(found, fmt.Sprintf("data key %d is in %s", i, path))
				}
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return found
}

// takeSnapshot has the Raft store of a daemon that is stopped write one.
func takeSnapshot(t *testing.T, n *node) {
	t.Helper()
	dir := filepath.Join(n.DataDir, "raft")
	r, err := cluster.Open(cluster.Config{Dir: dir, Logger: slog.New(slog.NewTextHandler(io.Discard, nil))})
	if err != nil {
		t.Fatal(err)
	}
	ctx := within(t, 20*time.Second)
	for !r.IsLeader() { // and so has applied what is in its log
		renewed := r.Renewed()
		select {
		case <-renewed:
		case <-ctx.Done():
			t.Fatal("no leader")
		}
	}
	if err := r.Snapshot(ctx); err != nil {
		t.Fatal(err)
	}
	if err := r.Close(ctx); err != nil {
		t.Fatal(err)
	}
	states, err := filepath.Glob(filepath.Join(dir, "raft", "snapshots", "*", "state.bin"))
	if err != nil || len(states) == 0 {
		t.Fatalf("no snapshot: %v", err)
	}
	b, err := os.ReadFile(states[0])
	if err != nil || !bytes.Contains(b, []byte("acme")) {
		t.Fatalf("the snapshot does not know the tenant: %v", err)
	}
}
