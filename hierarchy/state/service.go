package state

import (
	"fmt"

	"github.com/kekd/kekd/hierarchy"
	"github.com/kekd/kekd/hierarchy/commandpb"
	"github.com/kekd/kekd/hierarchy/policy"
)

// Bounds of what callers and their rules may be.
const (
	MaxServices        = 10_000
	MaxRulesPerService = 1_000
)

// createService adds a service. Two may not match the same callers: which of them a caller is
// would be anybody's guess.
func (d *draft) createService(m *commandpb.CreateService) error {
	svc, err := serviceFromPB(&commandpb.Service{Name: m.GetName(), Uid: m.Uid, Gid: m.Gid, CreatedAt: d.stamp})
	if err != nil {
		return err
	}
	if _, ok := d.Service(svc.Name); ok {
		return fmt.Errorf("%w: service %s", hierarchy.ErrAlreadyExists, svc.Name)
	}
	if other, ok := d.serviceOf.get(matchOf(svc)); ok {
		return fmt.Errorf("%w: service %s has the same uid and gid", hierarchy.ErrAlreadyExists, other.Name)
	}
	if d.services.Len() >= MaxServices {
		return fmt.Errorf("%w: a cluster holds at most %d services", hierarchy.ErrCapacity, MaxServices)
	}
	d.putService(svc)
	return nil
}

// dropService deletes a service with its rules, so that a later one of its name inherits nothing.
func (d *draft) dropService(m *commandpb.DeleteService) error {
	svc, err := d.service(m.GetName())
	if err != nil {
		return err
	}
	d.deleteService(svc)
	return nil
}

func (d *draft) service(name string) (*Service, error) {
	if err := checkName("service", name); err != nil {
		return nil, err
	}
	svc, ok := d.Service(name)
	if !ok {
		return nil, fmt.Errorf("%w: service %s", hierarchy.ErrNotFound, name)
	}
	return svc, nil
}

// allowPolicy adds a rule or replaces that of the same service and pattern.
func (d *draft) allowPolicy(m *commandpb.AllowPolicy) error {
	rule, err := ruleFromPB(m.GetRule())
	if err != nil {
		return err
	}
	if _, err := d.service(rule.Service); err != nil {
		return err
	}
	if _, replaces := d.rules.Get(ruleKey(rule)); !replaces && len(d.Rules(rule.Service)) >= MaxRulesPerService {
		return fmt.Errorf("%w: a service has at most %d rules", hierarchy.ErrCapacity, MaxRulesPerService)
	}
	d.putRule(rule)
	d.compilePolicy(rule.Service)
	return nil
}

func (d *draft) revokePolicy(m *commandpb.RevokePolicy) error {
	if _, err := d.service(m.GetService()); err != nil {
		return err
	}
	pattern, err := policy.ParsePattern(m.GetPattern())
	if err != nil {
		return err
	}
	rule, ok := d.rules.Get(ruleKey(&policy.Rule{Service: m.GetService(), Pattern: pattern}))
	if !ok {
		return fmt.Errorf("%w: service %s has no rule for %s", hierarchy.ErrNotFound, m.GetService(), pattern)
	}
	d.deleteRule(rule)
	d.compilePolicy(rule.Service)
	return nil
}
