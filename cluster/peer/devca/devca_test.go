package devca_test

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/kekd/kekd/cluster/peer/devca"
)

func TestIssue(t *testing.T) {
	dir := t.TempDir()
	made, err := devca.Make(filepath.Join(dir, "ca"), "a cluster")
	if err != nil {
		t.Fatal(err)
	}
	opened, err := devca.Open(filepath.Join(dir, "ca"))
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AddCert(made.Certificate())
	var keys []string
	for _, ca := range []*devca.CA{made, opened, opened} { // each replaces what was there
		if err := ca.Issue(filepath.Join(dir, "a"), "node-a"); err != nil {
			t.Fatal(err)
		}
		pair, err := tls.LoadX509KeyPair(filepath.Join(dir, "a", devca.CertificateFile), filepath.Join(dir, "a", devca.KeyFile))
		if err != nil {
			t.Fatal(err)
		}
		for _, usage := range []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth} {
			if _, err := pair.Leaf.Verify(x509.VerifyOptions{Roots: roots, KeyUsages: []x509.ExtKeyUsage{usage}}); err != nil {
				t.Error(err)
			}
		}
		if diff := cmp.Diff([]string{"node-a"}, pair.Leaf.DNSNames); diff != "" {
			t.Errorf("-want +got:\n%s", diff)
		}
		if pair.Leaf.IsCA {
			t.Error("the node is an authority")
		}
		if end := time.Until(pair.Leaf.NotAfter); end < 364*24*time.Hour || end > 366*24*time.Hour {
			t.Errorf("it ends in %v", end)
		}
		keys = append(keys, string(pair.Leaf.RawSubjectPublicKeyInfo))
	}
	if keys[0] == keys[1] || keys[1] == keys[2] {
		t.Error("a key was certified twice")
	}
}

func TestModes(t *testing.T) {
	dir := t.TempDir()
	ca, err := devca.Make(dir, "a cluster")
	if err != nil {
		t.Fatal(err)
	}
	if err := ca.Issue(dir, "node-a"); err != nil {
		t.Fatal(err)
	}
	there, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]fs.FileMode{}
	for _, e := range there {
		info, err := e.Info()
		if err != nil {
			t.Fatal(err)
		}
		got[e.Name()] = info.Mode()
	}
	want := map[string]fs.FileMode{
		devca.CAFile: 0o644, devca.CAKeyFile: 0o600, devca.CertificateFile: 0o644, devca.KeyFile: 0o600,
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
}

func TestAnAuthorityIsNotReplaced(t *testing.T) {
	dir := t.TempDir()
	if _, err := devca.Make(dir, "a cluster"); err != nil {
		t.Fatal(err)
	}
	before, err := os.ReadFile(filepath.Join(dir, devca.CAFile))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := devca.Make(dir, "another"); !errors.Is(err, os.ErrExist) {
		t.Errorf("a second time: %v", err)
	}
	after, err := os.ReadFile(filepath.Join(dir, devca.CAFile))
	if err != nil || string(before) != string(after) {
		t.Errorf("it was changed: %v", err)
	}
	if _, err := devca.Open(t.TempDir()); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("where there is none: %v", err)
	}
}
