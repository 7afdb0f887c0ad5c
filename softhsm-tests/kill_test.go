package softhsmtests

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/kekd/kekd/unix-socket-api/client"
	"github.com/kekd/kekd/unix-socket-api/kekdv1"
)

// Killed at random moments of creation, rotation, disabling, enabling and use, the daemon alone, its
// workers alone, or all at once, also while it starts: whatever a caller was told still holds.
func TestNothingIsLostByKills(t *testing.T) {
	t.Parallel()
	n := initialised(t)
	l := newLedger()
	d := n.serve()
	setUp(t, n.Node)
	a := admin(t, n.Node)
	for _, c := range []command{createTenant("toggled"), createTenant("acme"), createKey("acme/orders")} {
		if err := l.do(within(t, 20*time.Second), a, c); err != nil {
			t.Fatal(err)
		}
	}
	first, closer, err := client.DialKeys(n.Socket)
	if err != nil {
		t.Fatal(err)
	}
	if err := l.generate(within(t, 20*time.Second), first); err != nil {
		t.Fatal(err)
	}
	closer.Close()
	random := moments(t)
	for round := range loops(30, 300) {
		kill := []string{"daemon", "all", "workers", "start"}[round%4]
		after := time.Duration(random.Int64N(int64(600 * time.Millisecond)))
		t.Logf("round %d: %s, after %v", round, kill, after)
		if kill == "start" {
			d.kill()
			d = n.launch()
			time.Sleep(after)
		} else {
			underLoad(t, n, l, d, round, kill, after)
		}
		d.kill()
		l.recorded(t, n)
		d = n.serve()
		l.settle(t, admin(t, n.Node))
		l.holds(t, n)
		for _, w := range statusOf(t, n).Warnings {
			if !strings.Contains(w, "that the hierarchy does not know") {
				t.Errorf("warning: %s", w)
			}
		}
		if t.Failed() {
			t.FailNow()
		}
	}
	everyObjectIsKnown(t, n)
	d.stop()
	if out := runTool(t, kekctl, "audit", "verify", "--dir", n.DataDir+"/audit", "--public-key", n.DataDir+"/identity.pub"); !strings.Contains(out, "ok") {
		t.Errorf("audit verify: %s", out)
	}
}

// underLoad runs all kinds of callers and kills in the midst of them.
func underLoad(t *testing.T, n *node, l *ledger, d *daemon, round int, kill string, after time.Duration) {
	t.Helper()
	a := admin(t, n.Node)
	k, closer, err := client.DialKeys(n.Socket)
	if err != nil {
		t.Fatal(err)
	}
	defer closer.Close()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var killed atomic.Bool
	var running sync.WaitGroup
	// repeat calls f until it fails, which it may only once something was killed. A worker's death
	// may cost the change that it was at, and nothing else.
	repeat := func(pause time.Duration, f func(i int) error) {
		running.Go(func() {
			for i := 0; ctx.Err() == nil; i++ {
				if err := f(i); err != nil {
					if !killed.Load() {
						t.Errorf("before the kill: %v", err)
					}
					return
				}
				time.Sleep(time.Duration(rand.Int64N(int64(pause))))
			}
		})
	}
	repeat(80*time.Millisecond, func(i int) error {
		tenant := fmt.Sprintf("t-%d-%d", round, i)
		if err := l.do(ctx, a, createTenant(tenant)); err != nil {
			return err
		}
		return l.do(ctx, a, createKey(tenant+"/orders"))
	})
	repeat(80*time.Millisecond, func(int) error {
		l.mu.Lock()
		key := l.names[rand.IntN(len(l.names))]
		l.mu.Unlock()
		return l.do(ctx, a, rotate(key))
	})
	enabled := l.tenants["toggled"] == "enabled"
	repeat(20*time.Millisecond, func(int) error {
		enabled = !enabled
		return l.do(ctx, a, toggle("toggled", enabled))
	})
	for range 2 {
		repeat(3*time.Millisecond, func(int) error { return l.generate(ctx, k) })
	}
	for range 4 {
		repeat(time.Millisecond, func(int) error { return l.unwrap(ctx, k) })
	}

	time.Sleep(after)
	workers := childrenOf(t, d.cmd.Process.Pid)
	killed.Store(true)
	switch kill {
	case "daemon":
		_ = d.cmd.Process.Kill()
	case "all":
		for _, pid := range append(workers, d.cmd.Process.Pid) {
			_ = syscall.Kill(pid, syscall.SIGKILL)
		}
	case "workers":
		if len(workers) == 0 {
			t.Error("the daemon has no workers")
		}
		for _, pid := range workers {
			_ = syscall.Kill(pid, syscall.SIGKILL)
			time.Sleep(time.Duration(rand.Int64N(int64(20 * time.Millisecond))))
		}
		// It goes on by itself, with others.
		eventually(t, 10*time.Second, "unwraps after the workers were killed", func() bool { return l.unwrap(within(t, 5*time.Second), k) == nil })
		if !d.running() {
			t.Error("the daemon has ended with its workers")
		}
	}
	if kill == "workers" {
		_ = d.cmd.Process.Kill()
	}
	cancel()
	running.Wait()
}

// everyObjectIsKnown compares the token's key objects with the hierarchy: each once, and what the
// hierarchy does not know is reported.
func everyObjectIsKnown(t *testing.T, n *node) {
	t.Helper()
	a, ctx := admin(t, n.Node), within(t, 30*time.Second)
	known, names := map[string]bool{}, map[string]string{}
	tenants, err := a.ListTenants(ctx, &kekdv1.ListTenantsRequest{})
	if err != nil {
		t.Fatal(err)
	}
	for _, tenant := range tenants.Tenants {
		list, err := a.ListKeys(ctx, &kekdv1.ListKeysRequest{Tenant: tenant.Name})
		if err != nil {
			t.Fatal(err)
		}
		for _, key := range list.Keys {
			for _, v := range key.Versions {
				for _, r := range v.Regions {
					known[r.CkaId], names[r.CkaId] = false, fmt.Sprintf("%s/%s@%d (%s)", tenant.Name, key.Key, v.Version, v.State)
				}
			}
		}
	}
	var label string
	warnings := statusOf(t, n).Warnings
	uri, _, _ := strings.Cut(n.Token, "?")
	for line := range strings.Lines(n.softHSM("pkcs11-tool", "--module", softHSMModule, "--token-label", strings.TrimPrefix(uri, "pkcs11:token="), "--login", "--pin", "env:PIN", "--list-objects", "--type", "secrkey")) {
		name, value, _ := strings.Cut(strings.TrimSpace(line), ":")
		value = strings.TrimSpace(value)
		switch {
		case name == "label":
			label = value
		case name == "ID" && strings.HasSuffix(label, "/kek"): // not the daemon's own canary
			seen, ok := known[value]
			if seen {
				t.Errorf("the token has two objects of the ID of %s", label)
			}
			if !ok && !slices.ContainsFunc(warnings, func(w string) bool { return strings.Contains(w, label) }) {
				t.Errorf("nobody knows or reports the object %s", label)
			}
			if ok {
				known[value] = true
			}
		}
	}
	for id, seen := range known {
		if !seen {
			t.Errorf("the token has no object %s of %s", id, names[id])
		}
	}
}
