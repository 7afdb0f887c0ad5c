package audit

import (
	"fmt"
	"runtime"
	"time"
)

// Where many callers append, a sync that waits a little takes more of them along, and they are
// woken together: with 64 callers of single unwraps that saves a tenth of all processor time. Who
// appends alone is not held up.
const (
	manyAppends = 5
	gatherTime  = 600 * time.Microsecond // a few syncs of a local disk
)

// gather waits for more to come if many shared the last sync.
func (j *Journal) gather() {
	j.mu.Lock()
	shared := j.shared
	j.mu.Unlock()
	if shared {
		time.Sleep(gatherTime)
		runtime.Gosched() // those who can run may be about to append
	}
}

// flusher is the one who writes. It takes whatever is pending and makes it durable with one
// sync.
func (j *Journal) flusher() {
	defer close(j.flusherDone)
	for {
		select {
		case <-j.wakeFlusher:
			j.gather()
			j.flushPending()
		case <-j.stopFlusher:
			j.flushPending()
			return
		case <-j.failed:
			return
		}
	}
}

func (j *Journal) flushPending() {
	j.mu.Lock()
	g := j.pending
	if j.err != nil || g.size == 0 {
		j.mu.Unlock()
		return
	}
	g.last = j.head.Sequence
	j.shared = g.appends >= manyAppends
	j.pending = newGroup(j.cur, j.off, j.spare)
	j.spare = nil
	began := time.Now()
	j.writing = g
	j.wakeAppenders()
	j.mu.Unlock()

	// No lock is held from here on, so whoever appends meanwhile is in the next group. An
	// error is final: after a failed sync the kernel may call the pages clean that it could
	// not write, and a second sync would then succeed.
	stop := j.watch(g)
	err := j.write(g)
	stop()
	j.syncs.Observe(time.Since(began))
	if !j.settle(g, err) {
		return
	}
	g.finish(nil) // under no lock: many may wake
	if len(g.lines) > 0 {
		j.deliver(g)
	}
}

// settle takes note that a write is over; false: nothing of it counts, and all have been told.
func (j *Journal) settle(g *group, err error) bool {
	j.mu.Lock()
	defer j.mu.Unlock()
	if err != nil {
		j.fail(err)
	}
	j.writing = nil
	if j.err != nil { // also when it is the watch that was tired of waiting
		return false
	}
	j.written.Add(uint64(g.size))
	j.durable = g.last
	if j.lastData > j.signed && j.durable-j.signed >= j.opts.CheckpointRecords {
		wake(j.wakeSealer)
	}
	if buf := g.chunks[0].buf; cap(buf) <= maxSpare && len(g.lines) == 0 {
		j.spare = buf[:0]
	}
	return true
}

// write makes a group durable, segment after segment.
func (j *Journal) write(g *group) error {
	for i, c := range g.chunks {
		if len(c.buf) == 0 {
			continue
		}
		if !c.seg.published {
			if err := j.publish(c.seg); err != nil {
				return err
			}
		}
		if _, err := c.seg.f.WriteAt(c.buf, c.off); err != nil {
			return fmt.Errorf("writing %s: %w", segmentName(c.seg.first), err)
		}
		if err := c.seg.f.Datasync(); err != nil {
			return fmt.Errorf("syncing %s: %w", segmentName(c.seg.first), err)
		}
		if i > 0 {
			j.retire(g.chunks[i-1])
		}
	}
	return nil
}

// publish gives a segment its name before its first record is written. Only the flusher
// changes the names of segments.
func (j *Journal) publish(seg *segment) error {
	name := segmentName(seg.first)
	if err := j.dir.rename(nextName, name); err != nil {
		return fmt.Errorf("naming %s: %w", name, err)
	}
	if err := j.dir.sync(); err != nil {
		return fmt.Errorf("naming %s: %w", name, err)
	}
	j.mu.Lock()
	seg.published = true
	j.mu.Unlock()
	wake(j.wakePreparer)
	return nil
}

// retire closes a segment that is full, once what follows it is durable. The zeros at its end
// go, so that it is plain JSON lines; a crash before that leaves them, and they do no harm.
func (j *Journal) retire(c chunk) {
	if err := c.seg.f.Truncate(c.off + int64(len(c.buf))); err != nil {
		j.opts.Log.Warn("audit journal: the zeros at the end of a full segment stay", "segment", segmentName(c.seg.first), "error", err)
	}
	if err := c.seg.f.Close(); err != nil {
		j.opts.Log.Warn("audit journal: closing a full segment", "segment", segmentName(c.seg.first), "error", err)
	}
}
