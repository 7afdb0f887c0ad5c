package audit_test

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/kekd/kekd/hierarchy"
	"github.com/kekd/kekd/hierarchy/audit"
)

// gate is a disk that hangs while it is shut.
type gate struct {
	mu sync.Mutex
	ch chan struct{}
}

func newGate() *gate {
	g := &gate{ch: make(chan struct{})}
	close(g.ch)
	return g
}

func (g *gate) shut() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.ch = make(chan struct{})
}

func (g *gate) open() {
	g.mu.Lock()
	defer g.mu.Unlock()
	close(g.ch)
}

func (g *gate) pass() {
	g.mu.Lock()
	ch := g.ch
	g.mu.Unlock()
	<-ch
}

func (g *gate) wrap(f audit.File) audit.File { return &gatedFile{f, g} }

type gatedFile struct {
	audit.File
	g *gate
}

func (f *gatedFile) Datasync() error { f.g.pass(); return f.File.Datasync() }

// disk fails one operation as it is told, and counts.
type disk struct {
	mu    sync.Mutex
	op    string // what fails next: "write" or "sync"; empty: nothing
	part  int    // of a write that fails: nothing is done, half, or all
	err   error
	ops   []string // what was asked of it
	after int      // operations since the one that failed
}

func (d *disk) wrap(f audit.File) audit.File { return &faultyFile{f, d} }

func (d *disk) arm(op string, part int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.op, d.part, d.err = op, part, nil
}

type faultyFile struct {
	audit.File
	d *disk
}

func (f *faultyFile) step(op string, do func(part int) error) error {
	f.d.mu.Lock()
	defer f.d.mu.Unlock()
	f.d.ops = append(f.d.ops, op)
	if f.d.err != nil {
		f.d.after++
	}
	if f.d.op != op {
		return do(2)
	}
	f.d.op, f.d.err = "", syscall.EIO
	if err := do(f.d.part); err != nil {
		return err
	}
	return f.d.err
}

func (f *faultyFile) WriteAt(b []byte, off int64) (int, error) {
	err := f.step("write", func(part int) error {
		_, err := f.File.WriteAt(b[:len(b)*part/2], off)
		return err
	})
	return len(b), err
}

func (f *faultyFile) Datasync() error {
	return f.step("sync", func(part int) error {
		if part == 0 {
			return nil
		}
		return f.File.Datasync()
	})
}

// TestFaultIsFinal goes through what a disk can do wrong, in pairs: the error without the
// deed, and the error though it was done.
func TestFaultIsFinal(t *testing.T) {
	for name, c := range map[string]struct {
		op   string
		part int
	}{
		"not written":             {"write", 0},
		"half written":            {"write", 1},
		"written, and told not":   {"write", 2},
		"written and not synced":  {"sync", 0},
		"synced, and told it not": {"sync", 2},
	} {
		t.Run(name, func(t *testing.T) {
			d := &disk{}
			r := newRig(t, func(o *audit.Options) { *o = o.WithFiles(d.wrap) })
			acked := r.write(unwrap(1), unwrap(2))
			d.arm(c.op, c.part)
			_, err := r.j.Write(r.ctx(), []audit.Record{unwrap(3), unwrap(4)})
			if !errors.Is(err, hierarchy.ErrAuditUnavailable) || !errors.Is(err, syscall.EIO) {
				t.Fatalf("got %v", err)
			}
			<-r.j.Failed()
			if err := r.j.Healthy(); !errors.Is(err, syscall.EIO) {
				t.Errorf("healthy: %v", err)
			}
			if _, err := r.j.Write(r.ctx(), []audit.Record{unwrap(5)}); !errors.Is(err, hierarchy.ErrAuditUnavailable) {
				t.Errorf("afterwards: got %v", err)
			}
			if err := r.j.Wait(r.ctx(), acked); err != nil {
				t.Errorf("what was durable before: %v", err)
			}
			if err := r.j.Close(r.ctx()); !errors.Is(err, syscall.EIO) {
				t.Errorf("close: got %v", err)
			}
			if d.after > 0 {
				t.Errorf("the disk was tried again %d times: a second sync that succeeds proves nothing", d.after)
			}

			r.open()
			r.write(unwrap(6))
			r.close()
			r.mustVerify()
			var seen []string
			for _, l := range r.lines() {
				if e := parse(t, l); e.Kind == "unwrap" {
					seen = append(seen, e.TenantName)
				}
			}
			if !slices.Equal(seen[:2], []string{"tenant-1", "tenant-2"}) || seen[len(seen)-1] != "tenant-6" || slices.Contains(seen, "tenant-5") {
				t.Errorf("journal has %v", seen)
			}
		})
	}
}

// TestOpenWritesTheTailAgain is about pages that a failed sync left in the kernel's cache,
// called clean and not on the disk: reading them proves nothing.
func TestOpenWritesTheTailAgain(t *testing.T) {
	d := &disk{}
	r := newRig(t, func(o *audit.Options) { *o = o.WithFiles(d.wrap) })
	r.write(unwrap(1))
	r.close()
	before, err := os.ReadFile(r.segments()[0])
	if err != nil {
		t.Fatal(err)
	}
	d.ops = nil
	r.open()
	d.mu.Lock()
	ops := slices.Clone(d.ops)
	d.mu.Unlock()
	if !slices.Equal(ops, []string{"write", "sync"}) {
		t.Errorf("open did %v, want a write and a sync", ops)
	}
	r.close()
	after, err := os.ReadFile(r.segments()[0])
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(before, after) {
		t.Error("open changed the segment")
	}

	r.opts = r.opts.WithFiles(nil)
	d.arm("sync", 0)
	if _, err := audit.Open(r.dir, r.opts.WithFiles(d.wrap)); !errors.Is(err, syscall.EIO) {
		t.Errorf("open, whose sync fails: got %v", err)
	}
}

// TestNameIsTaken shows that a segment that cannot get its name is a failure like any other.
func TestNextIsTakenAway(t *testing.T) {
	r := newRig(t)
	next := filepath.Join(r.dir, "next")
	for i := 0; ; i++ {
		r.write(unwrap(i))
		if _, err := os.Stat(next); err == nil {
			break
		}
	}
	eventually(t, "the next segment is ready", func() bool {
		st, err := os.Stat(next)
		return err == nil && st.Size() >= audit.MinSegmentSize
	})
	if err := os.Remove(next); err != nil {
		t.Fatal(err)
	}
	var err error
	for i := 0; err == nil; i++ {
		_, err = r.j.Write(r.ctx(), []audit.Record{unwrap(i)})
	}
	if !errors.Is(err, hierarchy.ErrAuditUnavailable) || !errors.Is(err, os.ErrNotExist) {
		t.Errorf("got %v", err)
	}
	r.j.Close(r.ctx())
	r.open()
	r.close()
	r.mustVerify()
}

// TestDiskHangs shows that nothing but who waits for the disk waits, and only as long as it will.
func TestDiskHangs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGate()
		r := newRig(t, func(o *audit.Options) { *o = o.WithFiles(g.wrap); o.SegmentSize = 64 << 20 })
		r.write(unwrap(1))
		g.shut()

		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		start := time.Now()
		if _, err := r.j.Write(ctx, []audit.Record{unwrap(2)}); !errors.Is(err, hierarchy.ErrAuditUnavailable) || !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("write: got %v", err)
		}
		if took := time.Since(start); took != time.Second {
			t.Errorf("write took %s", took)
		}
		if err := r.j.Healthy(); err != nil {
			t.Errorf("after a second: %v", err)
		}

		// What waits is bounded, and so is the wait for room.
		batch := manyRecords(audit.MaxAppend)
		var err error
		n := 0
		for ; err == nil && n < 1000; n++ {
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			_, err = r.j.Append(ctx, batch)
			cancel()
		}
		if !errors.Is(err, hierarchy.ErrAuditUnavailable) || !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("append number %d: got %v", n, err)
		}
		if n > 20 { // 18 such batches have 8 MiB
			t.Errorf("%d batches were taken while nothing was written", n)
		}
		if tail, err := r.tail(t.Context(), tenant(1), 10); err != nil || len(tail) != 1 {
			t.Errorf("reading: %d lines, %v", len(tail), err)
		}

		// The disk comes back, and with it everything that was taken.
		g.open()
		r.write(unwrap(3))
		if err := r.j.Healthy(); err != nil {
			t.Errorf("afterwards: %v", err)
		}
		r.close()
		rep := r.mustVerify()
		if want := uint64((n-1)*audit.MaxAppend + 3); rep.Last < want {
			t.Errorf("%d records, want %d", rep.Last, want)
		}
	})
}

// TestDiskHangsForGood shows that a journal does not wait for ever: who has waited is told, nothing is taken any
// more, and what the disk has done all the same does not count, though it is found at the next start.
func TestDiskHangsForGood(t *testing.T) {
	const patience = 5 * time.Second
	synctest.Test(t, func(t *testing.T) {
		g := newGate()
		r := newRig(t, func(o *audit.Options) { *o = o.WithFiles(g.wrap) })
		r.write(unwrap(1))
		durable := r.j.Status().Durable
		g.shut()
		start := time.Now()
		for i := range 2 { // with the disk, and behind it
			go func() {
				if _, err := r.j.Write(r.ctx(), []audit.Record{unwrap(1)}); !errors.Is(err, hierarchy.ErrAuditUnavailable) || errors.Is(err, context.DeadlineExceeded) {
					t.Errorf("write %d: got %v", i, err)
				}
				if took := time.Since(start); took != patience {
					t.Errorf("write %d: told after %v", i, took)
				}
			}()
			synctest.Wait()
		}
		time.Sleep(patience - time.Nanosecond)
		if err := r.j.Healthy(); err != nil {
			t.Errorf("before its patience is over: %v", err)
		}
		time.Sleep(time.Nanosecond)
		synctest.Wait()
		select {
		case <-r.j.Failed():
		default:
			t.Error("it has not failed")
		}
		if err := r.j.Healthy(); err == nil || !strings.Contains(err.Error(), "the disk hangs") {
			t.Errorf("afterwards: %v", err)
		}
		g.open()
		synctest.Wait()
		if _, err := r.j.Write(r.ctx(), []audit.Record{unwrap(1)}); !errors.Is(err, hierarchy.ErrAuditUnavailable) {
			t.Errorf("when the disk is back: got %v", err)
		}
		if got := r.j.Status().Durable; got != durable {
			t.Errorf("up to %d are durable, %d were when it failed", got, durable)
		}
		if err := r.j.Close(r.ctx()); !errors.Is(err, hierarchy.ErrAuditUnavailable) {
			t.Errorf("closing: got %v", err)
		}
		r.open()
		if tail, err := r.tail(t.Context(), tenant(1), 10); err != nil || len(tail) != 2 {
			t.Errorf("%d records are there, want that before and that which was with the disk: %v", len(tail), err)
		}
		r.close()
		r.mustVerify()
	})
}

func TestCloseDoesNotWaitForAHungDisk(t *testing.T) {
	g := newGate()
	r := newRig(t, func(o *audit.Options) { *o = o.WithFiles(g.wrap) })
	g.shut()
	defer g.open()
	if _, err := r.j.Append(r.ctx(), []audit.Record{unwrap(1)}); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if err := r.j.Close(ctx); !errors.Is(err, hierarchy.ErrAuditUnavailable) || !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v", err)
	}
}

// steps is a disk whose every sync waits to be let go.
type steps struct {
	began, let chan struct{}
}

func (s *steps) wrap(f audit.File) audit.File { return &steppedFile{f, s} }

type steppedFile struct {
	audit.File
	s *steps
}

func (f *steppedFile) Datasync() error {
	f.s.began <- struct{}{}
	<-f.s.let
	return f.File.Datasync()
}

// TestDurableIsWhatWasSynced appends while a sync is under way: that sync says nothing of what
// came after it began, neither to who waits nor to who reads.
func TestDurableIsWhatWasSynced(t *testing.T) {
	r := newRig(t)
	r.close()
	s := &steps{began: make(chan struct{}), let: make(chan struct{})}
	r.opts = r.opts.WithFiles(s.wrap)
	go func() { <-s.began; s.let <- struct{}{} }() // Open writes the tail again
	r.open()

	one, err := r.j.Append(r.ctx(), []audit.Record{unwrap(1)})
	if err != nil {
		t.Fatal(err)
	}
	<-s.began
	two, err := r.j.Append(r.ctx(), []audit.Record{unwrap(2)})
	if err != nil {
		t.Fatal(err)
	}
	s.let <- struct{}{}
	if err := r.j.Wait(r.ctx(), one); err != nil {
		t.Fatal(err)
	}
	<-s.began // of the second: it is written, and not durable
	if st := r.j.Status(); st.Durable != one.Sequence || st.Sequence != two.Sequence {
		t.Errorf("status %+v, want durable to %d of %d", st, one.Sequence, two.Sequence)
	}
	if tail, err := r.tail(r.ctx(), tenant(2), 1); err != nil || len(tail) != 0 {
		t.Errorf("what is not durable is shown: %d lines, %v", len(tail), err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
	defer cancel()
	if err := r.j.Wait(ctx, two); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("waiting for the second: %v", err)
	}
	s.let <- struct{}{}
	if err := r.j.Wait(r.ctx(), two); err != nil {
		t.Fatal(err)
	}
	go func() {
		for range s.began { // the closing checkpoint's
			s.let <- struct{}{}
		}
	}()
	r.close()
	close(s.began)
	r.mustVerify()
}
