package softhsmtests

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kekd/kekd/softhsm-tests/devcluster"
	"github.com/kekd/kekd/unix-socket-api/client"
	"github.com/kekd/kekd/unix-socket-api/kekdv1"
)

// diskFaults are those of the disk that Raft's log or the audit journal is on. What a call was for is on the disk or not
// when it fails, and nobody can tell: after an fsync that has failed, the pages are there for who reads them next.
var diskFaults = []struct {
	name, inject string
	words        string
	byDay        string // at whom it is tried by day; by night at each
}{
	{"a write fails, and nothing of it is kept", "pwrite64:error=EIO", "input/output error", "leader"},
	{"a sync fails, and what was written is kept", "fdatasync:error=EIO", "input/output error", "voter"},
	{"a sync hangs before it is done", "fdatasync:delay_enter=60s", "the disk hangs", "leader"},
	{"a sync hangs after it was done", "fdatasync:delay_exit=60s", "the disk hangs", "replica"},
}

// Five nodes, of which three vote. The disk of one of them fails or hangs, be it the leader's: that node ends in time and
// says why, the others go on without one failed unwrap, and what was acknowledged is everywhere when it is back, also
// what it had acknowledged itself.
func TestDiskOfOneNodeFails(t *testing.T) {
	t.Parallel()
	for name, file := range map[string]func(*node) string{"Raft's log": (*node).raftLog, "the audit journal": (*node).journal} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := startCluster(t, "eu=voting*3", "us=replica*2")
			setUp(t, c.Nodes[0], "acme")
			caughtUp(t, c.Nodes)
			ended := map[string]int{}
			for _, fault := range diskFaults {
				for _, who := range []string{"leader", "voter", "replica"} {
					if who != fault.byDay && loops(0, 1) == 0 {
						continue
					}
					t.Run(who+": "+fault.name, func(t *testing.T) {
						victim := leaderOf(t, c, c.Nodes[0])
						switch who {
						case "voter":
							victim = others(c, victim)[0]
						case "replica":
							victim = called(t, c, "us-1")
						}
						f := watchCluster(t, c, victim)
						undo := tamper(t, victim.PID, file(asNode(t, victim)), fault.inject)
						f.holds(t, undo, fault.words)
						f.recovers(t)
						ended[victim.Name]++
					})
				}
			}
			if err := c.Stop(); err != nil {
				t.Fatal(err)
			}
			for name, times := range ended {
				if got := strings.Count(c.Output(), "node "+name+" has ended (exit status 1)"); got != times {
					t.Errorf("node %s has ended %d times with status 1, want %d:\n%s", name, got, times, c.Output())
				}
			}
		})
	}
}

// A file system that is full ends its node like one that fails, and the leader's stops no command of the others.
func TestDiskOfTheLeaderIsFull(t *testing.T) {
	t.Parallel()
	dir := tempDir(t)
	args := []string{"--region", "eu=voting*3"}
	made, err := devcluster.Start(t.Context(), kekd, dir, args...)
	if err == nil {
		err = made.Stop()
	}
	if err != nil {
		t.Fatal(err)
	}
	disk := made.Nodes[1].DataDir
	onTmpfs(t, disk, 160)
	c := start(t, dir)
	setUp(t, c.Nodes[0], "acme")
	caughtUp(t, c.Nodes)
	victim := c.Nodes[1]
	eventually(t, 30*time.Second, "the node with the small disk leads", func() bool {
		if leaderOf(t, c, c.Nodes[0]).ID == victim.ID {
			return true
		}
		_, _ = admin(t, c.Nodes[0]).TransferLeadership(within(t, 10*time.Second), &kekdv1.TransferLeadershipRequest{To: victim.Name})
		return false
	})
	f := watchCluster(t, c, victim)
	fill := filepath.Join(disk, "fill")
	if out, err := exec.Command("dd", "if=/dev/zero", "of="+fill, "bs=4k").CombinedOutput(); err == nil || !strings.Contains(string(out), "No space left") {
		t.Fatalf("the disk is not full: %v %s", err, out)
	}
	f.holds(t, func() {
		if err := os.Remove(fill); err != nil {
			t.Fatal(err)
		}
	}, "no space left on device")
	f.recovers(t)
}

// onTmpfs puts a directory, whose node does not run, on a file system of its own, of so many MiB.
func onTmpfs(t *testing.T, dir string, size int) {
	t.Helper()
	aside := dir + ".aside"
	if err := os.Rename(dir, aside); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	runTool(t, "mount", "-t", "tmpfs", "-o", fmt.Sprintf("size=%dm,mode=0700", size), "tmpfs", dir)
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	runTool(t, "cp", "-aT", aside, dir)
}

// nodeFault is what happens to one node of a cluster, as its callers see it.
type nodeFault struct {
	c      *devcluster.Cluster
	victim devcluster.Node
	rest   []devcluster.Node
	users  *singleUsers // of those of the rest who have the key
	asked  *makers
	from   int64 // where the victim's log begins to matter
}

// watchCluster has tenants made through all nodes from now on, and data keys opened at all but one.
func watchCluster(t *testing.T, c *devcluster.Cluster, victim devcluster.Node) *nodeFault {
	t.Helper()
	f := &nodeFault{c: c, victim: victim, rest: others(c, victim)}
	var serve []devcluster.Node
	for _, n := range f.rest {
		if n.Region == c.Nodes[0].Region {
			serve = append(serve, n)
		}
	}
	if info, err := os.Stat(logOf(victim)); err == nil {
		f.from = info.Size()
	}
	f.asked = makeTenants(t, c.Nodes)
	f.users = useEach(t, serve, "acme/orders")
	begun := time.Now()
	f.asked.await(t, 20*time.Second, "all nodes take commands", c.Nodes, begun)
	return f
}

// holds is called when the fault has begun, and ends it when the node has ended: a process whose call hangs in the
// kernel is not gone before.
func (f *nodeFault) holds(t *testing.T, undo func(), words string) {
	t.Helper()
	begun := time.Now()
	eventually(t, giveUp, "the node with the fault ends", func() bool { return !alive(f.victim.PID) })
	ended := time.Since(begun)
	// Whatever the others were in the middle of, they go on in the same time.
	f.asked.await(t, giveUp-ended, "the others take commands", f.rest, begun)
	t.Logf("node %s has ended after %v, and the others have taken commands after %v", f.victim.Name,
		ended.Round(time.Millisecond), time.Since(begun).Round(time.Millisecond))
	if conn, err := net.Dial("unix", f.victim.Socket); err == nil {
		conn.Close()
		t.Error("the node with the fault takes callers")
	}
	eventually(t, giveUp, "the others have opened data keys enough to show something", func() bool {
		return !slices.ContainsFunc(slices.Collect(maps.Values(f.users.opened())), func(times int) bool { return times < 20 })
	})
	f.users.end()
	undo()
	eventually(t, 10*time.Second, "cluster.json says that the node has ended", func() bool {
		return f.c.Reload() == nil && called(t, f.c, f.victim.Name).PID == 0
	})
	log, err := os.ReadFile(logOf(f.victim))
	if err != nil {
		t.Fatal(err)
	}
	said := strings.TrimSpace(string(log[f.from:]))
	if last := said[strings.LastIndexByte(said, '\n')+1:]; !strings.Contains(last, words) || strings.Contains(said, "goroutine ") {
		t.Errorf("the last line of its log does not say %q, or there is a panic: %s", words, last)
	}
}

// recovers is called when the fault has gone.
func (f *nodeFault) recovers(t *testing.T) {
	t.Helper()
	if err := f.c.Restart(within(t, 90*time.Second), f.victim.Name); err != nil {
		t.Fatal(err)
	}
	begun := time.Now()
	f.asked.await(t, 20*time.Second, "all nodes take commands again", f.c.Nodes, begun)
	f.asked.end()
	acknowledged := f.asked.names()
	caughtUp(t, f.c.Nodes)
	for _, n := range f.c.Nodes {
		list, err := admin(t, n).ListTenants(within(t, 10*time.Second), &kekdv1.ListTenantsRequest{})
		if err != nil {
			t.Fatal(err)
		}
		there := map[string]bool{}
		for _, tenant := range list.Tenants {
			there[tenant.Name] = true
		}
		for _, name := range acknowledged {
			if !there[name] {
				t.Errorf("node %s has lost tenant %s, which was acknowledged", n.Name, name)
			}
		}
		verifyAudit(t, asNode(t, called(t, f.c, n.Name)))
	}
	t.Logf("%d tenants were acknowledged, and are everywhere", len(acknowledged))
}

// singleUsers open data keys at one node each. Nothing may be refused to them.
type singleUsers struct {
	end func() // returns when none works any more

	mu    sync.Mutex
	times map[string]int // by node
}

func useEach(t *testing.T, nodes []devcluster.Node, key string) *singleUsers {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	var working sync.WaitGroup
	u := &singleUsers{end: func() { cancel(); working.Wait() }, times: map[string]int{}}
	t.Cleanup(u.end)
	for _, n := range nodes {
		u.times[n.Name] = 0
		c := keys(t, n)
		kept, err := c.GenerateDataKey(within(t, 20*time.Second), key, 32, client.Options{})
		if err != nil {
			t.Fatal(err)
		}
		working.Go(func() {
			for ctx.Err() == nil {
				begun := time.Now()
				call, cancel := context.WithTimeout(context.WithoutCancel(ctx), patient)
				_, err := c.Unwrap(call, kept.Envelope, client.Options{})
				cancel()
				if err != nil {
					t.Errorf("node %s has not opened a data key, and answered after %v: %v", n.Name, time.Since(begun).Round(time.Millisecond), err)
					pause(ctx, time.Second) // a test that fails says so in few words
				} else {
					u.mu.Lock()
					u.times[n.Name]++
					u.mu.Unlock()
				}
				pause(ctx, 10*time.Millisecond)
			}
		})
	}
	return u
}

func (u *singleUsers) opened() map[string]int {
	u.mu.Lock()
	defer u.mu.Unlock()
	return maps.Clone(u.times)
}

// makers make tenants, one after the other at each of some nodes, each under its ID until it is acknowledged.
type makers struct {
	end func() // returns when none works any more

	mu    sync.Mutex
	made  []string
	asked map[string]time.Time // by node: when the last that was acknowledged was first asked for
}

func makeTenants(t *testing.T, nodes []devcluster.Node) *makers {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	var working sync.WaitGroup
	m := &makers{asked: map[string]time.Time{}, end: func() { cancel(); working.Wait() }}
	t.Cleanup(m.end)
	for _, n := range nodes {
		a := admin(t, n)
		working.Go(func() {
			for ctx.Err() == nil {
				name, id, begun := fmt.Sprintf("t-%x", randomBytes(8)), randomBytes(16), time.Now()
				for ctx.Err() == nil {
					call, cancel := context.WithTimeout(ctx, time.Second)
					_, err := a.CreateTenant(call, &kekdv1.CreateTenantRequest{Name: name, IdempotencyId: id})
					cancel()
					if err == nil {
						m.acknowledged(n, name, begun)
						break
					}
					if e := (*client.Error)(nil); ctx.Err() == nil && !errors.As(err, &e) {
						t.Errorf("not a refusal of a known form: %v", err)
					}
					pause(ctx, 10*time.Millisecond)
				}
				pause(ctx, 10*time.Millisecond)
			}
		})
	}
	return m
}

func (m *makers) acknowledged(n devcluster.Node, name string, begun time.Time) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.made = append(m.made, name)
	m.asked[n.Name] = begun
}

// await waits until each of some nodes has done what was first asked for after a moment.
func (m *makers) await(t *testing.T, d time.Duration, what string, nodes []devcluster.Node, since time.Time) {
	t.Helper()
	eventually(t, d, what, func() bool {
		m.mu.Lock()
		defer m.mu.Unlock()
		return !slices.ContainsFunc(nodes, func(n devcluster.Node) bool { return !m.asked[n.Name].After(since) })
	})
}

func (m *makers) names() []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Clone(m.made)
}
