package history_test

import (
	"testing"

	"github.com/kekd/kekd/softhsm-tests/history"
)

var none history.Rules

// How each kind of broken promise looks to callers.
func TestBrokenPromises(t *testing.T) {
	created := op(history.Create, 10, 20, at(5))
	for _, tc := range []struct {
		name  string
		rule  string
		words []string
		ops   []history.Operation
	}{
		{"an acknowledged command is lost", "linearizable", []string{"2 of 3", "showing enabled", "the state is: disabled"}, []history.Operation{
			created, op(history.Disable, 30, 40, at(6)), op(history.Read, 50, 60, at(7), by("b"), shows("enabled", 0)),
		}},
		{"a command without a known index is lost", "linearizable", []string{"showing enabled"}, []history.Operation{
			created, op(history.Disable, 30, 40), op(history.Read, 50, 60, at(7), fresh, shows("enabled", 0)),
		}},
		{"a command is applied twice, the second time after another", "linearizable", []string{"showing enabled, value 1"}, []history.Operation{
			created, op(history.Set, 30, 40, at(6), value(1)), op(history.Set, 50, 60, at(7), value(2)),
			op(history.Read, 70, 80, at(9), by("b"), shows("enabled", 1)),
		}},
		{"a command of unknown outcome is applied twice", "linearizable", []string{"showing enabled, value 1"}, []history.Operation{
			created, op(history.Set, 30, 0, lost, value(1)), op(history.Read, 40, 45, at(6), shows("enabled", 1)),
			op(history.Set, 50, 60, at(7), value(2)), op(history.Read, 61, 65, at(7), shows("enabled", 2)),
			op(history.Read, 70, 80, at(9), by("b"), shows("enabled", 1)),
		}},
		{"a tenant that exists is created again", "linearizable", []string{"already exists"}, []history.Operation{
			created, op(history.Create, 30, 40, at(6)),
		}},
		{"a create is refused and nobody else made the tenant", "linearizable", []string{"refused with ALREADY_EXISTS"}, []history.Operation{
			op(history.Create, 10, 20, told(refused, "ALREADY_EXISTS")),
		}},
		{"a disabled tenant rises again", "linearizable", []string{"showing enabled"}, []history.Operation{
			created, op(history.Disable, 30, 40, at(6)), op(history.Read, 50, 60, at(7), shows("disabled", 0)),
			op(history.Read, 70, 80, at(8), by("c"), shows("enabled", 0)),
		}},
		{"an enable that was called too late explains nothing", "linearizable", []string{"showing enabled"}, []history.Operation{
			created, op(history.Disable, 30, 40, at(6)), op(history.Read, 50, 60, at(7), by("b"), shows("enabled", 0)),
			op(history.Enable, 61, 70, at(8)),
		}},
		{"indexes run against time", "linearizable", []string{"it is of index 6, and 5 has to stand before it"}, []history.Operation{
			op(history.Create, 1, 2, at(4)), op(history.Disable, 10, 20, at(6)), op(history.Enable, 30, 40, at(5)),
		}},
		{"two commands have one index", "linearizable", []string{"it is of index 6"}, []history.Operation{
			created, op(history.Disable, 30, 60, at(6)), op(history.Set, 30, 60, at(6), value(1)),
		}},
		{"an old copy shows what never was", "linearizable", []string{"showing disabled, value 7"}, []history.Operation{
			created, op(history.Set, 21, 25, at(6), value(7)), op(history.Set, 30, 40, at(7), value(8)), op(history.Disable, 50, 60, at(8)),
			op(history.Read, 70, 80, at(6), by("b"), shows("disabled", 7)),
		}},
		{"a rule is taken back that is not there", "linearizable", []string{"it was acknowledged, and could not be"}, []history.Operation{
			created, op(history.Revoke, 30, 40, at(6)),
		}},
		{"a rule is said not to be there, and it is", "linearizable", []string{"refused with NOT_FOUND"}, []history.Operation{
			created, op(history.Allow, 30, 40), op(history.Revoke, 50, 60, told(refused, "NOT_FOUND")),
		}},
		{"a rule is shown that was taken back", "linearizable", []string{"it shows allowed"}, []history.Operation{
			created, op(history.Allow, 30, 40), op(history.Revoke, 50, 60, at(7)), op(history.Read, 70, 80, at(8), by("b"), shows("enabled", 0), showsRule(true)),
		}},
		{"a node shows less than it has acknowledged", "what a node has shown", []string{"had index 6 before, and shows index 5"}, []history.Operation{
			created, op(history.Disable, 30, 40, at(6)), op(history.Read, 50, 60, at(5), shows("enabled", 0)),
		}},
		{"a node goes back", "what a node has shown", []string{"had index 6 before, and shows index 5"}, []history.Operation{
			created, op(history.Read, 30, 40, at(6), by("b"), shows("enabled", 0)), op(history.Read, 50, 60, at(5), by("b"), shows("enabled", 0)),
		}},
		{"a node has not heard of what it has made", "what a node has shown", []string{"the tenant was there before"}, []history.Operation{
			created, op(history.Disable, 30, 40, told(refused, "NOT_FOUND")),
		}},
		{"two copies of one index differ", "one state of an index", []string{"two copies of index 6"}, []history.Operation{
			created, op(history.Disable, 30, 60), op(history.Read, 50, 60, at(6), by("b"), shows("enabled", 0)), op(history.Read, 50, 60, at(6), by("c"), shows("disabled", 0)),
		}},
		{"of two copies of one index one has no rule", "one state of an index", []string{"two copies of index 6"}, []history.Operation{
			created, op(history.Read, 50, 60, at(6), by("c"), shows("enabled", 0)),
			op(history.Read, 50, 60, at(6), by("b"), shows("enabled", 0), showsRule(true)), op(history.Read, 50, 60, at(6), by("b"), shows("enabled", 0), showsRule(false)),
		}},
		{"a fresh read is old", "what a fresh read has", []string{"index 6 had been acknowledged"}, []history.Operation{
			created, op(history.Disable, 30, 40, at(6)), op(history.Read, 50, 60, at(5), by("b"), fresh, shows("enabled", 0)),
		}},
	} {
		t.Run(tc.name, func(t *testing.T) { fails(t, none, tc.rule, tc.words, tc.ops...) })
	}
}

// What looks odd and is none.
func TestWhatMayBe(t *testing.T) {
	created := op(history.Create, 10, 20, at(5))
	for _, tc := range []struct {
		name string
		ops  []history.Operation
	}{
		{"nothing", nil},
		{"an unknown command took effect at once", []history.Operation{
			created, op(history.Disable, 30, 0, lost), op(history.Read, 40, 50, at(6), shows("disabled", 0)),
		}},
		{"an unknown command took effect much later", []history.Operation{
			created, op(history.Disable, 30, 31, told(unknown, "OUTCOME_UNKNOWN")), op(history.Read, 40, 50, at(6), shows("enabled", 0)),
			op(history.Set, 60, 70, at(8), value(3)), op(history.Read, 80, 90, at(9), fresh, shows("disabled", 3)),
		}},
		{"an unknown command never took effect", []history.Operation{
			created, op(history.Create, 21, 22, told(unknown, "UNAVAILABLE")), op(history.Disable, 30, 0, lost),
			op(history.Read, 80, 90, at(9), fresh, shows("enabled", 0)),
		}},
		{"of two unknown commands one took effect", []history.Operation{
			created, op(history.Set, 30, 0, lost, value(1)), op(history.Set, 30, 0, lost, value(2)),
			op(history.Read, 80, 90, at(9), fresh, shows("enabled", 2)), op(history.Read, 91, 95, at(9), fresh, shows("enabled", 2)),
		}},
		{"commands at the same time, in either order", []history.Operation{
			created, op(history.Disable, 30, 60, at(7)), op(history.Enable, 30, 60, at(6)), op(history.Read, 70, 80, at(7), fresh, shows("disabled", 0)),
		}},
		{"an old copy shows what was", []history.Operation{
			created, op(history.Disable, 30, 40, at(6)), op(history.Enable, 50, 60, at(7)), op(history.Disable, 70, 80, at(8)),
			op(history.Read, 90, 95, at(7), by("b"), shows("enabled", 0)),
			op(history.Read, 96, 99, at(6), by("c"), shows("disabled", 0)),
		}},
		{"an old copy is older than a command of no known index", []history.Operation{
			created, op(history.Allow, 30, 40), op(history.Disable, 50, 60, at(8)),
			op(history.Read, 90, 95, at(6), by("b"), shows("enabled", 0), showsRule(false)),
			op(history.Read, 96, 97, at(7), by("c"), shows("enabled", 0), showsRule(true)),
		}},
		{"of two fresh reads the later one is older, and no command is between", []history.Operation{
			created, op(history.Allow, 30, 40), op(history.Read, 50, 60, at(9), by("b"), fresh, shows("enabled", 0)), op(history.Read, 70, 80, at(8), by("c"), fresh, shows("enabled", 0)),
		}},
		{"a node that was started again begins with less", []history.Operation{
			created, op(history.Disable, 30, 40, at(6)), op(history.Read, 50, 60, at(5), run(2), shows("enabled", 0)),
		}},
		{"a node has not heard of what another one has made", []history.Operation{
			created, op(history.Disable, 30, 40, by("b"), told(refused, "NOT_FOUND")), op(history.Read, 30, 40, by("c"), told(refused, "NOT_FOUND")),
		}},
		{"no leader was there, and nothing happened", []history.Operation{
			created, op(history.Disable, 30, 40, told(refused, "STALE")), op(history.Read, 80, 90, at(9), fresh, shows("enabled", 0)),
		}},
		{"the index of a command that a retry was not told", []history.Operation{
			created, op(history.Disable, 30, 70), op(history.Enable, 50, 60, at(8)), op(history.Read, 80, 90, at(9), fresh, shows("enabled", 0)),
		}},
		{"of two creates at the same time one is refused", []history.Operation{
			created, op(history.Create, 5, 30, told(refused, "ALREADY_EXISTS")),
		}},
	} {
		t.Run(tc.name, func(t *testing.T) { passes(t, none, tc.ops...) })
	}
}
