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

// connectAs connects as another user. The kernel notes who connects, so it is enough that the
// thread that does so has become that user; it has no way back and ends.
func connectAs(ctx context.Context, path string, uid uint32) (net.Conn, error) {
	type result struct {
		conn net.Conn
		err  error
	}
	got := make(chan result, 1)
	go func() {
		runtime.LockOSThread() // and never unlock: the thread ends with the goroutine
		conn, err := func() (net.Conn, error) {
			// The raw calls are those of one thread; syscall.Setresuid changes all.
			if _, _, errno := unix.RawSyscall(unix.SYS_SETGROUPS, 0, 0, 0); errno != 0 {
				return nil, errno
			}
			id := uintptr(uid)
			if _, _, errno := unix.RawSyscall(unix.SYS_SETRESGID, id, id, id); errno != 0 {
				return nil, errno
			}
			if _, _, errno := unix.RawSyscall(unix.SYS_SETRESUID, id, id, id); errno != 0 {
				return nil, errno
			}
			return new(net.Dialer).DialContext(ctx, "unix", path)
		}()
		got <- result{conn, err}
	}()
	r := <-got
	return r.conn, r.err
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
