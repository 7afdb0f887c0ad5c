package audit

import (
	"bytes"
	"context"
	"io"
	"maps"
	"slices"
	"sync"

	"github.com/kekd/kekd/hierarchy"
)

// followQueue is how many lines a follower may be behind before lines are dropped for it.
const followQueue = 1024

// Line is one record as it stands in the journal.
type Line struct {
	Sequence uint64
	JSON     []byte // without a newline; shared, so not to be changed. Nil: only Missed is told
	Missed   uint64 // lines that were dropped just before this one, since the reader was too slow
}

// Follower gets a tenant's records as they become durable.
type Follower struct {
	j      *Journal
	tenant hierarchy.TenantID

	mu     sync.Mutex
	queue  []Line
	missed uint64
	err    error         // io.EOF: the journal or the follower was closed
	fresh  chan struct{} // of capacity 1
}

// Follow begins to follow a tenant's records; for the zero tenant, all of the node's. A reader
// who is slow loses lines and is told how many; he never holds up the journal. Who also wants
// what came before calls Follow, then [Journal.Tail], and passes over what he has seen, by
// [Line.Sequence].
func (j *Journal) Follow(tenant hierarchy.TenantID) *Follower {
	f := &Follower{j: j, tenant: tenant, fresh: make(chan struct{}, 1)}
	j.mu.Lock()
	defer j.mu.Unlock()
	switch {
	case j.err != nil:
		f.err = j.err
	case j.closing:
		f.err = io.EOF
	default:
		j.setFollowers(tenant, append(slices.Clone(j.follow[tenant]), f))
	}
	return f
}

// Next waits for the next line. It returns io.EOF after [Follower.Close] or [Journal.Close],
// and what failed if the journal did.
func (f *Follower) Next(ctx context.Context) (Line, error) {
	for {
		if l, ok, err := f.take(); ok || err != nil {
			return l, err
		}
		select {
		case <-f.fresh:
		case <-ctx.Done():
			return Line{}, context.Cause(ctx)
		}
	}
}

func (f *Follower) take() (Line, bool, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.queue) > 0 {
		l := f.queue[0]
		f.queue = f.queue[1:]
		return l, true, nil
	}
	if n := f.missed; n > 0 {
		f.missed = 0
		return Line{Missed: n}, true, nil
	}
	return Line{}, false, f.err
}

func (f *Follower) offer(l Line) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.queue) >= followQueue {
		f.missed++
		return
	}
	l.Missed, f.missed = f.missed, 0
	f.queue = append(f.queue, l)
	wake(f.fresh)
}

func (f *Follower) end(err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.err == nil {
		f.err = err
	}
	wake(f.fresh)
}

// Close ends it.
func (f *Follower) Close() {
	f.end(io.EOF)
	f.j.mu.Lock()
	defer f.j.mu.Unlock()
	f.j.setFollowers(f.tenant, slices.DeleteFunc(slices.Clone(f.j.follow[f.tenant]), func(o *Follower) bool { return o == f }))
}

// setFollowers replaces the map, so that the flusher can read the old one without the lock.
// Called with mu held.
func (j *Journal) setFollowers(tenant hierarchy.TenantID, list []*Follower) {
	follow := maps.Clone(j.follow)
	if len(list) > 0 {
		follow[tenant] = list
	} else {
		delete(follow, tenant)
	}
	j.follow = follow
}

// followed is a line of a group that somebody follows.
type followed struct {
	tenant     hierarchy.TenantID
	seq        uint64
	chunk      int
	start, end int // in the chunk's buffer
}

// isFollowed is called with mu held.
func (j *Journal) isFollowed(tenant hierarchy.TenantID) bool {
	return len(j.follow[tenant]) > 0 || len(j.follow[hierarchy.TenantID{}]) > 0
}

// deliver hands a durable group's lines to who follows them. It never blocks.
func (j *Journal) deliver(g *group) {
	j.mu.Lock()
	follow := j.follow
	j.mu.Unlock()
	for _, l := range g.lines {
		line := Line{Sequence: l.seq, JSON: bytes.Clone(g.chunks[l.chunk].buf[l.start:l.end])}
		for _, f := range follow[hierarchy.TenantID{}] {
			f.offer(line)
		}
		if l.tenant.IsZero() {
			continue
		}
		for _, f := range follow[l.tenant] {
			f.offer(line)
		}
	}
}
