package socketapi

import (
	"context"
	"crypto/sha256"
	"fmt"
	"strings"

	"github.com/kekd/kekd/hierarchy"
	"github.com/kekd/kekd/hierarchy/commandpb"
	"github.com/kekd/kekd/hierarchy/policy"
	"github.com/kekd/kekd/hierarchy/state"
	"github.com/kekd/kekd/unix-socket-api/kekdv1"
)

func (a *adminService) AllowPolicy(ctx context.Context, m *kekdv1.AllowPolicyRequest) (*kekdv1.Rule, error) {
	if m.Rule == nil {
		return nil, fmt.Errorf("%w: no rule is given", hierarchy.ErrInvalidArgument)
	}
	ops, err := hierarchy.ParseOps(strings.Join(m.Rule.Ops, ","))
	if err != nil {
		return nil, err
	}
	rule := &commandpb.Rule{Service: m.Rule.Service, Pattern: m.Rule.Pattern, Ops: uint32(ops), RequireReason: m.Rule.RequireReason}
	for _, q := range m.Rule.RequiredContext {
		rule.RequiredContext = append(rule.RequiredContext, &commandpb.RequiredContext{Key: q.Key, Value: q.Value})
	}
	limits, err := limitsOf(m.Rule.Limits)
	if err != nil {
		return nil, err
	}
	rule.Limits = limitCommands(limits)
	r := AdminRecord{Kind: "policy-allow", Service: rule.Service, Detail: ruleDetail(rule, ops, limits)}
	done, err := a.close(ctx, m.IdempotencyId, m.NoWait, r, func(*state.State) (*commandpb.Command, error) {
		return &commandpb.Command{Body: &commandpb.Command_AllowPolicy{AllowPolicy: &commandpb.AllowPolicy{Rule: rule}}}, nil
	})
	if err != nil {
		return nil, err
	}
	for _, now := range done.state.Rules(rule.Service) {
		if now.Pattern.String() == rule.Pattern {
			answer := ruleMessage(&now)
			answer.Fence = done.fence
			return answer, nil
		}
	}
	return nil, fmt.Errorf("%w: the rule was taken back meanwhile", hierarchy.ErrNotFound)
}

// maxRuleDetail is how long the text of a rule may be in a record, in bytes: of the 256 of a record's
// detail, the command's ID takes 42.
const maxRuleDetail = 214

// ruleDetail is a rule as its record has it, all of it but the service, so that a journal shows what
// a rule that took another's place allows besides:
//
//	acme/* wrap,unwrap limits="100/s 10000/d" require_reason context="app=billing" context="user"
//
// A context entry without a value accepts any. Entries are quoted as in Go, in ASCII, and stand in the
// order of their keys: a rule in which they do not is refused. A text that is too long ends, cut off,
// in "… sha256=" and the hash of the whole text in hex.
func ruleDetail(rule *commandpb.Rule, ops hierarchy.Ops, limits policy.Limits) string {
	parts := []string{rule.Pattern, ops.String()}
	if !limits.None() {
		parts = append(parts, fmt.Sprintf("limits=%q", limits))
	}
	if rule.RequireReason {
		parts = append(parts, "require_reason")
	}
	for _, q := range rule.RequiredContext {
		entry := policy.Requirement{Key: q.Key, AnyValue: q.Value == nil, Value: q.GetValue()}
		parts = append(parts, fmt.Sprintf("context=%+q", entry))
	}
	text := strings.Join(parts, " ")
	if len(text) <= maxRuleDetail {
		return text
	}
	end := fmt.Sprintf("… sha256=%x", sha256.Sum256([]byte(text)))
	return strings.ToValidUTF8(text[:maxRuleDetail-len(end)], "") + end
}

func (a *adminService) RevokePolicy(ctx context.Context, m *kekdv1.RevokePolicyRequest) (*kekdv1.RevokePolicyResponse, error) {
	r := AdminRecord{Kind: "policy-revoke", Service: m.Service, Detail: m.Pattern}
	done, err := a.close(ctx, m.IdempotencyId, m.NoWait, r, func(*state.State) (*commandpb.Command, error) {
		return &commandpb.Command{Body: &commandpb.Command_RevokePolicy{RevokePolicy: &commandpb.RevokePolicy{
			Service: m.Service, Pattern: m.Pattern,
		}}}, nil
	})
	if err != nil {
		return nil, err
	}
	return &kekdv1.RevokePolicyResponse{Index: done.index, Fence: done.fence}, nil
}

func (a *adminService) ListPolicies(_ context.Context, m *kekdv1.ListPoliciesRequest) (*kekdv1.ListPoliciesResponse, error) {
	s := a.Hierarchy.State()
	if m.Service != "" {
		if _, err := serviceByName(s, m.Service); err != nil {
			return nil, err
		}
	}
	list := &kekdv1.ListPoliciesResponse{}
	for _, r := range s.Rules(m.Service) {
		list.Rules = append(list.Rules, ruleMessage(&r))
	}
	return list, nil
}

// ExplainPolicy decides a request that nobody made. Allowed speaks of the rules alone; the reason
// also says what would refuse the request after them.
func (a *adminService) ExplainPolicy(_ context.Context, m *kekdv1.ExplainPolicyRequest) (*kekdv1.ExplainPolicyResponse, error) {
	s := a.Hierarchy.State()
	if _, err := serviceByName(s, m.Service); err != nil {
		return nil, err
	}
	key, err := hierarchy.ParseKeyName(m.Key)
	if err != nil {
		return nil, err
	}
	op, err := hierarchy.ParseOp(m.Op)
	if err != nil {
		return nil, err
	}
	sealed, err := hierarchy.NewContext(contextOf(m.Context)...)
	if err != nil {
		return nil, err
	}
	d := s.PolicySet(m.Service).Decide(policy.Request{Op: op, Key: key, Context: sealed, Reason: m.Reason})
	resp := &kekdv1.ExplainPolicyResponse{Allowed: d.Allowed, Reason: d.Reason}
	if d.Rule != nil {
		resp.Rule = ruleMessage(d.Rule)
	}
	if but := blockedBy(s, key, op); d.Allowed && but != "" {
		resp.Reason += "; but " + but
	}
	return resp, nil
}

// blockedBy says what refuses a request that the rules allow: nothing is the empty text.
func blockedBy(s *state.State, name hierarchy.KeyName, op hierarchy.Op) string {
	t, ok := s.TenantByName(name.Tenant)
	if !ok {
		return "there is no tenant " + name.Tenant
	}
	if t.State != hierarchy.TenantEnabled {
		return fmt.Sprintf("tenant %s is %s", t.Name, t.State)
	}
	k, ok := s.KeyByName(t.ID, name.Key)
	if !ok {
		return "there is no key " + name.String()
	}
	if _, ok := k.Active(); !ok && op != hierarchy.OpUnwrap {
		return fmt.Sprintf("%s has no active version", name)
	}
	return ""
}

func ruleMessage(r *policy.Rule) *kekdv1.Rule {
	m := &kekdv1.Rule{Service: r.Service, Pattern: r.Pattern.String(), RequireReason: r.RequireReason, Limits: limitMessages(r.Limits)}
	for _, op := range hierarchy.AllOps {
		if r.Ops.Has(op) {
			m.Ops = append(m.Ops, op.String())
		}
	}
	for _, q := range r.Required {
		required := &kekdv1.RequiredContext{Key: q.Key}
		if !q.AnyValue {
			required.Value = &q.Value
		}
		m.RequiredContext = append(m.RequiredContext, required)
	}
	return m
}
