package softhsmtests

import (
	"context"
	"fmt"
	"net"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/kekd/kekd/unix-socket-api/client"
	"github.com/kekd/kekd/unix-socket-api/kekdv1"
)

const daemonUID = 61005

// A daemon of a user of its own that may not lock memory says so, and serves. Nobody else of that
// user can look into its processes.
func TestMemoryLockRefused(t *testing.T) {
	t.Parallel()
	n := initialised(t)
	runTool(t, "chown", "-R", fmt.Sprint(daemonUID), n.Dir)
	n.Prefix = []string{"prlimit", "--memlock=65536:65536", "setpriv", fmt.Sprintf("--reuid=%d", daemonUID), fmt.Sprintf("--regid=%d", daemonUID), "--clear-groups"}
	d := n.serve()
	setUp(t, n.Node, "acme")
	sealAndOpen(t, n, "acme/orders")
	const words = "memory is not locked and may be swapped out"
	if !slices.ContainsFunc(statusOf(t, n).Warnings, func(w string) bool { return strings.Contains(w, words) }) {
		t.Errorf("status does not warn: %q", statusOf(t, n).Warnings)
	}
	if !strings.Contains(d.says(), words) {
		t.Error("the log does not warn")
	}
	for _, pid := range append(childrenOf(t, n.PID), n.PID) {
		var owner syscall.Stat_t
		if err := syscall.Stat(fmt.Sprintf("/proc/%d/environ", pid), &owner); err != nil {
			t.Fatal(err)
		}
		if owner.Uid != 0 { // proc(5): the files of a process that cannot be dumped are root's
			t.Errorf("process %d can be dumped", pid)
		}
		limits, err := os.ReadFile(fmt.Sprintf("/proc/%d/limits", pid))
		if err != nil || !strings.Contains(string(limits), "Max core file size        0                    0") {
			t.Errorf("process %d can leave a core: %v", pid, err)
		}
	}
	d.stop()
}

func TestMemoryIsLocked(t *testing.T) {
	t.Parallel()
	n := initialised(t)
	d := n.serve()
	for _, pid := range append(childrenOf(t, n.PID), n.PID) {
		status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
		if err != nil || !strings.Contains(string(status), "VmLck:") || strings.Contains(string(status), "VmLck:\t       0 kB") {
			t.Errorf("the memory of process %d is not locked: %v", pid, err)
		}
	}
	if w := statusOf(t, n).Warnings; len(w) > 0 {
		t.Errorf("warnings: %q", w)
	}
	d.stop()
}

// A daemon that has no file descriptor left serves those who are connected, says what it lacks, and
// takes new connections and starts new workers when it has some again.
func TestOutOfFileDescriptors(t *testing.T) {
	t.Parallel()
	n := initialised(t)
	n.Prefix = []string{"prlimit", "--nofile=96:96"}
	d := n.serve()
	setUp(t, n.Node, "acme")
	a := admin(t, n.Node)
	if _, err := a.GetStatus(within(t, 5*time.Second), &kekdv1.GetStatusRequest{}); err != nil { // it connects
		t.Fatal(err)
	}
	p := probe(t, n, "acme/orders")

	flood, err := connectMany(t.Context(), n.Socket, floodUID, 200)
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, 10*time.Second, "all of the daemon's descriptors are used", func() bool { return len(descriptors(t, n.PID)) >= 95 })
	k, closer, err := client.DialKeys(n.Socket)
	if err != nil {
		t.Fatal(err)
	}
	defer closer.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
	defer cancel()
	if _, err := k.GenerateDataKey(ctx, &kekdv1.GenerateDataKeyRequest{Key: "acme/orders"}); err == nil {
		t.Fatal("a new connection is served: there were descriptors left")
	}
	if _, err := a.CreateTenant(within(t, 5*time.Second), &kekdv1.CreateTenantRequest{Name: "globex"}); err != nil {
		t.Errorf("a change on a connection that was there: %v", err)
	}
	if _, err := a.RotateKey(within(t, 5*time.Second), &kekdv1.RotateKeyRequest{Key: "acme/orders"}); err != nil {
		t.Errorf("a rotation on a connection that was there: %v", err)
	}
	p.stop()
	for _, c := range flood {
		c.Close()
	}
	if _, err := k.GenerateDataKey(within(t, 5*time.Second), &kekdv1.GenerateDataKeyRequest{Key: "acme/orders"}); err != nil {
		t.Errorf("a new connection after the flood: %v", err)
	}
	sealAndOpen(t, n, "acme/orders")
	if !strings.Contains(d.says(), "too many open files") {
		t.Error("the log does not say that descriptors ran out")
	}
	d.stop()
}

// Workers that die while there is no descriptor to start others with are missed, but not for ever.
func TestWorkersDieWithoutFileDescriptors(t *testing.T) {
	t.Parallel()
	n := initialised(t)
	n.Prefix = []string{"prlimit", "--nofile=96:96"}
	d := n.serve()
	setUp(t, n.Node, "acme")
	k, closer, err := client.DialKeys(n.Socket)
	if err != nil {
		t.Fatal(err)
	}
	defer closer.Close()
	sealed, err := k.GenerateDataKey(within(t, 10*time.Second), &kekdv1.GenerateDataKeyRequest{Key: "acme/orders"})
	if err != nil {
		t.Fatal(err)
	}
	unwrap := func() error {
		ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
		defer cancel()
		_, err := k.Unwrap(ctx, &kekdv1.UnwrapRequest{Envelope: sealed.Envelope})
		return err
	}
	var flood []net.Conn
	defer func() {
		for _, c := range flood {
			c.Close()
		}
	}()
	workers := childrenOf(t, n.PID)
	// The flood takes each descriptor that a worker leaves.
	if flood, err = connectMany(t.Context(), n.Socket, floodUID, 200); err != nil {
		t.Fatal(err)
	}
	eventually(t, 10*time.Second, "all of the daemon's descriptors are used", func() bool { return len(descriptors(t, n.PID)) >= 95 })
	for _, pid := range workers {
		_ = syscall.Kill(pid, syscall.SIGKILL)
	}
	for range 5 {
		if code := codeOf(unwrap()); code != "" && code != "HSM_UNAVAILABLE" && code != "DEADLINE_EXCEEDED" {
			t.Errorf("without workers callers are told %s", code)
		}
	}
	for _, c := range flood {
		c.Close()
	}
	flood = nil
	eventually(t, 10*time.Second, "unwraps with other workers", func() bool { return unwrap() == nil })
	if !d.running() {
		t.Errorf("the daemon has ended: %s", d.cmd.ProcessState)
	}
	// And with a manager, whose signature the journal ends with.
	if _, err := admin(t, n.Node).RotateKey(within(t, 10*time.Second), &kekdv1.RotateKeyRequest{Key: "acme/orders"}); err != nil {
		t.Errorf("a rotation with other workers: %v", err)
	}
	if strings.Contains(d.says(), "no PIN") {
		t.Error("the log blames the PIN")
	}
	d.stop()
}

func descriptors(t *testing.T, pid int) []os.DirEntry {
	t.Helper()
	all, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
	if err != nil {
		t.Fatal(err)
	}
	return all
}
