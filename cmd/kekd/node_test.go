package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/kekd/kekd/cluster"
	"github.com/kekd/kekd/hierarchy"
	"github.com/kekd/kekd/hierarchy/commandpb"
)

// What data/lock leads to, or is, stays as it is.
func TestLockIsAFileOfOurs(t *testing.T) {
	dir := t.TempDir()
	lock, precious := filepath.Join(dir, "lock"), filepath.Join(dir, "precious")
	if err := os.WriteFile(precious, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	for how, make := range map[string]func() error{
		"link": func() error { return os.Symlink(precious, lock) },
		"fifo": func() error { return unix.Mkfifo(lock, 0o600) },
	} {
		if err := make(); err != nil {
			t.Fatal(err)
		}
		if f, err := lockDataDir(dir); err == nil {
			f.Close()
			t.Errorf("%s: it is taken for a lock", how)
		} else if !strings.Contains(err.Error(), lock) || !strings.Contains(err.Error(), "remove it") {
			t.Errorf("%s: %v", how, err)
		}
		if err := os.Remove(lock); err != nil {
			t.Fatal(err)
		}
	}
	if b, err := os.ReadFile(precious); err != nil || string(b) != "precious" {
		t.Errorf("the file has %q now, %v", b, err)
	}
}

// Raft's store and node.json are of one node, or nothing is started.
func TestAStoreOfAnotherNode(t *testing.T) {
	id := func(n byte) hierarchy.ID { return hierarchy.ID{15: n} }
	for name, c := range map[string]struct{ cluster, node hierarchy.ID }{
		"of another node":    {id(1), id(9)},
		"of another cluster": {id(9), id(2)},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			data := filepath.Join(dir, "data")
			if err := os.Mkdir(data, 0o700); err != nil {
				t.Fatal(err)
			}
			config := filepath.Join(dir, "kekd.toml")
			text := fmt.Sprintf("data_dir = %q\nlock_memory = false\n[node]\nname = \"a\"\nregion = \"eu\"\n[hsm]\ntoken = \"pkcs11:token=none\"\n[socket]\npath = %q\n[admin_socket]\npath = %q\n",
				data, filepath.Join(dir, "kekd.sock"), filepath.Join(dir, "admin.sock"))
			if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
			self := nodeFile{Format: 1, ClusterID: hierarchy.ClusterID{ID: id(1)}, NodeID: hierarchy.NodeID{ID: id(2)}, Node: "a",
				RegionID: hierarchy.RegionID{ID: id(3)}, Region: "eu", Initialised: true}
			if err := writeNode(data, self); err != nil {
				t.Fatal(err)
			}
			if err := cluster.Init(cluster.Config{Dir: raftDir(data)}, &commandpb.InitCluster{
				ClusterId: c.cluster[:],
				Region:    &commandpb.Region{Id: self.RegionID.ID[:], Name: "eu", Role: commandpb.RegionRole_REGION_ROLE_VOTING, Identity: []byte("i"), MintingNode: c.node[:]},
				Node:      &commandpb.Node{Id: c.node[:], Name: "a", RegionId: self.RegionID.ID[:], Voter: true},
			}); err != nil {
				t.Fatal(err)
			}
			err := runServe(context.Background(), serveOptions{config: config}, io.Discard)
			if err == nil {
				t.Fatal("it serves")
			}
			for _, want := range []string{c.cluster.String(), c.node.String(), self.ClusterID.String(), self.NodeID.String(), raftDir(data), nodePath(data), "Put back what belongs together"} {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("no %q in: %v", want, err)
				}
			}
		})
	}
}
