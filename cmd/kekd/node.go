package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/kekd/kekd/cluster"
	"github.com/kekd/kekd/hierarchy"
)

// nodeFile says who this node is. It is written before anything else that init or join makes, so that one
// that was interrupted goes on with the same identifiers.
type nodeFile struct {
	Format      int                 `json:"format"`
	ClusterID   hierarchy.ClusterID `json:"cluster_id"`
	NodeID      hierarchy.NodeID    `json:"node_id"`
	Node        string              `json:"node"`
	RegionID    hierarchy.RegionID  `json:"region_id"`
	Region      string              `json:"region"`
	Joins       bool                `json:"joins,omitempty"`      // it was made by join, not by init
	NewRegion   bool                `json:"new_region,omitempty"` // join found the token to be nobody's
	Initialised bool                `json:"initialised"`          // set last, when init or join is complete
}

func nodePath(dataDir string) string     { return filepath.Join(dataDir, "node.json") }
func raftDir(dataDir string) string      { return filepath.Join(dataDir, "raft") }
func auditDir(dataDir string) string     { return filepath.Join(dataDir, "audit") }
func identityPath(dataDir string) string { return filepath.Join(dataDir, "identity.pub") }

// readNode returns fs.ErrNotExist where init has never run.
func readNode(dataDir string) (nodeFile, error) {
	var n nodeFile
	b, err := os.ReadFile(nodePath(dataDir))
	if err != nil {
		return n, err
	}
	if err := json.Unmarshal(b, &n); err != nil {
		return n, fmt.Errorf("%s cannot be read (%w): put it back from a backup; do not run init", nodePath(dataDir), err)
	}
	if n.Format != 1 {
		return n, fmt.Errorf("%s has format %d, this kekd knows 1: use a newer kekd", nodePath(dataDir), n.Format)
	}
	return n, nil
}

// lockDataDir keeps other processes out of the data directory, before they touch the token or
// anything else of the node. The kernel ends the lock with the process.
func lockDataDir(dataDir string) (*os.File, error) {
	path := filepath.Join(dataDir, "lock")
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
	if errors.Is(err, unix.ELOOP) {
		return nil, fmt.Errorf("%s is a symbolic link, and what it leads to would be overwritten: remove it", path)
	}
	if err != nil {
		return nil, err
	}
	if info, err := f.Stat(); err != nil || !info.Mode().IsRegular() {
		f.Close()
		return nil, errors.Join(err, fmt.Errorf("%s is not a file: remove it", path))
	}
	err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		holder, _ := io.ReadAll(io.LimitReader(f, 32))
		err = fmt.Errorf("another process uses %s: PID %s", dataDir, bytes.TrimSpace(holder))
	} else if err == nil {
		err = f.Truncate(0)
		if err == nil {
			_, err = fmt.Fprintln(f, os.Getpid())
		}
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// loadNode reads the file of an initialised node that the configuration fits.
func loadNode(c config, configPath string) (nodeFile, error) {
	n, err := readNode(c.DataDir)
	if errors.Is(err, fs.ErrNotExist) {
		if err := mustHoldNothing(c.DataDir); err != nil {
			return n, err
		}
	}
	if errors.Is(err, fs.ErrNotExist) || err == nil && !n.Initialised {
		how := "init"
		if n.Joins {
			how = "join"
		}
		also := ""
		if c.Peers != nil && err != nil {
			also = fmt.Sprintf("\nfor a new cluster, or with a token of kekctl node invite\n  kekd join --config %s --token-file FILE", configPath)
		}
		return n, fmt.Errorf("%s is not initialised: run\n  kekd %s --config %s%s", c.DataDir, how, configPath, also)
	}
	if err != nil {
		return n, err
	}
	if n.Node != c.Node.Name || n.Region != c.Node.Region {
		return n, fmt.Errorf("%s belongs to node %s of region %s, the configuration names %s of %s", c.DataDir, n.Node, n.Region, c.Node.Name, c.Node.Region)
	}
	return n, nil
}

// checkStore holds node.json against what Raft's store says of itself: of another node, or of
// another cluster, it would be served under the wrong name.
func checkStore(dataDir string, n nodeFile) error {
	of, id, err := cluster.Identify(raftDir(dataDir))
	if err != nil {
		return err
	}
	if of != n.ClusterID || id != n.NodeID {
		return fmt.Errorf("%s holds the store of node %s of cluster %s, and %s names node %s of cluster %s: parts of two nodes, or of two backups, were put together. "+
			"Nothing was changed. Put back what belongs together, from one backup of one node; do not run init",
			raftDir(dataDir), id, of, nodePath(dataDir), n.NodeID, n.ClusterID)
	}
	return nil
}

// mustHoldNothing refuses a directory without a node.json that is not empty otherwise: made anew,
// it would lose every tenant and key of the cluster that was here.
func mustHoldNothing(dataDir string) error {
	for _, path := range []string{raftDir(dataDir), auditDir(dataDir), identityPath(dataDir)} {
		if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("%s is missing, but %s is there: this directory holds a node of a cluster. Put the file back from a backup; do not run init", nodePath(dataDir), path)
		}
	}
	return nil
}

func writeNode(dataDir string, n nodeFile) error {
	b, err := json.MarshalIndent(n, "", "  ")
	if err != nil {
		return err
	}
	return writeFileAtomic(nodePath(dataDir), append(b, '\n'), 0o600)
}

// writeFileAtomic replaces a file so that after a crash the old or the new one is there, whole:
// write and fsync a temporary file, rename it, fsync the directory.
func writeFileAtomic(path string, b []byte, mode fs.FileMode) error {
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".tmp-*")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	if _, err = f.Write(b); err == nil {
		err = f.Chmod(mode)
	}
	if err == nil {
		err = f.Sync()
	}
	if e := f.Close(); err == nil {
		err = e
	}
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return err
	}
	return syncDir(filepath.Dir(path))
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}
