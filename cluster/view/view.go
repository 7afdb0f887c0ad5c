// Package view is one look at a node's copy of the hierarchy, with what is known of its age.
//
// What a look promises: if it has no Fault, then State has everything in it that had been committed
// anywhere Age ago, or earlier. Whoever allows that much may serve from it. The order of its reads is
// part of that, and stands in [Replica.Look].
//
// Left to others: what a lease is and how it is had (package lease), how much age somebody allows,
// and when to look again.
package view

import (
	"errors"
	"time"

	"github.com/kekd/kekd/cluster/lease"
	"github.com/kekd/kekd/hierarchy"
	"github.com/kekd/kekd/hierarchy/state"
)

// Node is what a look reads: package cluster's.
type Node interface {
	// Lease is the last proof that State was current.
	Lease() lease.Lease
	State() *state.State
	// Now reads the clock that leases are measured by.
	Now() time.Duration
	// Incarnation is this run of the node's process.
	Incarnation() hierarchy.ID
	// Acknowledged is the highest log index of a closing that this run has acknowledged to a fence.
	Acknowledged() uint64
	// Unwell says why the node takes no lease for now; nil if it does.
	Unwell() error
	// Fault says why the node takes no part in the cluster any more; nil if it does.
	Fault() error
}

// View is one look.
type View struct {
	State *state.State
	// Age is an upper bound on how old State is: the time since the lease that covers it was
	// asked for.
	Age time.Duration
	// Fault says why nothing may be served from this state at all; nil if only Age counts.
	Fault error
	// Unwell says why Age only grows: the node could not serve, by its own account. What it says is nil if the node
	// renews its lease.
	Unwell func() error
	// Now is cluster time as this node knows it.
	Now time.Time
}

// ErrAcknowledged means that the state is from before a closing that this node has acknowledged.
var ErrAcknowledged = errors.New("it is behind a closing that this node has acknowledged")

// ErrNotRegistered means that the hierarchy knows another run of this node's process, or none yet.
var ErrNotRegistered = errors.New("this run of the node's process is not registered with the cluster")

// ErrNoMember means that the hierarchy does not know this node, or no longer does.
var ErrNoMember = errors.New("this node is not a member of the cluster")

// Replica looks at one node's copy. Its methods may be called by many goroutines at once.
type Replica struct {
	node   Node
	self   hierarchy.NodeID
	unwell func() error // the node's, made once and not at each look
	time   clusterTime
}

// New makes the replica of the node self.
func New(node Node, self hierarchy.NodeID) *Replica {
	return &Replica{node: node, self: self, unwell: node.Unwell}
}

// Look reads the lease, then the state, then the clock, then whether the node has failed.
//
//   - The lease before the state: a state that was read first may have been overtaken by a renewal
//     since, and would be refused although it was current when it was read.
//   - The state is held against the lease, since it may also be an older one: a snapshot that comes
//     late takes the state machine back.
//   - The clock after both: the process may be stopped between two reads, and that time counts.
//   - What this run has acknowledged to fences after the state, which may be one that a late snapshot has
//     brought back.
//   - The failure last, so that nothing is granted by a look that ends after it.
//
// A closing may be applied and acknowledged between the two reads. What was read is then old, and the node
// is not: it is looked at again.
func (r *Replica) Look() View {
	v := r.look()
	for again := 0; again < looksAgain && errors.Is(v.Fault, ErrAcknowledged); again++ {
		v = r.look()
	}
	return v
}

// looksAgain is how many closings may be acknowledged in the middle of one look each before the node counts as behind.
const looksAgain = 3

func (r *Replica) look() View {
	l, s, now := read(r.node)
	v := View{State: s, Unwell: r.unwell, Now: r.time.at(s.Stamp(), now)}
	v.Age, v.Fault = l.Age(now, s.Index())
	switch member, ok := s.Node(r.self); {
	case v.Fault != nil:
	case s.Index() < r.node.Acknowledged():
		v.Fault = ErrAcknowledged
	case !ok:
		v.Fault = ErrNoMember
	case !isRun(member, r.node):
		v.Fault = ErrNotRegistered
	}
	if err := r.node.Fault(); err != nil {
		v.Fault = err
	}
	return v
}

// Now is cluster time as this node knows it.
func (r *Replica) Now() time.Time { return r.time.at(r.node.State().Stamp(), r.node.Now()) }
