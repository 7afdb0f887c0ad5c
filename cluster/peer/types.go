package peer

import (
	"fmt"

	"github.com/kekd/kekd/hierarchy"
)

// Service is what a connection is for.
type Service string

const (
	// Raft is for messages of Raft, from voters.
	Raft Service = "raft"
	// Calls is for gRPC between members.
	Calls Service = "calls"
	// Join is for gRPC of who is no member yet. Who serves it must allow the one call.
	Join Service = "join"
)

// Epoch is which of the cluster's histories a node is in. Two epochs of one number are the same only
// if the same statement raised them.
type Epoch struct {
	Number    uint64
	Statement [32]byte
}

func (e Epoch) String() string {
	if e.Statement == [32]byte{} {
		return fmt.Sprintf("%d", e.Number)
	}
	return fmt.Sprintf("%d (%x)", e.Number, e.Statement[:4])
}

// Member is a node that may connect, and can be connected to.
type Member struct {
	ID hierarchy.NodeID
	// Name is in the node's certificate as a DNS name.
	Name string
	// Address is its host:port.
	Address string
}

// Directory says who is who, at each handshake and at each message of Raft. Its methods must be
// quick, and may be called by many goroutines.
type Directory interface {
	Epoch() Epoch
	// Member finds a living member; a removed one is none.
	Member(hierarchy.NodeID) (Member, bool)
	// Voter tells whether messages of Raft are taken from the node.
	Voter(hierarchy.NodeID) bool
}

// Self is this node.
type Self struct {
	Cluster hierarchy.ClusterID
	Node    hierarchy.NodeID
	Name    string
}

// Peer is who is at the other end of a connection.
type Peer struct {
	// ID is zero on a connection for [Join].
	ID hierarchy.NodeID
	// Name is in the peer's certificate. On a connection for [Join] nobody has looked whether a member
	// has it too.
	Name    string
	Service Service
}

func (p Peer) String() string {
	if p.ID.IsZero() {
		return fmt.Sprintf("%q, which is no member yet", p.Name)
	}
	return fmt.Sprintf("node %q (%s)", p.Name, p.ID)
}
