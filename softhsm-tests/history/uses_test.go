package history_test

import (
	"testing"

	"github.com/kekd/kekd/softhsm-tests/history"
)

func TestUses(t *testing.T) {
	fenced, bounded := history.Rules{Staleness: 100, Fenced: true}, history.Rules{Staleness: 100}
	checked := history.Rules{Fenced: true, LastCheck: true}
	created, allowed := op(history.Create, 10, 20, at(5)), op(history.Allow, 30, 40)
	disabled := op(history.Disable, 1000, 1010, at(8))
	begin := []history.Operation{created, allowed, disabled}
	for _, tc := range []struct {
		name  string
		rules history.Rules
		words string // empty: it may be
		ops   []history.Operation
	}{
		{"it succeeds after a disable, fenced", fenced, "index 8", []history.Operation{op(history.Unwrap, 1011, 1020, by("b"))}},
		{"not fenced, within the bound", bounded, "", []history.Operation{op(history.Unwrap, 1109, 1120, by("b"))}},
		{"not fenced, after the bound", bounded, "index 8", []history.Operation{op(history.Unwrap, 1111, 1120, by("b"))}},
		{"without a bound", none, "", []history.Operation{op(history.Unwrap, 9111, 9120, by("b"))}},
		{"without a bound, on the node that acknowledged", none, "index 8", []history.Operation{op(history.Wrap, 1011, 1020)}},
		{"on that node, started again", none, "", []history.Operation{op(history.Wrap, 1011, 1020, run(2))}},
		{"called before the disable returned", fenced, "", []history.Operation{op(history.Unwrap, 1009, 5000, by("b"))}},
		{"called before, and checked after it returned", checked, "index 8", []history.Operation{op(history.Unwrap, 1009, 1011, by("b"))}},
		{"checked as it returned", checked, "", []history.Operation{op(history.Unwrap, 1009, 1010, by("b"))}},
		{"checked after an enable was called", checked, "", []history.Operation{op(history.Unwrap, 1009, 1020, by("b")), op(history.Enable, 1015, 1300, at(9))}},
		{"an enable is under way", fenced, "", []history.Operation{op(history.Unwrap, 1200, 1210, by("b")), op(history.Enable, 1205, 1300, at(9))}},
		{"an enable was called later", fenced, "index 8", []history.Operation{op(history.Unwrap, 1200, 1210, by("b")), op(history.Enable, 1211, 1300, at(9))}},
		{"an enable at the same time came first", fenced, "index 8", []history.Operation{op(history.Unwrap, 1200, 1210, by("b")), op(history.Enable, 1005, 1009, at(7))}},
		{"an enable that nobody knows of", fenced, "", []history.Operation{op(history.Enable, 500, 0, lost), op(history.Unwrap, 1200, 1210, by("b"))}},
		{"a disable that nobody knows of", fenced, "", []history.Operation{
			op(history.Enable, 1100, 1110, at(9)), op(history.Disable, 1120, 0, lost), op(history.Unwrap, 1300, 1310, by("b"))}},
		{"refused while it is disabled", fenced, "", []history.Operation{op(history.Unwrap, 1200, 1210, told(refused, "TENANT_DISABLED"))}},
		{"refused while the disable is under way", fenced, "", []history.Operation{op(history.Unwrap, 990, 1001, told(refused, "TENANT_DISABLED"))}},
		{"refused before the disable", fenced, "the tenant is disabled", []history.Operation{op(history.Unwrap, 980, 999, told(refused, "TENANT_DISABLED"))}},
		{"refused long after the enable", bounded, "index 9", []history.Operation{
			op(history.Enable, 1100, 1110, at(9)), op(history.Unwrap, 1300, 1310, by("b"), told(refused, "TENANT_DISABLED"))}},
		{"refused soon after the enable", bounded, "", []history.Operation{
			op(history.Enable, 1100, 1110, at(9)), op(history.Unwrap, 1150, 1160, by("b"), told(refused, "TENANT_DISABLED"))}},
		{"refused for another reason", fenced, "", []history.Operation{op(history.Unwrap, 500, 510, told(refused, "HSM_UNAVAILABLE"))}},
		{"before the rule", bounded, "the tenant is allowed", []history.Operation{op(history.Wrap, 21, 29)}},
		{"refused before the rule", bounded, "", []history.Operation{op(history.Wrap, 21, 29, told(refused, "PERMISSION_DENIED"))}},
		{"refused long after the rule", bounded, "the tenant is not allowed", []history.Operation{op(history.Wrap, 300, 310, told(refused, "PERMISSION_DENIED"))}},
		{"after the rule was taken back, fenced", fenced, "revoke", []history.Operation{op(history.Revoke, 400, 410, at(7)), op(history.Wrap, 411, 420, by("b"))}},
		{"before the tenant", bounded, "the tenant exists", []history.Operation{op(history.Wrap, 1, 9)}},
		{"nobody knows what became of it", fenced, "", []history.Operation{op(history.Unwrap, 1011, 1020, told(unknown, "UNAVAILABLE"))}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			ops := append(append([]history.Operation{}, begin...), tc.ops...)
			if tc.words == "" {
				passes(t, tc.rules, ops...)
			} else {
				fails(t, tc.rules, "uses", []string{tc.words}, ops...)
			}
		})
	}
}
