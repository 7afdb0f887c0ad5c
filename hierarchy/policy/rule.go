// Package policy decides who may do what, and says why not. It is pure: a decision depends on
// its arguments alone.
//
// Rules allow; there is no rule that forbids. What no rule allows is denied, operation by
// operation. [Decide] is what that means; a [Set] answers the same and as fast for a hundred
// rules as for one. Which rules are a caller's, and whether the key exists or serves, is for
// others to say.
package policy

import (
	"fmt"

	"github.com/kekd/kekd/hierarchy"
)

// Rule allows a service operations on the keys that a pattern names, where the encryption
// context has what the rule requires.
type Rule struct {
	Service  string
	Pattern  Pattern
	Ops      hierarchy.Ops
	Required []Requirement // sorted by key, each key once
	// RequireReason makes the caller state why, for the audit.
	RequireReason bool
	// Limits are how often the rule may be used for each tenant. They are not decided here: who
	// counts does it after the decision, by the rule that it names.
	Limits Limits
}

// Requirement asks for an entry of the encryption context.
type Requirement struct {
	Key string
	// Any value will do if AnyValue is set; else it has to be Value, in which {tenant} stands
	// for the name of the tenant whose key it is.
	AnyValue bool
	Value    string
}

// Request is what is asked, with names and not IDs: patterns are about names.
type Request struct {
	Op      hierarchy.Op
	Key     hierarchy.KeyName
	Context hierarchy.Context
	Reason  string // the caller's own words; may be empty
}

// Decision is the answer, with the reason in words for an operator. The reason is not for the
// caller: it tells what exists.
type Decision struct {
	Allowed bool
	Rule    *Rule // the rule that allows; nil if none
	Reason  string
}

// ValidateRule checks a rule before it is taken into a hierarchy. What is wrong with it is
// [hierarchy.ErrInvalidArgument].
func ValidateRule(r Rule) error {
	if err := hierarchy.ValidateName(r.Service); err != nil {
		return fmt.Errorf("service of a rule: %w", err)
	}
	if err := r.Pattern.validate(); err != nil {
		return err
	}
	if r.Ops == 0 {
		return fmt.Errorf("%w: a rule for %s allows no operation", hierarchy.ErrInvalidArgument, r.Pattern)
	}
	unknown := r.Ops
	for _, op := range hierarchy.AllOps {
		unknown &^= hierarchy.Ops(op)
	}
	if unknown != 0 {
		return fmt.Errorf("%w: a rule for %s allows operations %#x that are not known", hierarchy.ErrInvalidArgument, r.Pattern, uint8(unknown))
	}
	if len(r.Required) > hierarchy.MaxContextEntries {
		return fmt.Errorf("%w: a rule for %s requires %d context entries, a context has at most %d", hierarchy.ErrInvalidArgument, r.Pattern, len(r.Required), hierarchy.MaxContextEntries)
	}
	for i, q := range r.Required {
		if err := q.validate(); err != nil {
			return err
		}
		if i > 0 && r.Required[i-1].Key == q.Key {
			return fmt.Errorf("%w: a rule for %s requires the context key %q twice", hierarchy.ErrInvalidArgument, r.Pattern, q.Key)
		}
		if i > 0 && r.Required[i-1].Key > q.Key {
			return fmt.Errorf("%w: a rule for %s: required context keys are not sorted", hierarchy.ErrInvalidArgument, r.Pattern)
		}
	}
	return r.Limits.validate()
}
