package history

import (
	"cmp"
	"fmt"
	"io"
	"maps"
	"slices"

	"github.com/anishathalye/porcupine"
)

// Violation is a promise that was not kept.
type Violation struct {
	Tenant string
	Rule   string
	Text   string // for people: what, and by which operations

	picture *porcupine.LinearizationInfo
}

func (v Violation) String() string {
	return fmt.Sprintf("tenant %s, %s: %s", v.Tenant, v.Rule, v.Text)
}

// Drawable tells whether [Violation.Draw] has something to draw: an order was looked for, and there is none.
func (v Violation) Drawable() bool { return v.picture != nil }

// Draw writes an HTML page that shows the tenant's commands and reads in time, and the longest orders
// that they can have.
func (v Violation) Draw(w io.Writer) error { return porcupine.Visualize(model, *v.picture, w) }

// Judge finds what in a history cannot be. Nothing found is a pass.
func Judge(h *History) []Violation {
	var found []Violation
	byTenant := map[string][]Operation{}
	for _, o := range h.Operations {
		if err := o.check(); err != nil {
			return []Violation{{Tenant: o.Tenant, Rule: "the record", Text: err.Error()}}
		}
		byTenant[o.Tenant] = append(byTenant[o.Tenant], o)
	}
	for _, name := range slices.Sorted(maps.Keys(byTenant)) {
		ops := byTenant[name]
		slices.SortStableFunc(ops, func(a, b Operation) int { return cmp.Compare(a.Call, b.Call) })
		found = append(found, oneState(ops)...)
		if v, bad := linear(name, ops); bad {
			found = append(found, v)
		}
		found = append(found, sessions(ops)...)
		found = append(found, uses(ops, h.Rules)...)
	}
	return found
}
