package softhsm

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// lockFile is an open lock file. flock belongs to the open file: the kernel releases it when the
// last descriptor of it closes, which at the latest is when the process ends. Descriptors are
// close-on-exec, so no child inherits one.
//
// The file is made with the directory and never removed, or two processes could hold two locks of
// one name.
type lockFile struct{ *os.File }

func openLock(path string) (lockFile, error) {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return lockFile{}, err
	}
	return lockFile{f}, nil
}

// lock takes the lock (unix.LOCK_SH or LOCK_EX), waiting until ctx ends; then the error is the
// context's.
//
// It polls: a thread that waits in flock(2) could not be called back.
func (l lockFile) lock(ctx context.Context, how int) error {
	wait := time.Millisecond
	for {
		err := unix.Flock(int(l.Fd()), how|unix.LOCK_NB)
		switch {
		case err == nil:
			return l.current()
		case errors.Is(err, unix.EINTR):
			continue
		case !errors.Is(err, unix.EWOULDBLOCK):
			return fmt.Errorf("lock %s: %w", l.Name(), err)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(wait):
		}
		wait = min(2*wait, 5*time.Millisecond)
	}
}

func (l lockFile) unlock() error {
	return unix.Flock(int(l.Fd()), unix.LOCK_UN)
}

// current fails if the file that is locked is not the one that others would lock.
func (l lockFile) current() error {
	mine, err := l.Stat()
	if err != nil {
		return err
	}
	named, err := os.Lstat(l.Name())
	if err != nil || !os.SameFile(mine, named) {
		return fmt.Errorf("%w: %s is not the file that was locked", ErrGone, l.Name())
	}
	return nil
}

// holders says who holds the lock, as far as /proc knows: processes of other PID namespaces have
// no number here.
func (l lockFile) holders() string {
	var st unix.Stat_t
	if err := unix.Fstat(int(l.Fd()), &st); err != nil {
		return "an unknown process"
	}
	table, err := os.ReadFile("/proc/locks")
	if err != nil {
		return "an unknown process"
	}
	file := fmt.Sprintf("%02x:%02x:%d", unix.Major(st.Dev), unix.Minor(st.Dev), st.Ino)
	var held []string
	for line := range strings.Lines(string(table)) {
		// 1: FLOCK  ADVISORY  WRITE 4711 08:01:131 0 EOF
		f := strings.Fields(line)
		if len(f) < 6 || f[1] != "FLOCK" || f[5] != file || f[4] == "0" {
			continue
		}
		name, err := os.ReadFile("/proc/" + f[4] + "/comm")
		if err != nil {
			held = append(held, "process "+f[4])
			continue
		}
		held = append(held, fmt.Sprintf("process %s (%s)", f[4], strings.TrimSpace(string(name))))
	}
	if len(held) == 0 {
		return "an unknown process"
	}
	return strings.Join(held, ", ")
}
