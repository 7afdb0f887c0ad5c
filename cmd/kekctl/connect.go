package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/kekd/kekd/hierarchy"
	"github.com/kekd/kekd/unix-socket-api/apierr"
	"github.com/kekd/kekd/unix-socket-api/client"
	"github.com/kekd/kekd/unix-socket-api/kekdv1"
)

// connectKeys and connectAdmin answer with a client of a daemon that is there.

func (a *app) connectKeys(ctx context.Context) (kekdv1.KeyServiceClient, io.Closer, error) {
	c, conn, err := client.DialKeys(a.keySockets()...)
	return c, conn, establish(ctx, conn, err)
}

func (a *app) connectAdmin(ctx context.Context) (kekdv1.AdminServiceClient, io.Closer, error) {
	c, conn, err := client.DialAdmin(a.adminSockets()...)
	return c, conn, establish(ctx, conn, err)
}

func (a *app) keySockets() []string { return client.KeySockets(a.socket) }

func (a *app) adminSockets() []string { return client.AdminSockets(a.adminSocket) }

// establishTimeout is how long a daemon may take to take a connection.
const establishTimeout = 10 * time.Second

// establish waits until the connection stands, before anything is sent. A failed call does not say
// whether its request has left; what fails here has sent nothing, and is no change whose outcome is
// unknown. A daemon that hangs up on a connection, since it has too many, is tried again.
func establish(ctx context.Context, conn *client.Conn, err error) error {
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, establishTimeout)
	defer cancel()
	if err = conn.Connect(ctx); err == nil {
		return nil
	}
	f := &fault{exit: exitLocal, code: apierr.CodeUnavailable, message: err.Error()}
	if e, ok := errors.AsType[*client.Error](err); ok {
		f.hint = e.Hint
	}
	if ctx.Err() != nil {
		f.message, f.hint = "kekd takes no connection at "+strings.Join(conn.Sockets(), ", "), "its process may hang, or have as many connections as it allows: see its log, and try again"
	}
	return errors.Join(f, conn.Close())
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
	if e.Origin == apierr.FromNobody { // the connection was lost before the call began
		return &fault{exit: exitLocal, code: e.Code, message: e.Message, hint: e.Hint}
	}
	lost := func(message, hint string) {
		*f = fault{exit: exitLocal, code: apierr.CodeUnavailable, message: message, hint: hint, uncertain: true}
	}
	switch {
	case strings.Contains(e.Message, "unknown service "+kekdv1.KeyService_ServiceDesc.ServiceName):
		return wrongSocket(strings.Join(a.keySockets(), ","), "the socket for data keys", "--socket or $KEKD_SOCKET")
	case strings.Contains(e.Message, "unknown service "+kekdv1.AdminService_ServiceDesc.ServiceName):
		return wrongSocket(strings.Join(a.adminSockets(), ","), "the admin socket", "--admin-socket or $KEKD_ADMIN_SOCKET")
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
