package state

import iradix "github.com/hashicorp/go-immutable-radix/v2"

// bulk builds, in place, what a state has thousands of. A change of a sorted tree or of a trie copies the way
// down to what it changes, which for each of 10,000 tenants, their keys and what was answered is three quarters
// of all that the reading of a snapshot costs. Nobody else has a state that is being read.
//
// Until end is called the tries have what was added, and the sorted trees have not.
type bulk struct {
	tenants   *iradix.Txn[*Tenant]
	keys      *iradix.Txn[*Key]
	outcomes  *iradix.Txn[*outcome]
	staleness *iradix.Txn[struct{}]
}

// beginBulk is for a draft of an empty state.
func (d *draft) beginBulk() {
	d.bulk = &bulk{tenants: d.tenants.Txn(), keys: d.keys.Txn(), outcomes: d.outcomes.Txn(), staleness: d.staleness.Txn()}
}

func (d *draft) endBulk() {
	b := d.bulk
	d.bulk = nil
	d.tenants, d.keys, d.outcomes, d.staleness = b.tenants.Commit(), b.keys.Commit(), b.outcomes.Commit(), b.staleness.Commit()
}

func (b *bulk) addTenant(s *State, t *Tenant, living bool) {
	b.tenants.Insert([]byte(t.Name), t)
	s.tenantByID.fill(t.ID, t)
	s.tenantID.fill(t.Name, t.ID)
	if living {
		b.staleness.Insert(stalenessKey(t), struct{}{})
	}
}

func (b *bulk) addKey(s *State, k *Key) {
	b.keys.Insert(treeKey(k), k)
	s.keyByID.fill(k.ID, k)
	s.keyID.fill(keyName{k.Tenant, k.Name}, k.ID)
}

func (b *bulk) addOutcome(s *State, o *outcome) {
	b.outcomes.Insert(outcomeKey(o), o)
	s.outcomeByID.fill(o.id, o)
}
