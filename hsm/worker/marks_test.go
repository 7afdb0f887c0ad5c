package worker_test

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/kekd/kekd/hsm"
	"github.com/kekd/kekd/hsm/hsmtest"
	"github.com/kekd/kekd/hsm/worker"
)

var owner = hsmtest.MarkOwner

func TestMarks(t *testing.T) {
	hsmtest.RunMarks(t, func(t *testing.T) func() hsm.Marks {
		c := worker.Config{Command: commandOf(t, kept(t)), Workers: 1}
		var p *worker.Pool
		return func() hsm.Marks {
			t.Helper()
			if p != nil {
				must(t, p.Close(soon(t)))
			}
			p = openPool(t, c)
			return p
		}
	})
}

// TestMarkUnreadable: what a mark is refused for keeps its meaning on its way.
func TestMarkUnreadable(t *testing.T) {
	if err := worker.RoundError(hsm.ErrMarkUnreadable); !errors.Is(err, hsm.ErrMarkUnreadable) {
		t.Errorf("it arrived as %v", err)
	}
}

// TestNoMarks: a backend that keeps none says so.
func TestNoMarks(t *testing.T) {
	p := openPool(t, worker.Config{Command: commandOf(t, workerConfig{Kind: "fake"}), Workers: 1})
	if err := p.RaiseMark(soon(t), owner, hsm.Mark{Term: 1}); !errors.Is(err, hsm.ErrUnsupported) {
		t.Errorf("raise: %v, want ErrUnsupported", err)
	}
	if _, found, err := p.Mark(soon(t), owner); !errors.Is(err, hsm.ErrUnsupported) || found {
		t.Errorf("read: %t, %v, want ErrUnsupported", found, err)
	}
}

// TestKillManagerOfMarks: a raise whose manager is killed is tried again, and none that was
// acknowledged goes back.
func TestKillManagerOfMarks(t *testing.T) {
	r := rng(t)
	p := openPool(t, worker.Config{Command: commandOf(t, kept(t)), Workers: 2, BackOff: 50 * time.Millisecond})
	kills := 20
	if nightly() {
		kills = 300
	}
	raising, killed := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(killed)
		for range kills {
			<-raising
			time.Sleep(time.Duration(r.IntN(4000)) * time.Microsecond) // at a random moment of it
			for _, w := range p.Workers() {
				if w.Role == worker.RoleManager {
					_ = syscall.Kill(w.PID, syscall.SIGKILL)
				}
			}
		}
	}()
	m := hsm.Mark{Term: 1, LastTerm: 1}
	for done := false; !done; {
		select {
		case raising <- struct{}{}:
		case <-killed:
			done = true
		default:
		}
		m.LastIndex++
		must(t, p.RaiseMark(soon(t), owner, m))
		if m.LastIndex%5 == 0 {
			got, found, err := p.Mark(soon(t), owner)
			if err != nil || !found || got != m {
				t.Fatalf("read {%v}, %t, %v; raised to {%v}", got, found, err, m)
			}
		}
	}
	if got, found, err := p.Mark(soon(t), owner); err != nil || !found || got != m {
		t.Errorf("read {%v}, %t, %v; raised to {%v}", got, found, err, m)
	}
}

// TestMarksOvertake: a mark waits for the change that runs, and not for those that wait.
func TestMarksOvertake(t *testing.T) {
	c, m := faulty(t)
	p := openPool(t, worker.Config{Command: commandOf(t, c, m.Env()...), Workers: 1})
	const changes = 20
	m.Control.Set("C_GenerateKey latency=20000us")
	var done atomic.Int64
	var wg sync.WaitGroup
	for i := range uint32(changes) {
		wg.Go(func() {
			if _, err := p.Generate(soon(t), kekID(acme, i), "kekd/test"); err != nil {
				t.Error(err)
			}
			done.Add(1)
		})
	}
	await(t, "a change is made", func() bool { return done.Load() > 0 })
	must(t, p.RaiseMark(soon(t), owner, hsm.Mark{Term: 1}))
	if n := done.Load(); n > changes/2 {
		t.Errorf("the mark came after %d of %d changes", n, changes)
	}
	wg.Wait()
}

// TestMarksOfAManagerThatHangs: the error comes in time, and the next manager raises.
func TestMarksOfAManagerThatHangs(t *testing.T) {
	p := openPool(t, worker.Config{Command: commandOf(t, kept(t)), Workers: 1, HangTimeout: time.Second})
	must(t, p.RaiseMark(soon(t), owner, hsm.Mark{Term: 1}))
	pid := p.Workers()[0].PID
	freeze(t, pid)
	ctx, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond)
	defer cancel()
	if err := p.RaiseMark(ctx, owner, hsm.Mark{Term: 2}); !errors.Is(err, hsm.ErrDeadline) {
		t.Errorf("raise with a manager that hangs: %v, want ErrDeadline", err)
	}
	must(t, p.RaiseMark(soon(t), owner, hsm.Mark{Term: 3}))
	if p.Workers()[0].PID == pid {
		t.Error("the manager was not replaced")
	}
}

func BenchmarkRaiseMark(b *testing.B) {
	p := openPool(b, worker.Config{Command: commandOf(b, kept(b)), Workers: 1})
	for i := 0; b.Loop(); i++ {
		if err := p.RaiseMark(context.Background(), owner, hsm.Mark{Term: uint64(i) + 1}); err != nil {
			b.Fatal(err)
		}
	}
}
