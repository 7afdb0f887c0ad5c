package softhsmtests

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kekd/kekd/unix-socket-api/client"
)

// giveUp is how long a daemon may go on that can no longer keep its promises: then it has ended,
// with the reason in its log.
const giveUp = 10 * time.Second

// victims are callers of a daemon that something happens to. What they are told is counted from the
// moment of the fault on.
type victims struct {
	t       *testing.T
	l       *ledger
	cancel  context.CancelFunc
	running sync.WaitGroup

	mu    sync.Mutex
	codes map[string]int // by code; "" are successes
}

// suffer makes callers that unwrap, and one that makes tenants, each call with a deadline of 2 s.
func suffer(t *testing.T, n *node) *victims {
	t.Helper()
	v := &victims{t: t, l: newLedger(), codes: map[string]int{}}
	a := admin(t, n.Node)
	k, closer, err := client.DialKeys(n.Socket)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { closer.Close() })
	for _, c := range []command{createTenant("acme"), createKey("acme/orders")} {
		if err := v.l.do(within(t, 20*time.Second), a, c); err != nil {
			t.Fatal(err)
		}
	}
	if err := v.l.generate(within(t, 20*time.Second), k); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	v.cancel = cancel
	t.Cleanup(v.stop)
	repeat := func(pause time.Duration, f func(ctx context.Context, i int) error) {
		v.running.Go(func() {
			for i := 0; ctx.Err() == nil; i++ {
				call, cancel := context.WithTimeout(ctx, 2*time.Second)
				err := f(call, i)
				cancel()
				if ctx.Err() != nil {
					return
				}
				if e := (*client.Error)(nil); err != nil && !errors.As(err, &e) {
					t.Errorf("not a refusal of a known form: %v", err)
				}
				v.mu.Lock()
				v.codes[codeOf(err)]++
				v.mu.Unlock()
				time.Sleep(pause)
			}
		})
	}
	for range 4 {
		repeat(time.Millisecond, func(ctx context.Context, _ int) error { return v.l.unwrap(ctx, k) })
	}
	repeat(20*time.Millisecond, func(ctx context.Context, i int) error { return v.l.do(ctx, a, createTenant(fmt.Sprintf("t-%d", i))) })
	v.await("successes", func(codes map[string]int) bool { return codes[""] >= 50 })
	return v
}

// from forgets what happened so far.
func (v *victims) from() {
	v.mu.Lock()
	defer v.mu.Unlock()
	clear(v.codes)
}

func (v *victims) await(what string, f func(codes map[string]int) bool) {
	v.t.Helper()
	eventually(v.t, 20*time.Second, what, func() bool {
		v.mu.Lock()
		defer v.mu.Unlock()
		return f(v.codes)
	})
}

// told checks that callers were told nothing else than these codes and success.
func (v *victims) told(codes ...string) {
	v.t.Helper()
	v.mu.Lock()
	defer v.mu.Unlock()
	v.t.Logf("callers were told: %v", v.codes)
	allowed := map[string]bool{"": true}
	for _, c := range codes {
		allowed[c] = true
	}
	for code, times := range v.codes {
		if !allowed[code] {
			v.t.Errorf("%d callers were told %s, want one of %q", times, code, codes)
		}
	}
}

func (v *victims) stop() {
	v.cancel()
	v.running.Wait()
}

// recovers starts the node again after the fault has gone, and holds everything against it.
func (v *victims) recovers(n *node, d *daemon) {
	v.t.Helper()
	v.stop()
	d.kill()
	v.l.recorded(v.t, n)
	d = n.serve()
	v.l.settle(v.t, admin(v.t, n.Node))
	v.l.holds(v.t, n)
	d.stop()
}

// endsSaying waits until the daemon has given up, and looks for its reason.
func (d *daemon) endsSaying(words ...string) {
	d.n.t.Helper()
	begun := time.Now()
	if status := d.ends(giveUp); status != 1 {
		d.n.t.Errorf("it ended with %s", d.cmd.ProcessState)
	}
	d.n.t.Logf("it ended after %v", time.Since(begun).Round(time.Millisecond))
	for _, w := range words {
		if !strings.Contains(d.says(), w) {
			d.n.t.Errorf("its log does not say %q", w)
		}
	}
	if strings.Contains(d.says(), "goroutine ") {
		d.n.t.Error("it panicked")
	}
}

// onTmpfs puts the node's data directory on a file system of its own, of so many MiB.
func (n *node) onTmpfs(size int) {
	n.t.Helper()
	n.mounted("tmpfs", "-t", "tmpfs", "-o", fmt.Sprintf("size=%dm", size))
}

// onExt4 puts it on a disk.
func (n *node) onExt4(size int) {
	n.t.Helper()
	image := filepath.Join(n.Dir, "disk")
	runTool(n.t, "truncate", "-s", fmt.Sprintf("%dM", size), image)
	runTool(n.t, "mkfs.ext4", "-q", "-F", image)
	n.mounted(image, "-o", "loop")
}

func (n *node) mounted(what string, options ...string) {
	n.t.Helper()
	disk := filepath.Join(n.Dir, "mnt")
	if err := os.Mkdir(disk, 0o755); err != nil {
		n.t.Fatal(err)
	}
	runTool(n.t, "mount", append(options, what, disk)...)
	n.t.Cleanup(func() {
		if err := unix.Unmount(disk, unix.MNT_DETACH); err != nil {
			n.t.Error(err)
		}
	})
	n.DataDir = filepath.Join(disk, "data")
	n.init()
}

// A disk that is full costs no promise. Room that is made is used.
func TestDiskFull(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	n.onTmpfs(160)
	d := n.serve()
	setUp(t, n.Node)
	// Before the disk is full, status says that it soon will be.
	if s := statusOf(t, n); !slices.ContainsFunc(s.Warnings, func(w string) bool { return strings.Contains(w, "MiB are free for "+n.DataDir) }) {
		t.Errorf("status does not warn of a disk of 160 MiB: %q", s.Warnings)
	}
	v := suffer(t, n)
	fill := filepath.Join(n.Dir, "mnt", "fill")
	out, err := exec.Command("dd", "if=/dev/zero", "of="+fill, "bs=64k").CombinedOutput()
	v.from()
	if err == nil || !strings.Contains(string(out), "No space left") {
		t.Fatalf("the disk is not full: %v %s", err, out)
	}
	select {
	case <-d.exited:
	case <-time.After(giveUp):
	}
	if !d.running() {
		d.endsSaying("no space left on device")
	}
	v.told("OUTCOME_UNKNOWN", "AUDIT_UNAVAILABLE", "STALE", "UNAVAILABLE")
	if err := os.Remove(fill); err != nil {
		t.Fatal(err)
	}
	v.recovers(n, d)
}

// A disk that has become read-only, as ext4 does after an error, ends the daemon.
func TestDiskReadOnly(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	n.onExt4(300)
	d := n.serve()
	setUp(t, n.Node)
	v := suffer(t, n)
	v.from()
	runTool(t, "mount", "-o", "remount,abort", filepath.Join(n.Dir, "mnt"))
	d.endsSaying("read-only file system")
	v.told("OUTCOME_UNKNOWN", "AUDIT_UNAVAILABLE", "STALE", "UNAVAILABLE")
	v.stop()
	v.l.recorded(t, n)
	begun := time.Now()
	n.refused(1, []string{"read-only file system"}, "serve")
	if took := time.Since(begun); took > giveUp {
		t.Errorf("it took %v to say so", took)
	}
}

// tamper has system calls on a file of the daemon's fail or hang: see [tamper].
func (d *daemon) tamper(path, inject string) (undo func()) {
	d.n.t.Helper()
	return tamper(d.n.t, d.cmd.Process.Pid, path, inject)
}

// tamper has system calls of a process on a file fail or hang, in the way of strace's -e inject, until the
// function that it returns is called.
func tamper(t *testing.T, pid int, path, inject string) (undo func()) {
	t.Helper()
	calls, _, _ := strings.Cut(inject, ":")
	trace := exec.Command("strace", "-f", "-qq", "-o", os.DevNull, "-p", fmt.Sprint(pid), "-P", path, "-e", "trace="+calls, "-e", "inject="+inject)
	var says strings.Builder
	trace.Stderr = &says
	if err := trace.Start(); err != nil {
		t.Fatal(err)
	}
	exited := make(chan struct{})
	go func() { _ = trace.Wait(); close(exited) }()
	var once sync.Once
	undo = func() {
		once.Do(func() {
			if alive(pid) {
				_ = trace.Process.Signal(syscall.SIGINT)
			} else { // it would wait for a thread that has a call delayed, and that thread for it
				_ = trace.Process.Kill()
			}
			<-exited
		})
	}
	t.Cleanup(undo)
	eventually(t, 10*time.Second, "strace holds every thread of the process", func() bool {
		select {
		case <-exited:
			if alive(pid) {
				t.Fatalf("strace: %s", says.String())
			}
			return true // the fault was quicker
		default:
		}
		threads, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/status", pid))
		for _, status := range threads {
			if b, err := os.ReadFile(status); err == nil && strings.Contains(string(b), "TracerPid:\t0") {
				return false
			}
		}
		return err == nil && len(threads) > 0
	})
	return undo
}

// journal is the file that the daemon writes its audit to.
func (n *node) journal() string {
	n.t.Helper()
	files, err := filepath.Glob(filepath.Join(n.DataDir, "audit", "*.jsonl"))
	if err != nil || len(files) == 0 {
		n.t.Fatalf("no journal: %v", err)
	}
	return files[len(files)-1]
}

func (n *node) raftLog() string { return filepath.Join(n.DataDir, "raft", "raft", "log.db") }

func TestDiskFails(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name   string
		file   func(n *node) string
		inject string
		words  []string
	}{
		{"journal's sync", (*node).journal, "fdatasync:error=EIO", []string{"the audit journal", "input/output error"}},
		{"journal's write", (*node).journal, "pwrite64:error=EIO", []string{"the audit journal", "input/output error"}},
		{"journal's room", (*node).journal, "pwrite64:error=ENOSPC", []string{"the audit journal", "no space left on device"}},
		{"Raft's sync", (*node).raftLog, "fdatasync:error=EIO", []string{"the cluster", "input/output error"}},
		{"Raft's write", (*node).raftLog, "pwrite64:error=EIO", []string{"the cluster", "input/output error"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			n := initialised(t)
			d := n.serve()
			setUp(t, n.Node)
			v := suffer(t, n)
			v.from()
			d.tamper(c.file(n), c.inject)
			d.endsSaying(c.words...)
			v.told("OUTCOME_UNKNOWN", "AUDIT_UNAVAILABLE", "STALE", "UNAVAILABLE")
			v.recovers(n, d)
		})
	}
}

// A disk that hangs lets nothing out either, and when it comes back all goes on.
func TestDiskHangs(t *testing.T) {
	t.Parallel()
	for name, file := range map[string]func(n *node) string{"journal": (*node).journal, "Raft": (*node).raftLog} {
		t.Run(name, func(t *testing.T) {
			n := initialised(t)
			d := n.serve()
			setUp(t, n.Node)
			v := suffer(t, n)
			undo := d.tamper(file(n), "fdatasync:delay_enter=60s")
			v.from()
			v.await("refusals", func(codes map[string]int) bool { return len(codes) > 0 && sum(codes)-codes[""] >= 5 })
			v.told("OUTCOME_UNKNOWN", "AUDIT_UNAVAILABLE", "STALE", "DEADLINE_EXCEEDED")
			if name == "journal" && v.codes[""] > 5 { // each caller may have had one on its way
				t.Errorf("%d plaintexts left while their records could not become durable", v.codes[""])
			}
			undo()
			if !d.running() {
				t.Fatalf("it has ended: %s", d.cmd.ProcessState)
			}
			v.from()
			v.await("successes", func(codes map[string]int) bool { return codes[""] >= 50 })
			v.recovers(n, d)
		})
	}
}

func sum(codes map[string]int) (n int) {
	for _, times := range codes {
		n += times
	}
	return n
}
