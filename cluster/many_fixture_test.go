package cluster_test

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/kekd/kekd/cluster"
	"github.com/kekd/kekd/cluster/peer"
	"github.com/kekd/kekd/cluster/peer/devca"
	"github.com/kekd/kekd/hierarchy"
	"github.com/kekd/kekd/hierarchy/commandpb"
	"github.com/kekd/kekd/hierarchy/state"
)

// many is a cluster of several nodes in this process, with real ports on the loopback.
type many struct {
	t     *testing.T
	dir   string
	ca    *devca.CA
	nodes map[string]*member
}

// member is one node of many; node is nil while it is down.
type member struct {
	name string
	cfg  cluster.Config
	node *cluster.Node
	log  *logged
}

// logged is what a node logs, for a test that fails.
type logged struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logged) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logged) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// newMany is a cluster of one node "a", which can be joined.
func newMany(t *testing.T) *many {
	t.Helper()
	m := &many{t: t, dir: t.TempDir(), nodes: map[string]*member{}}
	var err error
	if m.ca, err = devca.Make(filepath.Join(m.dir, "ca"), "test"); err != nil {
		t.Fatal(err)
	}
	first := initCluster()
	a := m.prepare("a")
	first.Node.Address = a.cfg.Peers.Listen
	if err := cluster.Init(a.cfg, first); err != nil {
		t.Fatal(err)
	}
	m.start("a")
	return m
}

// prepare gives a node its place, certificate and address.
func (m *many) prepare(name string) *member {
	m.t.Helper()
	dir := filepath.Join(m.dir, name)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		m.t.Fatal(err)
	}
	if err := m.ca.Issue(dir, name); err != nil {
		m.t.Fatal(err)
	}
	is := &member{name: name, log: new(logged)}
	is.cfg = cluster.Config{
		Dir:    filepath.Join(dir, "data"),
		Logger: slog.New(slog.NewTextHandler(is.log, &slog.HandlerOptions{Level: slog.LevelDebug})),
		Peers: &cluster.Peers{
			Name: name, Listen: freeAddress(m.t),
			Files: peer.Files{Certificate: filepath.Join(dir, devca.CertificateFile), Key: filepath.Join(dir, devca.KeyFile), CA: m.ca.Path()},
		},
		TokenHealthy: func() bool { return true },
	}
	m.nodes[name] = is
	m.t.Cleanup(func() {
		m.stop(name)
		if m.t.Failed() && testing.Verbose() {
			m.t.Logf("log of %s:\n%s", name, is.log)
		}
	})
	return is
}

func freeAddress(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

func (m *many) start(name string) *cluster.Node {
	m.t.Helper()
	n, err := cluster.Open(m.nodes[name].cfg)
	if err != nil {
		m.t.Fatal(err)
	}
	m.nodes[name].node = n
	return n
}

func (m *many) stop(name string) {
	n := m.nodes[name].node
	if n == nil {
		return
	}
	m.nodes[name].node = nil
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if err := n.Close(ctx); err != nil {
		m.t.Errorf("close %s: %v", name, err)
	}
}

// remove takes a file out of a stopped node's directory.
func (m *many) remove(name string, path ...string) {
	m.t.Helper()
	if err := os.Remove(filepath.Join(append([]string{m.nodes[name].cfg.Dir}, path...)...)); err != nil {
		m.t.Fatal(err)
	}
}

// invite has a running node invite another.
func (m *many) invite(by, name, region string, role commandpb.RegionRole, voter bool) *peer.JoinToken {
	m.t.Helper()
	token := &peer.JoinToken{
		Cluster: hierarchy.ClusterID{ID: hierarchy.ID(id("cluster"))}, CA: m.nodes[by].node.CAHash(), Invitation: hierarchy.NewID(),
		Addresses: []string{m.nodes[by].cfg.Peers.Listen}, Node: name, Region: region, Role: hierarchy.RegionRole(role).String(),
		Expires: time.Now().Add(time.Hour),
	}
	secret := hierarchy.NewID()
	copy(token.Secret[:], secret[:])
	proof := state.Proof(token.Secret[:])
	hash := state.ProofHash(proof[:])
	propose(m.t, m.nodes[by].node, &commandpb.Command{Body: &commandpb.Command_InviteNode{InviteNode: &commandpb.InviteNode{Invitation: &commandpb.Invitation{
		Id: token.Invitation[:], ProofHash: hash[:], Node: name, Region: region, Role: role, Voter: voter, ExpiresAt: token.Expires.UnixNano(),
	}}}})
	return token
}

// join makes a node a member, and starts it.
func (m *many) join(by, name, region string, role commandpb.RegionRole, voter bool) *cluster.Node {
	m.t.Helper()
	token := m.invite(by, name, region, role, voter)
	is := m.prepare(name)
	if err := apply(m.t, is, token); err != nil {
		m.t.Fatal(err)
	}
	return m.start(name)
}

func apply(t *testing.T, is *member, token *peer.JoinToken) error {
	t.Helper()
	got, err := cluster.Apply(patience(t), cluster.Applicant{
		Token: token, Node: hierarchy.NodeID{ID: hierarchy.ID(id(is.name))}, Region: hierarchy.RegionID{ID: hierarchy.ID(id(token.Region))},
		Identity: []byte("identity"), Peers: *is.cfg.Peers,
	})
	if err != nil {
		return err
	}
	return cluster.Join(is.cfg, got)
}

// threeVoters are a, b and c of one region, which all vote.
func threeVoters(t *testing.T) *many {
	t.Helper()
	m := newMany(t)
	for _, name := range []string{"b", "c"} {
		m.join("a", name, "eu-west", commandpb.RegionRole_REGION_ROLE_VOTING, true)
	}
	m.until("all vote", func() bool { return len(m.votes()) == 3 })
	return m
}

// votes are the names of those who vote, as their leader knows it.
func (m *many) votes() (names []string) {
	for _, is := range m.nodes {
		if is.node == nil {
			continue
		}
		for _, s := range is.node.Members(patience(m.t)) {
			if n, ok := is.node.State().Node(s.ID); ok && s.Votes {
				names = append(names, n.Name)
			}
		}
		return names
	}
	return nil
}

// leader is the running node that all running nodes take for the leader.
func (m *many) leader() string {
	m.t.Helper()
	var found string
	m.until("all know one leader", func() bool {
		found = ""
		for _, is := range m.nodes {
			if is.node == nil {
				continue
			}
			id, ok := is.node.Leader()
			n, known := is.node.State().Node(id)
			if !ok || !known || found != "" && found != n.Name || m.nodes[n.Name].node == nil || !m.nodes[n.Name].node.IsLeader() {
				return false
			}
			found = n.Name
		}
		return found != ""
	})
	return found
}

// other is a running node that does not lead.
func (m *many) other(than ...string) string {
	m.t.Helper()
next:
	for name, is := range m.nodes {
		for _, t := range than {
			if t == name {
				continue next
			}
		}
		if is.node != nil {
			return name
		}
	}
	m.t.Fatal("no other node runs")
	return ""
}

// until waits for what has to come to pass.
func (m *many) until(what string, holds func() bool) {
	m.t.Helper()
	deadline := time.Now().Add(20 * time.Second)
	for !holds() {
		if time.Now().After(deadline) {
			m.t.Fatalf("%s: not after 20 s", what)
		}
		time.Sleep(2 * time.Millisecond)
	}
}

func (m *many) String() string {
	var b bytes.Buffer
	for name, is := range m.nodes {
		if is.node != nil {
			fmt.Fprintf(&b, "%s at %d, ", name, is.node.State().Index())
		}
	}
	return b.String()
}
