package state

import (
	"bytes"
	"encoding/binary"
	"slices"

	"github.com/kekd/kekd/hierarchy"
	"github.com/kekd/kekd/hierarchy/policy"
)

// draft is the next state while it is being made: the only time that a State is written to. Each
// put takes the record that was there out of the hash and the new one in, and keeps the derived
// indexes true. Commands and the reading of a snapshot both go through here.
type draft struct {
	*State
	ownsSum bool
	closing closing
	bulk    *bulk // while a snapshot is read
}

func (s *State) draft() *draft {
	next := *s
	return &draft{State: &next}
}

// account takes one record out of the hash and another in; either may be nil.
func (d *draft) account(before, after []byte) {
	if !d.ownsSum {
		sum := *d.sum
		d.sum = &sum
		d.ownsSum = true
	}
	if before != nil {
		d.sum.remove(before)
	}
	if after != nil {
		d.sum.add(after)
	}
}

func (d *draft) putRegion(r *Region) {
	var before []byte
	if old, ok := d.Region(r.ID); ok {
		before = record(hashRegion, regionToPB(old))
	}
	d.account(before, record(hashRegion, regionToPB(r)))
	d.regions, _, _ = d.regions.Insert([]byte(r.Name), r)
	d.regionByID = d.regionByID.set(r.ID, r)
}

func (d *draft) putNode(n *Node) {
	var before []byte
	if old, ok := d.Node(n.ID); ok {
		before = record(hashNode, nodeToPB(old))
	}
	d.account(before, record(hashNode, nodeToPB(n)))
	d.nodes, _, _ = d.nodes.Insert([]byte(n.Name), n)
	d.nodeByID = d.nodeByID.set(n.ID, n)
}

func (d *draft) deleteNode(n *Node) {
	d.account(record(hashNode, nodeToPB(n)), nil)
	d.nodes, _, _ = d.nodes.Delete([]byte(n.Name))
	d.nodeByID = d.nodeByID.delete(n.ID)
}

func (d *draft) putRemoved(n *RemovedNode) {
	d.account(nil, record(hashRemoved, removedToPB(n)))
	d.removed, _, _ = d.removed.Insert(n.ID.ID[:], n)
}

func (d *draft) putInvitation(i *Invitation) {
	d.account(nil, record(hashInvitation, invitationToPB(i)))
	d.invited, _, _ = d.invited.Insert(invitationKey(i), i)
	d.invitedByID = d.invitedByID.set(i.ID, i)
}

func (d *draft) deleteInvitation(i *Invitation) {
	d.account(record(hashInvitation, invitationToPB(i)), nil)
	d.invited, _, _ = d.invited.Delete(invitationKey(i))
	d.invitedByID = d.invitedByID.delete(i.ID)
}

// invitationKey sorts by the time of expiry: what expires first is dropped first.
func invitationKey(i *Invitation) []byte {
	return append(binary.BigEndian.AppendUint64(nil, uint64(nanosOf(i.ExpiresAt))), i.ID[:]...)
}

func (d *draft) putTenant(t *Tenant) {
	var before []byte
	if old, ok := d.Tenant(t.ID); ok {
		d.closesTenant(old, t)
		before = record(hashTenant, tenantToPB(old))
		d.staleness, _, _ = d.staleness.Delete(stalenessKey(old))
	}
	d.account(before, record(hashTenant, tenantToPB(t)))
	living := t.State != hierarchy.TenantDestroyed
	if d.bulk != nil {
		d.bulk.addTenant(d.State, t, living)
		return
	}
	d.tenants, _, _ = d.tenants.Insert([]byte(t.Name), t)
	d.tenantByID = d.tenantByID.set(t.ID, t)
	if before == nil {
		d.tenantID = d.tenantID.set(t.Name, t.ID)
	}
	if living {
		d.staleness, _, _ = d.staleness.Insert(stalenessKey(t), struct{}{})
	}
}

func stalenessKey(t *Tenant) []byte {
	b := binary.BigEndian.AppendUint64(nil, uint64(t.MaxStaleness))
	return append(b, t.ID.ID[:]...)
}

// putKey accounts for the key and for those of its versions that are not the very ones that were
// there, so that a change of one version of thousands hashes one.
func (d *draft) putKey(k *Key) {
	old, existed := d.Key(k.Tenant, k.ID)
	var before []byte
	var oldVersions []*Version
	if existed {
		d.closesKey(old, k)
		before = record(hashKey, keyToPB(old))
		oldVersions = old.Versions
	}
	d.account(before, record(hashKey, keyToPB(k)))
	for i, v := range k.Versions {
		switch {
		case i >= len(oldVersions):
			d.account(nil, versionRecord(k, v))
		case v != oldVersions[i]:
			d.closesVersion(k, oldVersions[i], v)
			d.account(versionRecord(k, oldVersions[i]), versionRecord(k, v))
		}
	}
	if d.bulk != nil {
		d.bulk.addKey(d.State, k)
		return
	}
	d.keys, _, _ = d.keys.Insert(treeKey(k), k)
	d.keyByID = d.keyByID.set(k.ID, k)
	if !existed {
		d.keyID = d.keyID.set(keyName{k.Tenant, k.Name}, k.ID)
	}
}

// treeKey sorts keys by tenant, then by name.
func treeKey(k *Key) []byte { return append(bytes.Clone(k.Tenant.ID[:]), k.Name...) }

// putVersion replaces one version of a key.
func (d *draft) putVersion(k *Key, v *Version) {
	next := *k
	next.Versions = slices.Clone(k.Versions)
	next.Versions[v.Number-1] = v
	d.putKey(&next)
}

func (d *draft) putService(svc *Service) {
	d.account(nil, record(hashService, serviceToPB(svc)))
	d.services, _, _ = d.services.Insert([]byte(svc.Name), svc)
	d.serviceOf = d.serviceOf.set(matchOf(svc), svc)
}

func (d *draft) deleteService(svc *Service) {
	for _, r := range d.Rules(svc.Name) {
		d.deleteRule(&r)
	}
	d.policies = d.policies.delete(svc.Name)
	d.account(record(hashService, serviceToPB(svc)), nil)
	d.services, _, _ = d.services.Delete([]byte(svc.Name))
	d.serviceOf = d.serviceOf.delete(matchOf(svc))
}

func matchOf(svc *Service) (m match) {
	if svc.UID != nil {
		m.uid, m.hasUID = *svc.UID, true
	}
	if svc.GID != nil {
		m.gid, m.hasGID = *svc.GID, true
	}
	return m
}

// putRule stores a rule. Its service's policy has to be compiled again when all are there.
func (d *draft) putRule(r *policy.Rule) {
	var before []byte
	if old, ok := d.rules.Get(ruleKey(r)); ok {
		d.closesRule(old, r)
		before = record(hashRule, ruleToPB(old))
	}
	d.account(before, record(hashRule, ruleToPB(r)))
	d.rules, _, _ = d.rules.Insert(ruleKey(r), r)
}

func (d *draft) deleteRule(r *policy.Rule) {
	d.closesRule(r, nil)
	d.account(record(hashRule, ruleToPB(r)), nil)
	d.rules, _, _ = d.rules.Delete(ruleKey(r))
}

func (d *draft) compilePolicy(service string) {
	rules := d.Rules(service)
	if len(rules) == 0 {
		d.policies = d.policies.delete(service)
		return
	}
	d.policies = d.policies.set(service, policy.Compile(rules))
}

// rulePrefix ends with a byte that no name has.
func rulePrefix(service string) []byte { return append([]byte(service), 0) }

func ruleKey(r *policy.Rule) []byte { return append(rulePrefix(r.Service), r.Pattern.String()...) }

func (d *draft) putAnchor(a *Anchor) {
	var before []byte
	if old, ok := d.Anchor(a.Node); ok {
		before = record(hashAnchor, anchorToPB(old))
	}
	d.account(before, record(hashAnchor, anchorToPB(a)))
	d.anchors, _, _ = d.anchors.Insert(a.Node.ID[:], a)
}

func (d *draft) putOutcome(o *outcome) {
	d.account(nil, hashedOutcome(o))
	if d.bulk != nil {
		d.bulk.addOutcome(d.State, o)
		return
	}
	d.outcomes, _, _ = d.outcomes.Insert(outcomeKey(o), o)
	d.outcomeByID = d.outcomeByID.set(o.id, o)
}

func (d *draft) deleteOutcome(o *outcome) {
	d.account(hashedOutcome(o), nil)
	d.outcomes, _, _ = d.outcomes.Delete(outcomeKey(o))
	d.outcomeByID = d.outcomeByID.delete(o.id)
}

func outcomeKey(o *outcome) []byte { return binary.BigEndian.AppendUint64(nil, o.index) }

// marshaler is a message of package commandpb. Their encoding is deterministic: vtprotobuf writes
// fields in a fixed order, and no message has a map.
type marshaler interface{ MarshalVT() ([]byte, error) }

// record is what the hash covers of a record.
func record(kind byte, m marshaler) []byte { return append([]byte{kind}, encode(m)...) }

func versionRecord(k *Key, v *Version) []byte {
	b := append([]byte{hashVersion}, k.ID.ID[:]...)
	return append(b, encode(versionToPB(v))...)
}

func encode(m marshaler) []byte {
	b, err := m.MarshalVT()
	if err != nil {
		panic(err) // never: marshalling a message that we filled in ourselves has no failure
	}
	return b
}
