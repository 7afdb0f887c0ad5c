package audit

import (
	"context"
	"crypto/sha256"
	"fmt"
	"sync"
	"time"

	"github.com/kekd/kekd/hierarchy"
)

// Position is the place of a record in the journal.
type Position struct {
	Sequence uint64
	Hash     Hash
	group    *group
}

// group is what one sync makes durable.
type group struct {
	chunks  []chunk // all but the last end their segment
	size    int
	appends int    // how many brought it
	last    uint64 // sequence of its last record; set when the flusher takes it
	lines   []followed
	done    chan struct{} // closed when err is set
	err     error
}

// chunk is what a group writes to one segment, in one piece.
type chunk struct {
	seg *segment
	off int64
	buf []byte
}

func newGroup(seg *segment, off int64, buf []byte) *group {
	return &group{chunks: []chunk{{seg, off, buf}}, done: make(chan struct{})}
}

func (g *group) finish(err error) {
	g.err = err
	close(g.done)
}

// bodies are records encoded but for their place, by one caller, outside of the lock.
type bodies struct {
	buf  []byte
	ends []int
}

var bodiesPool = sync.Pool{New: func() any { return new(bodies) }}

func (b *bodies) add(r *Record, node string) {
	b.buf = appendBody(b.buf, r, node)
	b.ends = append(b.ends, len(b.buf))
}

// size bounds the lines that they will be.
func (b *bodies) size() int { return len(b.buf) + len(b.ends)*maxPlace }

func (b *bodies) release() {
	b.buf, b.ends = b.buf[:0], b.ends[:0]
	bodiesPool.Put(b)
}

// Append puts records into the chain, in their order and with nothing between them, and
// returns the place of the last. It does no I/O: they are durable once [Journal.Wait] says so.
// When the flusher is behind, it blocks until there is room or ctx is done. It takes all of
// them or none, does not keep recs, and returns [hierarchy.ErrAuditUnavailable], or
// [hierarchy.ErrInvalidArgument] for what cannot be a record.
func (j *Journal) Append(ctx context.Context, recs []Record) (Position, error) {
	for i := range recs {
		if reserved(recs[i].Kind) {
			return Position{}, fmt.Errorf("%w: audit records of kind %q are the journal's own", hierarchy.ErrInvalidArgument, recs[i].Kind)
		}
	}
	return j.append(ctx, recs, nil)
}

// append also asks for a checkpoint of the last record, if s is not nil.
func (j *Journal) append(ctx context.Context, recs []Record, s *seal) (Position, error) {
	if len(recs) == 0 || len(recs) > MaxAppend {
		return Position{}, fmt.Errorf("%w: %d audit records at once: 1 to %d", hierarchy.ErrInvalidArgument, len(recs), MaxAppend)
	}
	b := bodiesPool.Get().(*bodies)
	defer b.release()
	now := time.Time{}
	for i := range recs {
		r := &recs[i]
		if err := r.validate(); err != nil {
			return Position{}, err
		}
		if r.At.IsZero() {
			if now.IsZero() {
				now = time.Now()
			}
			stamped := *r
			stamped.At = now
			r = &stamped
		}
		b.add(r, j.node)
	}

	j.mu.Lock()
	defer j.mu.Unlock()
	if err := j.admit(ctx, b.size(), false); err != nil {
		return Position{}, err
	}
	start := 0
	for i, end := range b.ends {
		j.put(b.buf[start:end], recs[i].Tenant)
		start = end
	}
	j.lastData = j.chain.seq
	p := j.appended()
	if s != nil {
		s.at = p
		j.seals = append(j.seals, s)
	}
	return p, nil
}

// Wait returns nil once the record and all before it are durable. Any other answer wraps
// [hierarchy.ErrAuditUnavailable]: nothing that depends on the record may then be released,
// though the record may yet turn out to be in the journal.
func (j *Journal) Wait(ctx context.Context, p Position) error {
	if p.group == nil {
		return fmt.Errorf("%w: not a position of this audit journal", hierarchy.ErrInvalidArgument)
	}
	select {
	case <-p.group.done:
		return p.group.err
	case <-ctx.Done():
		return fmt.Errorf("%w: record %d is not durable yet: %w", hierarchy.ErrAuditUnavailable, p.Sequence, context.Cause(ctx))
	}
}

// Write appends and waits.
func (j *Journal) Write(ctx context.Context, recs []Record) (Position, error) {
	p, err := j.Append(ctx, recs)
	if err != nil {
		return Position{}, err
	}
	return p, j.Wait(ctx, p)
}

// admit returns once lines of n bytes fit: into what may be pending, and into the present
// segment. The journal's own records may use the reserve, and are taken while it closes.
// Called with mu held, which it lets go of while it waits.
func (j *Journal) admit(ctx context.Context, n int, own bool) error {
	if int64(n)+reserve > j.opts.SegmentSize {
		return fmt.Errorf("%w: %d bytes of audit records at once do not fit into a segment of %d", hierarchy.ErrInvalidArgument, n, j.opts.SegmentSize)
	}
	for {
		switch {
		case j.err != nil:
			return j.err
		case j.closing && !own:
			return fmt.Errorf("%w: the audit journal is closed", hierarchy.ErrAuditUnavailable)
		case j.pending.size > 0 && j.pending.size+n > maxPending:
			// The flusher will take it.
		case j.off+int64(n) <= j.limit(), own && j.next == nil && j.off+int64(n) <= j.cur.size:
			return nil
		case j.next != nil:
			j.rotate()
			continue
		case j.nextErr != nil:
			return j.noRoom()
		default:
			j.wantNext()
		}
		changed := j.changed
		j.mu.Unlock()
		select {
		case <-changed:
			j.mu.Lock()
		case <-ctx.Done():
			j.mu.Lock()
			return fmt.Errorf("%w: the audit journal is behind: %w", hierarchy.ErrAuditUnavailable, context.Cause(ctx))
		}
	}
}

// limit is where the present segment counts as full.
func (j *Journal) limit() int64 { return j.cur.size - reserve }

func (j *Journal) noRoom() error {
	return fmt.Errorf("%w: no room for the next segment of the audit journal: %w", hierarchy.ErrAuditUnavailable, j.nextErr)
}

// put adds one line to the pending group. Called with mu held, after admit.
func (j *Journal) put(body []byte, tenant hierarchy.TenantID) {
	g := j.pending
	i := len(g.chunks) - 1
	c := &g.chunks[i]
	start := len(c.buf)
	c.buf = j.chain.appendLine(c.buf, body, tenant)
	n := len(c.buf) - start
	g.size += n
	j.off += int64(n)
	if len(j.follow) > 0 && j.isFollowed(tenant) {
		g.lines = append(g.lines, followed{tenant: tenant, seq: j.chain.seq, chunk: i, start: start, end: len(c.buf) - 1})
	}
}

// appended ends an append. Called with mu held.
func (j *Journal) appended() Position {
	j.pending.appends++
	j.head = Position{Sequence: j.chain.seq, Hash: j.chain.hash, group: j.pending}
	wake(j.wakeFlusher)
	if j.off > j.cur.size/2 {
		j.wantNext()
	}
	return j.head
}

// wantNext asks for the next segment. Called with mu held.
func (j *Journal) wantNext() {
	if j.next == nil && !j.nextWanted {
		j.nextWanted = true
		wake(j.wakePreparer)
	}
}

// rotate goes on in the segment that was made ready. Called with mu held.
func (j *Journal) rotate() {
	seg := j.next
	j.next = nil
	header := j.opts.header(j.chain, j.publicKey)
	line := append(header.AppendLine(nil), '\n')
	seg.first = header.Sequence
	// With very many tenants the header may be more than was thought of when the segment was
	// made ready. It then grows, which is slow, and nothing else.
	seg.size = max(seg.size, int64(len(line))+j.opts.SegmentSize)
	j.chain.add(hierarchy.TenantID{}, sha256.Sum256(line[:len(line)-1]))
	j.cur, j.off = seg, int64(len(line))
	g := j.pending
	g.chunks = append(g.chunks, chunk{seg: seg, buf: line})
	g.size += len(line)
	if len(j.follow) > 0 && j.isFollowed(hierarchy.TenantID{}) {
		g.lines = append(g.lines, followed{seq: j.chain.seq, chunk: len(g.chunks) - 1, end: len(line) - 1})
	}
	j.lastData = j.chain.seq
	j.appended()
}
