package softhsmtests

import (
	"bytes"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/kekd/kekd/hierarchy/audit"
	"github.com/kekd/kekd/softhsm-tests/devcluster"
	"github.com/kekd/kekd/unix-socket-api/client"
	"github.com/kekd/kekd/unix-socket-api/kekdv1"
)

// used is a node that has sealed something and was stopped, and what it has sealed.
func used(t *testing.T) (*node, client.Result) {
	t.Helper()
	n := initialised(t)
	d := n.serve()
	setUp(t, n.Node, "acme")
	sealed, err := keys(t, n.Node).GenerateDataKey(within(t, 20*time.Second), "acme/orders", 32, client.Options{})
	if err != nil {
		t.Fatal(err)
	}
	d.stop()
	return n, sealed
}

// opens checks that a node serves, and opens what it has sealed before.
func opens(t *testing.T, n *node, sealed client.Result) {
	t.Helper()
	d := n.serve()
	opened, err := keys(t, n.Node).Unwrap(within(t, 20*time.Second), sealed.Envelope, client.Options{})
	if err != nil || !bytes.Equal(opened.Plaintext, sealed.Plaintext) {
		t.Errorf("what was sealed before: %v", err)
	}
	verifyAudit(t, n)
	d.stop()
}

// What a node needs is lost, or damaged: serve says what and what to do, init makes nothing in its
// place, and once it is put back all opens that did before.
func TestWhatIsLostIsNamedAndNeverMadeAnew(t *testing.T) {
	t.Parallel()
	n, sealed := used(t)
	for _, test := range []struct {
		what  string
		path  func(n *node) string
		spoil func(path string) error // nil: it is removed
		serve []string                // words that serve has to say
		init  []string                // and init
	}{
		{what: "node.json", path: func(n *node) string { return filepath.Join(n.DataDir, "node.json") },
			serve: []string{"node.json is missing", "Put the file back from a backup; do not run init"},
			init:  []string{"node.json is missing", "Put the file back from a backup; do not run init"}},
		{what: "node.json, cut short", path: func(n *node) string { return filepath.Join(n.DataDir, "node.json") }, spoil: half,
			serve: []string{"node.json cannot be read", "put it back from a backup; do not run init"},
			init:  []string{"node.json cannot be read", "put it back from a backup; do not run init"}},
		{what: "the data directory", path: func(n *node) string { return n.DataDir },
			serve: []string{"is not initialised: run", "kekd init --config"},
			init:  []string{"has an identity already: it belongs to another cluster", "put that cluster's data directory back"}},
		{what: "Raft's store", path: func(n *node) string { return filepath.Join(n.DataDir, "raft") },
			serve: []string{filepath.Join("data", "raft")},
			init:  []string{"is initialised already"}},
		{what: "Raft's log", path: (*node).raftLog,
			serve: []string{"log.db"},
			init:  []string{"is initialised already"}},
		{what: "Raft's log, cut short", path: (*node).raftLog, spoil: func(path string) error { return os.Truncate(path, 2*4096) },
			serve: []string{"the cluster's data is damaged", filepath.Join("data", "raft"), "restore the directory from a backup"},
			init:  []string{"is initialised already"}},
		{what: "the journal", path: func(n *node) string { return filepath.Join(n.DataDir, "audit") },
			serve: []string{"is not the one that the cluster knows", "put it back from where it is kept", "--accept-audit-loss REASON"},
			init:  []string{"is initialised already"}},
		{what: "the end of the journal", path: (*node).journal, spoil: cutOff,
			serve: []string{"is not the one that the cluster knows", "put it back from where it is kept", "--accept-audit-loss REASON"},
			init:  []string{"is initialised already"}},
		{what: "a byte of the journal", path: (*node).journal, spoil: alter,
			serve: []string{"is not the one that the cluster knows", "put it back from where it is kept", "--accept-audit-loss REASON"},
			init:  []string{"is initialised already"}},
		{what: "the token directory", path: func(n *node) string { return n.SoftHSM },
			serve: []string{"no token directory"},
			init:  []string{"is initialised already"}},
		{what: "the tokens in it", path: func(n *node) string { return filepath.Join(n.SoftHSM, "tokens") },
			serve: []string{"no token directory", "tokens"},
			init:  []string{"is initialised already"}},
	} {
		t.Run(test.what, func(t *testing.T) {
			n := n.in(t)
			path := test.path(n)
			kept := n.keep()
			defer n.putBack(kept)
			spoil := test.spoil
			if spoil == nil {
				spoil = os.RemoveAll
			}
			if err := spoil(path); err != nil {
				t.Fatal(err)
			}
			n.refused(1, test.serve, "serve")
			n.refused(1, test.init, "init")
			n.refused(1, test.serve, "serve") // the init has changed nothing
		})
	}
	opens(t, n, sealed)
}

// keep is a backup of a node that is stopped: its data directory and its token's.
func (n *node) keep() (backup string) {
	n.t.Helper()
	backup, err := os.MkdirTemp(n.Dir, "backup-")
	if err != nil {
		n.t.Fatal(err)
	}
	runTool(n.t, "cp", "-a", n.DataDir, n.SoftHSM, backup)
	return backup
}

func (n *node) putBack(backup string) {
	n.t.Helper()
	for _, dir := range []string{n.DataDir, n.SoftHSM} {
		if err := os.RemoveAll(dir); err != nil {
			n.t.Fatal(err)
		}
		runTool(n.t, "cp", "-a", filepath.Join(backup, filepath.Base(dir)), dir)
	}
}

func half(path string) error {
	info, err := os.Stat(path)
	if err != nil {
		return err
	}
	return os.Truncate(path, info.Size()/2)
}

// cutOff takes the last records from a journal, with the zeros after them, as if they had never been.
func cutOff(path string) error {
	b, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	b, _, _ = bytes.Cut(b, []byte{0})
	lines := bytes.SplitAfter(b, []byte("\n"))
	return os.WriteFile(path, bytes.Join(lines[:len(lines)-4], nil), 0o600)
}

func alter(path string) error {
	b, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	return os.WriteFile(path, bytes.Replace(b, []byte(`"tenant-create"`), []byte(`"tenant-delete"`), 1), 0o600)
}

// A journal that is lost for ever is given up on the operator's word alone, and that word is the first
// record of the next one. What was left of the old one is kept.
func TestLossOfTheJournalIsAccepted(t *testing.T) {
	t.Parallel()
	for name, spoil := range map[string]func(path string) error{
		"all of it": func(path string) error { return os.RemoveAll(filepath.Dir(path)) }, "its end": cutOff,
	} {
		t.Run(name, func(t *testing.T) {
			n, sealed := used(t)
			if err := spoil(n.journal()); err != nil {
				t.Fatal(err)
			}
			const reason = "the disk was replaced"
			d := n.serveWith("--accept-audit-loss", reason)
			verifyAudit(t, n)
			// What the journal writes itself may come before: its segment's header, and a signed head.
			first := slices.IndexFunc(journalOf(t, n), func(e *audit.Entry) bool {
				return e.Kind != audit.KindSegment && e.Kind != audit.KindCheckpoint
			})
			if e := journalOf(t, n)[max(first, 0)]; e.Kind != "audit-loss" || e.Reason != reason {
				t.Errorf("the journal begins with %+v, not with the loss", e)
			}
			aside, err := filepath.Glob(filepath.Join(n.DataDir, "audit.lost-*"))
			if err != nil || (len(aside) == 1) != (name == "its end") {
				t.Errorf("kept: %q, %v", aside, err)
			}
			d.stop()
			opens(t, n, sealed)
		})
	}
}

// A journal of yesterday, put in the place of today's, is found: the cluster knows how far it was.
func TestJournalIsRolledBack(t *testing.T) {
	t.Parallel()
	n, sealed := used(t)
	yesterday := n.keep()
	opens(t, n, sealed)
	today, journal := n.keep(), filepath.Join(n.DataDir, "audit")
	if err := os.RemoveAll(journal); err != nil {
		t.Fatal(err)
	}
	runTool(t, "cp", "-a", filepath.Join(yesterday, "data", "audit"), journal)
	n.refused(1, []string{"is not the one that the cluster knows"}, "serve")
	n.putBack(today)
	opens(t, n, sealed)
}

// A journal that was copied while its node went on is a fork of it, with a head that was never signed.
// Neither a start that refuses it nor one that accepts the loss changes a byte of it.
func TestForkedJournalIsLeftAsItWas(t *testing.T) {
	t.Parallel()
	n := initialised(t)
	d := n.serve()
	setUp(t, n.Node, "acme")
	sealAndOpen(t, n, "acme/orders")
	journal, fork := filepath.Join(n.DataDir, "audit"), filepath.Join(n.Dir, "fork")
	runTool(t, "cp", "-a", journal, fork)
	sealAndOpen(t, n, "acme/orders")
	d.stop()
	if err := os.RemoveAll(journal); err != nil {
		t.Fatal(err)
	}
	runTool(t, "cp", "-a", fork, journal)
	was := tree(t, journal)
	for range 2 { // as systemd would
		n.refused(1, []string{"is not the one that the cluster knows"}, "serve")
		if is := tree(t, journal); is != was {
			t.Fatalf("there is\n%safter the start, and was\n%s", is, was)
		}
		runTool(t, "diff", "-r", fork, journal)
	}
	d = n.serveWith("--accept-audit-loss", "a fork was put in its place")
	aside, err := filepath.Glob(journal + ".lost-*")
	if err != nil || len(aside) != 1 {
		t.Fatalf("kept: %q, %v", aside, err)
	}
	runTool(t, "diff", "-r", fork, aside[0])
	sealAndOpen(t, n, "acme/orders")
	verifyAudit(t, n)
	d.stop()
}

// A data directory of yesterday would enable again what was disabled since. The node's mark in its token tells, and
// nothing is started.
func TestDataDirectoryIsRolledBack(t *testing.T) {
	t.Parallel()
	n, sealed := used(t)
	yesterday := n.keep()
	disableAcme(t, n)
	today := n.keep()
	for _, what := range []string{"", "raft"} { // all of it; and Raft's store beside the journal of today
		if err := os.RemoveAll(filepath.Join(n.DataDir, what)); err != nil {
			t.Fatal(err)
		}
		runTool(t, "cp", "-a", filepath.Join(yesterday, "data", what), filepath.Join(n.DataDir, what))
		was := tree(t, filepath.Join(n.DataDir, "audit"))
		for range 2 { // as systemd would
			n.refused(1, []string{"is older than what this node has answered for", "Nothing was started or changed", "kekctl node remove", "kekd recover"}, "serve")
		}
		if is := tree(t, filepath.Join(n.DataDir, "audit")); is != was {
			t.Errorf("there is\n%safter the starts, and was\n%s", is, was)
		}
		n.putBack(today)
	}
	d := n.serve()
	if tenant := tenantOf(t, n.Node, "acme"); tenant.State != "disabled" {
		t.Errorf("the tenant is %s", tenant.State)
	}
	d.stop()
	// Where the token is put back as well, a cluster of one node cannot tell. That is written where it can be read,
	// so it is held to be true.
	n.putBack(yesterday)
	opens(t, n, sealed)
}

func disableAcme(t *testing.T, n *node) {
	t.Helper()
	d := n.serve()
	if _, err := admin(t, n.Node).DisableTenant(within(t, 20*time.Second), &kekdv1.DisableTenantRequest{Name: "acme", Reason: "stolen"}); err != nil {
		t.Fatal(err)
	}
	d.stop()
}

func tenantOf(t *testing.T, n devcluster.Node, name string) *kekdv1.Tenant {
	t.Helper()
	tenant, err := admin(t, n).GetTenant(within(t, 20*time.Second), &kekdv1.GetTenantRequest{Name: name})
	if err != nil {
		t.Fatal(err)
	}
	return tenant
}

// Torn files of the token are put back from their copies; without a copy the token is not made anew.
func TestTokenFileIsTorn(t *testing.T) {
	t.Parallel()
	n, sealed := used(t)
	files, err := filepath.Glob(filepath.Join(n.SoftHSM, "tokens", "*", "token.object"))
	if err != nil || len(files) != 1 {
		t.Fatalf("token.object: %q, %v", files, err)
	}
	if err := os.Truncate(files[0], 0); err != nil {
		t.Fatal(err)
	}
	opens(t, n, sealed)
	if log, err := os.ReadFile(filepath.Join(n.Dir, "kekd.log")); err != nil || !strings.Contains(string(log), "the token directory was put right") {
		t.Errorf("the log does not say so: %v", err)
	}

	kept := n.keep()
	copies, err := filepath.Glob(filepath.Join(n.SoftHSM, "shadow", "*", "token.object"))
	if err != nil || len(copies) != 1 {
		t.Fatalf("copies: %q, %v", copies, err)
	}
	for i, path := range append(copies, files...) {
		err := half(path)
		if err == nil { // two that have one size and one time are taken for equal
			err = os.Chtimes(path, time.Time{}, time.Now().Add(time.Duration(i-10)*time.Minute))
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	n.refused(1, []string{"a file of the token is torn, and there is no good copy of it", "token.object", "put it back from a backup"}, "serve")
	n.putBack(kept)
	opens(t, n, sealed)
}
