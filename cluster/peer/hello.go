package peer

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/kekd/kekd/hierarchy"
)

// A hello is what the dialler says first, inside of TLS, and an answer what the acceptor says to it.
// Both look the same:
//
//	offset size
//	     0    4  "kekp"
//	     4    1  version, 1
//	     5    1  in a hello the service, in an answer the verdict
//	     6   16  cluster ID
//	    22   16  node ID
//	    38    8  number of the epoch, big-endian
//	    46   32  hash of the statement that raised it
//	    78    1  length of the name, 1 to 63
//	    79       the node's name
//
// In a hello for joining, node ID and epoch are zero.
type hello struct {
	what    byte
	cluster hierarchy.ClusterID
	node    hierarchy.NodeID
	epoch   Epoch
	name    string
}

const (
	helloMagic   = "kekp"
	helloVersion = 1
	helloFixed   = 79
)

// What a hello is for.
const (
	forRaft byte = 1 + iota
	forCalls
	forJoin
)

var services = map[byte]Service{forRaft: Raft, forCalls: Calls, forJoin: Join}

// Verdicts are said from the acceptor's side.
const (
	accepted byte = iota
	unknownNode
	noVoter
	otherCluster
	otherEpoch
	otherName
	ownNode // the dialler says that it is the acceptor
	otherVersion
	lastVerdict = otherVersion
)

func (h hello) marshal() []byte {
	b := make([]byte, 0, helloFixed+len(h.name))
	b = append(b, helloMagic...)
	b = append(b, helloVersion, h.what)
	b = append(b, h.cluster.ID[:]...)
	b = append(b, h.node.ID[:]...)
	b = binary.BigEndian.AppendUint64(b, h.epoch.Number)
	b = append(b, h.epoch.Statement[:]...)
	b = append(b, byte(len(h.name)))
	return append(b, h.name...)
}

// errVersion is an [ErrProtocol]: the other side speaks the protocol in another version.
type errVersion byte

func (v errVersion) Error() string {
	return fmt.Sprintf("%v in a version that this one knows: the peer speaks version %d of it, this node version %d; bring both to releases that work together", ErrProtocol, byte(v), helloVersion)
}

func (errVersion) Unwrap() error { return ErrProtocol }

// readHello takes no byte more than the hello has.
func readHello(r io.Reader) (hello, error) {
	var b [helloFixed + hierarchy.MaxNameLen]byte
	// The head is looked at first: what follows it in another version may be shorter.
	const head = len(helloMagic) + 1
	if _, err := io.ReadFull(r, b[:head]); err != nil {
		return hello{}, cut(err)
	}
	if string(b[:len(helloMagic)]) != helloMagic {
		return hello{}, fmt.Errorf("%w: it begins with %q", ErrProtocol, b[:head])
	}
	if v := b[head-1]; v != helloVersion {
		return hello{}, errVersion(v)
	}
	if _, err := io.ReadFull(r, b[head:helloFixed]); err != nil {
		return hello{}, cut(err)
	}
	n := int(b[helloFixed-1])
	if n > hierarchy.MaxNameLen {
		return hello{}, fmt.Errorf("%w: a name of %d bytes, at most %d are allowed", ErrProtocol, n, hierarchy.MaxNameLen)
	}
	name := b[helloFixed : helloFixed+n]
	if _, err := io.ReadFull(r, name); err != nil {
		return hello{}, cut(err)
	}
	h := hello{
		what:    b[5],
		cluster: hierarchy.ClusterID{ID: hierarchy.ID(b[6:22])},
		node:    hierarchy.NodeID{ID: hierarchy.ID(b[22:38])},
		epoch:   Epoch{binary.BigEndian.Uint64(b[38:46]), [32]byte(b[46:78])},
		name:    string(name),
	}
	if err := hierarchy.ValidateName(h.name); err != nil {
		return hello{}, fmt.Errorf("%w: %w", ErrProtocol, err)
	}
	if h.cluster.IsZero() {
		return hello{}, fmt.Errorf("%w: no cluster ID", ErrProtocol)
	}
	return h, nil
}

// cut tells a hello that ends too early from a connection that fails.
func cut(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return fmt.Errorf("%w: the peer hung up before it had said who it is", ErrProtocol)
	}
	return err
}

// checkHello looks at what only a dialler's first words have.
func (h hello) checkHello() (Service, error) {
	service, ok := services[h.what]
	switch {
	case !ok:
		return "", fmt.Errorf("%w: there is no service %d", ErrProtocol, h.what)
	case service == Join && (!h.node.IsZero() || h.epoch != Epoch{}):
		return "", fmt.Errorf("%w: who joins has no node ID and no epoch yet", ErrProtocol)
	case service != Join && h.node.IsZero():
		return "", fmt.Errorf("%w: no node ID", ErrProtocol)
	}
	return service, nil
}

// checkAnswer looks at what only an acceptor's answer has.
func (h hello) checkAnswer() error {
	switch {
	case h.what > lastVerdict:
		return fmt.Errorf("%w: there is no verdict %d", ErrProtocol, h.what)
	case h.node.IsZero():
		return fmt.Errorf("%w: no node ID", ErrProtocol)
	}
	return nil
}
