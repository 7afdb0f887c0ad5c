package audit_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/kekd/kekd/hierarchy"
	"github.com/kekd/kekd/hierarchy/audit"
)

func segmentName(first uint64) string { return fmt.Sprintf("%020d.jsonl", first) }

func TestSegments(t *testing.T) {
	r := newRig(t)
	for i := range 40 {
		r.write(manyRecords(20 + i)...)
		if i%10 == 9 {
			r.close()
			r.open()
		}
	}
	r.close()
	r.mustVerify()
	paths := r.segments()
	if len(paths) < 5 {
		t.Fatalf("%d segments", len(paths))
	}
	for i, path := range paths {
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		header := parse(t, linesOf(t, path)[0])
		if header.Kind != audit.KindSegment {
			t.Errorf("%s begins with %s", path, header.Kind)
		}
		if i > 0 && len(header.Segment.Heads) == 0 {
			t.Errorf("%s has no heads", path)
		}
		if i < len(paths)-1 && bytes.IndexByte(b, 0) >= 0 {
			t.Errorf("%s is full, and has zeros in it", path)
		}
		if len(b) > audit.MinSegmentSize*2 {
			t.Errorf("%s has %d bytes", path, len(b))
		}
	}
	if _, err := os.Stat(r.dir + "/next"); err == nil {
		t.Error("a segment that was made ready is left behind")
	}
}

func TestTail(t *testing.T) {
	r := newRig(t)
	want := make(map[hierarchy.TenantID][]string)
	note := func() {
		clear(want)
		for _, l := range r.lines() {
			e := parse(t, l)
			want[hierarchy.TenantID{}] = append(want[hierarchy.TenantID{}], l)
			if !e.Tenant.IsZero() {
				want[e.Tenant] = append(want[e.Tenant], l)
			}
		}
	}
	r.write(unwrap(1000)) // once, long ago
	for i := range 120 {
		if i == 70 {
			r.write(unwrap(1001), unwrap(1002), unwrap(1001))
		}
		r.write(unwrap(0), unwrap(1), unwrap(2), unwrap(3), unwrap(4), unwrap(0), unwrap(1), unwrap(2), unwrap(3), unwrap(4))
	}
	if len(r.segments()) < 4 {
		t.Fatalf("%d segments", len(r.segments()))
	}
	note()
	for _, id := range []hierarchy.TenantID{{}, tenant(0), tenant(4), tenant(1000), tenant(1001), tenant(1002), tenant(77)} {
		for _, n := range []int{0, 1, 3, 200, 5000} {
			lines, err := r.tail(r.ctx(), id, n)
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, l := range lines {
				got = append(got, string(l.JSON))
				if e := parse(t, string(l.JSON)); e.Sequence != l.Sequence {
					t.Errorf("line of record %d is called %d", e.Sequence, l.Sequence)
				}
			}
			all := want[id]
			if diff := cmp.Diff(slices.Clone(all[max(0, len(all)-n):]), got, cmp.Transformer("nil", func(s []string) []string { return append([]string{}, s...) })); diff != "" && len(got)+min(n, len(all)) > 0 {
				t.Errorf("tail of %d of %s (-want +got):\n%s", n, id, diff)
			}
		}
	}
}

// TestManyTenants opens a journal of 10,000 tenants: their heads come from the header of the
// last segment, not from all segments.
func TestManyTenants(t *testing.T) {
	r := newRig(t, func(o *audit.Options) { o.SegmentSize = 8 << 20 })
	const tenants = 10_000
	batch := make([]audit.Record, 0, audit.MaxAppend)
	for i := range 4 * tenants {
		if batch = append(batch, unwrap(i%tenants)); len(batch) == cap(batch) {
			r.write(batch...)
			batch = batch[:0]
		}
	}
	r.write(batch...)
	r.close()
	start := time.Now()
	r.open()
	took := time.Since(start)
	r.write(unwrap(1), unwrap(tenants-1))
	r.close()
	rep := r.mustVerify()
	if len(rep.Chains) != tenants+1 || rep.Chains[2].Records != 5 || rep.Chains[3].Records != 4 {
		t.Errorf("%d chains, %+v", len(rep.Chains), rep.Chains[2])
	}
	t.Logf("%d segments, opened in %s", len(r.segments()), took)
	if took > 5*time.Second {
		t.Errorf("opening took %s", took)
	}
}

// TestTailHoldsOneLine reads long tails: how much is held while that goes on does not depend on how
// much is asked for.
func TestTailHoldsOneLine(t *testing.T) {
	r := newRig(t, func(o *audit.Options) { o.SegmentSize = 4 << 20 })
	const records = 48 * audit.MaxAppend // 25 MB
	batch := make([]audit.Record, audit.MaxAppend)
	for i := range batch {
		batch[i] = unwrap(i % 2)
	}
	for range records / len(batch) {
		r.write(batch...)
	}
	held := func() uint64 {
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	before := held()
	for _, c := range []struct {
		tenant  hierarchy.TenantID
		n, want int
	}{
		{hierarchy.TenantID{}, records, records}, {tenant(1), records, records / 2},
		{hierarchy.TenantID{}, 9000, 9000}, {tenant(1), 9000, 9000},
	} {
		var most uint64
		got, bytes := 0, 0
		for l, err := range r.j.Tail(r.ctx(), c.tenant, c.n) {
			if err != nil {
				t.Fatal(err)
			}
			if got++; got%4000 == 1 {
				most = max(most, held())
			}
			bytes += len(l.JSON)
		}
		if got != c.want {
			t.Errorf("%d lines of %s, want %d", got, c.tenant, c.want)
		}
		const bound = 1 << 20
		if more := int64(most) - int64(before); more > bound {
			t.Errorf("%d lines of %s, %d bytes: %d were held at once, want %d at most", got, c.tenant, bytes, more, bound)
		}
	}
}

// TestTailOfWhatIsWritten asks for a busy tenant's last records: there are as many, though more of it
// are not durable yet.
func TestTailOfWhatIsWritten(t *testing.T) {
	g := newGate()
	r := newRig(t, func(o *audit.Options) { *o = o.WithFiles(g.wrap) })
	for range 30 { // segments
		r.write(unwrap(1), unwrap(2), unwrap(1), unwrap(2), unwrap(2), unwrap(1), unwrap(2), unwrap(2), unwrap(2), unwrap(2))
	}
	want := r.write(unwrap(1))
	r.write(unwrap(2))
	g.shut()
	defer g.open()
	if _, err := r.j.Append(r.ctx(), []audit.Record{unwrap(1), unwrap(1), unwrap(1)}); err != nil {
		t.Fatal(err)
	}
	lines, err := r.tail(r.ctx(), tenant(1), 5)
	if err != nil || len(lines) != 5 || lines[4].Sequence != want.Sequence {
		t.Errorf("got %d lines, %v", len(lines), err)
	}
	if lines, err := r.tail(r.ctx(), tenant(1), 1000); err != nil || len(lines) != 91 {
		t.Errorf("got %d of 91 lines, %v", len(lines), err)
	}
}

// TestTailIsBroughtToAnEnd by who reads it, or by its context.
func TestTailIsBroughtToAnEnd(t *testing.T) {
	r := newRig(t)
	r.write(manyRecords(20)...)
	for range r.j.Tail(r.ctx(), tenant(1), 10) {
		break
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	seen := 0
	var last error
	for _, err := range r.j.Tail(ctx, hierarchy.TenantID{}, 10) {
		if last = err; err == nil {
			seen++
		}
		cancel()
	}
	if seen != 1 || !errors.Is(last, context.Canceled) {
		t.Errorf("%d lines, and then %v", seen, last)
	}
}
