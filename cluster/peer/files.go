package peer

import (
	"bytes"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// Files is where a node's certificate is, all in PEM. They may be replaced while the node runs.
type Files struct {
	// Certificate is the node's own, followed by those between it and the authority's, if there are any.
	Certificate string
	// Key is the certificate's private key. Only root, the daemon's user and its group may read it.
	Key string
	// CA has the certificates of the authorities that nodes of this cluster are taken from.
	CA string
}

// maxFile is far more than any chain has, in bytes.
const maxFile = 1 << 20

// material is what the files had when they last fitted together. It does not change.
type material struct {
	cert  tls.Certificate
	roots *x509.CertPool
	cas   []*x509.Certificate
	// ca is the authority that the node's own chain ends in.
	ca *x509.Certificate
	// sum tells whether the files have changed.
	sum [sha256.Size]byte
}

// keptFiles are the files of a running node.
type keptFiles struct {
	files Files
	name  string
	log   *slog.Logger

	current atomic.Pointer[material]
	reading sync.Mutex // who finds it locked takes what there is: a file that hangs holds up one
	said    string     // the complaint that the log has already
}

// openFiles reads the files of the node of this name.
func openFiles(files Files, name string, log *slog.Logger) (*keptFiles, error) {
	m, err := files.load(name)
	if err != nil {
		return nil, err
	}
	k := &keptFiles{files: files, name: name, log: log}
	k.current.Store(m)
	return k, nil
}

// now is what the files have, or had when they were last good.
func (k *keptFiles) now() *material {
	if !k.reading.TryLock() {
		return k.current.Load()
	}
	defer k.reading.Unlock()
	before := k.current.Load()
	m, err := k.files.reload(k.name, before.sum)
	switch {
	case err != nil:
		if said := err.Error(); said != k.said {
			k.said = said
			k.log.Warn("the node's certificate stays the one it has: its files cannot be used", "error", err, "expires", before.cert.Leaf.NotAfter)
		}
		return before
	case m == nil:
		if k.said != "" { // somebody has put back what there was
			k.said = ""
			k.log.Info("the certificate's files are good again")
		}
		return before
	}
	k.said = ""
	k.current.Store(m)
	k.log.Info("the node's certificate was read again", "serial", m.cert.Leaf.SerialNumber, "expires", m.cert.Leaf.NotAfter)
	return m
}

func (f Files) load(name string) (*material, error) { return f.reload(name, [sha256.Size]byte{}) }

// reload is nil if the files are still those of the sum.
func (f Files) reload(name string, sum [sha256.Size]byte) (*material, error) {
	cert, err := readFile(f.Certificate, false)
	if err != nil {
		return nil, fmt.Errorf("%w: the certificate: %w", ErrFiles, err)
	}
	key, err := readFile(f.Key, true)
	if err != nil {
		return nil, fmt.Errorf("%w: the key: %w", ErrFiles, err)
	}
	defer clear(key)
	ca, err := readFile(f.CA, false)
	if err != nil {
		return nil, fmt.Errorf("%w: the CA: %w", ErrFiles, err)
	}
	m := &material{sum: sumOf(cert, key, ca)}
	if m.sum == sum {
		return nil, nil
	}
	if m.cert, err = tls.X509KeyPair(cert, key); err != nil {
		return nil, fmt.Errorf("%w: %s and %s do not fit together: %w", ErrFiles, f.Certificate, f.Key, err)
	}
	if m.cas, err = parseCAs(ca); err != nil {
		return nil, fmt.Errorf("%w: %s: %w", ErrFiles, f.CA, err)
	}
	m.roots = x509.NewCertPool()
	for _, c := range m.cas {
		m.roots.AddCert(c)
	}
	if err := m.checkOwn(name); err != nil {
		return nil, fmt.Errorf("%w: %s, with the CA %s: %w", ErrFiles, f.Certificate, f.CA, err)
	}
	return m, nil
}

// checkOwn looks at the node's certificate as its peers will.
func (m *material) checkOwn(name string) error {
	var chain []*x509.Certificate
	for _, der := range m.cert.Certificate {
		c, err := x509.ParseCertificate(der)
		if err != nil {
			return err
		}
		chain = append(chain, c)
	}
	m.cert.Leaf = chain[0]
	for _, usage := range []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth} {
		ca, err := verifyChain(chain, m.roots, usage)
		if err != nil {
			return fmt.Errorf("%w (a node's certificate is used as a client's and as a server's)", err)
		}
		m.ca = ca
	}
	return checkName(chain[0], name)
}

// verifyChain returns the authority's certificate that the chain ends in.
func verifyChain(chain []*x509.Certificate, roots *x509.CertPool, usage x509.ExtKeyUsage) (*x509.Certificate, error) {
	if len(chain) == 0 {
		return nil, fmt.Errorf("%w: there is none", ErrCertificate)
	}
	between := x509.NewCertPool()
	for _, c := range chain[1:] {
		between.AddCert(c)
	}
	verified, err := chain[0].Verify(x509.VerifyOptions{
		Roots: roots, Intermediates: between, CurrentTime: time.Now(), KeyUsages: []x509.ExtKeyUsage{usage},
	})
	if bad, ok := errors.AsType[x509.CertificateInvalidError](err); ok && bad.Reason == x509.Expired {
		// Go's words have the time of day in them, and so are never the same twice.
		return nil, fmt.Errorf("%w: it is valid from %v to %v", ErrCertificate, bad.Cert.NotBefore, bad.Cert.NotAfter)
	}
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrCertificate, err)
	}
	return verified[0][len(verified[0])-1], nil
}

// checkName compares names as they are: a certificate for *.example is for no node.
func checkName(c *x509.Certificate, name string) error {
	if slices.Contains(c.DNSNames, name) {
		return nil
	}
	return fmt.Errorf("%w: the certificate is for %q, the node is called %q: a node's certificate has the node's name as a DNS name (subjectAltName)", ErrWrongName, c.DNSNames, name)
}

func parseCAs(b []byte) ([]*x509.Certificate, error) {
	var cas []*x509.Certificate
	for {
		var block *pem.Block
		if block, b = pem.Decode(b); block == nil {
			break
		}
		if block.Type != "CERTIFICATE" {
			return nil, fmt.Errorf("it has a %s; it has to have certificates alone", block.Type)
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, err
		}
		if !c.IsCA {
			return nil, fmt.Errorf("the certificate of %q is no authority's", c.Subject)
		}
		cas = append(cas, c)
	}
	if len(bytes.TrimSpace(b)) > 0 {
		return nil, errors.New("something follows the last certificate, or the file is cut off")
	}
	if len(cas) == 0 {
		return nil, errors.New("it has no certificate")
	}
	return cas, nil
}

// CAHash is how a join token names an authority: SHA-256 of its certificate's DER.
func CAHash(ca *x509.Certificate) [sha256.Size]byte { return sha256.Sum256(ca.Raw) }

func sumOf(parts ...[]byte) (sum [sha256.Size]byte) {
	h := sha256.New()
	for _, p := range parts {
		one := sha256.Sum256(p)
		h.Write(one[:])
	}
	h.Sum(sum[:0])
	return sum
}

// readFile reads a small file; a secret one only if nobody but those who have to can read or change it.
func readFile(path string, secret bool) (_ []byte, err error) {
	if path == "" {
		return nil, errors.New("no file is named")
	}
	// Without O_NONBLOCK a pipe in the file's place would hold the node up.
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%s is not a file", path)
	}
	if info.Size() > maxFile {
		return nil, fmt.Errorf("%s has %d bytes, at most %d are read", path, info.Size(), maxFile)
	}
	if secret {
		if err := checkSecret(path, info); err != nil {
			return nil, err
		}
	}
	b := make([]byte, info.Size())
	if _, err := io.ReadFull(f, b); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return b, nil
}

func checkSecret(path string, info fs.FileInfo) error {
	if mode := info.Mode().Perm(); mode&0o027 != 0 {
		return fmt.Errorf("others may read or change %s (mode %04o): run chmod 0640 or 0600 on it; if it was readable by everybody, have a new key certified", path, mode)
	}
	if owner, ok := info.Sys().(*syscall.Stat_t); ok && owner.Uid != 0 && owner.Uid != uint32(os.Geteuid()) {
		return fmt.Errorf("%s belongs to uid %d, who may read and change it: it has to be root's or uid %d's", path, owner.Uid, os.Geteuid())
	}
	return nil
}
