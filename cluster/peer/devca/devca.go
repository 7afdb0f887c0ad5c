// Package devca is a certificate authority in a directory, for `kekd dev` and for tests. Its key lies
// there as a file: a cluster that matters has an authority of its own.
package devca

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"os"
	"path/filepath"
	"time"
)

// Names of files in the directory of an authority and of a node's certificate.
const (
	CAFile          = "ca.pem"
	CAKeyFile       = "ca-key.pem"
	CertificateFile = "node.pem"
	KeyFile         = "node-key.pem"
)

const (
	caDays   = 3650
	nodeDays = 365
	day      = 24 * time.Hour
	// skew is how far a clock may be behind that of the machine that made a certificate.
	skew = time.Hour
)

// CA is an authority.
type CA struct {
	cert *x509.Certificate
	key  crypto.Signer
	path string
}

// Make makes an authority in a directory, which is made too if it is not there. One that is there is
// not replaced: the error is [os.ErrExist].
func Make(dir, name string) (*CA, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	if _, err := os.Lstat(filepath.Join(dir, CAFile)); err == nil {
		return nil, fmt.Errorf("%s has an authority: %w", dir, os.ErrExist)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	now := time.Now()
	template := &x509.Certificate{
		SerialNumber:          serial(),
		Subject:               pkix.Name{CommonName: name},
		NotBefore:             now.Add(-skew),
		NotAfter:              now.Add(caDays * day),
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		BasicConstraintsValid: true,
		IsCA:                  true,
		MaxPathLenZero:        true,
	}
	ca := &CA{key: key, path: filepath.Join(dir, CAFile)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, err
	}
	if ca.cert, err = x509.ParseCertificate(der); err != nil {
		return nil, err
	}
	if err := writeKey(filepath.Join(dir, CAKeyFile), key); err != nil {
		return nil, err
	}
	return ca, write(ca.path, "CERTIFICATE", der, 0o644) // last: an authority that is there is whole
}

// Open opens the authority that [Make] has made.
func Open(dir string) (*CA, error) {
	pair, err := tls.LoadX509KeyPair(filepath.Join(dir, CAFile), filepath.Join(dir, CAKeyFile))
	if err != nil {
		return nil, fmt.Errorf("the authority in %s: %w", dir, err)
	}
	return &CA{pair.Leaf, pair.PrivateKey.(crypto.Signer), filepath.Join(dir, CAFile)}, nil
}

// Path is the file of the authority's certificate.
func (c *CA) Path() string { return c.path }

// Certificate is the authority's.
func (c *CA) Certificate() *x509.Certificate { return c.cert }

// Issue writes a new key, and a certificate for the node of this name, into a directory. What is there
// is replaced, each file by a rename.
func (c *CA) Issue(dir, name string) error {
	now := time.Now()
	return c.IssueFrom(dir, x509.Certificate{DNSNames: []string{name}, NotBefore: now.Add(-skew), NotAfter: now.Add(nodeDays * day)})
}

// IssueFrom is Issue with the names, the time and, if it is set, the use that the template has.
func (c *CA) IssueFrom(dir string, template x509.Certificate) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	template.SerialNumber = serial()
	template.KeyUsage = x509.KeyUsageDigitalSignature
	template.BasicConstraintsValid = true
	if template.ExtKeyUsage == nil {
		template.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}
	}
	der, err := x509.CreateCertificate(rand.Reader, &template, c.cert, key.Public(), c.key)
	if err != nil {
		return err
	}
	if err := writeKey(filepath.Join(dir, KeyFile), key); err != nil {
		return err
	}
	return write(filepath.Join(dir, CertificateFile), "CERTIFICATE", der, 0o644)
}
