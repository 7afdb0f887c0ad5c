package history

import (
	"fmt"

	"github.com/kekd/kekd/hierarchy"
)

var (
	codeExists   = hierarchy.Code(hierarchy.ErrAlreadyExists)
	codeNotFound = hierarchy.Code(hierarchy.ErrNotFound)
	codeDisabled = hierarchy.Code(hierarchy.ErrTenantDisabled)
	codeDenied   = hierarchy.Code(hierarchy.ErrPermissionDenied)
)

// oneState judges that all copies of one index are the same.
func oneState(ops []Operation) (found []Violation) {
	first := map[uint64]Operation{}
	for _, o := range ops {
		if o.class() != read || o.Outcome != OK {
			continue
		}
		f, others := first[o.Index]
		if !others {
			first[o.Index] = o
			continue
		}
		if o.Seen.State != f.Seen.State || o.Seen.Value != f.Seen.Value || o.Seen.Allowed != nil && f.Seen.Allowed != nil && *o.Seen.Allowed != *f.Seen.Allowed {
			found = append(found, Violation{Tenant: o.Tenant, Rule: "one state of an index", Text: fmt.Sprintf("two copies of index %d differ:\n    %v\n    %v", o.Index, f, o)})
		}
		if f.Seen.Allowed == nil {
			first[o.Index] = o
		}
	}
	return found
}

// run is one run of one node's process.
type run struct {
	node string
	n    int
}

func (o Operation) run() run { return run{o.Node, o.Run} }

// sessions judges what one run of a node has to show since it has acknowledged or shown it before, and
// what a fresh read has to have.
func sessions(ops []Operation) (found []Violation) {
	for _, o := range ops {
		if o.class() == read && o.Outcome == OK || o.byCopy() {
			if v, bad := sessionOf(ops, o); bad {
				found = append(found, v)
			}
		}
	}
	return found
}

func sessionOf(ops []Operation, o Operation) (Violation, bool) {
	for _, e := range ops {
		if e.Outcome != OK || e.Return >= o.Call || e.class() == use {
			continue
		}
		same := e.run() == o.run() && o.Node != ""
		switch {
		case o.Outcome == Refused:
			// A tenant is never gone again.
			if (same || o.Fresh) && (e.Kind == Create || e.Kind == Read) {
				return Violation{Tenant: o.Tenant, Rule: "what a node has shown",
					Text: fmt.Sprintf("the tenant was there before, for the same run of the node or for all:\n    %v\n    %v", e, o)}, true
			}
		case e.Index <= o.Index:
		case same:
			return Violation{Tenant: o.Tenant, Rule: "what a node has shown",
				Text: fmt.Sprintf("the same run of the node had index %d before, and shows index %d:\n    %v\n    %v", e.Index, o.Index, e, o)}, true
		case o.Fresh && e.class() == command:
			return Violation{Tenant: o.Tenant, Rule: "what a fresh read has",
				Text: fmt.Sprintf("index %d had been acknowledged before, and it shows index %d:\n    %v\n    %v", e.Index, o.Index, e, o)}, true
		}
	}
	return Violation{}, false
}
