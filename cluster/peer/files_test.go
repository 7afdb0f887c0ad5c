package peer_test

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/kekd/kekd/cluster/peer"
	"github.com/kekd/kekd/cluster/peer/devca"
)

func TestFilesThatCannotBeUsed(t *testing.T) {
	t.Parallel()
	ca := authority(t)
	for name, c := range map[string]struct {
		spoil func(t *testing.T, f peer.Files)
		words string
	}{
		"no certificate": {func(t *testing.T, f peer.Files) { os.Remove(f.Certificate) }, "the certificate: open"},
		"no CA":          {func(t *testing.T, f peer.Files) { os.Remove(f.CA) }, "the CA: open"},
		"a key for everybody": {func(t *testing.T, f peer.Files) { os.Chmod(f.Key, 0o644) },
			"others may read or change"},
		"a key that the group may write": {func(t *testing.T, f peer.Files) { os.Chmod(f.Key, 0o660) },
			"others may read or change"},
		"a pipe for a key": {func(t *testing.T, f peer.Files) {
			os.Remove(f.Key)
			if err := syscall.Mkfifo(f.Key, 0o600); err != nil {
				t.Fatal(err)
			}
		}, "is not a file"},
		"an endless file": {func(t *testing.T, f peer.Files) { os.Truncate(f.CA, 1<<21) }, "at most 1048576 are read"},
		"the key of another": {func(t *testing.T, f peer.Files) {
			other := filesFor(t, ca, "a")
			b, _ := os.ReadFile(other.Key)
			writeFile(t, f.Key, b, 0o600)
		}, "do not fit together"},
		"half of the certificate": {func(t *testing.T, f peer.Files) {
			b, _ := os.ReadFile(f.Certificate)
			writeFile(t, f.Certificate, b[:len(b)/2], 0o644)
		}, "do not fit together"},
		"half of the CA": {func(t *testing.T, f peer.Files) {
			b, _ := readAll(f.CA, f.CA)
			writeFile(t, f.CA, b[:len(b)*3/4], 0o644)
		}, "is cut off"},
		"no CA in the file": {func(t *testing.T, f peer.Files) { writeFile(t, f.CA, []byte("\n"), 0o644) }, "has no certificate"},
		"a key in the CA's file": {func(t *testing.T, f peer.Files) {
			b, _ := readAll(f.CA, f.Key)
			writeFile(t, f.CA, b, 0o644)
		}, "certificates alone"},
		"a node's certificate as CA": {func(t *testing.T, f peer.Files) { copyFile(t, f.Certificate, f.CA) }, "is no authority's"},
		"another CA": {func(t *testing.T, f peer.Files) { copyFile(t, authority(t).Path(), f.CA) },
			"unknown authority"},
		"another name": {func(t *testing.T, f peer.Files) { reissue(t, ca, f, validFor("b", -time.Hour, time.Hour)) },
			`the certificate is for ["b"], the node is called "a"`},
		"a wildcard": {func(t *testing.T, f peer.Files) { reissue(t, ca, f, validFor("*", -time.Hour, time.Hour)) },
			`the certificate is for ["*"], the node is called "a"`},
		"expired": {func(t *testing.T, f peer.Files) { reissue(t, ca, f, validFor("a", -2*time.Hour, -time.Hour)) },
			"it is valid from"},
		"not valid yet": {func(t *testing.T, f peer.Files) { reissue(t, ca, f, validFor("a", time.Hour, 2*time.Hour)) },
			"it is valid from"},
		"for servers alone": {func(t *testing.T, f peer.Files) {
			template := validFor("a", -time.Hour, time.Hour)
			template.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
			reissue(t, ca, f, template)
		}, "used as a client's and as a server's"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			cfg, _ := config(t, ca, "a")
			c.spoil(t, cfg.Files)
			p, err := peer.Open(cfg)
			if err == nil {
				closePort(t, p)
			}
			if !errors.Is(err, peer.ErrFiles) || !strings.Contains(err.Error(), c.words) {
				t.Errorf("got %v\nwant an ErrFiles that says %q", err, c.words)
			}
		})
	}
}

// The group may read the key: it is the daemon's.
func TestKeyForTheGroup(t *testing.T) {
	t.Parallel()
	_, n := config(t, authority(t), "a")
	if err := os.Chmod(n.cfg.Key, 0o640); err != nil {
		t.Fatal(err)
	}
	n.open(t)
}

// What is on disk is used at the next handshake, without a restart.
func TestCertificateIsReadAgain(t *testing.T) {
	t.Parallel()
	ca := authority(t)
	nodes := openNodes(t, ca, "a", "b")
	a, b := nodes[0], nodes[1]
	before := b.CertificateExpires()
	reissue(t, ca, b.cfg.Files, validFor("b", -time.Hour, 24*time.Hour))
	c, err := a.Dial(patience(t), b.id, peer.Calls)
	if err != nil {
		t.Fatal(err)
	}
	got := c.(interface{ ConnectionState() tls.ConnectionState }).ConnectionState().PeerCertificates[0].NotAfter
	if !got.Before(before) || time.Until(got) > 24*time.Hour {
		t.Errorf("the certificate seen ends %v", got)
	}
	b.log.says(t, "the node's certificate was read again")
}

// Files that do not fit together are left alone, and the log says so once.
func TestLastGoodCertificateStays(t *testing.T) {
	t.Parallel()
	ca := authority(t)
	nodes := openNodes(t, ca, "a", "b")
	a, b := nodes[0], nodes[1]
	good, err := os.ReadFile(b.cfg.Certificate)
	if err != nil {
		t.Fatal(err)
	}
	try := func() {
		t.Helper()
		c, err := a.Dial(patience(t), b.id, peer.Calls)
		if err != nil {
			t.Fatal(err)
		}
		c.Close()
	}
	for _, half := range [][]byte{good[:len(good)/2], nil} {
		writeFile(t, b.cfg.Certificate, half, 0o644)
		try()
		try()
	}
	if n := b.log.count("its files cannot be used"); n != 1 {
		t.Errorf("the log says it %d times:\n%s", n, b.log)
	}
	writeFile(t, b.cfg.Certificate, good, 0o644)
	try()
	b.log.says(t, "files are good again")

	// What does not verify is not taken either.
	reissue(t, ca, b.cfg.Files, validFor("b", -2*time.Hour, -time.Hour))
	try()
	b.log.says(t, "it is valid from")
}

// A CA that is taken out of the file ends the connections of those that it had certified, and only
// theirs.
func TestReloadUnderOpenConnections(t *testing.T) {
	t.Parallel()
	old, next := authority(t), authority(t)
	both, err := readAll(old.Path(), next.Path())
	if err != nil {
		t.Fatal(err)
	}
	var nodes []*node
	for _, n := range []struct {
		name string
		ca   *devca.CA
	}{{"a", old}, {"b", next}, {"c", next}} {
		_, made := config(t, n.ca, n.name)
		writeFile(t, made.cfg.CA, both, 0o644)
		nodes = append(nodes, made.open(t))
	}
	introduce(nodes...)
	a, b, c := nodes[0], nodes[1], nodes[2]
	b.serve(t)
	for _, from := range []*node{a, c} {
		if err := from.call(t, b.id); err != nil {
			t.Fatal(err)
		}
	}
	if b.Conns() != 2 {
		t.Fatalf("b has %d connections", b.Conns())
	}
	copyFile(t, next.Path(), b.cfg.CA)
	eventually(t, "the connection of the old authority's node ends", func() bool { return b.Conns() == 1 })
	if err := a.call(t, b.id); err == nil {
		t.Error("the old authority's node is let in")
	}
	if err := c.call(t, b.id); err != nil {
		t.Error(err)
	}
	if n := b.log.count("a connection with a peer was ended"); n != 1 {
		t.Errorf("%d connections were ended:\n%s", n, b.log)
	}
}

// A connection ends when the peer's certificate does, on both sides.
func TestConnectionsEndWithTheCertificate(t *testing.T) {
	t.Parallel()
	ca := authority(t)
	_, a := config(t, ca, "a")
	_, b := config(t, ca, "b")
	reissue(t, ca, a.cfg.Files, validFor("a", -time.Hour, 3*time.Second))
	introduce(a.open(t), b.open(t))
	b.serve(t)
	if err := a.call(t, b.id); err != nil {
		t.Fatal(err)
	}
	toA, err := b.Dial(patience(t), a.id, peer.Calls)
	if err != nil {
		t.Fatal(err)
	}
	if time.Now().After(a.CertificateExpires()) {
		t.Fatal("too slow to see anything")
	}
	if _, err := toA.Read(make([]byte, 1)); err == nil {
		t.Errorf("the dialled connection: %v", err)
	}
	if time.Now().Before(a.CertificateExpires()) {
		t.Error("it ended before the certificate did")
	}
	eventually(t, "no connection is left", func() bool { return b.Conns() == 0 })
	if _, err := a.Dial(patience(t), b.id, peer.Calls); !errors.Is(err, peer.ErrCertificate) || !strings.Contains(err.Error(), "expired") {
		t.Errorf("with an expired certificate: %v", err)
	}
	b.log.says(t, "it is valid from")

	// A new one mends it, without a restart.
	reissue(t, ca, a.cfg.Files, validFor("a", -time.Hour, time.Hour))
	if err := a.call(t, b.id); err != nil {
		t.Error(err)
	}
}
