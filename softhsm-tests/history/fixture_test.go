package history_test

import (
	"strings"
	"testing"

	"github.com/kekd/kekd/softhsm-tests/history"
)

const (
	ok      = history.OK
	refused = history.Refused
	unknown = history.Unknown
)

// option sets a field of an operation of tenant acme.
type option func(*history.Operation)

func op(kind history.Kind, call, ret int64, options ...option) history.Operation {
	o := history.Operation{Kind: kind, Tenant: "acme", Node: "a", Run: 1, Call: call, Return: ret, Outcome: ok}
	for _, set := range options {
		set(&o)
	}
	return o
}

func at(index uint64) option     { return func(o *history.Operation) { o.Index = index } }
func by(node string) option      { return func(o *history.Operation) { o.Node = node } }
func run(n int) option           { return func(o *history.Operation) { o.Run = n } }
func value(v uint64) option      { return func(o *history.Operation) { o.Value = v } }
func fresh(o *history.Operation) { o.Fresh = true }

func told(outcome history.Outcome, code string) option {
	return func(o *history.Operation) { o.Outcome, o.Code = outcome, code }
}

// lost is never answered.
func lost(o *history.Operation) { o.Outcome, o.Return = unknown, 0 }

func shows(state string, v uint64) option {
	return func(o *history.Operation) { o.Seen = &history.Seen{State: state, Value: v} }
}

func showsRule(allowed bool) option {
	return func(o *history.Operation) { o.Seen.Allowed = &allowed }
}

// passes wants no violation.
func passes(t *testing.T, rules history.Rules, ops ...history.Operation) {
	t.Helper()
	for _, v := range history.Judge(&history.History{Rules: rules, Operations: ops}) {
		t.Error(v)
	}
}

// fails wants a violation of this rule, whose words have all these in them.
func fails(t *testing.T, rules history.Rules, rule string, words []string, ops ...history.Operation) {
	t.Helper()
	found := history.Judge(&history.History{Rules: rules, Operations: ops})
	for _, v := range found {
		all := v.Rule == rule
		for _, w := range words {
			all = all && strings.Contains(v.Text, w)
		}
		if all {
			return
		}
	}
	t.Errorf("no violation of %q that says %q in %v", rule, words, found)
}
