package peer_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"

	"github.com/kekd/kekd/cluster/peer"
	"github.com/kekd/kekd/cluster/peer/devca"
	"github.com/kekd/kekd/cluster/peerpb"
	"github.com/kekd/kekd/hierarchy"
)

func idOf(name string) hierarchy.ID {
	sum := sha256.Sum256([]byte(name))
	return hierarchy.ID(sum[:hierarchy.IDSize])
}

func nodeID(name string) hierarchy.NodeID { return hierarchy.NodeID{ID: idOf(name)} }

var ourCluster = hierarchy.ClusterID{ID: idOf("cluster")}

// directory is a [peer.Directory] that a test changes. Each node has one of its own.
type directory struct {
	mu      sync.Mutex
	epoch   peer.Epoch
	members map[hierarchy.NodeID]peer.Member
	voters  map[hierarchy.NodeID]bool
}

func newDirectory() *directory {
	return &directory{members: map[hierarchy.NodeID]peer.Member{}, voters: map[hierarchy.NodeID]bool{}}
}

func (d *directory) Epoch() peer.Epoch {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.epoch
}

func (d *directory) Member(id hierarchy.NodeID) (peer.Member, bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	m, ok := d.members[id]
	return m, ok
}

func (d *directory) Voter(id hierarchy.NodeID) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.voters[id]
}

func (d *directory) change(f func(*directory)) {
	d.mu.Lock()
	defer d.mu.Unlock()
	f(d)
}

// refusal is what a node was told by [peer.Config.Refused].
type refusal struct {
	id  hierarchy.NodeID
	err error
}

// node is a port, and what it was made of.
type node struct {
	*peer.Port
	id      hierarchy.NodeID
	cfg     peer.Config
	dir     *directory
	log     *logBuffer
	refused chan refusal
}

// member is what others have of it.
func (n *node) member() peer.Member {
	return peer.Member{ID: n.id, Name: n.cfg.Name, Address: n.Addr().String()}
}

// authority is a CA in a directory of the test's.
func authority(t testing.TB) *devca.CA {
	t.Helper()
	ca, err := devca.Make(filepath.Join(t.TempDir(), "ca"), "test")
	if err != nil {
		t.Fatal(err)
	}
	return ca
}

// filesFor issues a certificate for a name, and gives the CA a copy of its own, to be changed.
func filesFor(t testing.TB, ca *devca.CA, name string) peer.Files {
	t.Helper()
	dir := t.TempDir()
	if err := ca.Issue(dir, name); err != nil {
		t.Fatal(err)
	}
	copyFile(t, ca.Path(), filepath.Join(dir, devca.CAFile))
	return filesIn(dir)
}

func filesIn(dir string) peer.Files {
	return peer.Files{
		Certificate: filepath.Join(dir, devca.CertificateFile),
		Key:         filepath.Join(dir, devca.KeyFile),
		CA:          filepath.Join(dir, devca.CAFile),
	}
}

func copyFile(t testing.TB, from, to string) {
	t.Helper()
	b, err := os.ReadFile(from)
	if err != nil {
		t.Fatal(err)
	}
	writeFile(t, to, b, 0o644)
}

// writeFile replaces a file by a rename, as a careful tool does.
func writeFile(t testing.TB, path string, b []byte, mode fs.FileMode) {
	t.Helper()
	if err := errors.Join(os.WriteFile(path+".new", b, mode), os.Rename(path+".new", path)); err != nil {
		t.Fatal(err)
	}
}

// loopback is an address of this machine that nobody else has: on 127.0.0.1 the port of a node that is
// restarted may meanwhile be that of somebody's outgoing connection.
func loopback() string {
	id := hierarchy.NewID()
	return fmt.Sprintf("127.%d.%d.%d:0", 64+id[0]%128, id[1], 1+id[2]%254)
}

// config is that of a node with files of its own and an empty directory.
func config(t testing.TB, ca *devca.CA, name string) (peer.Config, *node) {
	t.Helper()
	n := &node{id: nodeID(name), dir: newDirectory(), log: &logBuffer{}, refused: make(chan refusal, 1000)}
	n.cfg = peer.Config{
		Listen:    loopback(),
		Files:     filesFor(t, ca, name),
		Self:      peer.Self{Cluster: ourCluster, Node: n.id, Name: name},
		Directory: n.dir,
		Log:       slog.New(slog.NewTextHandler(n.log, nil)),
		Refused:   func(id hierarchy.NodeID, err error) { n.refused <- refusal{id, err} },
	}
	return n.cfg, n
}

// open opens a node's port, as cfg has it by now.
func (n *node) open(t testing.TB) *node {
	t.Helper()
	p, err := peer.Open(n.cfg)
	if err != nil {
		t.Fatal(err)
	}
	n.Port = p
	t.Cleanup(func() { closePort(t, p) })
	return n
}

func closePort(t testing.TB, p *peer.Port) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	if err := p.Close(ctx); err != nil {
		t.Error(err)
	}
}

// openNodes opens the ports of nodes that know each other, all voters.
func openNodes(t testing.TB, ca *devca.CA, names ...string) []*node {
	t.Helper()
	var nodes []*node
	for _, name := range names {
		_, n := config(t, ca, name)
		nodes = append(nodes, n.open(t))
	}
	introduce(nodes...)
	return nodes
}

func introduce(nodes ...*node) {
	for _, n := range nodes {
		n.dir.change(func(d *directory) {
			for _, other := range nodes {
				d.members[other.id] = other.member()
				d.voters[other.id] = true
			}
		})
	}
}

// reissue replaces a node's certificate by one of the template, with a new key.
func reissue(t testing.TB, ca *devca.CA, f peer.Files, template x509.Certificate) {
	t.Helper()
	if err := ca.IssueFrom(filepath.Dir(f.Certificate), template); err != nil {
		t.Fatal(err)
	}
}

// validFor is a certificate's template.
func validFor(name string, from, to time.Duration) x509.Certificate {
	now := time.Now()
	return x509.Certificate{DNSNames: []string{name}, NotBefore: now.Add(from), NotAfter: now.Add(to)}
}

// callee serves the service Peer, and tells who called.
type callee struct {
	peerpb.UnimplementedPeerServer
	called chan peer.Peer
}

func (s *callee) who(ctx context.Context) error {
	p, ok := peer.FromContext(ctx)
	if !ok {
		return errors.New("the caller is not known")
	}
	s.called <- p
	return nil
}

func (s *callee) Members(ctx context.Context, _ *peerpb.MembersRequest) (*peerpb.MembersResponse, error) {
	return &peerpb.MembersResponse{Index: 7}, s.who(ctx)
}

func (s *callee) Join(ctx context.Context, _ *peerpb.JoinRequest) (*peerpb.JoinResponse, error) {
	return &peerpb.JoinResponse{Index: 8}, s.who(ctx)
}

// serve has the node answer calls.
func (n *node) serve(t testing.TB) *callee {
	t.Helper()
	s := &callee{called: make(chan peer.Peer, 1000)}
	server := grpc.NewServer(grpc.Creds(n.ServerCredentials()), grpc.ConnectionTimeout(time.Second))
	peerpb.RegisterPeerServer(server, s)
	go server.Serve(n.Listener())
	t.Cleanup(server.Stop)
	return s
}

// call calls a member, and waits for a connection.
func (n *node) call(t testing.TB, to hierarchy.NodeID) error {
	t.Helper()
	conn, err := n.Conn(to)
	if err != nil {
		return err
	}
	_, err = peerpb.NewPeerClient(conn).Members(patience(t), &peerpb.MembersRequest{})
	return err
}

// patience is how long a test waits for what has to come.
func patience(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	t.Cleanup(cancel)
	return ctx
}

// eventually waits for a condition.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	ctx := patience(t)
	for !ok() {
		select {
		case <-time.After(5 * time.Millisecond):
		case <-ctx.Done():
			t.Fatalf("it does not come that %s", what)
		}
	}
}

// logBuffer is a log that can be read while it is written.
type logBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logBuffer) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(b)
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func (l *logBuffer) count(text string) int { return strings.Count(l.String(), text) }

// says waits until the log does.
func (l *logBuffer) says(t testing.TB, text string) {
	t.Helper()
	eventually(t, "the log says "+text+": "+l.String(), func() bool { return l.count(text) > 0 })
}

// readAll is the files one after the other.
func readAll(paths ...string) (all []byte, err error) {
	for _, path := range paths {
		b, err := os.ReadFile(path)
		if err != nil {
			return nil, err
		}
		all = append(all, b...)
	}
	return all, nil
}
