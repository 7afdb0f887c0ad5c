package main

import (
	"context"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"github.com/kekd/kekd/hierarchy"
	"github.com/kekd/kekd/unix-socket-api/kekdv1"
)

func (a *app) policyCommand() *cobra.Command {
	return group("policy", "Policies: which service may do what with which keys",
		a.policyAllowCommand(),
		a.policyRevokeCommand(),
		a.policyListCommand(),
		a.policyExplainCommand(),
	)
}

func (a *app) policyAllowCommand() *cobra.Command {
	var (
		ops           string
		required      []string
		requireReason bool
		limits        []string
	)
	cmd := &cobra.Command{
		Use:   "allow SERVICE PATTERN --ops OPS",
		Short: "Allow a service operations on the keys that a pattern names, instead of what that pattern allowed before",
		Example: `  kekctl policy allow billing acme/orders --ops wrap,unwrap,datakey,rewrap
  kekctl policy allow saas '*/orders' --ops datakey,unwrap --require-context 'tenant={tenant}' --limit 100/s --limit 10000/d`,
		Args:              arguments("SERVICE", "PATTERN"),
		ValidArgsFunction: a.completeServiceThenKey,
	}
	cmd.Flags().StringVar(&ops, "ops", "", "`OPS`, separated by commas: wrap, unwrap, datakey, rewrap (required)")
	cmd.Flags().StringArrayVar(&required, "require-context", nil, "`KEY=VALUE` that the encryption context must have, where {tenant} stands for the tenant's name; KEY alone: any value; may be repeated")
	cmd.Flags().BoolVar(&requireReason, "require-reason", false, "the caller must state a reason")
	cmd.Flags().StringArrayVar(&limits, "limit", nil, limitUsage+"; each tenant is counted for itself; may be repeated")
	cmd.RegisterFlagCompletionFunc("ops", cobra.FixedCompletions(opNames(), cobra.ShellCompDirectiveNoFileComp))
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if ops == "" {
			return usagef(cmd, "say what is allowed: --ops, out of %s", strings.Join(opNames(), ","))
		}
		set, err := hierarchy.ParseOps(ops)
		if err != nil {
			return err
		}
		if err := hierarchy.ValidateName(args[0]); err != nil {
			return err
		}
		rule := &kekdv1.Rule{Service: args[0], Pattern: args[1], Ops: strings.Split(set.String(), ","), RequireReason: requireReason}
		for _, text := range required {
			req, err := parseRequirement(text)
			if err != nil {
				return err
			}
			rule.RequiredContext = append(rule.RequiredContext, req)
		}
		if rule.Limits, err = parseLimits(limits); err != nil {
			return err
		}
		a.mayWaitForFence(cmd, tenantOfPattern(args[1]))
		r, err := change(a, cmd, func(ctx context.Context, c kekdv1.AdminServiceClient, id []byte) (*kekdv1.Rule, error) {
			return c.AllowPolicy(ctx, &kekdv1.AllowPolicyRequest{IdempotencyId: id, Rule: rule, NoWait: noWait(cmd)})
		})
		if err != nil {
			return err
		}
		return a.printRules(newRuleOut(r), r)
	}
	return closing(cmd)
}

// parseRequirement reads KEY=VALUE, or KEY for any value.
func parseRequirement(text string) (*kekdv1.RequiredContext, error) {
	if text != "" && !strings.Contains(text, "=") {
		return &kekdv1.RequiredContext{Key: text}, nil
	}
	e, err := hierarchy.ParseContextEntry(text)
	if err != nil {
		return nil, err
	}
	return &kekdv1.RequiredContext{Key: e.Key, Value: &e.Value}, nil
}

func opNames() []string {
	var names []string
	for _, op := range hierarchy.AllOps {
		names = append(names, op.String())
	}
	return names
}

func (a *app) listRules(cmd *cobra.Command, service string) ([]*kekdv1.Rule, error) {
	list, err := read(a, cmd, func(ctx context.Context, c kekdv1.AdminServiceClient) (*kekdv1.ListPoliciesResponse, error) {
		return c.ListPolicies(ctx, &kekdv1.ListPoliciesRequest{Service: service})
	})
	if err != nil {
		return nil, err
	}
	return list.Rules, nil
}

func (a *app) policyRevokeCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:               "revoke SERVICE PATTERN",
		Short:             "Take back what a service was allowed by this very pattern",
		Args:              arguments("SERVICE", "PATTERN"),
		ValidArgsFunction: a.completeServiceThenKey,
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := hierarchy.ValidateName(args[0]); err != nil {
				return err
			}
			revoked := &kekdv1.Rule{Service: args[0], Pattern: args[1]}
			// Only for what is printed. What closes does not wait on what reads.
			if rules, err := a.listRules(cmd, args[0]); err == nil {
				for _, r := range rules {
					if r.Pattern == args[1] {
						revoked = r
					}
				}
			}
			a.waitForFence(cmd, tenantOfPattern(args[1]))
			r, err := change(a, cmd, func(ctx context.Context, c kekdv1.AdminServiceClient, id []byte) (*kekdv1.RevokePolicyResponse, error) {
				return c.RevokePolicy(ctx, &kekdv1.RevokePolicyRequest{IdempotencyId: id, Service: args[0], Pattern: args[1], NoWait: noWait(cmd)})
			})
			if err != nil {
				return err
			}
			revoked.Fence = r.Fence
			return a.printRules(newRuleOut(revoked), revoked)
		},
	}
	return closing(cmd)
}

func (a *app) policyListCommand() *cobra.Command {
	return &cobra.Command{
		Use:               "list [SERVICE]",
		Short:             "List the rules, of all services or of one",
		Args:              atMostOne("SERVICE"),
		ValidArgsFunction: a.completeService,
		RunE: func(cmd *cobra.Command, args []string) error {
			service := ""
			if len(args) == 1 {
				service = args[0]
				if err := hierarchy.ValidateName(service); err != nil {
					return err
				}
			}
			rules, err := a.listRules(cmd, service)
			if err != nil {
				return err
			}
			out := make([]ruleOut, 0, len(rules))
			for _, r := range rules {
				out = append(out, newRuleOut(r))
			}
			return a.printRules(out, rules...)
		},
	}
}

type explainOut struct {
	Allowed bool     `json:"allowed"`
	Rule    *ruleOut `json:"rule"` // null: none allows it
	Reason  string   `json:"reason"`
}

func (a *app) policyExplainCommand() *cobra.Command {
	var reason string
	var ec contextFlag
	cmd := &cobra.Command{
		Use:   "explain SERVICE TENANT/KEY OP",
		Short: "Say whether a service may do something, and why",
		Long: `Say whether a service may do something, by which rule, and if not, what is missing.
Nothing is done. The exit status is 0 for either answer.`,
		Example:           "  kekctl policy explain billing acme/orders unwrap --context app=billing",
		Args:              arguments("SERVICE", "TENANT/KEY", "OP"),
		ValidArgsFunction: a.completeExplain,
	}
	cmd.Flags().StringVar(&reason, "reason", "", "`TEXT` as the caller would state it")
	ec.add(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if err := hierarchy.ValidateName(args[0]); err != nil {
			return err
		}
		if _, err := hierarchy.ParseKeyName(args[1]); err != nil {
			return err
		}
		op, err := hierarchy.ParseOp(args[2])
		if err != nil {
			return err
		}
		entries, err := ec.parse()
		if err != nil {
			return err
		}
		r, err := read(a, cmd, func(ctx context.Context, c kekdv1.AdminServiceClient) (*kekdv1.ExplainPolicyResponse, error) {
			return c.ExplainPolicy(ctx, &kekdv1.ExplainPolicyRequest{Service: args[0], Key: args[1], Op: op.String(), Context: entries, Reason: reason})
		})
		if err != nil {
			return err
		}
		out := explainOut{Allowed: r.Allowed, Reason: r.Reason}
		if r.Rule != nil {
			rule := newRuleOut(r.Rule)
			out.Rule = &rule
		}
		return a.print(out, func(w io.Writer) {
			row(w, "allowed", yesNo(r.Allowed))
			row(w, "reason", r.Reason)
			if r.Rule != nil {
				row(w, "rule", ruleText(r.Rule))
			}
		})
	}
	return cmd
}
