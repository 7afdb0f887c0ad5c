package softhsmtests

import (
	"context"
	"errors"
	"net"
	"runtime"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/kekd/kekd/unix-socket-api/apierr"
	"github.com/kekd/kekd/unix-socket-api/client"
	"github.com/kekd/kekd/unix-socket-api/kekdv1"
)

// connectAs connects as another user.
func connectAs(ctx context.Context, path string, uid uint32) (net.Conn, error) {
	conns, err := connectMany(ctx, path, uid, 1)
	if err != nil {
		return nil, err
	}
	return conns[0], nil
}

// connectMany makes so many connections as another user. The kernel notes who connects, so it is
// enough that the thread that does so has become that user; it has no way back and ends.
func connectMany(ctx context.Context, path string, uid uint32, count int) (conns []net.Conn, err error) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // and never unlock: the thread ends with the goroutine
		if err = become(uid); err != nil {
			return
		}
		for len(conns) < count && err == nil {
			var c net.Conn
			c, err = new(net.Dialer).DialContext(ctx, "unix", path)
			switch {
			case err == nil:
				conns = append(conns, c)
			case errors.Is(err, unix.EAGAIN) && ctx.Err() == nil: // the backlog is full
				time.Sleep(time.Millisecond)
				err = nil
			}
		}
	}()
	<-done
	if err != nil {
		for _, c := range conns {
			c.Close()
		}
		return nil, err
	}
	return conns, nil
}

// become changes the user of this thread alone: the syscall package would change that of all.
func become(uid uint32) error {
	id := uintptr(uid)
	for _, call := range [][4]uintptr{{unix.SYS_SETGROUPS}, {unix.SYS_SETRESGID, id, id, id}, {unix.SYS_SETRESUID, id, id, id}} {
		if _, _, errno := unix.RawSyscall(call[0], call[1], call[2], call[3]); errno != 0 {
			return errno
		}
	}
	return nil
}

// dialAs is a gRPC connection of another user, whose group has the same number.
func dialAs(t *testing.T, path string, uid uint32) *grpc.ClientConn {
	t.Helper()
	conn, err := grpc.NewClient("passthrough:///kekd",
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return connectAs(ctx, path, uid) }),
		grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithAuthority("localhost"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

func keysAs(t *testing.T, n *node, uid uint32) kekdv1.KeyServiceClient {
	t.Helper()
	return kekdv1.NewKeyServiceClient(dialAs(t, n.Socket, uid))
}

func adminAs(t *testing.T, n *node, uid uint32) kekdv1.AdminServiceClient {
	t.Helper()
	return kekdv1.NewAdminServiceClient(dialAs(t, n.AdminSocket, uid))
}

// callerOf makes a service of a uid and lets it do everything with the keys of a pattern.
func callerOf(t *testing.T, n *node, name string, uid uint32, pattern string) {
	t.Helper()
	a, ctx := admin(t, n.Node), within(t, 30*time.Second)
	_, err := a.CreateService(ctx, &kekdv1.CreateServiceRequest{Name: name, Uid: &uid})
	if err == nil {
		_, err = a.AllowPolicy(ctx, &kekdv1.AllowPolicyRequest{Rule: &kekdv1.Rule{Service: name, Pattern: pattern, Ops: allOps}})
	}
	if err != nil {
		t.Fatal(err)
	}
}

// codeOf is the stable code of a call's error, however the call was made; empty for none.
func codeOf(err error) string {
	if err == nil {
		return ""
	}
	var e *client.Error
	if !errors.As(err, &e) {
		errors.As(apierr.FromStatus(err), &e)
	}
	return e.Code
}
