package socketapi_test

import (
	"errors"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/kekd/kekd/hierarchy"
	socketapi "github.com/kekd/kekd/unix-socket-api"
)

func listen(t *testing.T, path string) *socketapi.Listener {
	t.Helper()
	l, err := socketapi.Listen(path, 0o660, -1)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

func TestListenModeAndGroup(t *testing.T) {
	path := filepath.Join(socketDir(t), "s")
	l, err := socketapi.Listen(path, 0o620, 54322)
	if err != nil {
		t.Fatal(err)
	}
	info, err := os.Lstat(path)
	if err != nil {
		t.Fatal(err)
	}
	if got := info.Mode(); got != 0o620|fs.ModeSocket {
		t.Errorf("mode %v", got)
	}
	if got := info.Sys().(*syscall.Stat_t).Gid; got != 54322 {
		t.Errorf("group %d", got)
	}
	if err := l.Close(); err != nil {
		t.Error(err)
	}
	if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("left behind: %v", err)
	}
}

// TestListenIsNeverOpenTooWide looks at the socket's mode at the moment when it appears, with a
// umask that takes nothing away.
func TestListenIsNeverOpenTooWide(t *testing.T) {
	old := syscall.Umask(0)
	defer syscall.Umask(old)
	dir := socketDir(t)
	path := filepath.Join(dir, "s")
	fd, err := syscall.InotifyInit1(syscall.IN_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	defer syscall.Close(fd)
	if _, err := syscall.InotifyAddWatch(fd, dir, syscall.IN_CREATE); err != nil {
		t.Fatal(err)
	}
	// Between bind and chmod is a moment only, so that it takes some tries to be there.
	for range 200 {
		modes := make(chan fs.FileMode, 1)
		go func() {
			var b [4096]byte
			for {
				syscall.Read(fd, b[:])
				if info, err := os.Lstat(path); err == nil { // else it was the lock's file
					modes <- info.Mode().Perm()
					return
				}
			}
		}()
		l, err := socketapi.Listen(path, 0o600, -1)
		if err != nil {
			t.Fatal(err)
		}
		if got := <-modes; got != 0o600 {
			t.Fatalf("it appeared with mode %v", got)
		}
		l.Close()
	}
}

// TestListenFollowsNoLink has a link and the socket change places, over and over, as soon as the socket
// appears. What the link leads to keeps its mode.
func TestListenFollowsNoLink(t *testing.T) {
	dir := socketDir(t)
	path, link, precious := filepath.Join(dir, "s"), filepath.Join(dir, "link"), filepath.Join(dir, "precious")
	if err := os.WriteFile(precious, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	refused := 0
	for range 500 { // the moments are short
		if err := os.Symlink(precious, link); err != nil {
			t.Fatal(err)
		}
		stop, stopped := make(chan struct{}), make(chan struct{})
		go func() {
			defer close(stopped)
			for {
				select {
				case <-stop:
					return
				default:
				}
				_ = unix.Renameat2(unix.AT_FDCWD, link, unix.AT_FDCWD, path, unix.RENAME_EXCHANGE) // not there yet
			}
		}()
		l, err := socketapi.Listen(path, 0o666, -1)
		close(stop)
		<-stopped
		if err != nil {
			refused++
		} else {
			l.Close()
		}
		for _, left := range []string{path, link} {
			if err := os.Remove(left); err != nil && !errors.Is(err, fs.ErrNotExist) {
				t.Fatal(err)
			}
		}
		info, err := os.Stat(precious)
		if err != nil {
			t.Fatal(err)
		}
		if got := info.Mode(); got != 0o600 {
			t.Fatalf("what the link leads to has mode %v now", got)
		}
	}
	t.Logf("in %d of 500 tries the daemon saw the link", refused) // on one processor it may be none
}

func TestListenReplacesWhatADeadDaemonLeft(t *testing.T) {
	path := filepath.Join(socketDir(t), "s")
	dead, err := net.ListenUnix("unix", &net.UnixAddr{Name: path})
	if err != nil {
		t.Fatal(err)
	}
	dead.SetUnlinkOnClose(false)
	dead.Close()
	if _, err := os.Lstat(path); err != nil {
		t.Fatal(err)
	}
	l := listen(t, path)
	c, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	c.Close()
	l.Close()
}

// TestListenAtOnce: of several daemons that find the same remains, one gets the socket.
func TestListenAtOnce(t *testing.T) {
	path := filepath.Join(socketDir(t), "s")
	for round := range 50 {
		dead, err := net.ListenUnix("unix", &net.UnixAddr{Name: path})
		if err != nil {
			t.Fatal(err)
		}
		dead.SetUnlinkOnClose(false)
		dead.Close()
		var daemons sync.WaitGroup
		got := make(chan *socketapi.Listener, 8)
		for range cap(got) {
			daemons.Go(func() {
				l, err := socketapi.Listen(path, 0o660, -1)
				if err == nil {
					got <- l
				} else if !errors.Is(err, hierarchy.ErrAlreadyExists) {
					t.Error(err)
				}
			})
		}
		daemons.Wait()
		if n := len(got); n != 1 {
			t.Fatalf("round %d: %d of them listen", round, n)
		}
		(<-got).Close()
	}
}

func TestListenLeavesALivingSocket(t *testing.T) {
	path := filepath.Join(socketDir(t), "s")
	listen(t, path)
	_, err := socketapi.Listen(path, 0o660, -1)
	if !errors.Is(err, hierarchy.ErrAlreadyExists) || !strings.Contains(err.Error(), "another process listens") {
		t.Fatalf("got %v", err)
	}
	c, err := net.Dial("unix", path)
	if err != nil {
		t.Fatalf("the living one was hurt: %v", err)
	}
	c.Close()
}

// TestListenLeavesABusySocket: a daemon with a full backlog answers nobody, and lives.
func TestListenLeavesABusySocket(t *testing.T) {
	path := filepath.Join(socketDir(t), "s")
	fd, err := syscall.Socket(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer syscall.Close(fd)
	if err := errors.Join(syscall.Bind(fd, &syscall.SockaddrUnix{Name: path}), syscall.Listen(fd, 0)); err != nil {
		t.Fatal(err)
	}
	for { // until nobody is let in any more
		c, err := net.Dial("unix", path)
		if err != nil {
			break
		}
		defer c.Close()
	}
	if _, err := socketapi.Listen(path, 0o660, -1); !errors.Is(err, hierarchy.ErrAlreadyExists) {
		t.Errorf("got %v", err)
	}
	if _, err := os.Lstat(path); err != nil {
		t.Errorf("its socket is gone: %v", err)
	}
}

func TestListenLeavesOtherFiles(t *testing.T) {
	path := filepath.Join(socketDir(t), "s")
	if err := os.WriteFile(path, []byte("mine"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := socketapi.Listen(path, 0o660, -1); !errors.Is(err, hierarchy.ErrAlreadyExists) || !strings.Contains(err.Error(), "not a socket") {
		t.Errorf("got %v", err)
	}
	link := path + "-link"
	if err := os.Symlink(path, link); err != nil {
		t.Fatal(err)
	}
	if _, err := socketapi.Listen(link, 0o660, -1); !errors.Is(err, hierarchy.ErrAlreadyExists) {
		t.Errorf("a symbolic link: got %v", err)
	}
	if b, err := os.ReadFile(path); err != nil || string(b) != "mine" {
		t.Errorf("the file is now %q, %v", b, err)
	}
}

func TestListenSaysWhatIsWrongWithThePath(t *testing.T) {
	dir := socketDir(t)
	if _, err := socketapi.Listen(filepath.Join(dir, strings.Repeat("x", 120)), 0o660, -1); !errors.Is(err, hierarchy.ErrInvalidArgument) {
		t.Errorf("a long path: %v", err)
	}
	if _, err := socketapi.Listen(filepath.Join(dir, "none", "s"), 0o660, -1); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no directory: %v", err)
	}
}

// TestCloseLeavesASuccessor: the file was taken away, and another daemon put its own there.
func TestCloseLeavesASuccessor(t *testing.T) {
	path := filepath.Join(socketDir(t), "s")
	first := listen(t, path)
	if err := os.Rename(path, path+".old"); err != nil {
		t.Fatal(err)
	}
	listen(t, path)
	first.Close()
	if _, err := os.Lstat(path); err != nil {
		t.Errorf("the successor's socket is gone: %v", err)
	}
}
