package main

import (
	"context"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/kekd/kekd/hierarchy"
	"github.com/kekd/kekd/unix-socket-api/kekdv1"
)

type tenantOut struct {
	ID           string     `json:"id"`
	Name         string     `json:"name"`
	State        string     `json:"state"`
	StateReason  string     `json:"state_reason"`
	StateAt      string     `json:"state_at"`
	CreatedAt    string     `json:"created_at"`
	MaxStaleness string     `json:"max_staleness"`
	Placement    []string   `json:"placement"`
	Keys         uint64     `json:"keys"`
	Limits       []limitOut `json:"limits"`
	ObjectsUsed  uint64     `json:"objects_used"` // in the answering node's token
	ObjectsLeft  uint64     `json:"objects_left"` // in it, for all tenants together
	*fenceOut
}

func newTenantOut(t *kekdv1.Tenant) tenantOut {
	return tenantOut{
		ID:           t.Id,
		Name:         t.Name,
		State:        t.State,
		StateReason:  t.StateReason,
		StateAt:      timestamp(t.StateAt),
		CreatedAt:    timestamp(t.CreatedAt),
		MaxStaleness: formatDuration(time.Duration(t.MaxStaleness)),
		Placement:    append([]string{}, t.Placement...),
		Keys:         t.Keys,
		Limits:       newLimitsOut(t.Limits),
		ObjectsUsed:  t.ObjectsUsed,
		ObjectsLeft:  t.ObjectsLeft,
		fenceOut:     newFenceOut(t.Fence),
	}
}

func (a *app) tenantCommand() *cobra.Command {
	return group("tenant", "Tenants: one key domain each",
		a.tenantCreateCommand(),
		a.tenantListCommand(),
		a.tenantShowCommand(),
		a.tenantDisableCommand(),
		a.tenantEnableCommand(),
		a.tenantSetCommand(),
		a.tenantWatchCommand(),
	)
}

// changeTenant is what the commands that change one tenant have in common.
func (a *app) changeTenant(cmd *cobra.Command, name string, call func(ctx context.Context, c kekdv1.AdminServiceClient, id []byte) (*kekdv1.Tenant, error)) error {
	if err := hierarchy.ValidateName(name); err != nil {
		return err
	}
	t, err := change(a, cmd, call)
	if err != nil {
		return err
	}
	return a.printTenants(newTenantOut(t), t)
}

func (a *app) printTenants(v any, tenants ...*kekdv1.Tenant) error {
	return a.print(v, func(w io.Writer) {
		row(w, "NAME", "STATE", "KEYS", "MAX STALENESS", "PLACEMENT", "CREATED", "ID", "LIMITS", "REASON")
		for _, t := range tenants {
			row(w, t.Name, t.State, t.Keys, formatDuration(time.Duration(t.MaxStaleness)), strings.Join(t.Placement, ","), shortTime(t.CreatedAt), t.Id, strings.Join(limitTexts(t.Limits), " "), t.StateReason)
		}
		if len(tenants) == 1 {
			writeFence(w, tenants[0].Fence)
		}
	})
}

func (a *app) tenantCreateCommand() *cobra.Command {
	var staleness duration
	cmd := &cobra.Command{
		Use:     "create NAME",
		Short:   "Make a tenant; its name is never given to another",
		Example: "  kekctl tenant create acme --max-staleness 2s",
		Args:    arguments("NAME"),
	}
	cmd.Flags().Var(&staleness, "max-staleness", "how old a node's copy of the hierarchy may be to serve this tenant, 1s to 1d (default 2s)")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if cmd.Flags().Changed("max-staleness") && staleness == 0 {
			return usagef(cmd, "--max-staleness has to be more than nothing")
		}
		return a.changeTenant(cmd, args[0], func(ctx context.Context, c kekdv1.AdminServiceClient, id []byte) (*kekdv1.Tenant, error) {
			return c.CreateTenant(ctx, &kekdv1.CreateTenantRequest{IdempotencyId: id, Name: args[0], MaxStaleness: int64(staleness)})
		})
	}
	return changing(cmd)
}

func (a *app) tenantListCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "list",
		Short: "List all tenants",
		Args:  arguments(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			list, err := read(a, cmd, func(ctx context.Context, c kekdv1.AdminServiceClient) (*kekdv1.ListTenantsResponse, error) {
				return c.ListTenants(ctx, &kekdv1.ListTenantsRequest{})
			})
			if err != nil {
				return err
			}
			out := make([]tenantOut, 0, len(list.Tenants))
			for _, t := range list.Tenants {
				out = append(out, newTenantOut(t))
			}
			return a.printTenants(out, list.Tenants...)
		},
	}
}

func (a *app) tenantShowCommand() *cobra.Command {
	return &cobra.Command{
		Use:               "show NAME",
		Short:             "Show one tenant",
		Args:              arguments("NAME"),
		ValidArgsFunction: a.completeTenant,
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := hierarchy.ValidateName(args[0]); err != nil {
				return err
			}
			t, err := read(a, cmd, func(ctx context.Context, c kekdv1.AdminServiceClient) (*kekdv1.Tenant, error) {
				return c.GetTenant(ctx, &kekdv1.GetTenantRequest{Name: args[0]})
			})
			if err != nil {
				return err
			}
			return a.printTenants(newTenantOut(t), t)
		},
	}
}

func (a *app) tenantDisableCommand() *cobra.Command {
	var reason string
	cmd := &cobra.Command{
		Use:   "disable NAME --reason TEXT",
		Short: "Stop every use of a tenant's keys, now and on every node",
		Long: `Stop every use of a tenant's keys. It returns when no node serves the tenant any more: each has said so, or its
lease has run out, which takes the tenant's max_staleness and a little more at most. Exit status 3 says that the tenant
is disabled, or may be, and that this is not certain of every node: the hint has the command to ask again with.`,
		Args:              arguments("NAME"),
		ValidArgsFunction: a.completeTenant,
	}
	cmd.Flags().StringVar(&reason, "reason", "", "`TEXT` for the audit and for whoever meets the refusals (required)")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if reason == "" {
			return usagef(cmd, "say why with --reason")
		}
		a.waitForFence(cmd, args[0])
		return a.changeTenant(cmd, args[0], func(ctx context.Context, c kekdv1.AdminServiceClient, id []byte) (*kekdv1.Tenant, error) {
			return c.DisableTenant(ctx, &kekdv1.DisableTenantRequest{IdempotencyId: id, Name: args[0], Reason: reason, NoWait: noWait(cmd)})
		})
	}
	return closing(cmd)
}

func (a *app) tenantEnableCommand() *cobra.Command {
	var reason string
	cmd := &cobra.Command{
		Use:               "enable NAME",
		Short:             "Let a disabled tenant's keys be used again",
		Args:              arguments("NAME"),
		ValidArgsFunction: a.completeTenant,
	}
	cmd.Flags().StringVar(&reason, "reason", "", "`TEXT` for the audit")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		return a.changeTenant(cmd, args[0], func(ctx context.Context, c kekdv1.AdminServiceClient, id []byte) (*kekdv1.Tenant, error) {
			return c.EnableTenant(ctx, &kekdv1.EnableTenantRequest{IdempotencyId: id, Name: args[0], Reason: reason})
		})
	}
	return changing(cmd)
}

func (a *app) tenantSetCommand() *cobra.Command {
	var (
		staleness duration
		limits    []string
	)
	cmd := &cobra.Command{
		Use:   "set NAME",
		Short: "Change a tenant's settings; what is not given stays",
		Long: `Change a tenant's settings. A max_staleness that is lowered counts once no node serves by the old one, and the command
returns then; one that is raised counts at once. It is also what an emergency waits for: with 2s a disable is effective within
two seconds on every node, and a node that reaches no majority stops to serve the tenant as soon; with 1h it is the reverse.`,
		Example: `  kekctl tenant set acme --max-staleness 10s
  kekctl tenant set acme --limit 1000/s --limit 1000000/d`,
		Args:              arguments("NAME"),
		ValidArgsFunction: a.completeTenant,
	}
	cmd.Flags().Var(&staleness, "max-staleness", "how old a node's copy of the hierarchy may be to serve this tenant, 1s to 1d")
	cmd.Flags().StringArrayVar(&limits, "limit", nil, limitUsage+"; over all services, instead of the limits that there were; none lifts them; may be repeated")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		set := &kekdv1.SetTenantRequest{Name: args[0], NoWait: noWait(cmd)}
		if cmd.Flags().Changed("max-staleness") {
			ns := int64(staleness)
			set.MaxStaleness = &ns
			a.mayWaitForFence(cmd, args[0])
		}
		if len(limits) > 0 {
			var err error
			if set.Limits, err = parseLimitsOrNone(cmd, limits); err != nil {
				return err
			}
		}
		if set.MaxStaleness == nil && set.Limits == nil {
			return usagef(cmd, "say what to set: --max-staleness or --limit")
		}
		return a.changeTenant(cmd, args[0], func(ctx context.Context, c kekdv1.AdminServiceClient, id []byte) (*kekdv1.Tenant, error) {
			set.IdempotencyId = id
			return c.SetTenant(ctx, set)
		})
	}
	return closing(cmd)
}
