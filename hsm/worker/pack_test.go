package worker_test

import (
	"context"
	"fmt"
	"os"
	"regexp"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/kekd/kekd/hsm"
	"github.com/kekd/kekd/hsm/worker"
)

// readsOf counts a process' reads: one or two for each frame that it is sent.
func readsOf(t *testing.T, pid int) int {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/io", pid))
	must(t, err)
	n, err := strconv.Atoi(string(regexp.MustCompile(`syscr: (\d+)`).FindSubmatch(b)[1]))
	must(t, err)
	return n
}

// TestFewKeepOneWorkerBusy: while one worker has little to do, no other is woken to help.
func TestFewKeepOneWorkerBusy(t *testing.T) {
	p := openPool(t, worker.Config{Command: commandOf(t, workerConfig{Kind: "fake", Each: 10 * time.Microsecond}), Workers: 2})
	var before, used [2]int
	for i, w := range p.Workers() {
		before[i] = readsOf(t, w.PID)
	}
	var wg sync.WaitGroup
	for range 16 {
		wg.Go(func() {
			for i := range 500 {
				ops := []hsm.Operation{fakeSeal(acme, fmt.Append(nil, i))}
				p.Do(context.Background(), ops)
				if err := checkFake(&ops[0]); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	for i, w := range p.Workers() {
		used[i] = readsOf(t, w.PID) - before[i]
	}
	if least, most := min(used[0], used[1]), max(used[0], used[1]); least > most/4 {
		t.Errorf("the workers have read %d and %d times, want nearly all of that by one", used[0], used[1])
	}
}

// TestNothingIsKeptForTheSilent: what was kept for a worker that then answers no more goes to
// another, long before that one counts as hung.
func TestNothingIsKeptForTheSilent(t *testing.T) {
	p := openPool(t, worker.Config{Command: commandOf(t, workerConfig{Kind: "fake"}), Workers: 2, HangTimeout: time.Minute})
	server := p.Workers()[0].PID
	if p.Workers()[0].Role != worker.RoleServer {
		server = p.Workers()[1].PID
	}
	freeze(t, server)
	var served atomic.Int32
	var wg sync.WaitGroup
	for i := range 12 {
		wg.Go(func() {
			ops := []hsm.Operation{fakeSeal(acme, fmt.Append(nil, i))}
			p.Do(soon(t), ops)
			if err := checkFake(&ops[0]); err != nil {
				t.Error(err)
			}
			served.Add(1)
		})
		time.Sleep(time.Millisecond)
	}
	// Two frames of one operation are with the worker that is frozen. Nobody asks for anything more.
	await(t, "the others are served", func() bool { return served.Load() == 10 })
	signal(t, server, syscall.SIGCONT)
	wg.Wait()
}
