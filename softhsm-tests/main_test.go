// Package softhsmtests tests real kekd processes on real SoftHSM2 tokens, from outside: by their
// command lines, sockets, files and signals.
package softhsmtests

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"fmt"
	mathrand "math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"github.com/kekd/kekd/softhsm-tests/devcluster"
	"github.com/kekd/kekd/unix-socket-api/client"
	"github.com/kekd/kekd/unix-socket-api/kekdv1"
)

// The programs, built once from this tree.
var kekd, kekctl string

func TestMain(m *testing.M) {
	if os.Getenv(envAttack) != "" {
		os.Exit(m.Run()) // an attacker: he has his victim's daemon
	}
	os.Exit(testMain(m))
}

func testMain(m *testing.M) int {
	dir, err := os.MkdirTemp("", "kekd-test-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	// Other users run kekctl in these tests.
	if err := os.Chmod(dir, 0o755); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	build := exec.Command("go", "build", "-o", dir, "github.com/kekd/kekd/cmd/kekd", "github.com/kekd/kekd/cmd/kekctl")
	if out, err := build.CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "go build: %v\n%s", err, out)
		return 1
	}
	kekd, kekctl = filepath.Join(dir, "kekd"), filepath.Join(dir, "kekctl")
	return m.Run()
}

// tempDir is short enough for sockets, and open for other users.
func tempDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "kekd-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	return dir
}

// start runs a dev cluster in dir until the test ends.
func start(t *testing.T, dir string, args ...string) *devcluster.Cluster {
	t.Helper()
	c, err := devcluster.Start(t.Context(), kekd, dir, args...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Stop(); err != nil {
			t.Error(err)
		}
		if t.Failed() {
			for _, n := range c.Nodes {
				log, _ := os.ReadFile(logOf(n))
				t.Logf("log of node %s:\n%s", n.Name, log)
			}
		}
	})
	return c
}

// loops is how often a loop over random moments runs: few times before each change, many at night.
func loops(few, many int) int {
	if os.Getenv("KEKD_NIGHTLY") != "" {
		return many
	}
	return few
}

// moments are random ones for a loop, by [seedOf]; what happens in them is the scheduler's.
func moments(t *testing.T) *mathrand.Rand {
	t.Helper()
	return mathrand.New(mathrand.NewPCG(seedOf(t), 0))
}

// seedOf draws a seed, or takes KEKD_SEED=N. It is in the output of a test that fails.
func seedOf(t *testing.T) uint64 {
	t.Helper()
	seed := mathrand.Uint64()
	if s := os.Getenv("KEKD_SEED"); s != "" {
		var err error
		if seed, err = strconv.ParseUint(s, 10, 64); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("KEKD_SEED=%d", seed)
	return seed
}

func logOf(n devcluster.Node) string { return filepath.Join(filepath.Dir(n.DataDir), "kekd.log") }

func admin(t *testing.T, n devcluster.Node) kekdv1.AdminServiceClient {
	t.Helper()
	a, done, err := n.Admin()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(done)
	return a
}

func keys(t *testing.T, n devcluster.Node) *client.Client {
	t.Helper()
	c, err := client.Dial(n.Socket)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// within bounds a test's calls.
func within(t *testing.T, d time.Duration) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), d)
	t.Cleanup(cancel)
	return ctx
}

var allOps = []string{"wrap", "unwrap", "datakey", "rewrap"}

// setUp makes tenants, each with the key orders, and lets this process use all of them.
func setUp(t *testing.T, n devcluster.Node, tenants ...string) {
	t.Helper()
	ctx, a := within(t, 30*time.Second), admin(t, n)
	uid := uint32(os.Getuid())
	_, err := a.CreateService(ctx, &kekdv1.CreateServiceRequest{Name: "me", Uid: &uid})
	if err == nil {
		_, err = a.AllowPolicy(ctx, &kekdv1.AllowPolicyRequest{Rule: &kekdv1.Rule{Service: "me", Pattern: "*/*", Ops: allOps}})
	}
	for _, tenant := range tenants {
		if err == nil {
			_, err = a.CreateTenant(ctx, &kekdv1.CreateTenantRequest{Name: tenant})
		}
		if err == nil {
			_, err = a.CreateKey(ctx, &kekdv1.CreateKeyRequest{Key: tenant + "/orders"})
		}
	}
	if err != nil {
		t.Fatal(err)
	}
}

// alive tells whether a process is there and no zombie.
func alive(pid int) bool {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	return err == nil && !zombie(string(b))
}

func zombie(stat string) bool {
	for i := len(stat) - 1; i >= 0; i-- {
		if stat[i] == ')' {
			return i+2 < len(stat) && (stat[i+2] == 'Z' || stat[i+2] == 'X')
		}
	}
	return true
}

// eventually waits for a condition.
func eventually(t *testing.T, d time.Duration, what string, f func() bool) {
	t.Helper()
	for deadline := time.Now().Add(d); !f(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not within %v: %s", d, what)
		}
	}
}

func randomBytes(n int) []byte {
	b := make([]byte, n)
	rand.Read(b)
	return b
}

// canary is a data key that can be looked for.
func canary() []byte { return []byte(hex.EncodeToString(randomBytes(16))) }
