package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"os"
	"path/filepath"

	"github.com/kekd/kekd/hierarchy"
	"github.com/kekd/kekd/hierarchy/audit"
)

// journalMain writes a real journal with records of one tenant: journal DIR. Beside it are left DIR.pem,
// the public key that signed it, and DIR.anchor, its last signed head.
//
// It is a process of its own, because one that starts others may have lent them the journal's lock.
func journalMain() {
	if err := writeJournal(context.Background(), os.Args[1]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func writeJournal(ctx context.Context, dir string) error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	opts := audit.Options{Cluster: hierarchy.ClusterID{ID: hierarchy.NewID()}, Node: hierarchy.NodeID{ID: hierarchy.NewID()}, Signer: key}
	if err := os.MkdirAll(filepath.Dir(dir), 0o700); err != nil {
		return err
	}
	if err := audit.Create(dir, opts); err != nil {
		return err
	}
	j, err := audit.Open(dir, opts)
	if err != nil {
		return err
	}
	record := audit.Record{Tenant: hierarchy.TenantID{ID: hierarchy.NewID()}, TenantName: "acme", Outcome: audit.OutcomeOK}
	for _, record.Kind = range []string{"tenant-create", "key-create", "unwrap"} {
		if _, err := j.Write(ctx, []audit.Record{record}); err != nil {
			return err
		}
	}
	record.Kind = "export"
	anchor, err := j.Seal(ctx, record)
	if err != nil {
		return err
	}
	if err := j.Close(ctx); err != nil {
		return err
	}
	der, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		return err
	}
	if err := os.WriteFile(dir+".pem", pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}), 0o600); err != nil {
		return err
	}
	text, err := anchor.MarshalText()
	if err != nil {
		return err
	}
	return os.WriteFile(dir+".anchor", text, 0o600)
}
