package audit

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"os"
	"slices"
	"sort"

	"github.com/kekd/kekd/hierarchy"
)

// Tail yields a tenant's last n durable records, the oldest first; for the zero tenant, the
// node's. What they are is settled when it begins. However many are asked for, it holds one
// line: [Line.JSON] is valid until the next. It reads only segments that hold some of them: each
// segment's header says where the tenant's last record before it stands.
func (j *Journal) Tail(ctx context.Context, tenant hierarchy.TenantID, n int) iter.Seq2[Line, error] {
	return func(yield func(Line, error) bool) {
		j.mu.Lock()
		last := place{j.durable, j.durable}
		t := tail{fsys: os.DirFS(j.dir.path), tenant: tenant, needle: []byte(tenant.String()), durable: j.durable}
		if !tenant.IsZero() {
			last = place{}
			if h := j.chain.head(tenant); h != nil {
				last = place{h.Sequence, h.TenantSequence}
			}
		}
		j.mu.Unlock()

		segments, after, err := t.find(ctx, last, n)
		if err != nil {
			yield(Line{}, err)
			return
		}
		for _, first := range segments {
			for r, err := range t.records(ctx, first, after) {
				if err != nil {
					yield(Line{}, err)
					return
				}
				if !yield(Line{Sequence: r.sequence, JSON: r.line}, nil) {
					return
				}
			}
		}
	}
}

// tail reads a tenant's records from the segments; for the zero tenant, the node's.
type tail struct {
	fsys    fs.FS
	tenant  hierarchy.TenantID
	needle  []byte // that is in each line of the tenant
	durable uint64 // sequence; nothing is read beyond
	firsts  []uint64
}

// place is where a record stands: in the node's chain, and in the one that is read.
type place struct{ sequence, number uint64 }

// find returns the segments that hold the n records up to last, and the number that theirs begin
// after. Of each of these segments it reads the header.
func (t *tail) find(ctx context.Context, last place, n int) (segments []uint64, after uint64, err error) {
	if t.firsts, err = listSegments(t.fsys); err != nil {
		return nil, 0, err
	}
	if last.sequence > t.durable {
		if last, err = t.lastDurable(ctx); err != nil {
			return nil, 0, err
		}
	}
	after = last.number - min(last.number, uint64(max(n, 0)))
	for last.number > after {
		if ctx.Err() != nil {
			return nil, 0, context.Cause(ctx)
		}
		first, ok := t.segmentOf(last.sequence)
		if !ok {
			break // older ones are not kept
		}
		if last, err = t.lastBefore(first); err != nil {
			return nil, 0, err
		}
		segments = append(segments, first)
	}
	slices.Reverse(segments)
	return segments, after, nil
}

// segmentOf a durable record is the last that begins with it or before; false: it is not kept.
func (t *tail) segmentOf(sequence uint64) (first uint64, ok bool) {
	i := sort.Search(len(t.firsts), func(i int) bool { return t.firsts[i] > sequence })
	if i == 0 {
		return 0, false
	}
	return t.firsts[i-1], true
}

// lastDurable finds the tenant's last record that is durable, where later ones are not yet.
func (t *tail) lastDurable(ctx context.Context) (place, error) {
	first, ok := t.segmentOf(t.durable)
	if !ok {
		return place{}, nil
	}
	last, err := t.lastBefore(first)
	if err != nil {
		return place{}, err
	}
	for r, err := range t.records(ctx, first, last.number) {
		if err != nil {
			return place{}, err
		}
		last = r.place
	}
	return last, nil
}

// lastBefore is the last record before a segment; the zero place: there is none.
func (t *tail) lastBefore(first uint64) (place, error) {
	if t.tenant.IsZero() {
		return place{first - 1, first - 1}, nil
	}
	f, err := t.fsys.Open(segmentName(first))
	if err != nil {
		return place{}, fmt.Errorf("audit journal: %w", err)
	}
	defer f.Close()
	lines := newLineReader(f)
	line, err := lines.next()
	var e *Entry
	if err == nil {
		e, err = ParseLine(line)
	}
	if err == nil && e.Segment == nil {
		err = errNoHeader
	}
	if err != nil {
		return place{}, fmt.Errorf("audit journal: %s: %w", segmentName(first), corrupt(lines, err))
	}
	i := slices.IndexFunc(e.Segment.Heads, func(h Head) bool { return h.Tenant == t.tenant })
	if i < 0 {
		return place{}, nil
	}
	h := e.Segment.Heads[i]
	return place{h.Sequence, h.TenantSequence}, nil
}

// tailRecord is a record as it is read. Its line is valid until the next.
type tailRecord struct {
	place
	line []byte
}

// records yields what a segment has of them after a number.
func (t *tail) records(ctx context.Context, first, after uint64) iter.Seq2[tailRecord, error] {
	return func(yield func(tailRecord, error) bool) {
		f, err := t.fsys.Open(segmentName(first))
		if err != nil {
			yield(tailRecord{}, fmt.Errorf("audit journal: %w", err))
			return
		}
		defer f.Close()
		lines := newLineReader(f)
		for seq := first; seq <= t.durable; seq++ {
			if ctx.Err() != nil {
				yield(tailRecord{}, context.Cause(ctx))
				return
			}
			line, err := lines.next()
			if err == io.EOF {
				return
			}
			var r tailRecord
			if err == nil && t.mayHave(line, seq, first, after) {
				r, err = t.record(line)
			}
			if err != nil {
				yield(tailRecord{}, fmt.Errorf("audit journal: %s: %w", segmentName(first), corrupt(lines, err)))
				return
			}
			if r.number > after && !yield(r, nil) {
				return
			}
		}
	}
}

// mayHave spares most of the other lines from being parsed. A segment's header names all tenants,
// and is no tenant's.
func (t *tail) mayHave(line []byte, seq, first, after uint64) bool {
	if t.tenant.IsZero() {
		return seq > after
	}
	return seq > first && bytes.Contains(line, t.needle)
}

// record reads a line; the zero record: it is another tenant's.
func (t *tail) record(line []byte) (tailRecord, error) {
	e, err := ParseLine(line)
	switch {
	case err != nil:
		return tailRecord{}, err
	case t.tenant.IsZero():
		return tailRecord{place{e.Sequence, e.Sequence}, line}, nil
	case e.Tenant == t.tenant:
		return tailRecord{place{e.Sequence, e.TenantSequence}, line}, nil
	}
	return tailRecord{}, nil
}
