// Package policy decides who may do what, and says why not. It is pure: a decision depends on
// its arguments alone.
//
// Rules allow; there is no rule that forbids. What no rule allows is denied, operation by
// operation.
package policy

import "github.com/kekd/kekd/hierarchy"

// Rule allows a service operations on the keys that a pattern names, where the encryption
// context has what the rule requires.
type Rule struct {
	Service  string
	Pattern  Pattern
	Ops      hierarchy.Ops
	Required []Requirement // sorted by key, each key once
	// RequireReason makes the caller state why, for the audit.
	RequireReason bool
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
