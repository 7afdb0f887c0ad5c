package main

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/kekd/kekd/unix-socket-api/kekdv1"
)

// Completion asks the daemon for names. Where it does not answer, nothing is proposed: a shell is no
// place for errors.

// completionTimeout is how long somebody waits after Tab.
const completionTimeout = 2 * time.Second

type completions = []string

const noFiles = cobra.ShellCompDirectiveNoFileComp

func (a *app) ask(cmd *cobra.Command) *cobra.Command {
	a.timeout = min(a.timeout, completionTimeout)
	return cmd
}

func (a *app) tenantNames(cmd *cobra.Command) completions {
	list, err := read(a, a.ask(cmd), func(ctx context.Context, c kekdv1.AdminServiceClient) (*kekdv1.ListTenantsResponse, error) {
		return c.ListTenants(ctx, &kekdv1.ListTenantsRequest{})
	})
	if err != nil {
		return nil
	}
	var names completions
	for _, t := range list.Tenants {
		names = append(names, t.Name)
	}
	return names
}

func (a *app) keysOf(cmd *cobra.Command, tenant string) []*kekdv1.Key {
	list, err := read(a, a.ask(cmd), func(ctx context.Context, c kekdv1.AdminServiceClient) (*kekdv1.ListKeysResponse, error) {
		return c.ListKeys(ctx, &kekdv1.ListKeysRequest{Tenant: tenant})
	})
	if err != nil {
		return nil
	}
	return list.Keys
}

func (a *app) completeTenant(cmd *cobra.Command, args []string, _ string) (completions, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, noFiles
	}
	return a.tenantNames(cmd), noFiles
}

// completeTenantOfKey completes TENANT/; the key has yet to get its name.
func (a *app) completeTenantOfKey(cmd *cobra.Command, args []string, typed string) (completions, cobra.ShellCompDirective) {
	if len(args) > 0 || strings.Contains(typed, "/") {
		return nil, noFiles
	}
	names := a.tenantNames(cmd)
	for i := range names {
		names[i] += "/"
	}
	return names, noFiles | cobra.ShellCompDirectiveNoSpace
}

func (a *app) completeKey(cmd *cobra.Command, args []string, typed string) (completions, cobra.ShellCompDirective) {
	tenant, _, found := strings.Cut(typed, "/")
	if len(args) > 0 || !found {
		return a.completeTenantOfKey(cmd, args, typed)
	}
	var names completions
	for _, k := range a.keysOf(cmd, tenant) {
		names = append(names, k.Tenant+"/"+k.Key)
	}
	return names, noFiles
}

func (a *app) completeKeyVersion(cmd *cobra.Command, args []string, typed string) (completions, cobra.ShellCompDirective) {
	tenant, _, found := strings.Cut(typed, "/")
	if len(args) > 0 || !found {
		return a.completeTenantOfKey(cmd, args, typed)
	}
	var names completions
	for _, k := range a.keysOf(cmd, tenant) {
		for _, v := range k.Versions {
			names = append(names, fmt.Sprintf("%s/%s@%d\t%s", k.Tenant, k.Key, v.Version, v.State))
		}
	}
	return names, noFiles
}

func (a *app) completeService(cmd *cobra.Command, args []string, _ string) (completions, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, noFiles
	}
	services, err := a.listServices(a.ask(cmd))
	if err != nil {
		return nil, noFiles
	}
	var names completions
	for _, s := range services {
		names = append(names, s.Name)
	}
	return names, noFiles
}

func (a *app) completeServiceThenKey(cmd *cobra.Command, args []string, typed string) (completions, cobra.ShellCompDirective) {
	switch len(args) {
	case 0:
		return a.completeService(cmd, nil, typed)
	case 1:
		return a.completeKey(cmd, nil, typed)
	}
	return nil, noFiles
}

func (a *app) completeExplain(cmd *cobra.Command, args []string, typed string) (completions, cobra.ShellCompDirective) {
	if len(args) == 2 {
		return opNames(), noFiles
	}
	return a.completeServiceThenKey(cmd, args, typed)
}
