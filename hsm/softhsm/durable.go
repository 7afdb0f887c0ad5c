package softhsm

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"
)

// step names one fsync. Tests build the package with single steps left out, to show that they
// would notice.
type step string

const (
	syncObject    step = "object"     // a file of the token, in place
	syncObjectDir step = "object-dir" // tokens/UUID
	syncShadow    step = "shadow"     // a copy, before it gets its name
	syncShadowDir step = "shadow-dir" // shadow/UUID
	syncRestore   step = "restore"    // what is put back, before it gets its name
	syncIntent    step = "intent"     // the intent, before it gets its name
	syncRoot      step = "root"       // the directory itself, and those that hold directories

	copyToShadow step = "copy" // not an fsync: the copy as a whole
)

func syncFile(f *os.File, s step) error {
	if skipped(s) {
		return nil
	}
	return f.Sync()
}

// syncDir makes the names in a directory durable: open(O_RDONLY), fsync.
func syncDir(path string, s step) error {
	if skipped(s) {
		return nil
	}
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	defer d.Close()
	if err := d.Sync(); err != nil {
		return fmt.Errorf("sync directory: %w", err)
	}
	return nil
}

// replace writes content to tmp and renames it to path, so that path holds the old content or the
// new one, complete, after any crash. Both are on one file system. The caller syncs the directory
// of path. A zero mtime leaves the time alone.
//
//	openat(tmp, O_WRONLY|O_CREAT|O_TRUNC, 0600)
//	write
//	utimensat
//	fsync
//	renameat(tmp, path)
func replace(tmp, path string, content []byte, mtime time.Time, s step) error {
	// A tmp that a crash left behind is overwritten: the change lock makes us its only writer.
	f, err := os.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	if _, err := f.Write(content); err != nil {
		return err
	}
	if !mtime.IsZero() {
		if err := os.Chtimes(tmp, time.Time{}, mtime); err != nil {
			return err
		}
	}
	if err := syncFile(f, s); err != nil {
		return err
	}
	if err := f.Close(); err != nil {
		return err
	}
	return os.Rename(tmp, path)
}

// makeDir makes a directory unless it is there, and its name durable.
func makeDir(path string) error {
	if err := os.Mkdir(path, 0o700); errors.Is(err, fs.ErrExist) {
		return nil
	} else if err != nil {
		return err
	}
	return syncDir(filepath.Dir(path), syncRoot)
}
