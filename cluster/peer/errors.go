package peer

import (
	"errors"
	"fmt"
	"net"
	"slices"
)

// Why two nodes do not talk to each other. Both sides are told the same one, each in its own words.
var (
	// ErrNotMember means that one side does not know the other as a member.
	ErrNotMember = errors.New("not a member of the cluster")
	// ErrNotVoter means that a node without a vote wants to send messages of Raft.
	ErrNotVoter = errors.New("not a voter")
	// ErrForeignCluster means that the two are of different clusters.
	ErrForeignCluster = errors.New("of another cluster")
	// ErrEpoch means that the two are of different epochs; an [EpochError] says which.
	ErrEpoch = errors.New("of another epoch")
	// ErrCertificate means that a certificate does not verify.
	ErrCertificate = errors.New("the certificate is not accepted")
	// ErrWrongName means that a node's name is not in its certificate, or is another one to the cluster.
	ErrWrongName = errors.New("the node's name is not the one expected")
	// ErrWrongNode means that another node is at the address than the one that was dialled.
	ErrWrongNode = errors.New("another node than expected")
	// ErrForeignAuthority means that a join token was made under an authority that is not in the CA file.
	ErrForeignAuthority = errors.New("of another certificate authority")
	// ErrProtocol means that the other side speaks something else, or another version of it.
	ErrProtocol = errors.New("not the protocol of peers")
	// ErrFiles means that certificate, key and CA cannot be used as they are on disk.
	ErrFiles = errors.New("the certificate's files cannot be used")
	// ErrClosed means that this node's port is closed.
	ErrClosed = errors.New("the port for peers is closed")
)

// refusals are those that only somebody's change ends.
var refusals = []error{ErrCertificate, ErrProtocol, ErrWrongName, ErrWrongNode, ErrForeignCluster, ErrEpoch, ErrNotMember, ErrNotVoter}

// saysNo tells a peer that refuses, or is refused, from one that is away.
func saysNo(err error) bool {
	return slices.ContainsFunc(refusals, func(no error) bool { return errors.Is(err, no) })
}

// EpochError is an [ErrEpoch].
type EpochError struct {
	Own, Peer Epoch
}

// Superseded tells whether this node must not go on as it is: the peer has seen a newer epoch, or
// one of the same number that another statement raised. The peer's word is all that there is for it.
func (e *EpochError) Superseded() bool { return e.Peer.Number >= e.Own.Number }

func (e *EpochError) Error() string {
	switch {
	case e.Peer.Number > e.Own.Number:
		return fmt.Sprintf("%v: the peer is in epoch %v, this node still in %v: the cluster went on without this node, which has to be removed and join again", ErrEpoch, e.Peer, e.Own)
	case e.Peer.Number < e.Own.Number:
		return fmt.Sprintf("%v: the peer is still in epoch %v, this node in %v: the cluster went on without the peer, which has to be removed and join again", ErrEpoch, e.Peer, e.Own)
	}
	return fmt.Sprintf("%v: both nodes are in epoch %d, but different statements raised it, %x and here %x: two recoveries have split the cluster, and only one of them may go on", ErrEpoch, e.Own.Number, e.Peer.Statement, e.Own.Statement)
}

func (e *EpochError) Unwrap() error { return ErrEpoch }

// alert finds what the other side's TLS had to say. Go exports no type for it.
func alert(err error) (string, bool) {
	var op *net.OpError
	if errors.As(err, &op) && op.Op == "remote error" {
		return op.Err.Error(), true
	}
	return "", false
}
