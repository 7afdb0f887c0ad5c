package socketapi

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"path"

	"github.com/kekd/kekd/hierarchy"
	"github.com/kekd/kekd/unix-socket-api/apierr"
	"github.com/kekd/kekd/unix-socket-api/kekdv1"
)

// Admin is what the server of admin.sock is made of.
type Admin struct {
	Self      hierarchy.NodeID
	Hierarchy Hierarchy
	Minting   Minting // nil: this node has no token
	Audit     AuditLog
	Node      Node
	Nodes     Nodes // nil: a cluster of one, whose node has no peers' port
	Doctor    Doctor
	Room      Room         // nil: this node has no token
	Orphans   Orphans      // nil: this node has no token
	Metrics   http.Handler // GET /metrics; nil: there are none
	Admins    Admins
	Limits    Limits
	Log       *slog.Logger
}

// NewAdminServer makes the server of admin.sock.
func NewAdminServer(a Admin) (*Server, error) {
	s, err := newServer(a.Limits, a.Log)
	if err != nil {
		return nil, err
	}
	svc := &adminService{Server: s, Admin: a}
	s.authorise = svc.authoriseCall
	kekdv1.RegisterAdminServiceServer(s.grpc, svc)
	s.http = svc.httpServer()
	return s, nil
}

// adminService is kekd.v1.AdminService. Its calls look names up, propose commands by ID, and
// answer from the state that has the command in it.
type adminService struct {
	kekdv1.UnsafeAdminServiceServer
	*Server
	Admin
}

// authoriseCall is before every call of the socket: that no call forgets it is worth more than
// a health check for everybody. The mode of the socket said the same already, unless somebody
// changed it.
func (a *adminService) authoriseCall(ctx context.Context, c *conn, method string) error {
	if a.Admins.allow(c.principal, c.groups) {
		return nil
	}
	_, err := a.Audit.Append(ctx, AdminRecord{
		Kind: "admin-call", Outcome: AdminDenied, Caller: c.principal,
		Code: apierr.From(hierarchy.ErrPermissionDenied).Code, Detail: path.Base(method),
	})
	if err != nil {
		a.Log.Error("a refused administrative call is not in the audit journal", "caller", c.principal.String(), "error", err)
	}
	return apierr.WithHint(fmt.Errorf("%w: %s is no administrator of this node", hierarchy.ErrPermissionDenied, c.principal),
		"call as root, as the daemon's user, or as a member of its admin group")
}

func (a *adminService) GetStatus(ctx context.Context, _ *kekdv1.GetStatusRequest) (*kekdv1.Status, error) {
	return a.Node.Status(ctx), nil
}
