package socketapi

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"sync"
	"syscall"
	"time"

	"github.com/kekd/kekd/hierarchy"
	"golang.org/x/sys/unix"
)

// Listener is a Unix socket in the file system. Closing it removes the file, if the file is
// still this listener's.
type Listener struct {
	*net.UnixListener
	path  string
	file  os.FileInfo
	close sync.Once
}

// Listen makes a socket with this mode and group; a negative group leaves the process's own.
// What a dead daemon left at the path is replaced. A socket that somebody listens on, and
// anything that is not a socket, stays, and the error says so: [hierarchy.ErrAlreadyExists].
func Listen(path string, mode fs.FileMode, group int) (*Listener, error) {
	if len(path) >= len(unix.RawSockaddrUnix{}.Path) {
		return nil, fmt.Errorf("%w: socket path %s has %d bytes, the kernel takes %d", hierarchy.ErrInvalidArgument, path, len(path), len(unix.RawSockaddrUnix{}.Path)-1)
	}
	unlock, err := lockPath(path, lockPatience)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("socket %s: its directory is not there: make it, or have systemd do it by RuntimeDirectory=: %w", path, err)
	}
	if err != nil {
		return nil, fmt.Errorf("socket %s: %w", path, err)
	}
	defer unlock()
	if err := removeStale(path); err != nil {
		return nil, err
	}

	// A socket's file gets the mode of the descriptor, less the umask: nobody else can connect
	// before the group and the mode are what was asked for.
	config := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		var chmod error
		err := c.Control(func(fd uintptr) { chmod = unix.Fchmod(int(fd), 0o600) })
		return errors.Join(err, chmod)
	}}
	l, err := config.Listen(context.Background(), "unix", path)
	if err != nil {
		return nil, fmt.Errorf("socket %s: %w", path, err)
	}
	lis := &Listener{UnixListener: l.(*net.UnixListener), path: path}
	lis.SetUnlinkOnClose(false) // it would remove a successor's as well
	if err := lis.own(mode, group); err != nil {
		lis.UnixListener.Close()
		os.Remove(path) // the lock is held: it is ours
		return nil, fmt.Errorf("socket %s: %w", path, err)
	}
	return lis, nil
}

// own gives the socket's file its group, and its mode last: it lets others in. It holds on to what
// it has looked at, since chmod(2) follows a link, and would open whatever file that leads to.
func (l *Listener) own(mode fs.FileMode, group int) error {
	fd, err := unix.Open(l.path, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	f := os.NewFile(uintptr(fd), l.path)
	defer f.Close()
	if l.file, err = f.Stat(); err != nil {
		return err
	}
	if l.file.Mode().Type() != fs.ModeSocket || l.file.Sys().(*syscall.Stat_t).Uid != uint32(os.Geteuid()) {
		return errors.New("somebody has put something else in its place: look who can write to the directory")
	}
	if group >= 0 {
		if err := unix.Fchownat(fd, "", -1, group, unix.AT_EMPTY_PATH); err != nil {
			return err
		}
	}
	return os.Chmod(fmt.Sprintf("/proc/self/fd/%d", fd), mode) // fchmod(2) takes no O_PATH descriptor
}

// Close stops listening and removes the socket's file.
func (l *Listener) Close() error {
	err := net.ErrClosed
	l.close.Do(func() {
		err = l.UnixListener.Close()
		unlock, lockErr := lockPath(l.path, 0)
		if lockErr != nil {
			return // the directory is gone, or a successor is about to replace the file
		}
		defer unlock()
		if now, statErr := os.Lstat(l.path); statErr == nil && os.SameFile(now, l.file) {
			os.Remove(l.path)
		}
	})
	return err
}

// removeStale removes a socket that nobody listens on. The path's lock is held, so nobody
// begins to listen in between.
func removeStale(path string) error {
	info, err := os.Lstat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return fmt.Errorf("socket %s: %w", path, err)
	case info.Mode().Type() != fs.ModeSocket:
		return fmt.Errorf("%w: %s is there and is not a socket; remove it, or configure another path", hierarchy.ErrAlreadyExists, path)
	}
	c, err := net.Dial("unix", path)
	switch {
	case err == nil:
		c.Close()
		return fmt.Errorf("%w: another process listens on %s; stop it, or configure another path", hierarchy.ErrAlreadyExists, path)
	case !errors.Is(err, unix.ECONNREFUSED): // a full backlog, for one, is a living socket
		return fmt.Errorf("%w: %s: cannot tell whether another process listens on it: %w", hierarchy.ErrAlreadyExists, path, err)
	}
	return os.Remove(path)
}

// lockPatience is how long another daemon may take between its look at a path and its socket.
const lockPatience = 2 * time.Second

// lockPath makes the look at a path and what follows from it one step among daemons that want
// the same socket. The lock is a file beside it that only its owner can open: one on the
// directory itself could be held by anybody who may read it. It stays, like every lock's file.
func lockPath(path string, patience time.Duration) (unlock func(), err error) {
	path += ".lock"
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, err
	}
	for deadline := time.Now().Add(patience); ; time.Sleep(10 * time.Millisecond) {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return func() { f.Close() }, nil
		}
		if !errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, unix.EINTR) || !time.Now().Before(deadline) {
			f.Close()
			return nil, fmt.Errorf("lock %s: %w", path, err)
		}
	}
}
