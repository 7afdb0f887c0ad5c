package cluster

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/kekd/kekd/hierarchy"
	"github.com/kekd/kekd/hierarchy/commandpb"
	"github.com/kekd/kekd/hierarchy/state"
)

// run is one run of a node's process, as the next one finds it. Who holds the very lock that the run held, on a
// machine that was not started again since, knows that it is over: the kernel gives a lock up with the last
// of those who have it open.
type run struct {
	Incarnation hierarchy.ID `json:"incarnation"`
	Boot        string       `json:"boot_id"`
	Device      uint64       `json:"lock_device"`
	Inode       uint64       `json:"lock_inode"`
}

const runFile = "run.json"

// thisRun is known to the next one when it returns: before the cluster hears of it.
func (n *Node) thisRun() error {
	now := run{Incarnation: n.run}
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return err
	}
	now.Boot = strings.TrimSpace(string(boot))
	var st unix.Stat_t
	if err := unix.Fstat(int(n.lock.Fd()), &st); err != nil {
		return err
	}
	now.Device, now.Inode = st.Dev, st.Ino

	path := filepath.Join(n.cfg.Dir, raftDir, runFile)
	var before run
	b, err := os.ReadFile(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return err
	default:
		// What cannot be read proves nothing: the run before is left behind as if it lived.
		if json.Unmarshal(b, &before) == nil && before.Boot == now.Boot && before.Device == now.Device && before.Inode == now.Inode {
			n.dead = before.Incarnation
		}
	}
	b, err = json.Marshal(now)
	if err != nil {
		return err
	}
	return replaceFile(path, append(b, '\n'))
}

// registered tells whether the state has this run as the one that may hold leases.
func (n *Node) registered(s *state.State) bool {
	self, ok := s.Node(n.id.Node)
	return ok && self.Incarnation == n.run
}

// register has the cluster know this run before it holds its first lease: else a node that was removed, or
// replaced, could get one from a leader whose state does not have that yet.
func (n *Node) register(ctx context.Context) error {
	s := n.State()
	if n.registered(s) {
		return nil
	}
	_, member := s.Node(n.id.Node)
	for t := range s.Tombstones() {
		if member && t.Node == n.id.Node && t.Incarnation == n.run {
			n.failure.fail(fmt.Errorf("another process runs as this node: its directory was copied, or is used on two machines"))
			return n.Fault()
		}
	}
	c := &commandpb.RegisterIncarnation{NodeId: n.id.Node.ID[:], Incarnation: n.run[:]}
	if !n.dead.IsZero() {
		c.Dead = n.dead[:]
	}
	_, err := n.Propose(ctx, &commandpb.Command{Body: &commandpb.Command_RegisterIncarnation{RegisterIncarnation: c}})
	if err != nil {
		return fmt.Errorf("register this run of the process: %w", err)
	}
	return nil
}
