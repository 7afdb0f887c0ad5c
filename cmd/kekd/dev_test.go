package main

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
)

// Who waits for cluster.json waits for the run that he has started: neither that of an earlier run
// nor a start that failed leaves one.
func TestDevListsOnlyWhatServed(t *testing.T) {
	dir := t.TempDir()
	node := filepath.Join(dir, "nodes", "local-1")
	if err := os.MkdirAll(node, 0o755); err != nil {
		t.Fatal(err)
	}
	for path, text := range map[string]string{
		clusterFile(dir):                 `{"nodes":[]}`,
		filepath.Join(node, "kekd.toml"): "no configuration",
	} {
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := runDev(t.Context(), dir, nil, io.Discard, io.Discard); err == nil {
		t.Fatal("kekd dev ran on a configuration that it cannot read")
	}
	if _, err := os.Stat(clusterFile(dir)); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("there is a cluster.json, and nothing has served: %v", err)
	}
}

// Each node of a dev cluster has an address and a certificate of its own, and keeps them.
func TestDevNodesAreCertifiedOnce(t *testing.T) {
	dir := t.TempDir()
	regions := []devRegion{{"eu", roleVoting, 2}, {"w", roleWitness, 1}}
	made := func() (listen []string, certs [][]byte) {
		t.Helper()
		c := newDevCluster(dir, regions, io.Discard)
		if err := c.prepare(); err != nil {
			t.Fatal(err)
		}
		for _, n := range c.nodes {
			cfg, err := loadConfig(n.configPath())
			if err != nil {
				t.Fatal(err)
			}
			if err := cfg.mustBeOurs(n.configPath(), dir); err != nil {
				t.Error(err)
			}
			pair, err := tls.LoadX509KeyPair(cfg.Peers.Certificate, cfg.Peers.Key)
			if err != nil {
				t.Fatal(err)
			}
			roots := x509.NewCertPool()
			ca, err := os.ReadFile(cfg.Peers.CA)
			if err != nil || !roots.AppendCertsFromPEM(ca) {
				t.Fatalf("the CA: %v", err)
			}
			for _, usage := range []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth} {
				if _, err := pair.Leaf.Verify(x509.VerifyOptions{DNSName: n.Name, Roots: roots, KeyUsages: []x509.ExtKeyUsage{usage}}); err != nil {
					t.Errorf("node %s: %v", n.Name, err)
				}
			}
			if cfg.hasToken() != (n.Role != roleWitness) {
				t.Errorf("node %s of role %s: a token: %v", n.Name, n.Role, cfg.hasToken())
			}
			listen, certs = append(listen, cfg.Peers.Listen), append(certs, pair.Leaf.Raw)
		}
		return listen, certs
	}
	listen, certs := made()
	for i := range listen {
		for j := range i {
			if listen[i] == listen[j] {
				t.Errorf("nodes %d and %d listen on %s", j, i, listen[i])
			}
		}
	}
	again, certsAgain := made()
	for i := range listen {
		if listen[i] != again[i] || string(certs[i]) != string(certsAgain[i]) {
			t.Errorf("node %d: %s has become %s, or its certificate another", i, listen[i], again[i])
		}
	}
}
