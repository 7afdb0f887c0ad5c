package socketapi

import (
	"context"
	"fmt"
	"net"
	"os"
	"slices"
	"unsafe"

	"github.com/kekd/kekd/hierarchy"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/peer"
)

// credentialsOf asks the kernel who connected. The answer is of the time of connect(2): what
// the process became since does not count.
func credentialsOf(c *net.UnixConn) (hierarchy.Principal, []uint32, error) {
	var cred *unix.Ucred
	var groups []uint32
	err := onFD(c, func(fd int) (err error) {
		if cred, err = unix.GetsockoptUcred(fd, unix.SOL_SOCKET, unix.SO_PEERCRED); err != nil {
			return err
		}
		groups, err = peerGroups(fd)
		return err
	})
	if err != nil {
		return hierarchy.Principal{}, nil, fmt.Errorf("peer credentials: %w", err)
	}
	return hierarchy.Principal{UID: cred.Uid, GID: cred.Gid, PID: cred.Pid}, groups, nil
}

func onFD(c *net.UnixConn, f func(fd int) error) error {
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	var ferr error
	if err := raw.Control(func(fd uintptr) { ferr = f(int(fd)) }); err != nil {
		return err
	}
	return ferr
}

// peerGroups are the peer's supplementary groups, as SO_PEERCRED tells the primary one alone.
// x/sys has no call for it.
func peerGroups(fd int) ([]uint32, error) {
	groups := make([]uint32, 32)
	for {
		size := uint32(len(groups) * 4) // socklen_t
		_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(fd), unix.SOL_SOCKET, unix.SO_PEERGROUPS,
			uintptr(unsafe.Pointer(&groups[0])), uintptr(unsafe.Pointer(&size)), 0)
		switch {
		case errno == 0:
			return groups[:size/4], nil
		case errno == unix.ERANGE && int(size) > len(groups)*4: // it says how much it needs
			groups = make([]uint32, size/4)
		default:
			return nil, errno
		}
	}
}

// Admins says who may use the admin socket besides root and the daemon's own user.
type Admins struct {
	// GID is a group whose members may; negative: none.
	GID int
}

// Own tells root and the daemon's own user, who need no service to be known.
func Own(p hierarchy.Principal) bool {
	return p.UID == 0 || p.UID == uint32(os.Geteuid())
}

func (a Admins) allow(p hierarchy.Principal, groups []uint32) bool {
	if Own(p) {
		return true
	}
	return a.GID >= 0 && (p.GID == uint32(a.GID) || slices.Contains(groups, uint32(a.GID)))
}

// peerCredentials is gRPC's handshake on a socket whose listener has asked the kernel already:
// nothing is exchanged, the connection is what identifies. Who connects too often waits here, on
// a goroutine of his connection's own.
type peerCredentials struct{}

type peerInfo struct{ conn *conn }

func (peerInfo) AuthType() string { return "SO_PEERCRED" }

func (peerCredentials) ServerHandshake(c net.Conn) (net.Conn, credentials.AuthInfo, error) {
	pc, ok := c.(*conn)
	if !ok {
		return nil, nil, fmt.Errorf("connection of type %T has no peer credentials", c)
	}
	pc.pause()
	return pc, peerInfo{pc}, nil
}

func (peerCredentials) ClientHandshake(context.Context, string, net.Conn) (net.Conn, credentials.AuthInfo, error) {
	return nil, nil, fmt.Errorf("%w: peer credentials are for servers", hierarchy.ErrInvalidArgument)
}

func (peerCredentials) Info() credentials.ProtocolInfo {
	return credentials.ProtocolInfo{SecurityProtocol: "SO_PEERCRED"}
}

func (p peerCredentials) Clone() credentials.TransportCredentials { return p }

func (peerCredentials) OverrideServerName(string) error { return nil }

// connOf finds the connection that a call came on.
func connOf(ctx context.Context) (*conn, error) {
	if p, ok := peer.FromContext(ctx); ok {
		if info, ok := p.AuthInfo.(peerInfo); ok {
			return info.conn, nil
		}
	}
	return nil, fmt.Errorf("%w: the caller is not known", hierarchy.ErrPermissionDenied)
}
