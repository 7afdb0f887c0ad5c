package worker_test

import (
	"bytes"
	"context"
	"encoding/json"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/kekd/kekd/hierarchy"
	"github.com/kekd/kekd/hsm"
	"github.com/kekd/kekd/hsm/hsmtest"
	"github.com/kekd/kekd/hsm/pkcs11"
	"github.com/kekd/kekd/hsm/softhsm"
	"github.com/kekd/kekd/hsm/worker"
)

var (
	acme   = hierarchy.TenantID{ID: hierarchy.ID{0xac}}
	globex = hierarchy.TenantID{ID: hierarchy.ID{0x61}}
)

func soon(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	t.Cleanup(cancel)
	return ctx
}

func within(t testing.TB, d time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), d)
	t.Cleanup(cancel)
	return ctx
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// scratch is a directory in memory where there is one: an fsync costs nothing there.
func scratch(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "worker-test-")
	if err != nil {
		return t.TempDir()
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

func commandOf(t testing.TB, c workerConfig, env ...string) func() *exec.Cmd {
	t.Helper()
	config, err := json.Marshal(c)
	must(t, err)
	// What a module that crashes prints is many lines.
	path := filepath.Join(t.TempDir(), "stderr")
	stderr, err := os.Create(path)
	must(t, err)
	t.Cleanup(func() {
		stderr.Close()
		if b, err := os.ReadFile(path); err == nil && t.Failed() {
			t.Logf("the workers said:\n%.2000s", b)
		}
	})
	return func() *exec.Cmd {
		cmd := exec.Command("/proc/self/exe")
		cmd.Env = append(append(os.Environ(), env...), asWorker+"="+string(config))
		cmd.Stderr = stderr
		return cmd
	}
}

func pinOf(s string) func() ([]byte, error) {
	return func() ([]byte, error) { return []byte(s), nil }
}

// kept makes a token in a directory that package softhsm keeps, so that workers may be killed at
// any moment.
func kept(t testing.TB) workerConfig {
	t.Helper()
	path := filepath.Join(scratch(t), "softhsm")
	dir, err := softhsm.Create(path)
	must(t, err)
	t.Setenv("SOFTHSM2_CONF", dir.Conf())
	g, err := dir.Attach(soon(t), nil)
	must(t, err)
	so, err := pkcs11.NewPIN([]byte(hsmtest.SOPIN))
	must(t, err)
	user, err := pkcs11.NewPIN([]byte(hsmtest.UserPIN))
	must(t, err)
	var selected pkcs11.Selected
	must(t, g.ChangeWhole(soon(t), func() (err error) {
		selected, err = pkcs11.InitToken(hsmtest.Module, "kekd-test", so, user)
		return err
	}))
	must(t, g.Close())
	return workerConfig{Kind: "token", Module: hsmtest.Module, Serial: selected.Serial, Label: selected.Label, Dir: path}
}

// logs collects what the pool logs, for the time that a test runs.
type logs struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logs) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(b)
}

func (l *logs) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func quick(c worker.Config) worker.Config {
	if c.PIN == nil {
		c.PIN = pinOf(hsmtest.UserPIN)
	}
	return c
}

// openPool opens a pool, and closes it when the test ends. What it logged is shown if the test fails.
func openPool(t testing.TB, c worker.Config) *worker.Pool {
	t.Helper()
	l := &logs{}
	c = quick(c)
	c.Log = slog.New(slog.NewTextHandler(l, nil))
	p, err := worker.Open(soon(t), c)
	if err != nil {
		t.Fatalf("open: %v\n%s", err, l)
	}
	t.Cleanup(func() {
		if err := p.Close(soon(t)); err != nil {
			t.Errorf("close: %v", err)
		}
		if t.Failed() {
			t.Logf("the pool's log:\n%s", l)
		}
	})
	return p
}

func kekID(tenant hierarchy.TenantID, version uint32) hierarchy.ObjectID {
	return hierarchy.KEKObjectID(hierarchy.ClusterID{}, tenant, hierarchy.KeyID{}, version, hierarchy.RegionID{}, 1)
}

var aad = bytes.Repeat([]byte("aad"), 60) // as long as a real one

// A sample is a key, and a data key sealed under it.
type sample struct {
	key    hsm.KeyRef
	dek    []byte
	sealed hsm.Sealed
	lane   hsm.Lane
}

func mint(t testing.TB, p *worker.Pool, tenant hierarchy.TenantID, version uint32) sample {
	t.Helper()
	o, err := p.Generate(soon(t), kekID(tenant, version), "kekd/test")
	must(t, err)
	s := sample{key: hsm.KeyRef{ID: o.ID, Check: o.Check}, dek: []byte("0123456789abcdef0123456789abcdef"), lane: tenant}
	ops := []hsm.Operation{{Lane: tenant, Plaintext: s.dek, To: []hsm.Target{{Key: s.key, AAD: aad}}}}
	p.Do(soon(t), ops)
	must(t, ops[0].Err)
	s.sealed = ops[0].Sealed[0]
	return s
}

// unwraps makes n operations that open the sample.
func (s sample) unwraps(n int) []hsm.Operation {
	ops := make([]hsm.Operation, n)
	for i := range ops {
		ops[i] = hsm.Operation{Lane: s.lane, Reveal: true, Open: &hsm.Opening{Key: s.key, AAD: aad, Sealed: s.sealed}}
	}
	return ops
}

// wrong counts the operations that did not reveal the data key, and gives the error of one.
func (s sample) wrong(ops []hsm.Operation) (n int, err error) {
	for i := range ops {
		if ops[i].Err != nil || !bytes.Equal(ops[i].Revealed, s.dek) {
			n, err = n+1, ops[i].Err
		}
	}
	return n, err
}

// await waits for a condition, and fails the test if it does not come.
func await(t testing.TB, what string, condition func() bool) {
	t.Helper()
	for deadline := time.Now().Add(15 * time.Second); !condition(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waited in vain: %s", what)
		}
	}
}
