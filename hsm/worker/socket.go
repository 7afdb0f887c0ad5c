package worker

import (
	"net"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// A link is one end of a socket pair, to write to.
type link interface {
	Write(b []byte) (int, error)
	// try writes what the socket takes at once.
	try(b []byte) (int, error)
}

// A netLink is the daemon's end: who waits for a worker must not hold a thread.
type netLink struct {
	*net.UnixConn
	raw syscall.RawConn
}

func newNetLink(conn *net.UnixConn) (netLink, error) {
	raw, err := conn.SyscallConn()
	return netLink{conn, raw}, err
}

func (l netLink) try(b []byte) (n int, err error) {
	cerr := l.raw.Write(func(fd uintptr) bool {
		for {
			n, err = unix.Write(int(fd), b)
			if err != unix.EINTR {
				return true
			}
		}
	})
	if err == unix.EAGAIN {
		n, err = 0, nil
	}
	if cerr != nil {
		err = cerr
	}
	return max(n, 0), err
}

// A socket is a worker's end. Its descriptor blocks: the one thread that waits for frames does
// the work that they bring, and to be woken through the runtime's poller costs as much as the
// work.
type socket struct {
	f  *os.File // closed when nobody refers to it any more: nobody knows which thread still uses it
	fd int
}

// newSocket takes over a connection.
func newSocket(conn *net.UnixConn) (*socket, error) {
	defer conn.Close()
	f, err := conn.File()
	if err != nil {
		return nil, err
	}
	return &socket{f: f, fd: int(f.Fd())}, nil // Fd makes it block
}

// Read waits for something to read.
func (s *socket) Read(b []byte) (int, error) { return s.f.Read(b) }

// tryRead reads what is there; 0 if that is nothing.
func (s *socket) tryRead(b []byte) (int, error) {
	for {
		n, _, err := unix.Recvfrom(s.fd, b, unix.MSG_DONTWAIT)
		switch err {
		case unix.EINTR:
		case unix.EAGAIN:
			return 0, nil
		default:
			return max(n, 0), err
		}
	}
}

// Write waits until all is written.
func (s *socket) Write(b []byte) (int, error) { return s.f.Write(b) }

func (s *socket) try(b []byte) (int, error) {
	for {
		n, err := unix.SendmsgN(s.fd, b, nil, nil, unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL)
		switch err {
		case unix.EINTR:
		case unix.EAGAIN:
			return 0, nil
		default:
			return max(n, 0), err
		}
	}
}

// Close ends the conversation, for those who wait on the socket too.
func (s *socket) Close() error { return unix.Shutdown(s.fd, unix.SHUT_RDWR) }
