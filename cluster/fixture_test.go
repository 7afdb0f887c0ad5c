package cluster_test

import (
	"context"
	"crypto/sha256"
	"log/slog"
	"os"
	"testing"
	"time"

	"github.com/hashicorp/raft"

	"github.com/kekd/kekd/cluster"
	"github.com/kekd/kekd/hierarchy"
	"github.com/kekd/kekd/hierarchy/commandpb"
)

func id(name string) []byte {
	sum := sha256.Sum256([]byte(name))
	return sum[:hierarchy.IDSize]
}

func initCluster() *commandpb.InitCluster {
	return &commandpb.InitCluster{
		ClusterId: id("cluster"),
		Region: &commandpb.Region{
			Id: id("region"), Name: "eu-west", Role: commandpb.RegionRole_REGION_ROLE_VOTING,
			Identity: []byte("identity"), MintingNode: id("node"),
		},
		Node: &commandpb.Node{Id: id("node"), Name: "a", RegionId: id("region"), Voter: true},
	}
}

func createTenant(name string) *commandpb.Command {
	return &commandpb.Command{Body: &commandpb.Command_CreateTenant{CreateTenant: &commandpb.CreateTenant{
		TenantId: id(name), Name: name, MaxStaleness: int64(2 * time.Second),
	}}}
}

func tick() *commandpb.Command {
	return &commandpb.Command{Body: &commandpb.Command_Tick{Tick: &commandpb.Tick{}}}
}

// config is that of a node in dir, which elects itself sooner than a real one.
func config(dir string) cluster.Config {
	cfg := cluster.Config{Dir: dir, Logger: slog.New(slog.DiscardHandler)}
	cfg.Adjust(quick)
	return cfg
}

func quick(c *raft.Config) {
	c.HeartbeatTimeout, c.ElectionTimeout, c.LeaderLeaseTimeout = 20*time.Millisecond, 20*time.Millisecond, 20*time.Millisecond
	c.CommitTimeout = 5 * time.Millisecond
}

// initialised is a directory with a cluster of one.
func initialised(t testing.TB) string {
	t.Helper()
	dir := t.TempDir()
	if err := cluster.Init(config(dir), initCluster()); err != nil {
		t.Fatal(err)
	}
	return dir
}

func open(t testing.TB, cfg cluster.Config) *cluster.Node {
	t.Helper()
	n, err := cluster.Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		n.Close(ctx) // a second time is harmless, and a failed node cannot
	})
	return n
}

func shut(t testing.TB, n *cluster.Node) {
	t.Helper()
	if err := n.Close(patience(t)); err != nil {
		t.Fatal(err)
	}
}

// patience is how long a test waits for what has to come.
func patience(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	t.Cleanup(cancel)
	return ctx
}

func propose(t testing.TB, n *cluster.Node, c *commandpb.Command) uint64 {
	t.Helper()
	res, err := n.Propose(patience(t), c)
	if err != nil {
		t.Fatal(err)
	}
	return res.Index
}

// failed waits for a node to say why its part in the cluster ended.
func failed(t testing.TB, n *cluster.Node) error {
	t.Helper()
	select {
	case err := <-n.Failed():
		return err
	case <-patience(t).Done():
		t.Fatal("the node does not fail")
		return nil
	}
}

// copied is a directory as a killed process leaves it: this process still holds the original.
func copied(t testing.TB, dir string) string {
	t.Helper()
	to := t.TempDir()
	if err := os.CopyFS(to, os.DirFS(dir)); err != nil {
		t.Fatal(err)
	}
	return to
}
