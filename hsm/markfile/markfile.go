// Package markfile keeps marks in files, for a node that has no token.
//
// # What it promises
//
// It is the port [hsm.Marks] on a directory of its own. A mark is written to a new file, synced, and
// renamed over the old one, and the directory is synced after that: whenever the process is killed
// or power is lost, the old mark is there or the new one, and what was acknowledged is. A file that is
// anything but a whole mark of the right node is an error, and stays as it is. One process uses the
// directory at a time.
//
// # What it leaves to others
//
// A mark is worth what its place is worth. In a token it outlives the disk; here it shows that the
// data directory was put back alone, and shows nothing when both were put back together, from one
// snapshot of one disk. So the directory belongs on another disk, which is not backed up with the
// first, and that is for whoever configures it.
package markfile

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/kekd/kekd/hsm"
)

// lockName is the file that is locked. It is made with the directory and never removed.
const lockName = "lock"

// Dir is an open directory of marks.
type Dir struct {
	path string
	lock *os.File

	// turn is of size 1: held while files are looked at, also by who hangs in a system call after
	// its caller has left. It guards what is below.
	turn    chan struct{}
	durable map[hsm.MarkOwner]hsm.Mark // what this process has made durable itself
	closed  bool
}

var _ hsm.Marks = (*Dir)(nil)

// Create makes a directory of marks, in a parent that is there. Making one that is there does nothing.
func Create(path string) error {
	if err := create(path); err != nil {
		return fmt.Errorf("%w: make a directory of marks: %w", hsm.ErrUnavailable, err)
	}
	return nil
}

func create(path string) error {
	if err := os.Mkdir(path, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	lock, err := os.OpenFile(filepath.Join(path, lockName), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	return errors.Join(lock.Close(), syncDir(path), syncDir(filepath.Dir(path)))
}

// Open takes a directory that [Create] made for this process. It makes none: a disk that is not mounted
// is not a node without a mark. hsm.ErrBusy: another process has it.
func Open(path string) (*Dir, error) {
	lock, err := os.OpenFile(filepath.Join(path, lockName), os.O_RDWR, 0)
	if err != nil {
		return nil, fmt.Errorf("%w: directory of marks: %w", hsm.ErrUnavailable, err)
	}
	err = unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if err == nil {
		return &Dir{path: path, lock: lock, turn: make(chan struct{}, 1), durable: map[hsm.MarkOwner]hsm.Mark{}}, nil
	}
	lock.Close()
	if errors.Is(err, unix.EWOULDBLOCK) {
		return nil, fmt.Errorf("%w: another process keeps marks in %s", hsm.ErrBusy, path)
	}
	return nil, fmt.Errorf("%w: lock %s: %w", hsm.ErrUnavailable, path, err)
}

// Close lets go of the directory. It waits for what is being written.
func (d *Dir) Close() error {
	d.turn <- struct{}{}
	defer func() { <-d.turn }()
	if d.closed {
		return nil
	}
	d.closed = true
	return d.lock.Close()
}

// Mark is [hsm.Marks]'s.
func (d *Dir) Mark(ctx context.Context, owner hsm.MarkOwner) (hsm.Mark, bool, error) {
	type result struct {
		mark  hsm.Mark
		found bool
	}
	r, err := within(ctx, d, func() (result, error) {
		m, found, err := d.read(owner)
		return result{m, found}, err
	})
	return r.mark, r.found, err
}

// RaiseMark is [hsm.Marks]'s. What this process has raised already costs no look at the disk.
func (d *Dir) RaiseMark(ctx context.Context, owner hsm.MarkOwner, m hsm.Mark) error {
	_, err := within(ctx, d, func() (struct{}, error) { return struct{}{}, d.raise(owner, m) })
	return err
}

// within does something with the files in a goroutine of its own, and waits for it until ctx ends: a
// disk may hang.
func within[T any](ctx context.Context, d *Dir, do func() (T, error)) (T, error) {
	type result struct {
		value T
		err   error
	}
	var none T
	if ctx.Err() != nil {
		return none, late(ctx)
	}
	select {
	case d.turn <- struct{}{}:
	case <-ctx.Done():
		return none, late(ctx)
	}
	answer := make(chan result, 1)
	go func() {
		defer func() { <-d.turn }()
		r := result{err: fmt.Errorf("%w: the directory of marks was closed", hsm.ErrUnavailable)}
		if !d.closed {
			r.value, r.err = do()
		}
		answer <- r
	}()
	select {
	case r := <-answer:
		return r.value, r.err
	case <-ctx.Done():
		return none, late(ctx)
	}
}

func late(ctx context.Context) error {
	return fmt.Errorf("%w: %w", hsm.ErrDeadline, context.Cause(ctx))
}

func (d *Dir) raise(owner hsm.MarkOwner, m hsm.Mark) error {
	if known, ok := d.durable[owner]; ok && known.Covers(m) {
		return nil
	}
	have, _, err := d.read(owner)
	if err != nil {
		return err
	}
	// Also if the file has it: an earlier try may not have come to the disk.
	m = m.Max(have)
	if err := d.write(owner, m); err != nil {
		return fmt.Errorf("%w: write a mark: %w", hsm.ErrUnavailable, err)
	}
	d.durable[owner] = m
	return nil
}

// file is where an owner's mark is.
func (d *Dir) file(owner hsm.MarkOwner) string {
	return filepath.Join(d.path, fmt.Sprintf("%s-%s.mark", owner.Cluster, owner.Node))
}

// read gives what the owner's file has; false: there is none.
func (d *Dir) read(owner hsm.MarkOwner) (hsm.Mark, bool, error) {
	if err := d.check(); err != nil {
		return hsm.Mark{}, false, err
	}
	f, err := os.Open(d.file(owner))
	if errors.Is(err, fs.ErrNotExist) {
		return hsm.Mark{}, false, nil
	}
	if err != nil {
		return hsm.Mark{}, false, fmt.Errorf("%w: read a mark: %w", hsm.ErrUnavailable, err)
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, hsm.MarkSize+1))
	if err != nil {
		return hsm.Mark{}, false, fmt.Errorf("%w: read a mark: %w", hsm.ErrUnavailable, err)
	}
	m, err := hsm.ParseMark(b, owner)
	if err != nil {
		return hsm.Mark{}, false, fmt.Errorf("%s: %w", d.file(owner), err)
	}
	return m, true, nil
}

// check fails if the directory is not the one that was opened: one that was taken away, or put
// another disk over, has no word on marks.
func (d *Dir) check() error {
	mine, err := d.lock.Stat()
	if err != nil {
		return fmt.Errorf("%w: directory of marks: %w", hsm.ErrUnavailable, err)
	}
	named, err := os.Lstat(d.lock.Name())
	if err != nil || !os.SameFile(mine, named) {
		return fmt.Errorf("%w: %s is not the directory that was opened", hsm.ErrUnavailable, d.path)
	}
	return nil
}

// write replaces the owner's file.
//
//	openat(F.tmp, O_WRONLY|O_CREAT|O_TRUNC, 0600)
//	write
//	fsync
//	renameat(F.tmp, F)
//	fsync(DIR)
func (d *Dir) write(owner hsm.MarkOwner, m hsm.Mark) error {
	path := d.file(owner)
	f, err := os.OpenFile(path+".tmp", os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(hsm.AppendMark(nil, owner, m))
	if err == nil {
		err = f.Sync()
	}
	if err := errors.Join(err, f.Close()); err != nil {
		return err
	}
	if err := os.Rename(path+".tmp", path); err != nil {
		return err
	}
	return syncDir(d.path)
}

func syncDir(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
