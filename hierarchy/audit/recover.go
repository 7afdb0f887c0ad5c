package audit

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"

	"github.com/kekd/kekd/hierarchy"
)

// ErrCorrupt is a journal that a crash alone cannot have left so.
var ErrCorrupt = errors.New("the audit journal is corrupt")

// recover reads where the journal stands, and puts right what a crash left at its end. It
// returns in words what it cut off. Nothing is changed before all has been checked: a journal
// that is refused is evidence.
func (j *Journal) recover() (cuts []string, err error) {
	firsts, err := j.dir.segments()
	if err != nil {
		return nil, err
	}
	if len(firsts) == 0 {
		return nil, fmt.Errorf("%w: there is no audit journal in %s", hierarchy.ErrNotFound, j.dir.path)
	}
	last := len(firsts) - 1
	end, err := j.readEnd(firsts[last])
	bare := uint64(0)
	if errors.Is(err, errNoHeader) && last > 0 {
		// A segment gets its name just before its header is written: only the last one can be
		// caught in between, and never the first of all.
		bare = firsts[last]
		if end.cut != "" {
			cuts = append(cuts, end.cut)
		}
		last--
		end, err = j.readEnd(firsts[last])
	}
	if err != nil {
		return nil, fmt.Errorf("audit journal: %s: %w", segmentName(firsts[last]), err)
	}
	if end.cut != "" {
		cuts = append(cuts, end.cut)
	}
	defer func() {
		if err != nil {
			end.f.Close()
		}
	}()
	if last > 0 {
		if err := j.checkBefore(firsts[last-1]); err != nil {
			return nil, fmt.Errorf("audit journal: %s: %w", segmentName(firsts[last-1]), err)
		}
	}
	if err := j.checkAnchor(firsts[:last+1]); err != nil {
		return nil, err
	}

	if err := j.mend(end, bare); err != nil {
		return nil, fmt.Errorf("audit journal: %w", err)
	}
	j.cur = &segment{f: end.f, size: end.size, first: firsts[last], published: true}
	j.off = end.off
	return cuts, nil
}

// journalEnd is the segment that is written on, as it was read.
type journalEnd struct {
	f    file
	size int64
	off  int64  // where its lines end
	torn int64  // where what is left of an unfinished write ends; off: there is none
	cut  string // that write in words, empty: there is none
}

// errNoHeader is a segment that was named, and whose header is not whole.
var errNoHeader = fmt.Errorf("%w: it has no header", ErrCorrupt)

// readEnd reads the last segment. Of one that is errNoHeader it still says what is torn.
func (j *Journal) readEnd(first uint64) (end journalEnd, err error) {
	f, err := j.dir.open(segmentName(first), os.O_RDWR)
	if err != nil {
		return end, err
	}
	defer func() {
		if err != nil {
			f.Close()
		}
	}()
	size, err := f.Size()
	if err != nil {
		return end, err
	}
	lines := newLineReader(io.NewSectionReader(f, 0, size))
	err = j.readSegment(lines, first)
	if err == errTorn {
		end.cut, err = j.checkTail(f, first, lines)
	}
	if err == nil && lines.line == 0 {
		err = errNoHeader
	}
	end.f, end.size, end.off, end.torn = f, size, lines.off, lines.end
	return end, err
}

// mend makes the journal one that can be written on. bare is a segment without a header; 0:
// there is none.
func (j *Journal) mend(end journalEnd, bare uint64) error {
	// A segment that was made ready is not worth checking. Its name is needed.
	if err := j.dir.remove(nextName); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if bare > 0 {
		if err := errors.Join(j.dir.remove(segmentName(bare)), j.dir.sync()); err != nil {
			return err
		}
	}
	if end.torn > end.off {
		if err := zeroFill(end.f, end.off, end.torn); err != nil {
			return fmt.Errorf("cutting off what is torn: %w", err)
		}
	}
	if err := rewriteTail(end.f, end.off); err != nil {
		return fmt.Errorf("writing the end again: %w", err)
	}
	return nil
}

// readSegment follows the chain through a segment. It returns nil or errTorn at its end.
func (j *Journal) readSegment(lines *lineReader, first uint64) error {
	var last *Checkpoint
	for {
		line, err := lines.next()
		if err == io.EOF || err == errTorn {
			if last == nil {
				return eofIsNil(err)
			}
			// One signature covers all that it comes after. The others are for Verify.
			if bad := last.Verify(j.key); bad != nil {
				return fmt.Errorf("%w: %w", ErrCorrupt, bad)
			}
			return eofIsNil(err)
		}
		if err != nil {
			return corrupt(lines, err)
		}
		e, err := ParseLine(line)
		if err != nil {
			return corrupt(lines, err)
		}
		if lines.line == 1 {
			if err := j.belongs(e); err != nil {
				return corrupt(lines, err)
			}
			if e.Sequence != first {
				return corrupt(lines, fmt.Errorf("it begins with record %d", e.Sequence))
			}
			j.chain.startAt(e)
			j.before = e.Prev
		}
		if err := j.chain.check(e); err != nil {
			return corrupt(lines, err)
		}
		if e.Node != j.opts.Node {
			return corrupt(lines, fmt.Errorf("record %d is of node %s", e.Sequence, e.Node))
		}
		j.chain.add(e.Tenant, sha256.Sum256(line))
		if c := e.Checkpoint; c != nil {
			c.Cluster = j.opts.Cluster
			j.signed, last = c.Sequence, c
		} else {
			j.lastData = e.Sequence
		}
	}
}

func eofIsNil(err error) error {
	if err == io.EOF {
		return nil
	}
	return err
}

func corrupt(l *lineReader, err error) error {
	return fmt.Errorf("%w: at byte %d, after line %d: %w", ErrCorrupt, l.off, l.line, err)
}

// checkTail tells whether what is torn may be cut off, and says in words what it is. None of it
// was acknowledged: a write begins only after the one before is durable, and a checkpoint speaks
// only of what is.
func (j *Journal) checkTail(f file, first uint64, l *lineReader) (string, error) {
	n := l.end - l.off
	if l.line > 0 && n > maxPending {
		return "", corrupt(l, fmt.Errorf("%d bytes follow what cannot be read, more than one write has", n))
	}
	tail := make([]byte, n)
	if _, err := f.ReadAt(tail, l.off); err != nil {
		return "", err
	}
	for line := range strings.Lines(string(tail)) {
		e, err := ParseLine([]byte(strings.TrimSuffix(line, "\n")))
		if err == nil && e.Checkpoint != nil && e.Checkpoint.Sequence > j.chain.seq {
			return "", corrupt(l, fmt.Errorf("record %d cannot be read, and was durable: a checkpoint speaks of record %d", j.chain.seq+1, e.Checkpoint.Sequence))
		}
	}
	return fmt.Sprintf("cut off the last write, which was not whole: %d bytes at byte %d of %s, SHA-256 %x", n, l.off, segmentName(first), sha256.Sum256(tail)), nil
}

// rewriteTail writes again what the last write may have written. If its sync failed, the
// kernel may hold pages that it calls clean and that are not on the disk: reading finds them,
// and only writing and syncing them again makes them durable.
func rewriteTail(f file, end int64) error {
	buf := make([]byte, 256<<10)
	for off := max(0, end-maxPending); off < end; off += int64(len(buf)) {
		buf = buf[:min(int64(len(buf)), end-off)]
		if _, err := f.ReadAt(buf, off); err != nil {
			return err
		}
		if _, err := f.WriteAt(buf, off); err != nil {
			return err
		}
	}
	return f.Datasync()
}

// checkBefore checks that the segment before the last one ends where the last one begins.
func (j *Journal) checkBefore(first uint64) error {
	f, err := j.dir.open(segmentName(first), os.O_RDONLY)
	if err != nil {
		return err
	}
	defer f.Close()
	line, err := lastLine(f)
	if err != nil {
		return err
	}
	if sha256.Sum256(line) != j.before {
		return fmt.Errorf("%w: it does not end with the record that the next segment follows", ErrCorrupt)
	}
	return nil
}
