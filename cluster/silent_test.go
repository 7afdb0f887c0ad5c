package cluster_test

import (
	"crypto/tls"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/kekd/kekd/cluster/peer/devca"
	"github.com/kekd/kekd/hierarchy/commandpb"
)

// hello is what a node says first inside of TLS, for calls of gRPC, in an epoch of zero.
func hello(node []byte, name string) []byte {
	b := append([]byte("kekp"), 1, 2)
	b = append(b, id("cluster")...)
	b = append(b, node...)
	b = binary.BigEndian.AppendUint64(b, 0)
	b = append(b, make([]byte, 32)...)
	return append(append(b, byte(len(name))), name...)
}

// Connections that stop saying anything, each at another point, take neither commands nor the end of a node. All
// are given up after some seconds.
func TestSilentConnectionsHoldNothingUp(t *testing.T) {
	t.Parallel()
	m := newMany(t)
	m.join("a", "b", "us-east", commandpb.RegionRole_REGION_ROLE_REPLICA, false)
	m.stop("b") // whoever connects here has its certificate
	dir := filepath.Dir(m.nodes["b"].cfg.Dir)
	pair, err := tls.LoadX509KeyPair(filepath.Join(dir, devca.CertificateFile), filepath.Join(dir, devca.KeyFile))
	if err != nil {
		t.Fatal(err)
	}
	secure := func(t *testing.T, c net.Conn) *tls.Conn {
		s := tls.Client(c, &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"kekd-peer/1"}, Certificates: []tls.Certificate{pair}})
		if err := s.Handshake(); err != nil {
			t.Error(err)
		}
		return s
	}
	says := hello(id("b"), "b")
	forms := map[string]func(t *testing.T, c net.Conn) net.Conn{
		"nothing":                    func(_ *testing.T, c net.Conn) net.Conn { return c },
		"half of what TLS begins by": func(_ *testing.T, c net.Conn) net.Conn { c.Write([]byte{0x16, 3, 1, 0, 200, 1, 0}); return c },
		"TLS":                        func(t *testing.T, c net.Conn) net.Conn { return secure(t, c) },
		"half of a hello":            func(t *testing.T, c net.Conn) net.Conn { s := secure(t, c); s.Write(says[:40]); return s },
		"a hello": func(t *testing.T, c net.Conn) net.Conn {
			s := secure(t, c)
			s.Write(says)
			answer := make([]byte, len(says))
			if _, err := io.ReadFull(s, answer); err != nil || answer[5] != 0 {
				t.Errorf("it is not let in: %v, %v", answer, err)
			}
			return s
		},
	}
	connect := func(what string) net.Conn {
		c, err := net.Dial("tcp", m.nodes["a"].cfg.Peers.Listen)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		return forms[what](t, c)
	}

	open := map[string]net.Conn{}
	for what := range forms {
		for range 5 {
			open[what] = connect(what)
		}
	}
	propose(t, m.nodes["a"].node, createTenant("acme"))
	for what, c := range open {
		c.SetReadDeadline(time.Now().Add(15 * time.Second))
		if _, err := io.Copy(io.Discard, c); errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("who says %s stays", what)
		}
	}

	for what := range forms {
		connect(what)
	}
	begun := time.Now()
	m.stop("a")
	if took := time.Since(begun); took > 5*time.Second {
		t.Errorf("it stops after %v", took)
	}
}
