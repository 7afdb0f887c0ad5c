package main

import (
	"crypto"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"os"
	"path/filepath"
	"time"
)

// devCA certifies the nodes of a dev cluster to each other. Its key stays in the cluster's directory, so
// that nodes can be added by hand: openssl takes both files.
type devCA struct {
	dir  string
	cert *x509.Certificate
	key  crypto.Signer
}

func (a *devCA) path() string { return filepath.Join(a.dir, "ca.pem") }

// devCAYears is longer than anybody keeps a directory.
const devCAYears = 20

// openDevCA makes the authority, unless it is there. The certificate comes last: where it is, all is.
func openDevCA(dir string) (*devCA, error) {
	a := &devCA{dir: dir}
	keyPath := filepath.Join(dir, "ca.key")
	if _, err := os.Stat(a.path()); errors.Is(err, fs.ErrNotExist) {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return nil, err
		}
		key, err := newKeyFile(keyPath)
		if err != nil {
			return nil, err
		}
		root := certificateOf("kekd dev CA")
		root.IsCA, root.BasicConstraintsValid, root.KeyUsage = true, true, x509.KeyUsageCertSign
		if err := writeCertificate(a.path(), root, root, key.Public(), key); err != nil {
			return nil, err
		}
	}
	var err error
	if a.key, err = readKeyFile(keyPath); err != nil {
		return nil, err
	}
	b, err := os.ReadFile(a.path())
	if err != nil {
		return nil, err
	}
	block, _ := pem.Decode(b)
	if block == nil {
		return nil, fmt.Errorf("%s has no certificate", a.path())
	}
	a.cert, err = x509.ParseCertificate(block.Bytes)
	return a, err
}

// certify makes a node's certificate and key, unless they are there.
func (a *devCA) certify(node, certPath, keyPath string) error {
	if _, err := os.Stat(certPath); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	key, err := newKeyFile(keyPath)
	if err != nil {
		return err
	}
	c := certificateOf(node)
	c.DNSNames = []string{node}
	c.KeyUsage = x509.KeyUsageDigitalSignature
	c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}
	return writeCertificate(certPath, c, a.cert, key.Public(), a.key)
}

func certificateOf(name string) *x509.Certificate {
	serial := make([]byte, 16)
	rand.Read(serial)
	now := time.Now()
	return &x509.Certificate{
		SerialNumber: new(big.Int).SetBytes(serial), Subject: pkix.Name{CommonName: name},
		NotBefore: now.Add(-time.Hour), NotAfter: now.AddDate(devCAYears, 0, 0),
	}
}

func writeCertificate(path string, c, parent *x509.Certificate, public crypto.PublicKey, by crypto.Signer) error {
	der, err := x509.CreateCertificate(rand.Reader, c, parent, public, by)
	if err != nil {
		return err
	}
	return writeFileAtomic(path, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o644)
}
