package cluster

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kekd/kekd/hierarchy"
)

// A node's directory:
//
//	lock              held by the process that uses the directory, for as long as it lives
//	raft/node.json    which node of which cluster this is
//	raft/introduced.json  who the members are, for a start
//	raft/run.json     the last run of the process
//	raft/log.db       the log
//	raft/stable.db    term and vote
//	raft/snapshots/
//
// Everything under raft/ appears at once, by a rename: there is no half-made node.
const (
	lockFile    = "lock"
	raftDir     = "raft"
	unfinished  = "raft.new"
	nodeFile    = "node.json"
	logFile     = "log.db"
	stableFile  = "stable.db"
	snapshotDir = "snapshots"
)

// ErrUninitialised means that the directory holds no node.
var ErrUninitialised = errors.New("the directory holds no node of a cluster")

// ErrInUse means that another process uses the directory.
var ErrInUse = errors.New("the directory is in use by another process")

// identity is who a node is. It never changes.
type identity struct {
	Format  int                 `json:"format"`
	Cluster hierarchy.ClusterID `json:"cluster_id"`
	Node    hierarchy.NodeID    `json:"node_id"`
	// Joined tells that the node came to a cluster that was there: its log may be empty until the
	// leader sends it.
	Joined bool `json:"joined,omitempty"`
}

// Identify tells of which node in which cluster a directory is. [ErrUninitialised] if of none.
func Identify(dir string) (hierarchy.ClusterID, hierarchy.NodeID, error) {
	id, err := readIdentity(dir)
	return id.Cluster, id.Node, err
}

func readIdentity(dir string) (identity, error) {
	path := filepath.Join(dir, raftDir, nodeFile)
	b, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		if _, err := os.Stat(filepath.Join(dir, raftDir)); err == nil {
			return identity{}, damaged(filepath.Join(dir, raftDir), nodeFile, errors.New("it is missing"))
		}
		return identity{}, fmt.Errorf("%w: %s", ErrUninitialised, dir)
	}
	if err != nil {
		return identity{}, err
	}
	var id identity
	if err := json.Unmarshal(b, &id); err != nil {
		return identity{}, damaged(filepath.Join(dir, raftDir), nodeFile, err)
	}
	if id.Format != 1 || id.Cluster.IsZero() || id.Node.IsZero() {
		return identity{}, damaged(filepath.Join(dir, raftDir), nodeFile, fmt.Errorf("format %d, cluster %s, node %s", id.Format, id.Cluster, id.Node))
	}
	return id, nil
}

// writeIdentity is durable when it returns.
func writeIdentity(dir string, id identity) error {
	b, err := json.Marshal(id)
	if err != nil {
		return err
	}
	f, err := os.OpenFile(filepath.Join(dir, nodeFile), os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(append(b, '\n'))
	return errors.Join(err, f.Sync(), f.Close())
}

// replaceFile leaves the old content or the new one, whole, and is durable when it returns.
func replaceFile(path string, content []byte) error {
	dir, name := filepath.Split(path)
	f, err := os.CreateTemp(dir, name+".*")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	_, err = f.Write(content)
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	if err := os.Rename(f.Name(), path); err != nil {
		return err
	}
	return syncDir(dir)
}

// syncDir makes what was created in or renamed into a directory durable.
func syncDir(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

// lockPatience is how long a lock is waited for: that of a process that is just ending, or of a
// child between fork and exec, which has all descriptors until then.
const lockPatience = 500 * time.Millisecond

// lock takes the directory for this process. It ends with the process, however that ends. The
// file stays, so that who was here last can be told by it.
func lock(dir string) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(dir, lockFile), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	for deadline := time.Now().Add(lockPatience); errors.Is(err, unix.EWOULDBLOCK) && time.Now().Before(deadline); {
		time.Sleep(lockPatience / 50)
		err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	}
	if err != nil {
		defer f.Close()
		if !errors.Is(err, unix.EWOULDBLOCK) {
			return nil, fmt.Errorf("lock %s: %w", f.Name(), err)
		}
		holder := ""
		if b, err := io.ReadAll(io.LimitReader(f, 32)); err == nil && len(b) > 0 {
			holder = ", PID " + strings.TrimSpace(string(b))
		}
		return nil, fmt.Errorf("%w%s: %s", ErrInUse, holder, dir)
	}
	if err := errors.Join(f.Truncate(0), writeAt(f, fmt.Sprintln(os.Getpid()))); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

func writeAt(f *os.File, s string) error {
	_, err := f.WriteAt([]byte(s), 0)
	return err
}
