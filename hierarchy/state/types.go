package state

import (
	"time"

	"github.com/kekd/kekd/hierarchy"
	"github.com/kekd/kekd/hierarchy/policy"
)

// What stands here is what readers see. Everything that is reached from a *State is immutable:
// readers keep pointers as long as they like and never write through them.

// Region is a set of nodes that share one token.
type Region struct {
	ID          hierarchy.RegionID
	Name        string
	Role        hierarchy.RegionRole
	Identity    []byte           // SubjectPublicKeyInfo (DER) of the token's identity key; a witness has none
	KDF         string           // profile of bridges; empty: none
	MintingNode hierarchy.NodeID // zero: a witness has none, nor has a region without nodes
	AddedIndex  uint64           // of the command that added it
}

// Node is a member of the cluster.
type Node struct {
	ID     hierarchy.NodeID
	Name   string
	Region hierarchy.RegionID
	// Voter is whether the node is to vote. Raft's own configuration follows it.
	Voter    bool
	Address  string // host:port for its peers; empty: it has none
	Identity []byte // SubjectPublicKeyInfo (DER) of the node's own key, in a witness region only
	// Incarnation is the run of the node's process that may hold a lease; zero: none has registered.
	Incarnation hierarchy.ID
}

// Holder is one run of a node's process, which may hold a lease.
type Holder struct {
	Node        hierarchy.NodeID
	Incarnation hierarchy.ID
}

// Tombstone is a holder that is no member any more: its node was removed, or its process replaced. It may
// still serve by a lease that it was given before.
type Tombstone struct {
	Holder
	Index uint64 // of the command that made it one
	// Wait is the longest max_staleness that counted then. Whoever waits so long since it saw the command
	// committed, has waited for every lease that the tombstone may hold.
	Wait time.Duration
}

// Fence is a closing that is not known to be effective everywhere yet: a node that has not heard of it may
// serve what it closed. It stands until [commandpb.CompleteFence] records that none does.
type Fence struct {
	Index uint64 // of the closing
	// Since is the index of the oldest closing that the fence stands for besides its own; 0: none. There is
	// one if more than [MaxFences] were incomplete.
	Since  uint64
	Kind   string             // "tenant-disable", ...
	Tenant hierarchy.TenantID // zero: of several
	// Wait is the longest max_staleness that counted for the tenants concerned, before the closing.
	Wait time.Duration
	// LoweredFrom is set if the closing lowered max_staleness: what counted before it, and does until the
	// fence is complete.
	LoweredFrom time.Duration
	// Holders are all who could hold a lease at the closing, tombstones included, sorted. Who registers
	// later has the closing in its state before its first lease.
	Holders []Holder
}

// RemovedNode was a member. Its ID is never a member's again.
type RemovedNode struct {
	ID        hierarchy.NodeID
	Name      string // may be another node's by now
	Region    hierarchy.RegionID
	RemovedAt time.Time
}

// Invitation lets one node join, once, as what stands here and as nothing else.
type Invitation struct {
	ID        hierarchy.ID
	ProofHash [32]byte
	Node      string
	Region    string
	Role      hierarchy.RegionRole // of the region, which may not be there yet
	Voter     bool
	ExpiresAt time.Time // cluster time
}

// Tenant is one key domain.
type Tenant struct {
	ID           hierarchy.TenantID
	Name         string
	State        hierarchy.TenantState
	StateReason  string
	MaxStaleness time.Duration
	CreatedAt    time.Time
	StateAt      time.Time
	Placement    []hierarchy.RegionID // sorted
	Limits       policy.Limits        // over all services
}

// Key is a named KEK of a tenant.
type Key struct {
	ID               hierarchy.KeyID
	Tenant           hierarchy.TenantID
	Name             string
	CreatedAt        time.Time
	RotateEvery      time.Duration // 0: by hand only
	MinUnwrapVersion uint32        // 1 or more
	Versions         []*Version    // version n is at n-1
}

// Version finds a version by its number.
func (k *Key) Version(n uint32) (*Version, bool) {
	if n == 0 || uint64(n) > uint64(len(k.Versions)) {
		return nil, false
	}
	return k.Versions[n-1], true
}

// Active is the version that wraps; there is none before the first is minted, or while it is
// suspended or compromised.
func (k *Key) Active() (*Version, bool) {
	for i := len(k.Versions) - 1; i >= 0; i-- {
		if k.Versions[i].State == hierarchy.Active {
			return k.Versions[i], true
		}
	}
	return nil, false
}

// Newest is the version with the highest number, whatever its state.
func (k *Key) Newest() *Version { return k.Versions[len(k.Versions)-1] }

// Version is one generation of a key.
type Version struct {
	Number      uint32
	State       hierarchy.VersionState
	ResumeTo    hierarchy.VersionState // while suspended
	StateReason string
	CreatedAt   time.Time
	ActivatedAt time.Time // zero: never
	StateAt     time.Time
	Attempt     uint32
	Cause       RotationCause
	KDF         string
	Regions     []RegionKey // those of the placement at its creation, sorted by ID
}

// Region finds what one region holds of the version.
func (v *Version) Region(id hierarchy.RegionID) (*RegionKey, bool) {
	for i := range v.Regions {
		if v.Regions[i].Region == id {
			return &v.Regions[i], true
		}
	}
	return nil, false
}

// RegionKey is what one region holds of a version.
type RegionKey struct {
	Region        hierarchy.RegionID
	Minted        bool
	Object        hierarchy.ObjectID   // once minted
	Check         hierarchy.CheckValue // once minted
	MintedAt      time.Time
	WrapsReserved uint64 // seals handed out to nodes in blocks; at most MaxWraps
	Reservations  []Reservation
}

// Reservation is how many seals a node has reserved since it last gave a rest back. It can
// return no more, so that a mistake cannot count seals twice as unused.
type Reservation struct {
	Node  hierarchy.NodeID
	Count uint64
}

// RotationCause says why a version was made.
type RotationCause uint8

const (
	CauseCreated RotationCause = iota // the first version
	CauseOperator
	CausePeriod
	CauseUse
)

// Service is an authenticated local caller. At least one of UID and GID is set.
type Service struct {
	Name      string
	UID       *uint32
	GID       *uint32
	CreatedAt time.Time
}

// Anchor is the head of a node's audit journal as the cluster last agreed on it.
type Anchor struct {
	Node      hierarchy.NodeID
	Sequence  uint64
	Head      [32]byte
	Signature []byte
	At        time.Time
}

// LimitID names a limit per hour or day: of the rule of a service and pattern for a tenant, or, with
// neither, of the tenant itself.
type LimitID struct {
	Tenant  hierarchy.TenantID
	Service string
	Pattern policy.Pattern
	Per     time.Duration
}

// Uses is how many uses nodes have reserved of a limit in one window. It may be more than the limit,
// if that was lowered meanwhile.
type Uses struct {
	LimitID
	Start time.Time
	Count uint64
}

// Limits of the hierarchy.
const (
	// MaxWraps is how often one AES-GCM key may seal with random IVs over all nodes together:
	// NIST SP 800-38D section 8.3.
	MaxWraps = 1 << 32
	// RotateAtWraps is where rotation starts by itself.
	RotateAtWraps = 1 << 31

	MinMaxStaleness     = time.Second
	MaxMaxStaleness     = 24 * time.Hour
	DefaultMaxStaleness = 2 * time.Second
)
