package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"strings"
	"syscall"
	"time"

	"google.golang.org/grpc/connectivity"

	"github.com/kekd/kekd/hierarchy"
	"github.com/kekd/kekd/unix-socket-api/apierr"
	"github.com/kekd/kekd/unix-socket-api/client"
	"github.com/kekd/kekd/unix-socket-api/kekdv1"
)

// connectKeys and connectAdmin answer with a client of a daemon that is there.

func (a *app) connectKeys(ctx context.Context) (kekdv1.KeyServiceClient, io.Closer, error) {
	c, conn, err := client.DialKeys(a.keySocket())
	return c, conn, establish(ctx, a.keySocket(), conn, err)
}

func (a *app) connectAdmin(ctx context.Context) (kekdv1.AdminServiceClient, io.Closer, error) {
	c, conn, err := client.DialAdmin(a.adminPath())
	return c, conn, establish(ctx, a.adminPath(), conn, err)
}

func (a *app) keySocket() string {
	return cmp.Or(a.socket, os.Getenv("KEKD_SOCKET"), client.DefaultSocket)
}

func (a *app) adminPath() string {
	return cmp.Or(a.adminSocket, os.Getenv("KEKD_ADMIN_SOCKET"), client.DefaultAdminSocket)
}

// establishTimeout is how long a daemon may take to take a connection.
const establishTimeout = 10 * time.Second

// connecting is the part of a gRPC connection that establish drives.
type connecting interface {
	Connect()
	GetState() connectivity.State
	WaitForStateChange(context.Context, connectivity.State) bool
}

// establish waits until the connection stands, before anything is sent. A failed call does not say
// whether its request has left; what fails here has sent nothing, and is no change whose outcome is
// unknown. A daemon that hangs up on a connection, since it has too many, is tried again.
func establish(ctx context.Context, socket string, conn io.Closer, err error) error {
	if err != nil {
		return err
	}
	c, ok := conn.(connecting)
	if !ok {
		return errors.Join(fmt.Errorf("a connection of type %T", conn), conn.Close())
	}
	ctx, cancel := context.WithTimeout(ctx, establishTimeout)
	defer cancel()
	for {
		c.Connect()
		state := c.GetState()
		if state == connectivity.Ready {
			return nil
		}
		if state == connectivity.TransientFailure {
			if err := reach(ctx, socket); err != nil {
				return errors.Join(err, conn.Close())
			}
		}
		if !c.WaitForStateChange(ctx, state) {
			return errors.Join(&fault{exit: exitLocal, code: apierr.CodeUnavailable, message: "kekd takes no connection at " + socket,
				hint: "its process may hang, or have as many connections as it allows: see its log, and try again"}, conn.Close())
		}
	}
}

// reach connects once, only to see why nobody is there.
func reach(ctx context.Context, socket string) error {
	c, err := new(net.Dialer).DialContext(ctx, "unix", socket)
	if err == nil {
		return c.Close()
	}
	f := &fault{exit: exitLocal, code: apierr.CodeUnavailable, message: fmt.Sprintf("cannot reach kekd: %v", err)}
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ECONNREFUSED):
		f.hint = "is kekd running? Say where its sockets are with --socket and --admin-socket, or $KEKD_SOCKET and $KEKD_ADMIN_SOCKET"
	case errors.Is(err, fs.ErrPermission):
		f.hint = "the socket's mode and group say who may open it; see 'ls -l " + socket + "'"
	}
	return f
}

// wrongSocket is for a socket of kekd's, or of another program's, that has not the service that was called.
func wrongSocket(path, what, flags string) *fault {
	return &fault{exit: exitLocal, code: codeUsage, message: fmt.Sprintf("%s is not %s of a kekd", path, what),
		hint: "kekd has one socket for data keys and one for administration; say with " + flags + " which is " + what}
}

// noAnswer is for a call that took too long: what became of it is not known.
func (a *app) noAnswer() *fault {
	return &fault{exit: exitLocal, code: apierr.CodeUnavailable, message: "kekd gave no answer within " + formatDuration(a.timeout),
		hint: "try again, or wait longer with --timeout", uncertain: true}
}

// callFault says what became of a call, and whether that is certain.
func (a *app) callFault(err error) *fault {
	if f, ok := errors.AsType[*fault](err); ok {
		return f
	}
	e, ok := errors.AsType[*client.Error](err)
	if !ok {
		return &fault{exit: exitLocal, code: codeLocal, message: err.Error(), uncertain: true}
	}
	f := &fault{exit: exitRefused, code: e.Code, message: e.Message, hint: e.Hint, retryAfter: e.RetryAfter}
	lost := func(message, hint string) {
		*f = fault{exit: exitLocal, code: apierr.CodeUnavailable, message: message, hint: hint, uncertain: true}
	}
	switch {
	case strings.Contains(e.Message, "unknown service "+kekdv1.KeyService_ServiceDesc.ServiceName):
		return wrongSocket(a.keySocket(), "the socket for data keys", "--socket or $KEKD_SOCKET")
	case strings.Contains(e.Message, "unknown service "+kekdv1.AdminService_ServiceDesc.ServiceName):
		return wrongSocket(a.adminPath(), "the admin socket", "--admin-socket or $KEKD_ADMIN_SOCKET")
	case errors.Is(e, hierarchy.ErrOutcomeUnknown), errors.Is(e, hierarchy.ErrDRPending):
		f.exit = exitPending
	case errors.Is(e, context.DeadlineExceeded):
		return a.noAnswer()
	case errors.Is(e, context.Canceled):
		lost("interrupted", "")
	case errors.Is(e, client.ErrUnavailable):
		lost("kekd went away: "+e.Message, "try again when it is up")
	case e.Code == apierr.CodeInternal, e.Code == "UNKNOWN", e.Code == "ABORTED", e.Code == "DATA_LOSS":
		f.uncertain = true // something broke, and nobody says where
	}
	return f
}
