package state

import (
	"fmt"
	"slices"
	"strings"

	"github.com/kekd/kekd/hierarchy"
	"github.com/kekd/kekd/hierarchy/commandpb"
	"github.com/kekd/kekd/hierarchy/policy"
)

// restoreRecords tightens the hierarchy by records of a snapshot of this cluster: what was closed there is
// closed here, and nothing is opened. The tables of restore_table.go say so field by field. It is a command
// as any other, so that all nodes do the same, at one place in the log.
//
// A record that clashes with what is here is left out, and the rest goes on: one tenant's trouble must not
// keep another one open. [LeftOut] names them. Restoring again changes nothing more.
func (d *draft) restoreRecords(m *commandpb.RestoreRecords) error {
	if id := m.GetClusterId(); string(id) != string(d.cluster.ID[:]) {
		return fmt.Errorf("%w: the snapshot is of cluster %x, this is cluster %s", hierarchy.ErrInvalidArgument, id, d.cluster)
	}
	if len(m.GetRecords()) == 0 {
		return fmt.Errorf("%w: nothing to restore", hierarchy.ErrInvalidArgument)
	}
	r := restorer{draft: d}
	for i, rec := range m.GetRecords() {
		if err := r.take(rec); err != nil {
			return fmt.Errorf("record %d: %w", i, err)
		}
	}
	r.compile()
	return nil
}

// LeftOut says what a restore of a snapshot leaves out, or has left out: each by name, with the reason. What
// was revoked or deleted leaves no record, so that it is not among them.
func LeftOut(living, snapshot *State) []string {
	if living.cluster != snapshot.cluster {
		return []string{fmt.Sprintf("all of it: the snapshot is of cluster %s, this is cluster %s", snapshot.cluster, living.cluster)}
	}
	r := restorer{draft: living.draft()}
	for rec := range snapshot.snapshotRecords {
		if !restorable(rec) {
			continue
		}
		if err := r.take(rec); err != nil {
			r.leaveOut("a record: %v", err) // never: a state's own records can be read
		}
	}
	for svc := range snapshot.Services() {
		here, ok := living.Service(svc.Name)
		switch {
		case !ok:
			r.leaveOut("service %s: it is not here, and a restore adds none: create it, and allow it what it is to do", svc.Name)
		case matchOf(here) != matchOf(svc):
			r.leaveOut("service %s: other callers are it here, which stands", svc.Name)
		}
	}
	for _, rule := range snapshot.Rules("") {
		if _, ok := living.Service(rule.Service); !ok {
			continue // said already
		}
		if _, ok := living.Rule(rule.Service, rule.Pattern); !ok {
			r.leaveOut("the rule of service %s for %s: it is not here, and a restore adds none", rule.Service, rule.Pattern)
		}
	}
	return r.left
}

// restorable tells whether a restore does something with records of a kind.
func restorable(rec *commandpb.SnapshotRecord) bool {
	switch rec.GetRecord().(type) {
	case *commandpb.SnapshotRecord_Tenant, *commandpb.SnapshotRecord_Key, *commandpb.SnapshotRecord_Rule,
		*commandpb.SnapshotRecord_Uses, *commandpb.SnapshotRecord_RemovedNode:
		return true
	}
	return false
}

// restorer takes records of a snapshot into a draft.
type restorer struct {
	*draft
	left    []string // what was left out
	changed []string // services whose rules have changed
}

func (r *restorer) leaveOut(format string, args ...any) {
	r.left = append(r.left, fmt.Sprintf(format, args...))
}

// take takes a record. Only one that no state has is an error.
func (r *restorer) take(rec *commandpb.SnapshotRecord) error {
	switch rec := rec.GetRecord().(type) {
	case *commandpb.SnapshotRecord_Tenant:
		t, err := tenantFromPB(rec.Tenant)
		if err != nil {
			return err
		}
		r.tenant(t)
		return nil
	case *commandpb.SnapshotRecord_Key:
		k, err := keyPieceFromPB(rec.Key)
		if err != nil {
			return err
		}
		r.key(k)
		return nil
	case *commandpb.SnapshotRecord_Rule:
		rule, err := ruleFromPB(rec.Rule)
		if err != nil {
			return err
		}
		r.rule(rule)
		return nil
	case *commandpb.SnapshotRecord_Uses:
		u, err := usesFromPB(rec.Uses)
		if err != nil {
			return err
		}
		r.uses(u)
		return nil
	case *commandpb.SnapshotRecord_RemovedNode:
		n, err := removedFromPB(rec.RemovedNode)
		if err != nil {
			return err
		}
		r.removedNode(n)
		return nil
	}
	return fmt.Errorf("%w: a restore takes tenants, keys, rules, uses and removed nodes", hierarchy.ErrInvalidArgument)
}

// restoredReason is why something that comes back is closed.
func restoredReason(was string) string {
	reason := "restored from a snapshot"
	if was != "" {
		reason += ": " + was
	}
	if len(reason) > MaxReason {
		reason = strings.ToValidUTF8(reason[:MaxReason], "")
	}
	return reason
}

func (r *restorer) tenant(from *Tenant) {
	living, ok := r.Tenant(from.ID)
	if !ok {
		r.addTenant(from)
		return
	}
	if living.Name != from.Name {
		r.leaveOut("tenant %s: its ID is that of tenant %s here", from.Name, living.Name)
		return
	}
	next := *living
	tighten(tenantRows, &next, from, r.now())
	if !sameRecord(tenantToPB(living), tenantToPB(&next)) {
		r.putTenant(&next)
	}
}

// addTenant brings one back that is not here: closed, until somebody who has looked at it enables it.
func (r *restorer) addTenant(from *Tenant) {
	if _, ok := r.TenantByName(from.Name); ok {
		r.leaveOut("tenant %s: another tenant has its name here", from.Name)
		return
	}
	for _, id := range from.Placement {
		if _, ok := r.Region(id); !ok {
			r.leaveOut("tenant %s: it is placed in region %s, which is not here", from.Name, id)
			return
		}
	}
	if r.tenants.Len() >= MaxTenants {
		r.leaveOut("tenant %s: a cluster holds at most %d tenants", from.Name, MaxTenants)
		return
	}
	next := *from
	next.State = max(next.State, hierarchy.TenantDisabled)
	next.StateReason, next.StateAt = restoredReason(from.StateReason), r.now()
	r.putTenant(&next)
}

// rule narrows one that is here. A rule that is not is not added, and one that is left with nothing that it
// could allow is taken back.
func (r *restorer) rule(from *policy.Rule) {
	living, ok := r.Rule(from.Service, from.Pattern)
	if !ok {
		return
	}
	next := *living
	tighten(ruleRows, &next, from, r.now())
	if sameRecord(ruleToPB(living), ruleToPB(&next)) {
		return
	}
	if next.Ops == 0 {
		r.deleteRule(living)
	} else {
		r.putRule(&next)
	}
	if !slices.Contains(r.changed, from.Service) {
		r.changed = append(r.changed, from.Service)
	}
}

// compile makes the policies of changed rules, once for each service.
func (r *restorer) compile() {
	for _, service := range r.changed {
		r.compilePolicy(service)
	}
}

// uses counts what was used of a limit in the window that it is now.
func (r *restorer) uses(from *Uses) {
	if _, ok := r.Tenant(from.Tenant); !ok {
		return // said already
	}
	if !from.Start.Add(from.Per).After(r.now()) || from.Start.After(r.now().Add(maxAhead)) {
		return
	}
	living, ok := r.Uses(from.LimitID)
	if !ok {
		r.putUses(from)
		return
	}
	next := *living
	tighten(usesRows, &next, from, r.now())
	if next != *living {
		r.putUses(&next)
	}
}

// removedNode keeps an ID from ever being a member's again.
func (r *restorer) removedNode(from *RemovedNode) {
	if n, ok := r.Node(from.ID); ok {
		r.leaveOut("removed node %s: node %s is a member with its ID here: remove it if it should be none", from.Name, n.Name)
		return
	}
	if _, ok := r.Removed(from.ID); !ok {
		r.putRemoved(from)
	}
}

func sameRecord(a, b marshaler) bool { return string(encode(a)) == string(encode(b)) }
