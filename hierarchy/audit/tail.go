package audit

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"sort"

	"github.com/kekd/kekd/hierarchy"
)

// Tail returns a tenant's last n durable records, the oldest first; for the zero tenant, the
// node's. It reads only segments that hold some of them: each segment's header says where the
// tenant's last record before it stands.
func (j *Journal) Tail(ctx context.Context, tenant hierarchy.TenantID, n int) ([]Line, error) {
	j.mu.Lock()
	durable, last := j.durable, j.durable
	if !tenant.IsZero() {
		last = 0
		if h := j.chain.head(tenant); h != nil {
			last = h.Sequence
		}
	}
	j.mu.Unlock()

	fsys := os.DirFS(j.dir.path)
	var tail []Line
	for last > 0 && len(tail) < n {
		if err := ctx.Err(); err != nil {
			return nil, context.Cause(ctx)
		}
		firsts, err := listSegments(fsys)
		if err != nil {
			return nil, err
		}
		// A segment gets its name when its first record becomes durable, so the newest that
		// has one may begin before last.
		i := sort.Search(len(firsts), func(i int) bool { return firsts[i] > last }) - 1
		if i < 0 {
			break // older ones are not kept
		}
		lines, header, err := tailSegment(fsys, firsts[i], tenant, durable, n-len(tail))
		if err != nil {
			return nil, err
		}
		tail = append(lines, tail...)
		last = header.lastBefore(tenant)
	}
	return tail, nil
}

// lastBefore is the sequence of a tenant's last record before the segment; 0: there is none.
func (e *Entry) lastBefore(tenant hierarchy.TenantID) uint64 {
	if tenant.IsZero() {
		return e.Sequence - 1
	}
	i := slices.IndexFunc(e.Segment.Heads, func(h Head) bool { return h.Tenant == tenant })
	if i < 0 {
		return 0
	}
	return e.Segment.Heads[i].Sequence
}

// tailSegment reads a tenant's last n records in one segment, up to a sequence, and the header.
func tailSegment(fsys fs.FS, first uint64, tenant hierarchy.TenantID, until uint64, n int) ([]Line, *Entry, error) {
	f, err := fsys.Open(segmentName(first))
	if err != nil {
		return nil, nil, fmt.Errorf("audit journal: %w", err)
	}
	defer f.Close()
	var (
		tail   []Line
		header *Entry
		needle = []byte(tenant.String())
		lines  = newLineReader(f)
	)
	for seq := first; seq <= until; seq++ {
		line, err := lines.next()
		if err == io.EOF {
			break
		}
		if err != nil {
			return nil, nil, fmt.Errorf("audit journal: %s: %w", segmentName(first), corrupt(lines, err))
		}
		if header != nil && !tenant.IsZero() && !bytes.Contains(line, needle) {
			continue
		}
		e, err := ParseLine(line)
		if err == nil && header == nil && e.Segment == nil {
			err = errNoHeader
		}
		if err != nil {
			return nil, nil, fmt.Errorf("audit journal: %s: %w", segmentName(first), corrupt(lines, err))
		}
		if header == nil {
			header = e
		}
		if !tenant.IsZero() && e.Tenant != tenant {
			continue
		}
		if len(tail) == 2*n {
			tail = append(tail[:0], tail[n:]...)
		}
		tail = append(tail, Line{Sequence: e.Sequence, JSON: bytes.Clone(line)})
	}
	if header == nil {
		return nil, nil, fmt.Errorf("audit journal: %s: %w", segmentName(first), errNoHeader)
	}
	return tail[max(0, len(tail)-n):], header, nil
}
