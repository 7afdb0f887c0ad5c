package audit

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/kekd/kekd/hierarchy"
)

// Create makes a journal in dir, which it makes too if it is not there. It begins with the
// header of its first segment, which the first checkpoint signs. A directory that has a journal
// is [hierarchy.ErrAlreadyExists].
func Create(dir string, opts Options) error {
	if err := opts.complete(); err != nil {
		return err
	}
	publicKey, err := opts.publicKey()
	if err != nil {
		return err
	}
	if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("audit journal: %w", err)
	}
	d, err := openDirectory(dir, opts.wrap)
	if err != nil {
		return err
	}
	defer d.close()
	firsts, err := d.segments()
	if err != nil {
		return err
	}
	if len(firsts) > 0 {
		return fmt.Errorf("%w: %s has an audit journal", hierarchy.ErrAlreadyExists, dir)
	}

	// The segment gets its name once it is whole and durable: there is a journal, or none.
	f, err := d.prepare(opts.SegmentSize)
	if err != nil {
		return fmt.Errorf("creating the audit journal: %w", err)
	}
	defer f.Close()
	line := append(opts.header(newChain(), publicKey).AppendLine(nil), '\n')
	if _, err := f.WriteAt(line, 0); err != nil {
		return fmt.Errorf("creating the audit journal: %w", err)
	}
	if err := f.Datasync(); err != nil {
		return fmt.Errorf("creating the audit journal: %w", err)
	}
	if err := d.rename(nextName, segmentName(1)); err != nil {
		return fmt.Errorf("creating the audit journal: %w", err)
	}
	if err := d.sync(); err != nil {
		return fmt.Errorf("creating the audit journal: %w", err)
	}
	return syncParent(dir)
}

func syncParent(dir string) error {
	parent, err := os.Open(filepath.Dir(dir))
	if err != nil {
		return fmt.Errorf("creating the audit journal: %w", err)
	}
	defer parent.Close()
	if err := parent.Sync(); err != nil {
		return fmt.Errorf("creating the audit journal: %w", err)
	}
	return nil
}

// Open continues the journal in dir. A directory without one is [hierarchy.ErrNotFound]: it is
// never made anew. It reads the last segment whole and checks it, and that the one before leads
// to it; [Verify] reads all. What the last write before a crash left unfinished is cut off, and
// a record of [KindRecovered] says so. Anything else that is wrong is [ErrCorrupt].
//
// What was cut off at a clean end cannot be seen from the journal alone, but from
// [Options.Anchor]: a journal that does not fit it is ErrCorrupt too.
//
// A journal that is refused for what is in it is left as it was, to the byte: it is evidence.
func Open(dir string, opts Options) (*Journal, error) {
	if err := opts.complete(); err != nil {
		return nil, err
	}
	j := &Journal{
		opts:   opts,
		node:   opts.Node.String(),
		chain:  newChain(),
		follow: make(map[hierarchy.TenantID][]*Follower),

		changed:      make(chan struct{}),
		wakeFlusher:  make(chan struct{}, 1),
		wakeSealer:   make(chan struct{}, 1),
		wakePreparer: make(chan struct{}, 1),
		checkpoints:  make(chan Checkpoint, 1),
		failed:       make(chan struct{}),
		stopSealer:   make(chan struct{}),
		stopFlusher:  make(chan struct{}),
		stopPreparer: make(chan struct{}),
		sealerDone:   make(chan struct{}),
		flusherDone:  make(chan struct{}),
		preparerDone: make(chan struct{}),
	}
	var err error
	if j.publicKey, err = opts.publicKey(); err != nil {
		return nil, err
	}
	if j.key, err = ParsePublicKey(j.publicKey); err != nil {
		return nil, err
	}
	if j.dir, err = openDirectory(dir, opts.wrap); err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("%w: %w", hierarchy.ErrNotFound, err)
		}
		return nil, err
	}
	cuts, err := j.recover()
	if err != nil {
		j.dir.close()
		return nil, err
	}
	durable := newGroup(j.cur, j.off, nil)
	durable.finish(nil)
	j.head = Position{Sequence: j.chain.seq, Hash: j.chain.hash, group: durable}
	j.durable = j.chain.seq
	j.pending = newGroup(j.cur, j.off, nil)

	go j.flusher()
	go j.sealer(j.lastData > j.signed)
	go j.preparer()
	for _, detail := range cuts {
		opts.Log.Warn("audit journal: recovered", "detail", detail)
		if _, err := j.append(context.Background(), []Record{{Kind: KindRecovered, At: time.Now(), Outcome: OutcomeOK, Detail: detail}}, nil); err != nil {
			ctx, cancel := context.WithTimeout(context.Background(), writePatience)
			defer cancel()
			return nil, errors.Join(err, j.Close(ctx))
		}
	}
	return j, nil
}

// Close makes durable what was appended, signs the head, and ends. When ctx is done before,
// because the disk or the signer hangs, it returns what was not done; the rest then ends with
// the process.
func (j *Journal) Close(ctx context.Context) error {
	j.mu.Lock()
	if j.closing {
		j.mu.Unlock()
		return nil
	}
	j.closing = true
	j.wakeAppenders()
	j.mu.Unlock()

	// The sealer goes first, since its last checkpoint is written by the flusher; the preparer
	// last, since either may wait for the next segment.
	for _, s := range []struct {
		what string
		stop chan struct{}
		done chan struct{}
	}{
		{"its head is not signed", j.stopSealer, j.sealerDone},
		{"its last records are not durable", j.stopFlusher, j.flusherDone},
		{"the next segment is still being made", j.stopPreparer, j.preparerDone},
	} {
		close(s.stop)
		select {
		case <-s.done:
		case <-ctx.Done():
			return fmt.Errorf("%w: closing the audit journal: %s: %w", hierarchy.ErrAuditUnavailable, s.what, context.Cause(ctx))
		}
	}
	return j.close()
}

// close lets go of the files, once no goroutine uses them.
func (j *Journal) close() error {
	j.mu.Lock()
	defer j.mu.Unlock()
	for _, followers := range j.follow {
		for _, f := range followers {
			f.end(io.EOF)
		}
	}
	err := j.err
	if err == nil && j.lastData > j.signed {
		err = fmt.Errorf("closing the audit journal: its head is not signed: %w", j.signErr)
	}
	j.cur.f.Close()
	if j.next != nil {
		j.next.f.Close()
		err = errors.Join(err, j.dir.remove(nextName))
	}
	j.dir.close()
	return err
}
