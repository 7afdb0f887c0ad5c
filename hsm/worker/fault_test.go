package worker_test

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/sha256"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/kekd/kekd/hierarchy"
	"github.com/kekd/kekd/hsm"
	"github.com/kekd/kekd/hsm/hsmtest"
	"github.com/kekd/kekd/hsm/identity"
	"github.com/kekd/kekd/hsm/softhsm"
	"github.com/kekd/kekd/hsm/worker"
	"github.com/kekd/kekd/softhsm-tests/faultmodule"
)

// faulty makes a token behind the fault module.
func faulty(t *testing.T) (workerConfig, *faultmodule.Module) {
	t.Helper()
	c, m := kept(t), faultmodule.New(t)
	c.Module = m.Path
	return c, m
}

// refused opens a pool that does not open.
func refused(t *testing.T, c worker.Config, want error) {
	t.Helper()
	p, err := worker.Open(soon(t), quick(c))
	if err == nil {
		must(t, p.Close(soon(t)))
	}
	if !errors.Is(err, want) {
		t.Errorf("open: %v, want %v", err, want)
	}
	if err != nil && strings.Contains(err.Error(), hsmtest.UserPIN) {
		t.Error("the error tells the PIN")
	}
}

// TestWrongPIN: it is tried once.
func TestWrongPIN(t *testing.T) {
	c, m := faulty(t)
	refused(t, worker.Config{Command: commandOf(t, c, m.Env()...), Workers: 2, PIN: pinOf("wrong-" + hsmtest.UserPIN)}, hsm.ErrPINIncorrect)
	if n := m.Counters.Calls("C_Login"); n != 1 {
		t.Errorf("%d logins, want 1", n)
	}
}

// TestPINRefusedLater: a PIN that was changed behind the daemon's back is tried once, too. Who
// has logged in goes on.
func TestPINRefusedLater(t *testing.T) {
	c, m := faulty(t)
	p := openPool(t, worker.Config{Command: commandOf(t, c, m.Env()...), Workers: 2, BackOff: 50 * time.Millisecond, Patience: 100 * time.Millisecond})
	s := mint(t, p, acme, 1)
	logins := m.Counters.Calls("C_Login")
	m.Control.Set("C_Login error=CKR_PIN_INCORRECT")
	first := p.Workers()[0].PID
	signal(t, first, syscall.SIGKILL)
	await(t, "the refusal is known", func() bool { return errors.Is(p.Healthy(soon(t)), hsm.ErrPINIncorrect) })
	s.do(t, p, 300)
	signal(t, p.Workers()[0].PID, syscall.SIGKILL)
	ops := s.unwraps(3)
	p.Do(context.Background(), ops)
	for i := range ops {
		if !errors.Is(ops[i].Err, hsm.ErrPINIncorrect) || !errors.Is(ops[i].Err, hsm.ErrUnavailable) {
			t.Errorf("operation %d: %v, want ErrPINIncorrect", i, ops[i].Err)
		}
	}
	if _, err := p.List(soon(t)); !errors.Is(err, hsm.ErrPINIncorrect) {
		t.Errorf("list: %v, want ErrPINIncorrect", err)
	}
	// Both seats had their turn, and both know.
	if n := m.Counters.Calls("C_Login") - logins; n != 1 {
		t.Errorf("%d logins after the first refusal, want 1", n)
	}
}

// TestPINRefusedToAll: workers that end together try a PIN once, together.
func TestPINRefusedToAll(t *testing.T) {
	c, m := faulty(t)
	p := openPool(t, worker.Config{Command: commandOf(t, c, m.Env()...), Workers: 4, BackOff: 50 * time.Millisecond})
	logins := m.Counters.Calls("C_Login")
	m.Control.Set("C_Login error=CKR_PIN_INCORRECT")
	for _, w := range p.Workers() {
		signal(t, w.PID, syscall.SIGKILL)
	}
	await(t, "no worker will come", func() bool {
		ops := []hsm.Operation{{Lane: acme, Plaintext: []byte("x"), To: []hsm.Target{{AAD: aad}}}}
		p.Do(soon(t), ops)
		return errors.Is(ops[0].Err, hsm.ErrPINIncorrect)
	})
	if n := m.Counters.Calls("C_Login") - logins; n != 1 {
		t.Errorf("%d logins, want 1", n)
	}
}

func TestStartErrors(t *testing.T) {
	c := kept(t)
	with := func(change func(*workerConfig)) worker.Config {
		c := c
		change(&c)
		return worker.Config{Command: commandOf(t, c), Workers: 1}
	}
	refused(t, with(func(c *workerConfig) { c.Module = filepath.Join(t.TempDir(), "none.so") }), hsm.ErrNoModule)
	refused(t, with(func(c *workerConfig) { c.Serial = "0000" }), hsm.ErrNoToken)
	none := with(func(*workerConfig) {})
	none.PIN = func() ([]byte, error) { return nil, fmt.Errorf("%w: no such file", hsm.ErrPINMissing) }
	refused(t, none, hsm.ErrPINMissing)
	none.PIN = pinOf("")
	refused(t, none, hsm.ErrPINMissing)
	none.PIN = pinOf(strings.Repeat("1", 100_000))
	refused(t, none, hsm.ErrPINMissing)
	none.PIN = pinOf(hsmtest.UserPIN)
	none.Command = commandOf(t, workerConfig{Kind: "garbage"})
	refused(t, none, worker.ErrGarbage)
	none.Command = commandOf(t, workerConfig{Kind: "mute"})
	none.StartTimeout = 100 * time.Millisecond
	refused(t, none, hsm.ErrDeadline)
}

// TestEndsAtOnce: how right a PIN is that no login has shown, nobody knows. A worker that ends
// without a word is started twice.
func TestEndsAtOnce(t *testing.T) {
	notes := filepath.Join(t.TempDir(), "notes")
	refused(t, worker.Config{Command: commandOf(t, workerConfig{Kind: "exit"}, "KEKD_TEST_NOTES="+notes)}, hsm.ErrUnavailable)
	b, err := os.ReadFile(notes)
	must(t, err)
	if n := bytes.Count(b, []byte("\n")); n != 2 {
		t.Errorf("started %d times, want 2", n)
	}
}

// TestCrashLoop: a module that crashes at each start, after the login, does not log in without
// end.
func TestCrashLoop(t *testing.T) {
	c, m := faulty(t)
	p := openPool(t, worker.Config{Command: commandOf(t, c, m.Env()...), Workers: 2, Patience: 300 * time.Millisecond})
	s := mint(t, p, acme, 1)
	logins := m.Counters.Calls("C_Login")
	m.Control.Set("C_Login crash when=after")
	for pid := range pids(p) {
		signal(t, pid, syscall.SIGKILL)
	}
	ops := s.unwraps(300)
	from := time.Now()
	p.Do(context.Background(), ops) // no deadline: patience ends it
	for i := range ops {
		if !errors.Is(ops[i].Err, hsm.ErrUnavailable) {
			t.Fatalf("operation %d: %v, want ErrUnavailable", i, ops[i].Err)
		}
	}
	if err := p.Healthy(soon(t)); !errors.Is(err, hsm.ErrUnavailable) {
		t.Errorf("healthy: %v, want ErrUnavailable", err)
	}
	time.Sleep(time.Until(from.Add(2 * time.Second))) // to count in
	// The waits of each of two: 0, 50, 100, 200, 400, 800 and 1600 ms.
	if n := m.Counters.Calls("C_Login") - logins; n < 2 || n > 14 {
		t.Errorf("%d logins in 2 s, want 14 at most", n)
	}
	m.Control.Clear()
	replaced(t, p, 2)
	s.do(t, p, 300)
}

// TestFaults: what a module may do in the middle of work, callers do not notice.
func TestFaults(t *testing.T) {
	c, m := faulty(t)
	p := openPool(t, worker.Config{Command: commandOf(t, c, m.Env()...), Workers: 2, BackOff: 50 * time.Millisecond, HangTimeout: 500 * time.Millisecond})
	s := mint(t, p, acme, 1)
	for _, rule := range []string{
		"C_Decrypt crash after=200 count=1",
		"C_Decrypt hang=forever after=200 count=1",
		"C_Decrypt error=CKR_DEVICE_ERROR after=200 count=1",
		"C_DecryptInit error=CKR_DEVICE_REMOVED after=200 count=1",
		"C_DecryptInit error=CKR_TOKEN_NOT_PRESENT after=200 count=1",
		"C_DecryptInit error=CKR_USER_NOT_LOGGED_IN after=200 count=1",
		"C_DecryptInit error=CKR_SESSION_HANDLE_INVALID after=200 count=1",
	} {
		t.Run(strings.Fields(rule)[1], func(t *testing.T) {
			before := pids(p)
			stop := load(t, p, s)
			m.Control.Set(rule)
			if strings.Contains(rule, "SESSION") { // which a worker survives
				calls := m.Counters.Calls("C_Decrypt")
				await(t, "it happened", func() bool { return m.Counters.Calls("C_Decrypt") > calls+2000 })
			} else {
				await(t, "it happened", func() bool { return !maps.Equal(before, pids(p)) })
			}
			m.Control.Clear() // it would happen to the next one, too
			await(t, "two workers serve", func() bool { return len(p.Workers()) == 2 })
			stop()
		})
	}
}

// TestSlotHangs: an operation that a token of many slots does not end is found while the others go
// on, and is run again elsewhere.
func TestSlotHangs(t *testing.T) {
	c, m := faulty(t)
	c.Parallel = 8
	p := openPool(t, worker.Config{Command: commandOf(t, c, m.Env()...), Workers: 1, BackOff: 50 * time.Millisecond, HangTimeout: time.Second})
	s := mint(t, p, acme, 1)
	before := pids(p)
	stop := load(t, p, s)
	m.Control.Set("C_Decrypt hang=forever after=200 count=1")
	calls := m.Counters.Calls("C_Decrypt")
	await(t, "a call hangs", func() bool { return m.Counters.Calls("C_Decrypt") > calls+200 })
	m.Control.Clear()
	await(t, "the worker is replaced", func() bool { return len(p.Workers()) == 1 && !maps.Equal(before, pids(p)) })
	stop()
}

// TestSlotHangsAlways: an operation that hangs in each worker is given up, and what shared these
// workers with it is not.
func TestSlotHangsAlways(t *testing.T) {
	p := openPool(t, worker.Config{Command: commandOf(t, workerConfig{Kind: "fake", Parallel: 8}), Workers: 1, BackOff: 50 * time.Millisecond, HangTimeout: 400 * time.Millisecond})
	var done atomic.Bool
	var wg sync.WaitGroup
	for i := range 4 {
		wg.Go(func() {
			for !done.Load() {
				ops := make([]hsm.Operation, 50)
				for j := range ops {
					ops[j] = fakeSeal(globex, fmt.Appendf(nil, "%d %d", i, j))
				}
				p.Do(soon(t), ops)
				for j := range ops {
					if err := checkFake(&ops[j]); err != nil {
						t.Errorf("an operation beside one that hangs: %v", err)
						return
					}
				}
			}
		})
	}
	ops := []hsm.Operation{fakeSeal(acme, hang)}
	p.Do(soon(t), ops)
	done.Store(true)
	wg.Wait()
	if !errors.Is(ops[0].Err, hsm.ErrUnavailable) {
		t.Errorf("an operation that hangs in each worker: %v, want ErrUnavailable", ops[0].Err)
	}
}

// TestChangeHangs: a manager that hangs in a change, and answers all else, is replaced.
func TestChangeHangs(t *testing.T) {
	c, m := faulty(t)
	p := openPool(t, worker.Config{Command: commandOf(t, c, m.Env()...), Workers: 1, ChangeTimeout: 500 * time.Millisecond})
	pid := p.Workers()[0].PID
	m.Control.Set("C_GenerateKey hang=forever count=1")
	go func() {
		m.Counters.AwaitInside("C_GenerateKey", 1)
		m.Control.Clear() // or the next one would hang, too
	}()
	if _, err := p.Generate(soon(t), kekID(acme, 1), "kekd/test"); err != nil {
		t.Errorf("generate: %v", err)
	}
	if now := p.Workers()[0].PID; now == pid {
		t.Error("the manager was not replaced")
	}
	objects, err := p.List(soon(t))
	must(t, err)
	if len(objects) != 1 {
		t.Errorf("%d objects, want 1", len(objects))
	}
}

// TestForgetUnderLoad: forgetting is fast, and disturbs nobody.
func TestForgetUnderLoad(t *testing.T) {
	p := openPool(t, worker.Config{Command: commandOf(t, kept(t)), Workers: 2})
	s := mint(t, p, acme, 1)
	before := pids(p)
	stop := load(t, p, s)
	many := make([]hierarchy.ObjectID, 10_000) // more than one request carries
	many[9_999] = s.key.ID
	for range 10 {
		must(t, p.Forget(soon(t), []hierarchy.ObjectID{s.key.ID}))
		must(t, p.Forget(soon(t), many))
	}
	stop()
	for pid := range pids(p) {
		if !before[pid] {
			t.Error("a worker was replaced")
		}
	}
}

// TestForgetHanging: a worker that hangs has forgotten when it is dead.
func TestForgetHanging(t *testing.T) {
	p := openPool(t, worker.Config{Command: commandOf(t, workerConfig{Kind: "fake"}), Workers: 2, ForgetTimeout: 100 * time.Millisecond, HangTimeout: time.Hour})
	pid := p.Workers()[1].PID
	freeze(t, pid)
	if err := p.Forget(within(t, 10*time.Millisecond), []hierarchy.ObjectID{{1}}); !errors.Is(err, hsm.ErrDeadline) {
		t.Errorf("forget within 10 ms: %v, want ErrDeadline", err)
	}
	must(t, p.Forget(soon(t), []hierarchy.ObjectID{{1}}))
	if pids(p)[pid] {
		t.Error("the worker that hangs serves still")
	}
}

// TestBusy: a lane that has piled up too much is told so, and no other lane is.
func TestBusy(t *testing.T) {
	p := openPool(t, worker.Config{Command: commandOf(t, workerConfig{Kind: "fake", Each: 100 * time.Microsecond}), Workers: 1, LaneLimit: 1000})
	var wg sync.WaitGroup
	var mu sync.Mutex
	busy, done := 0, 0
	for range 4 {
		wg.Go(func() {
			ops := make([]hsm.Operation, 900)
			for i := range ops {
				ops[i] = fakeSeal(acme, []byte("x"))
			}
			p.Do(soon(t), ops)
			mu.Lock()
			defer mu.Unlock()
			for i := range ops {
				if errors.Is(ops[i].Err, hsm.ErrBusy) {
					busy++
				} else if checkFake(&ops[i]) == nil {
					done++
				}
			}
		})
	}
	for range 20 {
		ops := []hsm.Operation{fakeSeal(globex, []byte("x"))}
		p.Do(soon(t), ops)
		must(t, checkFake(&ops[0]))
	}
	wg.Wait()
	if busy == 0 || done == 0 || busy+done != 3600 {
		t.Errorf("%d operations were refused, %d done, of 3600", busy, done)
	}
}

// TestWithdrawn: what its caller has given up takes no room in the queue.
func TestWithdrawn(t *testing.T) {
	p := openPool(t, worker.Config{Command: commandOf(t, workerConfig{Kind: "fake"}), Workers: 1, LaneLimit: 300})
	pid := p.Workers()[0].PID
	freeze(t, pid)
	ops := make([]hsm.Operation, 300)
	for range 5 {
		for i := range ops {
			ops[i] = fakeSeal(acme, []byte("x"))
		}
		p.Do(within(t, 10*time.Millisecond), ops)
		for i := range ops {
			if !errors.Is(ops[i].Err, hsm.ErrDeadline) {
				t.Fatalf("operation %d: %v, want ErrDeadline", i, ops[i].Err)
			}
		}
	}
	signal(t, pid, syscall.SIGCONT)
}

// TestAgreementGivenUp: a pair whose caller has not heard of it is ended all the same.
func TestAgreementGivenUp(t *testing.T) {
	c, m := faulty(t)
	p := openPool(t, worker.Config{Command: commandOf(t, c, m.Env()...), Workers: 1})
	_, err := p.Info(soon(t)) // which tries agreements
	must(t, err)
	made, destroyed := m.Counters.Calls("C_GenerateKeyPair"), m.Counters.Calls("C_DestroyObject")
	freeze(t, p.Workers()[0].PID)
	if _, err := p.BeginAgreement(within(t, 50*time.Millisecond)); !errors.Is(err, hsm.ErrDeadline) {
		t.Errorf("begin: %v, want ErrDeadline", err)
	}
	signal(t, p.Workers()[0].PID, syscall.SIGCONT)
	_, err = p.List(soon(t)) // comes after it
	must(t, err)
	made, destroyed = m.Counters.Calls("C_GenerateKeyPair")-made, m.Counters.Calls("C_DestroyObject")-destroyed
	if made != 1 || destroyed != 2 {
		t.Errorf("%d pairs made, %d halves destroyed; want 1 and 2", made, destroyed)
	}
}

// TestPINHidden: nobody reads the PIN from a worker's command line or environment.
func TestPINHidden(t *testing.T) {
	p := openPool(t, worker.Config{Command: commandOf(t, kept(t)), Workers: 2})
	for pid := range pids(p) {
		for _, file := range []string{"cmdline", "environ"} {
			b, err := os.ReadFile(fmt.Sprintf("/proc/%d/%s", pid, file))
			must(t, err)
			if len(b) == 0 || bytes.Contains(b, []byte(hsmtest.UserPIN)) {
				t.Errorf("%s of a worker: %d bytes, with the PIN: %t", file, len(b), bytes.Contains(b, []byte(hsmtest.UserPIN)))
			}
		}
		// And it has no more descriptors of its daemon than it should: none but its own socket.
		fds, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
		must(t, err)
		sockets := 0
		for _, fd := range fds {
			if to, _ := os.Readlink(fmt.Sprintf("/proc/%d/fd/%s", pid, fd.Name())); strings.HasPrefix(to, "socket:") {
				sockets++
			}
		}
		if sockets != 1 {
			t.Errorf("a worker has %d sockets, want 1", sockets)
		}
	}
}

// TestSigner: the identity signs in the manager, also in the next one.
func TestSigner(t *testing.T) {
	c := kept(t)
	c.Identity = true
	dir, err := softhsm.Open(c.Dir)
	must(t, err)
	g, err := dir.Attach(soon(t), nil)
	must(t, err)
	must(t, g.ChangeWhole(soon(t), func() error {
		id, err := identity.Create(identity.Config{Module: c.Module, Serial: c.Serial, PIN: []byte(hsmtest.UserPIN)})
		if err != nil {
			return err
		}
		return id.Close()
	}))
	must(t, g.Close())

	p := openPool(t, worker.Config{Command: commandOf(t, c), Workers: 2})
	signer := p.Signer()
	digest := sha256.Sum256([]byte("signed"))
	for range 2 {
		sig, err := signer.Sign(nil, digest[:], crypto.SHA256)
		must(t, err)
		if !ecdsa.VerifyASN1(signer.Public().(*ecdsa.PublicKey), digest[:], sig) {
			t.Error("the signature is not good")
		}
		for _, w := range p.Workers() {
			if w.Role == worker.RoleManager {
				signal(t, w.PID, syscall.SIGKILL)
				replaced(t, p, 2, w.PID)
			}
		}
	}
	if _, err := signer.Sign(nil, digest[1:], crypto.SHA256); !errors.Is(err, hsm.ErrInvalidInput) {
		t.Errorf("sign what is no digest: %v, want ErrInvalidInput", err)
	}
	other := openPool(t, worker.Config{Command: commandOf(t, kept(t)), Workers: 1})
	if other.Signer() != nil {
		t.Error("a signer without an identity")
	}
}
