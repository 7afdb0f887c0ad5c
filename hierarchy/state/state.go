package state

import (
	"encoding/binary"
	"iter"
	"time"

	iradix "github.com/hashicorp/go-immutable-radix/v2"

	"github.com/kekd/kekd/hierarchy"
	"github.com/kekd/kekd/hierarchy/policy"
)

// State is the hierarchy as of one index of the log. It is immutable; the zero value is not
// valid, [New] returns the empty state.
type State struct {
	cluster  hierarchy.ClusterID
	index    uint64 // of the last command applied
	stamp    int64  // cluster time, Unix nanoseconds
	epoch    uint64
	raisedBy [32]byte // hash of the statement that raised the epoch; zero in epoch 0
	level    uint32   // feature level
	revision uint64
	sum      *lattice // of all records

	// Sorted trees hold the records; what follows them is derived.
	regions  *iradix.Tree[*Region]      // by name
	nodes    *iradix.Tree[*Node]        // by name
	tenants  *iradix.Tree[*Tenant]      // by name
	keys     *iradix.Tree[*Key]         // by tenant ID and name
	services *iradix.Tree[*Service]     // by name
	rules    *iradix.Tree[*policy.Rule] // by service, 0, pattern
	anchors  *iradix.Tree[*Anchor]      // by node ID
	outcomes *iradix.Tree[*outcome]     // by index: the oldest is first
	uses     *iradix.Tree[*Uses]        // by the end of the window
	removed  *iradix.Tree[*RemovedNode] // by node ID
	invited  *iradix.Tree[*Invitation]  // by the time of expiry and ID
	tombs    *iradix.Tree[*Tombstone]   // by node ID and incarnation
	fences   *iradix.Tree[*Fence]       // by index

	regionByID  trie[hierarchy.RegionID, *Region]
	nodeByID    trie[hierarchy.NodeID, *Node]
	tenantByID  trie[hierarchy.TenantID, *Tenant]
	tenantID    trie[string, hierarchy.TenantID]
	keyByID     trie[hierarchy.KeyID, *Key]
	keyID       trie[keyName, hierarchy.KeyID]
	serviceOf   trie[match, *Service]
	policies    trie[string, *policy.Set]
	outcomeByID trie[hierarchy.CommandID, *outcome]
	usesOf      trie[LimitID, *Uses]
	invitedByID trie[hierarchy.ID, *Invitation]
	staleness   *iradix.Tree[struct{}] // by max_staleness and ID of the living tenants
	fencesOf    *iradix.Tree[*Fence]   // by tenant ID and index
	lowerings   *iradix.Tree[struct{}] // by what they lowered from and index
}

type keyName struct {
	tenant hierarchy.TenantID
	name   string
}

// match is how a service is recognised.
type match struct {
	uid, gid       uint32
	hasUID, hasGID bool
}

// New returns the state before the first command.
func New() *State {
	return &State{
		sum:       new(lattice),
		regions:   iradix.New[*Region](),
		nodes:     iradix.New[*Node](),
		tenants:   iradix.New[*Tenant](),
		keys:      iradix.New[*Key](),
		services:  iradix.New[*Service](),
		rules:     iradix.New[*policy.Rule](),
		anchors:   iradix.New[*Anchor](),
		outcomes:  iradix.New[*outcome](),
		uses:      iradix.New[*Uses](),
		removed:   iradix.New[*RemovedNode](),
		invited:   iradix.New[*Invitation](),
		tombs:     iradix.New[*Tombstone](),
		fences:    iradix.New[*Fence](),
		staleness: iradix.New[struct{}](),
		fencesOf:  iradix.New[*Fence](),
		lowerings: iradix.New[struct{}](),
	}
}

// Index is the log index of the last command applied. It is the state machine's own: raft's
// moves before the state machine has applied, and for entries that never reach it.
func (s *State) Index() uint64 { return s.index }

// Stamp is cluster time: that of the leader, as of the last command. It never goes back; it is
// the zero time before the first command.
func (s *State) Stamp() time.Time { return timeOf(s.stamp) }

// Epoch is raised by a forced promotion or a recovery only.
func (s *State) Epoch() uint64 { return s.epoch }

// EpochStatement is the hash of the statement that raised the epoch; zero in epoch 0. Two states of one epoch's number
// and different statements are of histories that have parted.
func (s *State) EpochStatement() [32]byte { return s.raisedBy }

// FeatureLevel is what commands the cluster may use: those of a higher [LevelOf] are refused. It is 0
// before the cluster is initialised, and 1 from then on until it is raised.
func (s *State) FeatureLevel() uint32 { return s.level }

// ClusterID is zero before the cluster is initialised.
func (s *State) ClusterID() hierarchy.ClusterID { return s.cluster }

// Initialised tells whether the cluster's first command was applied.
func (s *State) Initialised() bool { return !s.cluster.IsZero() }

// Revision is the index of the last command that changed more than the clock, a reservation or
// an anchor: who waits for something to do waits for it to move. It is this process's own
// knowledge, not replicated: a state that was read from a snapshot starts with its index.
func (s *State) Revision() uint64 { return s.revision }

// Tenant finds a tenant by its ID.
func (s *State) Tenant(id hierarchy.TenantID) (*Tenant, bool) { return s.tenantByID.get(id) }

// TenantByName finds a tenant by its name.
func (s *State) TenantByName(name string) (*Tenant, bool) {
	id, ok := s.tenantID.get(name)
	if !ok {
		return nil, false
	}
	return s.tenantByID.get(id)
}

// Tenants are sorted by name.
func (s *State) Tenants() iter.Seq[*Tenant] { return all(s.tenants, nil) }

// MinStaleness is the smallest max_staleness of a tenant that is not destroyed, or
// [DefaultMaxStaleness] if there is none: leases are renewed by it.
func (s *State) MinStaleness() time.Duration {
	k, _, ok := s.staleness.Root().Minimum()
	if !ok {
		return DefaultMaxStaleness
	}
	return time.Duration(binary.BigEndian.Uint64(k))
}

// Key finds a key by its tenant's ID and its own.
func (s *State) Key(tenant hierarchy.TenantID, id hierarchy.KeyID) (*Key, bool) {
	k, ok := s.keyByID.get(id)
	if !ok || k.Tenant != tenant {
		return nil, false
	}
	return k, true
}

// KeyByName finds a key by its tenant's ID and its name.
func (s *State) KeyByName(tenant hierarchy.TenantID, name string) (*Key, bool) {
	id, ok := s.keyID.get(keyName{tenant, name})
	if !ok {
		return nil, false
	}
	return s.keyByID.get(id)
}

// Keys are those of a tenant, sorted by name.
func (s *State) Keys(tenant hierarchy.TenantID) iter.Seq[*Key] { return all(s.keys, tenant.ID[:]) }

// AllKeys are those of all tenants, in no order that means anything. It is one walk: ten times
// faster than one for each tenant where many have few keys.
func (s *State) AllKeys() iter.Seq[*Key] { return all(s.keys, nil) }

// Region finds a region by its ID.
func (s *State) Region(id hierarchy.RegionID) (*Region, bool) { return s.regionByID.get(id) }

// RegionByName finds a region by its name.
func (s *State) RegionByName(name string) (*Region, bool) { return s.regions.Get([]byte(name)) }

// Regions are sorted by name.
func (s *State) Regions() iter.Seq[*Region] { return all(s.regions, nil) }

// Node finds a member by its ID. One that was removed is none.
func (s *State) Node(id hierarchy.NodeID) (*Node, bool) { return s.nodeByID.get(id) }

// NodeByName finds a member by its name.
func (s *State) NodeByName(name string) (*Node, bool) { return s.nodes.Get([]byte(name)) }

// Nodes are the members of the cluster, sorted by name.
func (s *State) Nodes() iter.Seq[*Node] { return all(s.nodes, nil) }

// Removed finds a node that was a member.
func (s *State) Removed(id hierarchy.NodeID) (*RemovedNode, bool) { return s.removed.Get(id.ID[:]) }

// RemovedNodes are all who were members, sorted by ID.
func (s *State) RemovedNodes() iter.Seq[*RemovedNode] { return all(s.removed, nil) }

// Invitation finds one that is open as of the state's cluster time: not used and not expired.
func (s *State) Invitation(id hierarchy.ID) (*Invitation, bool) { return s.invitedByID.get(id) }

// Invitations are all that are open, those first that expire first.
func (s *State) Invitations() iter.Seq[*Invitation] { return all(s.invited, nil) }

// Service finds a service by its name.
func (s *State) Service(name string) (*Service, bool) { return s.services.Get([]byte(name)) }

// Services are sorted by name.
func (s *State) Services() iter.Seq[*Service] { return all(s.services, nil) }

// ServicesFor are the services that a caller is, the most specific first: by uid and gid, by
// uid, by gid.
func (s *State) ServicesFor(uid, gid uint32) []*Service {
	var found [3]*Service
	n := 0
	for _, m := range [...]match{{uid, gid, true, true}, {uid, 0, true, false}, {0, gid, false, true}} {
		if svc, ok := s.serviceOf.get(m); ok {
			found[n] = svc
			n++
		}
	}
	if n == 0 {
		return nil
	}
	return found[:n:n]
}

// Rules are those of a service, or of all services if the name is empty, sorted by service and
// pattern.
func (s *State) Rules(service string) []policy.Rule {
	var prefix []byte
	if service != "" {
		prefix = rulePrefix(service)
	}
	var rules []policy.Rule
	for r := range all(s.rules, prefix) {
		rules = append(rules, *r)
	}
	return rules
}

// Rule is that of a service for a pattern.
func (s *State) Rule(service string, p policy.Pattern) (*policy.Rule, bool) {
	return s.rules.Get(ruleKey(&policy.Rule{Service: service, Pattern: p}))
}

// PolicySet is the rules of a service, compiled; nil if it has none.
func (s *State) PolicySet(service string) *policy.Set {
	set, _ := s.policies.get(service)
	return set
}

// Uses is what nodes have reserved of a long limit in the latest window of which they did; false
// if that was long ago.
func (s *State) Uses(id LimitID) (*Uses, bool) { return s.usesOf.get(id) }

// Anchor is the head of a node's audit journal as the cluster last agreed on it.
func (s *State) Anchor(node hierarchy.NodeID) (*Anchor, bool) { return s.anchors.Get(node.ID[:]) }

// all iterates over the values under a prefix, in the order of their keys.
func all[T any](t *iradix.Tree[T], prefix []byte) iter.Seq[T] {
	return func(yield func(T) bool) {
		t.Root().WalkPrefix(prefix, func(_ []byte, v T) bool { return !yield(v) })
	}
}
