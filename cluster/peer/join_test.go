package peer_test

import (
	"errors"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/kekd/kekd/cluster/peer"
	"github.com/kekd/kekd/cluster/peerpb"
	"github.com/kekd/kekd/hierarchy"
)

// tokenOf is a join token as the node would make it.
func tokenOf(n *node) *peer.JoinToken {
	t := someToken()
	t.CA, t.Addresses = n.CAHash(), []string{n.Addr().String()}
	return t
}

func TestJoin(t *testing.T) {
	t.Parallel()
	ca := authority(t)
	a := openNodes(t, ca, "a")[0]
	served := a.serve(t)
	conn, err := peer.DialJoin(patience(t), a.Addr().String(), filesFor(t, ca, "node-d"), tokenOf(a), "node-d")
	if err != nil {
		t.Fatal(err)
	}
	resp, err := peerpb.NewPeerClient(conn).Join(patience(t), &peerpb.JoinRequest{})
	if err != nil || resp.Index != 8 {
		t.Fatalf("answered %v, %v", resp, err)
	}
	want := peer.Peer{Name: "node-d", Service: peer.Join}
	if diff := cmp.Diff(want, <-served.called); diff != "" {
		t.Errorf("who called: -want +got:\n%s", diff)
	}
	conn.Close()
	eventually(t, "nothing is left", func() bool { return a.Conns() == 0 })
}

func TestJoinRefused(t *testing.T) {
	t.Parallel()
	ca := authority(t)
	a := openNodes(t, ca, "a")[0]
	a.serve(t)
	both := filesFor(t, authority(t), "node-d")
	trust, err := readAll(both.CA, ca.Path())
	if err != nil {
		t.Fatal(err)
	}
	writeFile(t, both.CA, trust, 0o644)
	for name, c := range map[string]struct {
		files  peer.Files
		change func(*peer.JoinToken)
		want   error
		words  string
	}{
		"a token of another authority": {filesFor(t, ca, "node-d"), func(t *peer.JoinToken) { t.CA[0]++ },
			peer.ErrForeignAuthority, "another cluster's"},
		"a token of another cluster": {filesFor(t, ca, "node-d"), func(t *peer.JoinToken) { t.Cluster = hierarchy.ClusterID{ID: idOf("x")} },
			peer.ErrForeignCluster, "the join token of"},
		"a certificate of another authority": {both, func(*peer.JoinToken) {}, peer.ErrCertificate, "same CA file"},
		"a certificate of another name": {filesFor(t, ca, "node-e"), func(*peer.JoinToken) {},
			peer.ErrFiles, `the node is called "node-d"`},
	} {
		tok := tokenOf(a)
		c.change(tok)
		conn, err := peer.DialJoin(patience(t), a.Addr().String(), c.files, tok, "node-d")
		if err == nil {
			conn.Close()
		}
		if !errors.Is(err, c.want) || !strings.Contains(err.Error(), c.words) {
			t.Errorf("%s: got %v\nwant %v that says %q", name, err, c.want, c.words)
		}
	}
}

// A token of an authority that the joining node has not is found out before anybody is dialled, and a
// server that is not of the token's authority is sent nothing, though the CA file has its own.
func TestJoinTellsNothingToStrangers(t *testing.T) {
	t.Parallel()
	ours, theirs := authority(t), authority(t)
	files := filesFor(t, ours, "node-d")
	trust, err := readAll(ours.Path(), theirs.Path())
	if err != nil {
		t.Fatal(err)
	}
	writeFile(t, files.CA, trust, 0o644)
	stranger := openNodes(t, theirs, "a")[0]
	tok := tokenOf(stranger)
	tok.CA = peer.CAHash(ours.Certificate())
	if _, err := peer.DialJoin(patience(t), stranger.Addr().String(), files, tok, "node-d"); !errors.Is(err, peer.ErrCertificate) {
		t.Errorf("got %v", err)
	}
	stranger.log.says(t, "does not take this node's")

	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	tok.CA[0]++
	if _, err := peer.DialJoin(patience(t), l.Addr().String(), files, tok, "node-d"); !errors.Is(err, peer.ErrForeignAuthority) {
		t.Errorf("got %v", err)
	}
	l.(*net.TCPListener).SetDeadline(time.Now().Add(20 * time.Millisecond))
	if _, err := l.Accept(); !isTimeout(err) {
		t.Errorf("it was dialled: %v", err)
	}
}
