package socketapi

import (
	"context"
	"iter"
	"time"

	"github.com/kekd/kekd/hierarchy"
	"github.com/kekd/kekd/hierarchy/commandpb"
	"github.com/kekd/kekd/hierarchy/state"
	"github.com/kekd/kekd/unix-socket-api/kekdv1"
)

// What administration asks of the node. Whoever wires the daemon joins them.

// Hierarchy is the replicated hierarchy as this node sees it.
type Hierarchy interface {
	// State is this node's copy.
	State() *state.State
	// Propose brings a command to the cluster. When it returns without an error, State has
	// the command in it, and the result says whether it took effect. An error that wraps
	// [hierarchy.ErrOutcomeUnknown] leaves that open; any other means that it did not.
	Propose(ctx context.Context, c *commandpb.Command) (state.Result, error)
	// Changed is closed when State is another one than when it was asked for.
	Changed() <-chan struct{}
	// Fence returns when no node can act any more on a state from before a closing. When ctx ends first,
	// it returns what is known, and the error wraps [hierarchy.ErrOutcomeUnknown] and says what is lacking.
	Fence(ctx context.Context, f *state.Fence) (Fenced, error)
}

// Minting tells when a key version has its objects in this node's token.
type Minting interface {
	// WaitServable returns when the version is active and this node can use it, or with the
	// reason why that will not be. If the context ends, the error says what is lacking. It is
	// asked only for versions that have a key in this node's region.
	WaitServable(ctx context.Context, tenant hierarchy.TenantID, key hierarchy.KeyID, version uint32) error
}

// AuditLog is this node's journal.
type AuditLog interface {
	// Append returns when the record is durable, with its sequence.
	Append(ctx context.Context, r AdminRecord) (uint64, error)
	// Tail yields the last records, in the order in which they were written, and with follow
	// those to come, without a gap, until the context ends. A zero tenant means all records of
	// the node. What it yields are lines of the journal, without the line break; a slice is
	// valid until the next one.
	Tail(ctx context.Context, tenant hierarchy.TenantID, last int, follow bool) iter.Seq2[[]byte, error]
	// Watch yields what is written about a tenant from now on, until the context ends; first of
	// all an event that says that it has begun. Whoever takes too long for one misses others,
	// is told how many, and holds up nobody.
	Watch(ctx context.Context, tenant hierarchy.TenantID) iter.Seq2[*kekdv1.TenantEvent, error]
	// Verify checks the journal against its signed heads and the anchors in the hierarchy.
	// That a fault was found is no error.
	Verify(ctx context.Context) (*kekdv1.VerifyAuditResponse, error)
}

// AdminRecord is what the journal is told of an administrative operation: once when it was
// asked for, and once what became of it.
type AdminRecord struct {
	Kind    string // "tenant-create", "key-rotate", ...
	Outcome AdminOutcome
	Caller  hierarchy.Principal
	Command hierarchy.CommandID

	Tenant     hierarchy.TenantID // zero: none, or one that does not exist yet
	TenantName string
	Key        string // the key's name within the tenant
	Version    uint32
	Service    string

	Code   string // why not: the stable code of the error
	Reason string // the operator's words
	Detail string // the daemon's words: what was asked for beyond the names
	Of     uint64 // the sequence of the record of the request
}

// AdminOutcome is what became of an administrative operation.
type AdminOutcome string

const (
	AdminRequested AdminOutcome = "requested" // allowed, and about to be proposed
	AdminOK        AdminOutcome = "ok"
	AdminDenied    AdminOutcome = "denied" // by this socket
	AdminFailed    AdminOutcome = "failed" // by the hierarchy, or unknown: the code tells
)

// Node tells how this node is.
type Node interface {
	Status(ctx context.Context) *kekdv1.Status
}

// Nodes are the members of the cluster, beyond what the hierarchy says of them.
type Nodes interface {
	// Invitation draws what an invitation is made of, and does not propose it: it fills in the ID,
	// the hash of the proof, and when it expires by cluster time. The token has the secret, and is
	// the text that whoever joins gives.
	Invitation(ctx context.Context, w Invited, ttl time.Duration) (i *commandpb.Invitation, token string, err error)
	// Members is how the leader knows the members, in any order: those of its state, and those
	// that only Raft's configuration still has. An error says why no leader answered.
	Members(ctx context.Context) ([]Member, error)
	// TransferLeadership returns when another node leads: to, or if that is zero whoever is best.
	TransferLeadership(ctx context.Context, to hierarchy.NodeID) error
}

// Invited is what a node is to be.
type Invited struct {
	Node   string
	Region string
	Role   hierarchy.RegionRole // of the region, which may not be there yet
	Voter  bool
}

// Member is how the leader knows a node.
type Member struct {
	ID           hierarchy.NodeID
	Votes        bool // by Raft's configuration
	Leader       bool
	HeardAgo     time.Duration // negative: nothing since it leads; of the leader itself: 0
	Applied      uint64        // log index that the node was at when it was heard
	FeatureLevel uint32
}

// Orphans are the key objects in this node's token that the hierarchy does not know.
type Orphans interface {
	// Orphans lists the token anew.
	Orphans(ctx context.Context) ([]Orphan, error)
	// Sweep destroys them, and tells which, also where it stops with an error. On a node that
	// does not mint for its region it is refused, as [hierarchy.ErrFailedPrecondition] with the
	// name of the one that does.
	Sweep(ctx context.Context) ([]Orphan, error)
}

// Orphan is a key object that the hierarchy does not know.
type Orphan struct {
	ID    hierarchy.ObjectID
	Label string
}
