package peer

import (
	"context"
	"io"
	"net"
)

// What tests outside of the package may reach into: a hello as bytes, and a connection that has said
// one, with nothing of Raft or gRPC on it.

// SealToken is the text of a message, whatever is in it.
var SealToken = sealToken

// RoundTripHello reads a hello and writes it again.
func RoundTripHello(r io.Reader) ([]byte, error) {
	h, err := readHello(r)
	return h.marshal(), err
}

// CheckHello and CheckAnswer read one and look at what only the one or the other has.
func CheckHello(r io.Reader) (Service, error) {
	h, err := readHello(r)
	if err != nil {
		return "", err
	}
	return h.checkHello()
}

func CheckAnswer(r io.Reader) error {
	h, err := readHello(r)
	if err != nil {
		return err
	}
	return h.checkAnswer()
}

// HelloOf is what a node would say.
func HelloOf(s Self, e Epoch, service Service) []byte {
	for what, known := range services {
		if known == service {
			return hello{what: what, cluster: s.Cluster, node: s.Node, epoch: e, name: s.Name}.marshal()
		}
	}
	return hello{what: 9, cluster: s.Cluster, node: s.Node, epoch: e, name: s.Name}.marshal()
}

// Dial gives the bare connection to a member.
func (p *Port) Dial(ctx context.Context, id nodeID, service Service) (net.Conn, error) {
	what := forRaft
	if service == Calls {
		what = forCalls
	}
	c, err := p.dial(ctx, id, what)
	if err != nil {
		return nil, err
	}
	return c, nil
}

// Conns is how many connections there are, Waiting how many have not said hello.
func (p *Port) Conns() int { return len(p.conns.list()) }

func (p *Port) Waiting() int {
	p.waiting.mu.Lock()
	defer p.waiting.mu.Unlock()
	return len(p.waiting.list)
}

// Sockets are what the connections run over.
func (p *Port) Sockets() (all []net.Conn) {
	for _, c := range p.conns.list() {
		all = append(all, c.raw)
	}
	return all
}

const (
	MaxWaiting        = maxWaiting
	MaxWaitingAddress = maxWaitingAddress
	MaxBeforeHello    = maxBeforeHello
	MaxOfPeer         = maxOfPeer
	HelloTime         = helloTime
	CallSilence       = callSilence
	RaftSilence       = raftSilence
)
