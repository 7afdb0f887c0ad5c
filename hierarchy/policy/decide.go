package policy

import (
	"fmt"
	"strings"
)

// Decide answers a request from the rules of the caller's services. One rule that allows is
// enough; of several the most specific is named, in the order acme/orders, acme/*, */orders,
// */*, and among equals the first: its limits are those that count, also where a wider rule would
// allow more. A denial's reason tells which rule came closest.
func Decide(rules []Rule, req Request) Decision {
	s := search{req: req}
	for breadth := range breadths {
		for i := range rules {
			if r := &rules[i]; r.Pattern.breadth() == breadth && s.try(r) {
				return Decision{Allowed: true, Rule: r, Reason: allowance(r)}
			}
		}
	}
	return s.denial(len(rules))
}

// fit says how close a rule comes to allowing a request; the higher, the closer.
type fit uint8

const (
	otherKey fit = iota
	lacksOp
	lacksEntry
	otherValue
	lacksReason
	allows
)

// fit also returns the requirement that is not met, for lacksEntry and otherValue.
func (r *Rule) fit(req *Request) (fit, *Requirement) {
	if !r.Pattern.Matches(req.Key) {
		return otherKey, nil
	}
	if !r.Ops.Has(req.Op) {
		return lacksOp, nil
	}
	for i := range r.Required {
		q := &r.Required[i]
		value, ok := req.Context.Get(q.Key)
		if !ok {
			return lacksEntry, q
		}
		if !q.accepts(value, req.Key.Tenant) {
			return otherValue, q
		}
	}
	if r.RequireReason && strings.TrimSpace(req.Reason) == "" {
		return lacksReason, nil
	}
	return allows, nil
}

// search tries rules, the most specific first, and remembers the one that came closest.
type search struct {
	req     Request
	closest fit
	rule    *Rule
	unmet   *Requirement
}

func (s *search) try(r *Rule) bool {
	f, unmet := r.fit(&s.req)
	if f > s.closest {
		s.closest, s.rule, s.unmet = f, r, unmet
	}
	return f == allows
}

func allowance(r *Rule) string { return describe(r) + " allows it" }

func (s *search) denial(rules int) Decision {
	var why string
	switch s.closest {
	case otherKey:
		why = fmt.Sprintf("no rule names %s", s.req.Key)
		if rules == 0 {
			why = "there is no rule for the service"
		}
	case lacksOp:
		why = fmt.Sprintf("%s allows %s, not %s", describe(s.rule), s.rule.Ops, s.req.Op)
	case lacksEntry:
		why = fmt.Sprintf("%s requires %s in the encryption context, which has no %s", describe(s.rule), s.wanted(), s.unmet.Key)
	case otherValue:
		why = fmt.Sprintf("%s requires %s in the encryption context, which has another value", describe(s.rule), s.wanted())
	case lacksReason:
		why = fmt.Sprintf("%s requires a reason, and none was given", describe(s.rule))
	}
	return Decision{Reason: why}
}

// wanted is the unmet requirement as it reads for this request's tenant.
func (s *search) wanted() string {
	q := *s.unmet
	q.Value = strings.ReplaceAll(q.Value, tenantPlaceholder, s.req.Key.Tenant)
	return q.String()
}

func describe(r *Rule) string {
	return fmt.Sprintf("the rule of %s for %s", r.Service, r.Pattern)
}
