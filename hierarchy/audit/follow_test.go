package audit_test

import (
	"context"
	"errors"
	"io"
	"syscall"
	"testing"
	"time"

	"github.com/kekd/kekd/hierarchy"
	"github.com/kekd/kekd/hierarchy/audit"
)

func TestFollow(t *testing.T) {
	r := newRig(t)
	one, all := r.j.Follow(tenant(1)), r.j.Follow(hierarchy.TenantID{})
	defer one.Close()
	defer all.Close()
	var last uint64
	next := func() *audit.Entry {
		l, err := all.Next(r.ctx())
		if err != nil {
			t.Fatal(err)
		}
		if last > 0 && l.Sequence != last+1 {
			t.Fatalf("record %d after record %d", l.Sequence, last)
		}
		last = l.Sequence
		e := parse(t, string(l.JSON))
		if e.Sequence != l.Sequence {
			t.Fatalf("line of record %d is called %d", e.Sequence, l.Sequence)
		}
		return e
	}
	for i := range 60 { // some segments
		r.write(unwrap(0), unwrap(1), unwrap(2), unwrap(3), unwrap(4), unwrap(5))
		for e := next(); e.Tenant != tenant(5); e = next() {
		}
		l, err := one.Next(r.ctx())
		if err != nil {
			t.Fatal(err)
		}
		if e := parse(t, string(l.JSON)); e.Tenant != tenant(1) || e.TenantSequence != uint64(i+1) || l.Missed != 0 {
			t.Fatalf("tenant's line %d: %s", i+1, l.JSON)
		}
	}
	if n := len(r.segments()); n < 3 {
		t.Errorf("%d segments", n)
	}
}

// TestFollowerSeesOnlyWhatIsDurable: what is shown must not be gone after a crash.
func TestFollowerSeesOnlyWhatIsDurable(t *testing.T) {
	g := newGate()
	r := newRig(t, func(o *audit.Options) { *o = o.WithFiles(g.wrap) })
	f := r.j.Follow(tenant(1))
	defer f.Close()
	g.shut()
	p, err := r.j.Append(r.ctx(), []audit.Record{unwrap(1)})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if l, err := f.Next(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %s, %v", l.JSON, err)
	}
	g.open()
	if err := r.j.Wait(r.ctx(), p); err != nil {
		t.Fatal(err)
	}
	if l, err := f.Next(r.ctx()); err != nil || l.Sequence != p.Sequence {
		t.Errorf("got record %d, %v", l.Sequence, err)
	}
}

// TestSlowFollower loses lines, is told how many, and holds nobody up.
func TestSlowFollower(t *testing.T) {
	r := newRig(t, func(o *audit.Options) { o.SegmentSize = 8 << 20 })
	f := r.j.Follow(tenant(1))
	defer f.Close()
	const written = 3000
	for range written / 1000 {
		batch := make([]audit.Record, 1000)
		for i := range batch {
			batch[i] = unwrap(1)
		}
		r.write(batch...)
	}
	c, err := r.j.Seal(r.ctx(), unwrap(1)) // one more: by then the others have been handed on
	if err != nil {
		t.Fatal(err)
	}
	var got, missed uint64
	for got+missed < written+1 {
		l, err := f.Next(r.ctx())
		if err != nil {
			t.Fatal(err)
		}
		missed += l.Missed
		if l.JSON != nil {
			if e := parse(t, string(l.JSON)); e.TenantSequence != got+missed+1 {
				t.Fatalf("the tenant's record %d after %d seen and %d missed", e.TenantSequence, got, missed)
			}
			got++
		}
	}
	if missed == 0 || got == 0 {
		t.Errorf("%d seen, %d missed", got, missed)
	}
	// From here on it keeps up again.
	r.write(unwrap(1))
	l, err := f.Next(r.ctx())
	if err != nil || l.Missed != 0 || l.Sequence <= c.Sequence {
		t.Errorf("then: %+v, %v", l, err)
	}
}

func TestFollowEnds(t *testing.T) {
	r := newRig(t)
	f, other := r.j.Follow(tenant(1)), r.j.Follow(tenant(1))
	r.write(unwrap(1))
	if l, err := f.Next(r.ctx()); err != nil || l.JSON == nil {
		t.Errorf("before Close: %v", err)
	}
	f.Close()
	if _, err := f.Next(r.ctx()); err != io.EOF {
		t.Errorf("got %v", err)
	}
	r.write(unwrap(1))
	r.close()
	for range 2 {
		if _, err := other.Next(r.ctx()); err != nil {
			t.Error(err)
		}
	}
	if _, err := other.Next(r.ctx()); err != io.EOF {
		t.Errorf("after the journal's end: got %v", err)
	}
	if _, err := r.j.Follow(tenant(1)).Next(r.ctx()); err != io.EOF {
		t.Errorf("followed after the end: got %v", err)
	}

	d := &disk{}
	r = newRig(t, func(o *audit.Options) { *o = o.WithFiles(d.wrap) })
	f = r.j.Follow(tenant(1))
	d.arm("sync", 0)
	r.j.Write(r.ctx(), []audit.Record{unwrap(1)})
	if _, err := f.Next(r.ctx()); !errors.Is(err, syscall.EIO) {
		t.Errorf("after a failure: got %v", err)
	}
}
