package main

import (
	"context"
	"crypto/ecdsa"
	"encoding/pem"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/kekd/kekd/hierarchy/audit"
)

type offlineOut struct {
	Cluster string `json:"cluster_id"`
	First   uint64 `json:"first"` // sequence of the first record that is there
	Last    uint64 `json:"last"`
	Sealed  uint64 `json:"sealed"` // the last record that a good signature covers
	Pinned  bool   `json:"pinned"` // signatures were checked with the key that was given
	// The last record that an anchor proves to be there; 0: none, so that the end is not proven.
	Anchored uint64 `json:"anchored"`
}

// verifyOffline reads a journal and holds it against what was given.
func verifyOffline(ctx context.Context, dir, keyFile string, anchorFiles []string) (*verifyOut, error) {
	dir, err := journalIn(dir)
	if err != nil {
		return nil, err
	}
	var opts audit.VerifyOptions
	if keyFile != "" {
		key, err := readPublicKey(keyFile)
		if err != nil {
			return nil, err
		}
		opts.PublicKey = key
	}
	for _, name := range anchorFiles {
		text, err := os.ReadFile(name)
		if err != nil {
			return nil, err
		}
		var c audit.Checkpoint
		if err := c.UnmarshalText(text); err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		opts.Anchors = append(opts.Anchors, c)
	}
	r, err := audit.Verify(ctx, os.DirFS(dir), opts)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", dir, err)
	}
	out := &verifyOut{
		OK:      r.OK(),
		Chains:  make([]chainOut, 0, len(r.Chains)),
		Faults:  make([]faultOut, 0, len(r.Faults)),
		Offline: &offlineOut{Cluster: r.Cluster.String(), First: r.First, Last: r.Last, Sealed: r.Sealed, Pinned: r.Pinned},
	}
	if out.OK { // each anchor's record is there
		for _, c := range opts.Anchors {
			out.Offline.Anchored = max(out.Offline.Anchored, c.Sequence)
		}
	}
	for _, c := range r.Chains {
		tenant := ""
		if !c.Tenant.IsZero() {
			tenant = c.Tenant.String()
		}
		out.Chains = append(out.Chains, chainOut{c.Node.String(), tenant, c.Records, c.Head.String()})
	}
	for _, f := range r.Faults {
		where, what, _ := strings.Cut(f.String(), ": ")
		out.Faults = append(out.Faults, faultOut{where, what})
	}
	return out, nil
}

// journalIn finds the journal in a daemon's data directory. A journal has no directories in it.
func journalIn(dir string) (string, error) {
	inner := filepath.Join(dir, "audit")
	if st, err := os.Stat(inner); err == nil && st.IsDir() {
		return inner, nil
	}
	st, err := os.Stat(dir)
	if err == nil && !st.IsDir() {
		err = &fs.PathError{Op: "stat", Path: dir, Err: syscall.ENOTDIR}
	}
	if err != nil {
		return "", &fault{exit: exitLocal, code: codeLocal, message: fmt.Sprintf("there is no journal to read: %v", err),
			hint: "give a daemon's data directory, the directory 'audit' in it, or a copy of that"}
	}
	return dir, nil
}

// readPublicKey reads a SubjectPublicKeyInfo in PEM or DER.
func readPublicKey(name string) (*ecdsa.PublicKey, error) {
	b, err := os.ReadFile(name)
	if err != nil {
		return nil, err
	}
	if block, _ := pem.Decode(b); block != nil {
		b = block.Bytes
	}
	key, err := audit.ParsePublicKey(b)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return key, nil
}
