package softhsmtests

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/kekd/kekd/softhsm-tests/devcluster"
	"github.com/kekd/kekd/softhsm-tests/netfault"
	"github.com/kekd/kekd/unix-socket-api/kekdv1"
)

// members are a cluster's nodes: processes that can fail, with a network between them that can.
type members struct {
	t       *testing.T
	dir     string
	cluster *devcluster.Cluster
	network *netfault.Network
	nodes   []*member
}

// member is one node. Where it is reached stays the same over all runs of its process.
type member struct {
	devcluster.Node // its PID is that of the first run
	all             *members
	admin           kekdv1.AdminServiceClient

	mu  sync.Mutex
	run int // counts the runs of its process, and the times between them
}

// startMembers makes a cluster of these regions, and then puts the network between its nodes.
func startMembers(t *testing.T, regions ...string) *members {
	t.Helper()
	dir, err := filepath.EvalSymlinks(tempDir(t))
	if err != nil {
		t.Fatal(err)
	}
	var args []string
	for _, r := range regions {
		args = append(args, "--region", r)
	}
	made, err := devcluster.Start(t.Context(), kekd, dir, args...)
	if err == nil {
		err = made.Stop()
	}
	if err != nil {
		t.Fatal(err)
	}
	all := &members{t: t, dir: dir}
	var between []netfault.Node
	for i, n := range made.Nodes {
		between = append(between, behind(t, n, i))
	}
	if all.network, err = netfault.Listen(netfault.Owners(all.pids), between...); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { all.network.Close() })
	all.cluster = start(t, dir)
	for _, n := range all.cluster.Nodes {
		all.nodes = append(all.nodes, &member{Node: n, all: all, admin: admin(t, n)})
	}
	return all
}

var peerAddress = regexp.MustCompile(`(?m)^\s*listen = "([0-9.]+):([0-9]+)"\n\s*advertise = ""$`)

// behind has a node listen at another address than its peers know, and returns both.
func behind(t *testing.T, n devcluster.Node, i int) netfault.Node {
	t.Helper()
	path := filepath.Join(filepath.Dir(n.DataDir), "kekd.toml")
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	found := peerAddress.FindSubmatch(text)
	if found == nil {
		t.Fatalf("%s has no address for peers:\n%s", path, text)
	}
	known, listens := fmt.Sprintf("%s:%s", found[1], found[2]), fmt.Sprintf("%s:%d", found[1], 8601+i)
	text = peerAddress.ReplaceAll(text, fmt.Appendf(nil, "listen = %q\nadvertise = %q", listens, known))
	if err := os.WriteFile(path, text, 0o644); err != nil {
		t.Fatal(err)
	}
	return netfault.Node{Name: n.Name, Address: known, Listens: listens}
}

// pids are the processes of the nodes that run now, by their names: whoever serves from a node's
// configuration. The network asks when a node connects, which is before it serves.
func (a *members) pids() map[string]int {
	found := map[string]int{}
	lines, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, line := range lines {
		b, err := os.ReadFile(line)
		if err != nil {
			continue // it has ended
		}
		args := bytes.Split(b, []byte{0})
		if len(args) < 4 || string(args[1]) != "serve" || string(args[2]) != "--config" {
			continue
		}
		rest, ours := strings.CutPrefix(string(args[3]), filepath.Join(a.dir, "nodes")+"/")
		name, _, _ := strings.Cut(rest, "/")
		if pid, err := strconv.Atoi(filepath.Base(filepath.Dir(line))); ours && err == nil {
			found[name] = pid
		}
	}
	return found
}

func (m *member) currentRun() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.run
}

func (m *member) nextRun() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.run++
}

// signal returns when it was sent, and to whom.
func (m *member) signal(sig syscall.Signal) (at time.Time, pid int) {
	m.all.t.Helper()
	pid = m.all.pids()[m.Name]
	if pid == 0 {
		m.all.t.Fatalf("node %s does not run", m.Name)
	}
	if err := syscall.Kill(pid, sig); err != nil {
		m.all.t.Fatal(err)
	}
	return time.Now(), pid
}

// kill ends it with SIGKILL. What is answered between the two counts may be of the run that ends.
func (m *member) kill() (at time.Time) {
	m.all.t.Helper()
	m.nextRun()
	at, pid := m.signal(syscall.SIGKILL)
	eventually(m.all.t, 5*time.Second, "a killed node ends", func() bool { return !alive(pid) })
	m.nextRun()
	return at
}

// restart returns when it serves again.
func (m *member) restart() {
	m.all.t.Helper()
	if err := m.all.cluster.Restart(within(m.all.t, 90*time.Second), m.Name); err != nil {
		m.all.t.Fatal(err)
	}
}

// leader waits for one that others know, too.
func (a *members) leader() *member {
	a.t.Helper()
	var found *member
	eventually(a.t, 30*time.Second, "two nodes name the same leader", func() bool {
		named := map[string]int{}
		for _, m := range a.nodes {
			s, err := m.admin.GetStatus(within(a.t, time.Second), &kekdv1.GetStatusRequest{})
			if err != nil || s.Leader == "" {
				continue
			}
			if named[s.Leader]++; named[s.Leader] < min(2, len(a.nodes)) {
				continue
			}
			for _, m := range a.nodes {
				if m.ID == s.Leader {
					found = m
					return true
				}
			}
		}
		return false
	})
	return found
}

// converge waits until each node has what any of them had when it was called, and returns that index.
func (a *members) converge() (index uint64) {
	a.t.Helper()
	applied := func(m *member) uint64 {
		s, err := m.admin.GetStatus(within(a.t, 5*time.Second), &kekdv1.GetStatusRequest{})
		if err != nil {
			return 0
		}
		return s.AppliedIndex
	}
	// The leader may have committed what nobody has applied yet: a command after it has all of it before it.
	for _, m := range a.nodes {
		index = max(index, applied(m))
	}
	for _, m := range a.nodes {
		eventually(a.t, 30*time.Second, m.Name+" catches up", func() bool { return applied(m) >= index })
	}
	return index
}
