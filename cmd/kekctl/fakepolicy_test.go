package main

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc"

	"github.com/kekd/kekd/hierarchy"
	"github.com/kekd/kekd/hierarchy/policy"
	"github.com/kekd/kekd/unix-socket-api/kekdv1"
)

func (f *fakeAdmin) CreateService(_ context.Context, r *kekdv1.CreateServiceRequest) (*kekdv1.Service, error) {
	return once(f.h, r.IdempotencyId, func() (*kekdv1.Service, error) {
		if f.h.services[r.Name] != nil {
			return nil, fmt.Errorf("service %q: %w", r.Name, hierarchy.ErrAlreadyExists)
		}
		for _, s := range f.h.services {
			if cmp.Diff([]*uint32{s.Uid, s.Gid}, []*uint32{r.Uid, r.Gid}) == "" {
				return nil, fmt.Errorf("%w: service %s has the same uid and gid", hierarchy.ErrAlreadyExists, s.Name)
			}
		}
		s := &kekdv1.Service{Name: r.Name, Uid: r.Uid, Gid: r.Gid, CreatedAt: 1}
		f.h.services[r.Name] = s
		return s, nil
	})
}

func (f *fakeAdmin) ListServices(context.Context, *kekdv1.ListServicesRequest) (*kekdv1.ListServicesResponse, error) {
	f.h.mu.Lock()
	defer f.h.mu.Unlock()
	out := &kekdv1.ListServicesResponse{}
	for _, name := range slices.Sorted(maps.Keys(f.h.services)) {
		out.Services = append(out.Services, f.h.services[name])
	}
	return out, nil
}

func (f *fakeAdmin) service(name string) error {
	if f.h.services[name] == nil {
		return fmt.Errorf("service %q: %w", name, hierarchy.ErrNotFound)
	}
	return nil
}

func (f *fakeAdmin) DeleteService(_ context.Context, r *kekdv1.DeleteServiceRequest) (*kekdv1.DeleteServiceResponse, error) {
	return once(f.h, r.IdempotencyId, func() (*kekdv1.DeleteServiceResponse, error) {
		if err := f.service(r.Name); err != nil {
			return nil, err
		}
		delete(f.h.services, r.Name)
		f.h.rules = slices.DeleteFunc(f.h.rules, func(p policy.Rule) bool { return p.Service == r.Name })
		return &kekdv1.DeleteServiceResponse{Index: f.h.index, Fence: f.fence(r.NoWait)}, nil
	})
}

func (f *fakeAdmin) AllowPolicy(_ context.Context, r *kekdv1.AllowPolicyRequest) (*kekdv1.Rule, error) {
	return once(f.h, r.IdempotencyId, func() (*kekdv1.Rule, error) {
		if err := f.service(r.Rule.GetService()); err != nil {
			return nil, err
		}
		pattern, err := policy.ParsePattern(r.Rule.Pattern)
		if err != nil {
			return nil, err
		}
		ops, err := hierarchy.ParseOps(strings.Join(r.Rule.Ops, ","))
		if err != nil {
			return nil, err
		}
		rule := policy.Rule{Service: r.Rule.Service, Pattern: pattern, Ops: ops, RequireReason: r.Rule.RequireReason}
		for _, c := range r.Rule.RequiredContext {
			rule.Required = append(rule.Required, policy.Requirement{Key: c.Key, AnyValue: c.Value == nil, Value: c.GetValue()})
		}
		if rule.Limits, err = limitsOf(r.Rule.Limits); err != nil {
			return nil, err
		}
		answer := ruleProto(&rule)
		for _, old := range f.h.rules {
			if old.Service == rule.Service && old.Pattern == pattern && old.Ops&^rule.Ops != 0 {
				answer.Fence = f.fence(r.NoWait)
			}
		}
		f.forget(rule.Service, pattern.String())
		f.h.rules = append(f.h.rules, rule)
		return answer, nil
	})
}

func (f *fakeAdmin) forget(service, pattern string) bool {
	before := len(f.h.rules)
	f.h.rules = slices.DeleteFunc(f.h.rules, func(r policy.Rule) bool { return r.Service == service && r.Pattern.String() == pattern })
	return len(f.h.rules) < before
}

func ruleProto(r *policy.Rule) *kekdv1.Rule {
	out := &kekdv1.Rule{Service: r.Service, Pattern: r.Pattern.String(), Ops: strings.Split(r.Ops.String(), ","), RequireReason: r.RequireReason, Limits: limitProtos(r.Limits)}
	for _, q := range r.Required {
		c := &kekdv1.RequiredContext{Key: q.Key}
		if !q.AnyValue {
			c.Value = &q.Value
		}
		out.RequiredContext = append(out.RequiredContext, c)
	}
	return out
}

func (f *fakeAdmin) RevokePolicy(_ context.Context, r *kekdv1.RevokePolicyRequest) (*kekdv1.RevokePolicyResponse, error) {
	return once(f.h, r.IdempotencyId, func() (*kekdv1.RevokePolicyResponse, error) {
		if !f.forget(r.Service, r.Pattern) {
			return nil, fmt.Errorf("rule %s %s: %w", r.Service, r.Pattern, hierarchy.ErrNotFound)
		}
		return &kekdv1.RevokePolicyResponse{Index: f.h.index, Fence: f.fence(r.NoWait)}, nil
	})
}

func (f *fakeAdmin) ListPolicies(_ context.Context, r *kekdv1.ListPoliciesRequest) (*kekdv1.ListPoliciesResponse, error) {
	f.h.mu.Lock()
	defer f.h.mu.Unlock()
	out := &kekdv1.ListPoliciesResponse{}
	for i := range f.h.rules {
		if r.Service == "" || r.Service == f.h.rules[i].Service {
			out.Rules = append(out.Rules, ruleProto(&f.h.rules[i]))
		}
	}
	return out, nil
}

func (h *fakeHierarchy) decide(service string, req policy.Request) policy.Decision {
	var rules []policy.Rule
	for _, r := range h.rules {
		if r.Service == service {
			rules = append(rules, r)
		}
	}
	return policy.Decide(rules, req)
}

func (f *fakeAdmin) ExplainPolicy(_ context.Context, r *kekdv1.ExplainPolicyRequest) (*kekdv1.ExplainPolicyResponse, error) {
	f.h.mu.Lock()
	defer f.h.mu.Unlock()
	if err := f.service(r.Service); err != nil {
		return nil, err
	}
	op, err := hierarchy.ParseOp(r.Op)
	if err != nil {
		return nil, err
	}
	key, err := hierarchy.ParseKeyName(r.Key)
	if err != nil {
		return nil, err
	}
	ec, err := contextOf(r.Context)
	if err != nil {
		return nil, err
	}
	d := f.h.decide(r.Service, policy.Request{Op: op, Key: key, Context: ec, Reason: r.Reason})
	out := &kekdv1.ExplainPolicyResponse{Allowed: d.Allowed, Reason: d.Reason}
	if d.Rule != nil {
		out.Rule = ruleProto(d.Rule)
	}
	return out, nil
}

func contextOf(entries []*kekdv1.ContextEntry) (hierarchy.Context, error) {
	var all []hierarchy.ContextEntry
	for _, e := range entries {
		all = append(all, hierarchy.ContextEntry{Key: e.Key, Value: e.Value})
	}
	return hierarchy.NewContext(all...)
}

func (f *fakeAdmin) TailAudit(r *kekdv1.TailAuditRequest, out grpc.ServerStreamingServer[kekdv1.AuditRecord]) error {
	f.h.mu.Lock()
	if _, err := f.h.tenant(r.Tenant); err != nil && r.Tenant != "" {
		f.h.mu.Unlock()
		return err
	}
	seen, lines := len(f.h.records), []string(nil)
	for _, record := range f.h.records {
		if r.Tenant == "" || r.Tenant == record.Tenant {
			lines = append(lines, record.line())
		}
	}
	f.h.mu.Unlock()
	if n := int(r.Last); n > 0 && len(lines) > n {
		lines = lines[len(lines)-n:]
	}
	for _, line := range lines {
		if err := out.Send(&kekdv1.AuditRecord{Json: line}); err != nil {
			return err
		}
	}
	for r.Follow {
		select {
		case <-out.Context().Done():
			return out.Context().Err()
		case <-time.After(5 * time.Millisecond):
		}
		f.h.mu.Lock()
		fresh := slices.Clone(f.h.records[seen:])
		seen += len(fresh)
		f.h.mu.Unlock()
		for _, record := range fresh {
			if r.Tenant == "" || r.Tenant == record.Tenant {
				if err := out.Send(&kekdv1.AuditRecord{Json: record.line()}); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

func (f *fakeAdmin) VerifyAudit(context.Context, *kekdv1.VerifyAuditRequest) (*kekdv1.VerifyAuditResponse, error) {
	f.h.mu.Lock()
	defer f.h.mu.Unlock()
	out := &kekdv1.VerifyAuditResponse{Ok: true}
	for _, tenant := range append([]string{""}, slices.Sorted(maps.Keys(f.h.tenants))...) {
		chain := &kekdv1.AuditChain{Node: f.h.node.String(), Tenant: tenant, Head: strings.Repeat("ab", 32)}
		for _, r := range f.h.records {
			if tenant == "" || r.Tenant == tenant {
				chain.Records++
			}
		}
		out.Chains = append(out.Chains, chain)
	}
	return out, nil
}
