package main

import (
	"context"
	"strings"

	"github.com/spf13/cobra"

	"github.com/kekd/kekd/hierarchy"
	"github.com/kekd/kekd/unix-socket-api/kekdv1"
)

func (a *app) keyCommand() *cobra.Command {
	return group("key", "Keys of a tenant, and their versions",
		a.keyCreateCommand(),
		a.keyListCommand(),
		a.keyShowCommand(),
		a.keyRotateCommand(),
		a.keySetCommand(),
		a.keyVersionCommand(),
	)
}

// changeKey is what the commands that change one key have in common.
func (a *app) changeKey(cmd *cobra.Command, name string, call func(ctx context.Context, c kekdv1.AdminServiceClient, id []byte) (*kekdv1.Key, error)) error {
	if _, err := hierarchy.ParseKeyName(name); err != nil {
		return err
	}
	k, err := change(a, cmd, call)
	if err != nil {
		return err
	}
	return a.printKey(k)
}

func (a *app) keyCreateCommand() *cobra.Command {
	var every duration
	cmd := &cobra.Command{
		Use:               "create TENANT/KEY",
		Short:             "Make a key with its first version; returns when it can be used here",
		Example:           "  kekctl key create acme/orders --rotate-every 90d",
		Args:              arguments("TENANT/KEY"),
		ValidArgsFunction: a.completeTenantOfKey,
	}
	cmd.Flags().Var(&every, "rotate-every", "period after which a new version is made (default: by hand only)")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		return a.changeKey(cmd, args[0], func(ctx context.Context, c kekdv1.AdminServiceClient, id []byte) (*kekdv1.Key, error) {
			return c.CreateKey(ctx, &kekdv1.CreateKeyRequest{IdempotencyId: id, Key: args[0], RotateEvery: int64(every)})
		})
	}
	return changing(cmd)
}

func (a *app) keyListCommand() *cobra.Command {
	return &cobra.Command{
		Use:               "list TENANT",
		Short:             "List a tenant's keys",
		Args:              arguments("TENANT"),
		ValidArgsFunction: a.completeTenant,
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := hierarchy.ValidateName(args[0]); err != nil {
				return err
			}
			list, err := read(a, cmd, func(ctx context.Context, c kekdv1.AdminServiceClient) (*kekdv1.ListKeysResponse, error) {
				return c.ListKeys(ctx, &kekdv1.ListKeysRequest{Tenant: args[0]})
			})
			if err != nil {
				return err
			}
			return a.printKeys(list.Keys)
		},
	}
}

func (a *app) keyShowCommand() *cobra.Command {
	return &cobra.Command{
		Use:               "show TENANT/KEY",
		Short:             "Show one key with its versions",
		Args:              arguments("TENANT/KEY"),
		ValidArgsFunction: a.completeKey,
		RunE: func(cmd *cobra.Command, args []string) error {
			if _, err := hierarchy.ParseKeyName(args[0]); err != nil {
				return err
			}
			k, err := read(a, cmd, func(ctx context.Context, c kekdv1.AdminServiceClient) (*kekdv1.Key, error) {
				return c.GetKey(ctx, &kekdv1.GetKeyRequest{Key: args[0]})
			})
			if err != nil {
				return err
			}
			return a.printKey(k)
		},
	}
}

func (a *app) keyRotateCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:               "rotate TENANT/KEY",
		Short:             "Make a new version and wrap under it from now on; returns when it can be used here",
		Args:              arguments("TENANT/KEY"),
		ValidArgsFunction: a.completeKey,
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.changeKey(cmd, args[0], func(ctx context.Context, c kekdv1.AdminServiceClient, id []byte) (*kekdv1.Key, error) {
				return c.RotateKey(ctx, &kekdv1.RotateKeyRequest{IdempotencyId: id, Key: args[0]})
			})
		},
	}
	return changing(cmd)
}

func (a *app) keySetCommand() *cobra.Command {
	var minimum uint32
	var every duration
	cmd := &cobra.Command{
		Use:               "set TENANT/KEY",
		Short:             "Change a key's settings",
		Example:           "  kekctl key set acme/orders --min-unwrap-version 3",
		Args:              arguments("TENANT/KEY"),
		ValidArgsFunction: a.completeKey,
	}
	cmd.Flags().Uint32Var(&minimum, "min-unwrap-version", 0, "the oldest `VERSION` that still unwraps")
	cmd.Flags().Var(&every, "rotate-every", "period after which a new version is made; 0: by hand only")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		req := &kekdv1.SetKeyRequest{Key: args[0], NoWait: noWait(cmd)}
		if cmd.Flags().Changed("min-unwrap-version") {
			req.MinUnwrapVersion = &minimum
			tenant, _, _ := strings.Cut(args[0], "/")
			a.mayWaitForFence(cmd, tenant)
		}
		if cmd.Flags().Changed("rotate-every") {
			ns := int64(every)
			req.RotateEvery = &ns
		}
		if req.MinUnwrapVersion == nil && req.RotateEvery == nil {
			return usagef(cmd, "say what to set: --min-unwrap-version or --rotate-every")
		}
		return a.changeKey(cmd, args[0], func(ctx context.Context, c kekdv1.AdminServiceClient, id []byte) (*kekdv1.Key, error) {
			req.IdempotencyId = id
			return c.SetKey(ctx, req)
		})
	}
	return closing(cmd)
}

func (a *app) keyVersionCommand() *cobra.Command {
	return group("version", "Versions of a key",
		a.keyVersionStateCommand("suspend", "Stop every use of a version until it is resumed"),
		a.keyVersionStateCommand("resume", "Let a suspended version be used again; returns when it can be used here"),
		a.keyVersionStateCommand("compromise", "Mark a version as compromised: from then on it opens envelopes for rewrap only"),
	)
}

func (a *app) keyVersionStateCommand(action, short string) *cobra.Command {
	var reason string
	closes := action != "resume"
	cmd := &cobra.Command{
		Use:               action + " TENANT/KEY@N",
		Short:             short,
		Example:           "  kekctl key version " + action + " acme/orders@2",
		Args:              arguments("TENANT/KEY@N"),
		ValidArgsFunction: a.completeKeyVersion,
	}
	cmd.Flags().StringVar(&reason, "reason", "", "`TEXT` for the audit and for whoever meets the refusals")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		name, err := hierarchy.ParseVersionName(args[0])
		if err != nil {
			return err
		}
		if closes {
			a.waitForFence(cmd, name.Tenant)
		}
		return a.changeKey(cmd, name.KeyName.String(), func(ctx context.Context, c kekdv1.AdminServiceClient, id []byte) (*kekdv1.Key, error) {
			return c.SetKeyVersionState(ctx, &kekdv1.SetKeyVersionStateRequest{IdempotencyId: id, KeyVersion: name.String(), Action: action, Reason: reason, NoWait: noWait(cmd)})
		})
	}
	if !closes {
		return changing(cmd)
	}
	return closing(cmd)
}
