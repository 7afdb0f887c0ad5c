package main

import (
	"context"
	"crypto/ecdsa"
	"encoding/pem"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/kekd/kekd/hierarchy/audit"
)

type offlineOut struct {
	Cluster string `json:"cluster_id"`
	First   uint64 `json:"first"` // sequence of the first record that is there
	Last    uint64 `json:"last"`
	Sealed  uint64 `json:"sealed"` // the last record that a good signature covers
	Pinned  bool   `json:"pinned"` // signatures were checked with the key that was given
}

// verifyOffline reads a journal and holds it against what was given.
func verifyOffline(ctx context.Context, dir, keyFile string, anchorFiles []string) (*verifyOut, error) {
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
	r, err := audit.Verify(ctx, os.DirFS(journalIn(dir)), opts)
	if err != nil {
		return nil, err
	}
	out := &verifyOut{
		OK:      r.OK(),
		Chains:  make([]chainOut, 0, len(r.Chains)),
		Faults:  make([]faultOut, 0, len(r.Faults)),
		Offline: &offlineOut{r.Cluster.String(), r.First, r.Last, r.Sealed, r.Pinned},
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
func journalIn(dir string) string {
	inner := filepath.Join(dir, "audit")
	if st, err := os.Stat(inner); err == nil && st.IsDir() {
		return inner
	}
	return dir
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
