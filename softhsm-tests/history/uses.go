package history

import (
	"fmt"
	"time"
)

// register is one thing that uses depend on, and how commands move it.
type register struct {
	opens, closes []Kind
	refusal       string // what a use is told while it is closed; empty: that may have other reasons
	first         bool   // it is also told so before any command
	open, closed  string // in words
}

var registers = []register{
	{opens: []Kind{Create}, open: "exists"}, // NOT_FOUND may be for the key
	{opens: []Kind{Create, Enable}, closes: []Kind{Disable}, refusal: codeDisabled, open: "is enabled", closed: "is disabled"},
	{opens: []Kind{Allow}, closes: []Kind{Revoke}, refusal: codeDenied, first: true, open: "is allowed", closed: "is not allowed"},
}

// uses judges wraps and unwraps of one tenant.
func uses(ops []Operation, rules Rules) (found []Violation) {
	for _, r := range registers {
		opens, closes := moves(ops, r.opens), moves(ops, r.closes)
		for _, u := range ops {
			if u.class() != use {
				continue
			}
			switch {
			case u.Outcome == OK:
				if against := contradicted(opens, closes, u, rules, false); against != "" {
					found = append(found, Violation{Tenant: u.Tenant, Rule: "uses", Text: fmt.Sprintf("it succeeded, and nothing was there by which the tenant %s: %s\n    %v", r.open, against, u)})
				}
			case u.Outcome == Refused && r.refusal != "" && u.Code == r.refusal:
				if against := contradicted(closes, opens, u, rules, r.first); against != "" {
					found = append(found, Violation{Tenant: u.Tenant, Rule: "uses", Text: fmt.Sprintf("it was refused, and nothing was there by which the tenant %s: %s\n    %v", r.closed, against, u)})
				}
			}
		}
	}
	return found
}

// moves are the commands of these kinds that took effect, or may have.
func moves(ops []Operation, of []Kind) (moves []Operation) {
	for _, o := range ops {
		for _, k := range of {
			if o.Kind == k && o.Outcome != Refused {
				moves = append(moves, o)
			}
		}
	}
	return moves
}

// contradicted tells why a use cannot have seen any of the commands that explain its answer as the last
// one; empty: it can. With first, the beginning explains it too.
func contradicted(explain, oppose []Operation, u Operation, rules Rules, first bool) string {
	var last Operation
	overruled := func(e *Operation) bool {
		for _, o := range oppose {
			if o.Outcome == OK && counts(o, u, rules) && (e == nil || after(o, *e)) {
				last = o
				return true
			}
		}
		return false
	}
	if first && !overruled(nil) {
		return ""
	}
	for _, e := range explain {
		if e.Call <= u.Return && !overruled(&e) {
			return ""
		}
	}
	if last.Kind == "" {
		return "no command that would do it was called before"
	}
	return fmt.Sprintf("what stands against it is\n    %v", last)
}

// counts tells whether a use has to know of a command.
func counts(o, u Operation, rules Rules) bool {
	var since time.Duration
	fenced := rules.Fenced && (o.Kind == Disable || o.Kind == Revoke)
	switch {
	case fenced && rules.LastCheck:
		return o.Return < u.Return
	case fenced, o.run() == u.run() && u.Node != "":
	case rules.Staleness == 0:
		return false
	default:
		since = rules.Staleness
	}
	return o.Return < u.Call-int64(since)
}

// after tells whether a command that was acknowledged certainly took effect after another.
func after(o, other Operation) bool {
	if o.Index != 0 && other.Index != 0 {
		return o.Index > other.Index
	}
	return other.Outcome == OK && other.Return < o.Call
}
