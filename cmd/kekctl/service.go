package main

import (
	"context"
	"errors"
	"io"
	"strconv"

	"github.com/spf13/cobra"

	"github.com/kekd/kekd/hierarchy"
	"github.com/kekd/kekd/unix-socket-api/kekdv1"
)

type serviceOut struct {
	Name      string    `json:"name"`
	Match     *matchOut `json:"match,omitempty"`
	CreatedAt string    `json:"created_at,omitempty"`
	*fenceOut
}

// matchOut has only what the service is matched by. Zero is a user like any other.
type matchOut struct {
	UID *uint32 `json:"uid,omitempty"`
	GID *uint32 `json:"gid,omitempty"`
}

func newServiceOut(s *kekdv1.Service) serviceOut {
	return serviceOut{Name: s.Name, Match: &matchOut{s.Uid, s.Gid}, CreatedAt: timestamp(s.CreatedAt)}
}

func (a *app) serviceCommand() *cobra.Command {
	return group("service", "Services: who calls, matched by the kernel's peer credentials",
		a.serviceCreateCommand(),
		a.serviceListCommand(),
		a.serviceDeleteCommand(),
	)
}

func (a *app) printServices(v any, services ...*kekdv1.Service) error {
	return a.print(v, func(w io.Writer) { serviceTable(w, services...) })
}

func serviceTable(w io.Writer, services ...*kekdv1.Service) {
	row(w, "NAME", "UID", "GID", "CREATED")
	for _, s := range services {
		row(w, s.Name, number(s.Uid), number(s.Gid), shortTime(s.CreatedAt))
	}
}

func number(n *uint32) string {
	if n == nil {
		return ""
	}
	return strconv.FormatUint(uint64(*n), 10)
}

func (a *app) serviceCreateCommand() *cobra.Command {
	var uid, gid uint32
	cmd := &cobra.Command{
		Use:     "create NAME --uid N [--gid N]",
		Short:   "Name a local caller",
		Example: "  kekctl service create billing --uid $(id -u billing)",
		Args:    arguments("NAME"),
	}
	cmd.Flags().Uint32Var(&uid, "uid", 0, "user `ID` that the caller runs as")
	cmd.Flags().Uint32Var(&gid, "gid", 0, "group `ID` that the caller runs as; with --uid, both have to fit")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if err := hierarchy.ValidateName(args[0]); err != nil {
			return err
		}
		req := &kekdv1.CreateServiceRequest{Name: args[0]}
		if cmd.Flags().Changed("uid") {
			req.Uid = &uid
		}
		if cmd.Flags().Changed("gid") {
			req.Gid = &gid
		}
		if req.Uid == nil && req.Gid == nil {
			return usagef(cmd, "say who the service is: --uid, --gid or both")
		}
		s, err := change(a, cmd, func(ctx context.Context, c kekdv1.AdminServiceClient, id []byte) (*kekdv1.Service, error) {
			req.IdempotencyId = id
			return c.CreateService(ctx, req)
		})
		if f, ok := errors.AsType[*fault](err); ok && f.code == hierarchy.Code(hierarchy.ErrAlreadyExists) {
			f.hint = "a name, and a uid with a gid, belong to one service; 'kekctl service list' shows which: use it, or match by another uid or gid"
		}
		if err != nil {
			return err
		}
		return a.printServices(newServiceOut(s), s)
	}
	return changing(cmd)
}

func (a *app) listServices(cmd *cobra.Command) ([]*kekdv1.Service, error) {
	list, err := read(a, cmd, func(ctx context.Context, c kekdv1.AdminServiceClient) (*kekdv1.ListServicesResponse, error) {
		return c.ListServices(ctx, &kekdv1.ListServicesRequest{})
	})
	if err != nil {
		return nil, err
	}
	return list.Services, nil
}

func (a *app) serviceListCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "list",
		Short: "List all services",
		Args:  arguments(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			services, err := a.listServices(cmd)
			if err != nil {
				return err
			}
			out := make([]serviceOut, 0, len(services))
			for _, s := range services {
				out = append(out, newServiceOut(s))
			}
			return a.printServices(out, services...)
		},
	}
}

func (a *app) serviceDeleteCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:               "delete NAME",
		Short:             "Forget a service; its policies are revoked with it",
		Args:              arguments("NAME"),
		ValidArgsFunction: a.completeService,
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := hierarchy.ValidateName(args[0]); err != nil {
				return err
			}
			deleted := &kekdv1.Service{Name: args[0]}
			out := serviceOut{Name: args[0]}
			// Only for what is printed. What closes does not wait on what reads: if this fails, the
			// output lacks whom the service matched.
			if services, err := a.listServices(cmd); err == nil {
				for _, s := range services {
					if s.Name == args[0] {
						deleted, out = s, newServiceOut(s)
					}
				}
			}
			a.waitForFence(cmd, "")
			r, err := change(a, cmd, func(ctx context.Context, c kekdv1.AdminServiceClient, id []byte) (*kekdv1.DeleteServiceResponse, error) {
				return c.DeleteService(ctx, &kekdv1.DeleteServiceRequest{IdempotencyId: id, Name: args[0], NoWait: noWait(cmd)})
			})
			if err != nil {
				return err
			}
			out.fenceOut = newFenceOut(r.Fence)
			return a.print(out, func(w io.Writer) {
				serviceTable(w, deleted)
				writeFence(w, r.Fence)
			})
		},
	}
	return closing(cmd)
}
