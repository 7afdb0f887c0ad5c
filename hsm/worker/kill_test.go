package worker_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/kekd/kekd/hierarchy"
	"github.com/kekd/kekd/hsm"
	"github.com/kekd/kekd/hsm/worker"
)

func nightly() bool { return os.Getenv("KEKD_NIGHTLY") == "1" }

// rounds is how often something is killed.
func rounds() int {
	if nightly() {
		return 300
	}
	return 8
}

// rng seeds what is random; the seed is printed, and KEKD_SEED takes it again.
func rng(t *testing.T) *rand.Rand {
	t.Helper()
	seed := uint64(time.Now().UnixNano())
	if s := os.Getenv("KEKD_SEED"); s != "" {
		var err error
		seed, err = strconv.ParseUint(s, 10, 64)
		must(t, err)
	}
	t.Logf("KEKD_SEED=%d", seed)
	return rand.New(rand.NewPCG(seed, 1))
}

func signal(t testing.TB, pid int, s syscall.Signal) {
	t.Helper()
	if err := syscall.Kill(pid, s); err != nil {
		t.Fatalf("signal %v to %d: %v", s, pid, err)
	}
}

// freeze stops a process, and waits until it is stopped.
func freeze(t testing.TB, pid int) {
	t.Helper()
	signal(t, pid, syscall.SIGSTOP)
	await(t, "it is stopped", func() bool { return state(pid) == 'T' })
}

// load runs batches until stop is called, which fails the test if one operation went wrong.
func load(t *testing.T, p *worker.Pool, s sample) (stop func()) {
	t.Helper()
	var done, ran atomic.Int64
	var wg sync.WaitGroup
	for i := range 6 {
		wg.Go(func() {
			ops := s.unwraps([]int{1, 1, 7, 64, 300, 1024}[i])
			for done.Load() == 0 {
				ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
				p.Do(ctx, ops)
				cancel()
				if n, err := s.wrong(ops); n > 0 {
					t.Errorf("%d of %d operations failed: %v", n, len(ops), err)
					return
				}
				ran.Add(int64(len(ops)))
			}
		})
	}
	return func() {
		t.Helper()
		done.Store(1)
		wg.Wait()
		if ran.Load() == 0 {
			t.Error("no operation was run")
		}
	}
}

// pids gives the workers that serve.
func pids(p *worker.Pool) map[int]bool {
	m := map[int]bool{}
	for _, w := range p.Workers() {
		m[w.PID] = true
	}
	return m
}

// replaced waits until n workers serve, none of which has this PID.
func replaced(t *testing.T, p *worker.Pool, n int, old ...int) {
	t.Helper()
	await(t, fmt.Sprintf("%v are replaced", old), func() bool {
		now := pids(p)
		for _, pid := range old {
			if now[pid] {
				return false
			}
		}
		return len(now) == n
	})
}

// TestKill: whoever is killed, no operation fails.
func TestKill(t *testing.T) {
	r := rng(t)
	p := openPool(t, worker.Config{Command: commandOf(t, kept(t)), Workers: 2, BackOff: 50 * time.Millisecond})
	s := mint(t, p, acme, 1)
	stop := load(t, p, s)
	for range rounds() {
		time.Sleep(time.Duration(r.IntN(30)) * time.Millisecond) // at a random moment
		w := p.Workers()[r.IntN(2)]
		signal(t, w.PID, syscall.SIGKILL)
		replaced(t, p, 2, w.PID)
	}
	for range rounds() / 2 {
		time.Sleep(time.Duration(r.IntN(30)) * time.Millisecond)
		var all []int
		for pid := range pids(p) {
			signal(t, pid, syscall.SIGKILL)
			all = append(all, pid)
		}
		replaced(t, p, 2, all...)
	}
	stop()
	must(t, p.Healthy(soon(t)))
}

// TestKillManager: changes are tried again, and are done once.
func TestKillManager(t *testing.T) {
	r := rng(t)
	p := openPool(t, worker.Config{Command: commandOf(t, kept(t)), Workers: 2, BackOff: 50 * time.Millisecond})
	want := map[hierarchy.ObjectID]hsm.KeyRef{}
	killing := make(chan struct{})
	go func() {
		defer close(killing)
		for range rounds() {
			time.Sleep(time.Duration(r.IntN(60)) * time.Millisecond)
			for _, w := range p.Workers() {
				if w.Role == worker.RoleManager {
					_ = syscall.Kill(w.PID, syscall.SIGKILL)
				}
			}
		}
	}()
	for version := uint32(1); ; version++ {
		id := kekID(acme, version)
		o, err := p.Generate(soon(t), id, "kekd/test")
		must(t, err)
		want[id] = hsm.KeyRef{ID: o.ID, Check: o.Check}
		if version%3 == 0 {
			must(t, p.Destroy(soon(t), id))
			delete(want, id)
		}
		select {
		case <-killing:
		default:
			continue
		}
		break
	}
	objects, err := p.List(soon(t))
	must(t, err)
	if len(objects) != len(want) {
		t.Errorf("%d objects, want %d", len(objects), len(want))
	}
	for _, o := range objects {
		if ref, ok := want[o.ID]; !ok || ref.Check != o.Check || o.Fault != nil || !o.Usable {
			t.Errorf("object %+v, want %+v", o, ref)
		}
	}
}

// TestKillAgreement: a pair does not outlive its manager.
func TestKillAgreement(t *testing.T) {
	p := openPool(t, worker.Config{Command: commandOf(t, kept(t)), Workers: 1})
	pair, err := p.BeginAgreement(soon(t))
	must(t, err)
	peer, err := p.BeginAgreement(soon(t))
	must(t, err)
	pid := p.Workers()[0].PID
	signal(t, pid, syscall.SIGKILL)
	replaced(t, p, 1, pid)
	if _, err := pair.Derive(soon(t), peer.Public(), hsm.KDFECDHAESCBC, []byte("info"), kekID(acme, 1), "x"); !errors.Is(err, hsm.ErrKeyNotFound) {
		t.Errorf("derive after the manager was replaced: %v, want ErrKeyNotFound", err)
	}
	must(t, pair.End(soon(t)))
	must(t, peer.End(soon(t)))
}

// TestStopped: a worker that hangs keeps nobody beyond his deadline, and is replaced.
func TestStopped(t *testing.T) {
	p := openPool(t, worker.Config{Command: commandOf(t, kept(t)), Workers: 1, HangTimeout: time.Second})
	s := mint(t, p, acme, 1)
	pid := p.Workers()[0].PID
	freeze(t, pid)
	var wg sync.WaitGroup
	wg.Go(func() {
		ops := s.unwraps(300)
		from := time.Now()
		p.Do(within(t, 100*time.Millisecond), ops)
		if took := time.Since(from); took > time.Second {
			t.Errorf("a deadline of 100 ms was held after %v", took)
		}
		for i := range ops {
			if !errors.Is(ops[i].Err, hsm.ErrDeadline) || ops[i].Revealed != nil {
				t.Fatalf("operation %d: %v, want ErrDeadline", i, ops[i].Err)
			}
		}
	})
	wg.Go(func() { // waits for the replacement
		ops := s.unwraps(300)
		p.Do(soon(t), ops)
		if n, err := s.wrong(ops); n > 0 {
			t.Errorf("%d operations failed: %v", n, err)
		}
	})
	wg.Go(func() {
		if err := p.Destroy(within(t, 100*time.Millisecond), kekID(acme, 9)); !errors.Is(err, hsm.ErrDeadline) {
			t.Errorf("a change with a manager that hangs: %v, want ErrDeadline", err)
		}
	})
	wg.Wait()
	replaced(t, p, 1, pid)
}

// TestStoppedIdle: a worker is found to hang though nobody asks for anything.
func TestStoppedIdle(t *testing.T) {
	p := openPool(t, worker.Config{Command: commandOf(t, workerConfig{Kind: "fake"}), Workers: 1, HangTimeout: 200 * time.Millisecond})
	pid := p.Workers()[0].PID
	freeze(t, pid)
	replaced(t, p, 1, pid)
}

// TestLateResults: what comes after its caller has left reaches nobody, least of all the next caller.
func TestLateResults(t *testing.T) {
	p := openPool(t, worker.Config{Command: commandOf(t, workerConfig{Kind: "fake"}), Workers: 1})
	pid := p.Workers()[0].PID
	for round := range 20 {
		freeze(t, pid)
		var wg sync.WaitGroup
		for i := range 4 {
			wg.Go(func() {
				ops := make([]hsm.Operation, 100)
				for j := range ops {
					ops[j] = fakeSeal(acme, fmt.Appendf(nil, "late %d %d %d", round, i, j))
				}
				p.Do(within(t, time.Millisecond), ops)
				for j := range ops {
					if !errors.Is(ops[j].Err, hsm.ErrDeadline) || ops[j].Sealed != nil {
						t.Errorf("operation %d: %v, want ErrDeadline", j, ops[j].Err)
					}
					ops[j] = hsm.Operation{} // a write that the race detector can see
				}
			})
		}
		wg.Wait()
		signal(t, pid, syscall.SIGCONT)
		ops := make([]hsm.Operation, 500)
		for j := range ops {
			ops[j] = fakeSeal(acme, fmt.Appendf(nil, "next %d %d", round, j))
		}
		p.Do(soon(t), ops)
		for j := range ops {
			must(t, checkFake(&ops[j]))
		}
	}
	if now := p.Workers()[0].PID; now != pid {
		t.Error("the worker was replaced: nothing was late")
	}
}

// TestPoison: an operation that ends every worker that runs it is not tried for ever, and takes
// nobody else's along.
func TestPoison(t *testing.T) {
	t.Run("crash", func(t *testing.T) { testPoison(t, poison) })
	t.Run("killed", func(t *testing.T) { testPoison(t, murder) })
}

func testPoison(t *testing.T, poison []byte) {
	p := openPool(t, worker.Config{Command: commandOf(t, workerConfig{Kind: "fake"}), Workers: 2, BackOff: 50 * time.Millisecond})
	before := pids(p)
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			for j := range 5 {
				ops := make([]hsm.Operation, 200)
				for k := range ops {
					ops[k] = fakeSeal(globex, fmt.Appendf(nil, "%d %d %d", i, j, k))
				}
				p.Do(soon(t), ops)
				for k := range ops {
					if err := checkFake(&ops[k]); err != nil {
						t.Errorf("another tenant's operation: %v", err)
						return
					}
				}
			}
		})
	}
	ops := []hsm.Operation{fakeSeal(acme, []byte("before")), fakeSeal(acme, poison), fakeSeal(acme, []byte("after"))}
	p.Do(soon(t), ops)
	wg.Wait()
	if !errors.Is(ops[1].Err, hsm.ErrUnavailable) || ops[1].Sealed != nil {
		t.Errorf("poison: %v, want ErrUnavailable", ops[1].Err)
	}
	for _, i := range []int{0, 2} {
		if err := checkFake(&ops[i]); err != nil {
			t.Errorf("the operation beside the poison: %v", err)
		}
	}
	await(t, "both serve again", func() bool { return len(p.Workers()) == 2 })
	if now := pids(p); before[p.Workers()[0].PID] && before[p.Workers()[1].PID] {
		t.Errorf("no worker was replaced: %v", now)
	}
}

// TestDaemonKilled: workers do not outlive their daemon, not even one that is stopped, nor one that
// does not notice.
func TestDaemonKilled(t *testing.T) {
	t.Run("token", func(t *testing.T) { daemonKilled(t, kept(t)) })
	t.Run("deaf", func(t *testing.T) { daemonKilled(t, workerConfig{Kind: "deaf"}) })
}

func daemonKilled(t *testing.T, c workerConfig) {
	config, err := json.Marshal(c)
	must(t, err)
	daemon := exec.Command("/proc/self/exe")
	daemon.Env = append(os.Environ(), asDaemon+"="+string(config))
	daemon.Stderr = os.Stderr
	in, err := daemon.StdinPipe()
	must(t, err)
	defer in.Close()
	out, err := daemon.StdoutPipe()
	must(t, err)
	must(t, daemon.Start())
	lines := bufio.NewScanner(out)
	var workers []int
	for range 2 {
		if !lines.Scan() {
			t.Fatal("the daemon does not start")
		}
		pid, err := strconv.Atoi(lines.Text())
		must(t, err)
		workers = append(workers, pid)
	}
	freeze(t, workers[0])
	signal(t, daemon.Process.Pid, syscall.SIGKILL)
	killed := time.Now()
	_ = daemon.Wait()
	for _, pid := range workers {
		await(t, fmt.Sprintf("worker %d is gone", pid), func() bool { return gone(pid) })
	}
	if took := time.Since(killed); took > time.Second {
		t.Errorf("the workers were gone after %v, want 1 s at most", took)
	}
}

// gone tells whether a process has ended. It may wait for its parent still.
func gone(pid int) bool {
	s := state(pid)
	return s == 0 || s == 'Z' || s == 'X'
}

// state is a process's, as proc(5) has it; 0: there is no such process.
func state(pid int) byte {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0
	}
	return stat[bytes.LastIndexByte(stat, ')')+2]
}

// TestClose: nothing is left after Close, and what waits is told.
func TestClose(t *testing.T) {
	p, err := worker.Open(soon(t), quick(worker.Config{Command: commandOf(t, workerConfig{Kind: "fake", Each: time.Millisecond}), Workers: 2}))
	must(t, err)
	all := pids(p)
	stopped := p.Workers()[1].PID
	freeze(t, stopped) // this one has to be killed
	var wg sync.WaitGroup
	begun := make(chan struct{}, 4)
	for range 4 {
		wg.Go(func() {
			ops := make([]hsm.Operation, 2000)
			for i := range ops {
				ops[i] = fakeSeal(acme, []byte("x"))
			}
			begun <- struct{}{}
			p.Do(context.Background(), ops)
			if !errors.Is(ops[len(ops)-1].Err, hsm.ErrUnavailable) {
				t.Errorf("an operation that waited when the pool was closed: %v, want ErrUnavailable", ops[len(ops)-1].Err)
			}
		})
	}
	for range 4 {
		<-begun
	}
	must(t, p.Close(soon(t)))
	wg.Wait()
	for pid := range all {
		if _, err := os.Stat(fmt.Sprintf("/proc/%d", pid)); err == nil {
			t.Errorf("worker %d is still there, or not waited for", pid)
		}
	}
	ops := []hsm.Operation{fakeSeal(acme, []byte("x"))}
	if p.Do(soon(t), ops); !errors.Is(ops[0].Err, hsm.ErrUnavailable) {
		t.Errorf("an operation after Close: %v, want ErrUnavailable", ops[0].Err)
	}
	for name, err := range map[string]error{
		"healthy": p.Healthy(soon(t)), "destroy": p.Destroy(soon(t), kekID(acme, 1)),
	} {
		if !errors.Is(err, hsm.ErrUnavailable) {
			t.Errorf("%s after Close: %v, want ErrUnavailable", name, err)
		}
	}
	must(t, p.Close(soon(t)))
}

// TestSignals: what is sent to the whole control group does not end workers before their daemon.
func TestSignals(t *testing.T) {
	p := openPool(t, worker.Config{Command: commandOf(t, workerConfig{Kind: "fake"}), Workers: 1})
	pid := p.Workers()[0].PID
	for _, s := range []syscall.Signal{syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP} {
		signal(t, pid, s)
	}
	ops := []hsm.Operation{fakeSeal(acme, []byte("x"))}
	p.Do(soon(t), ops)
	must(t, checkFake(&ops[0]))
	if now := p.Workers()[0].PID; now != pid {
		t.Errorf("worker %d was replaced by %d", pid, now)
	}
	group, err := syscall.Getpgid(pid)
	must(t, err)
	if group == syscall.Getpgrp() {
		t.Error("a worker is in its daemon's process group: Ctrl-C reaches it")
	}
}
