package socketapi

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/kekd/kekd/hierarchy/state"
	"github.com/kekd/kekd/unix-socket-api/kekdv1"
)

// fact is one thing that a state says and that a restore may tighten.
type fact struct{ what, field string }

// facts are by names, for people.
func facts(s *state.State) map[fact]string {
	all := make(map[fact]string)
	for t := range s.Tenants() {
		what := "tenant " + t.Name
		all[fact{what, "state"}] = t.State.String()
		all[fact{what, "max_staleness"}] = t.MaxStaleness.String()
		all[fact{what, "limits"}] = fmt.Sprint(t.Limits)
		for k := range s.Keys(t.ID) {
			name := t.Name + "/" + k.Name
			all[fact{"key " + name, "min_unwrap_version"}] = fmt.Sprint(k.MinUnwrapVersion)
			for _, v := range k.Versions {
				all[fact{fmt.Sprintf("version %s@%d", name, v.Number), "state"}] = v.State.String()
			}
		}
	}
	for svc := range s.Services() {
		for _, r := range s.Rules(svc.Name) {
			all[fact{fmt.Sprintf("rule of %s for %s", r.Service, r.Pattern), "allows"}] =
				fmt.Sprintf("%v context %v limits %v reason %t", r.Ops, r.Required, r.Limits, r.RequireReason)
		}
	}
	return all
}

// differences are what has become different, sorted, and how many there are.
func differences(before, after *state.State) (list []*kekdv1.RestoreChange, all uint64) {
	was, is := facts(before), facts(after)
	for f, v := range is {
		if was[f] == v {
			delete(was, f)
			delete(is, f)
		}
	}
	both := maps.Clone(was)
	maps.Copy(both, is)
	for f := range both {
		list = append(list, &kekdv1.RestoreChange{What: f.what, Field: f.field, Before: was[f], After: is[f]})
	}
	slices.SortFunc(list, func(a, b *kekdv1.RestoreChange) int {
		if a.What != b.What {
			return strings.Compare(a.What, b.What)
		}
		return strings.Compare(a.Field, b.Field)
	})
	return list[:min(len(list), maxReported)], uint64(len(list))
}
