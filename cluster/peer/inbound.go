package peer

import (
	"fmt"
	"io"
	"net"
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"
)

// inbound is Raft's protocol on one connection of a peer. It has a transport of its own, so that each
// message is known to be of that peer.
type inbound struct {
	*conn
	// accept has the connection once, when all is set up.
	accept chan net.Conn
	// refused makes the connection end when the answer to what was refused is sent.
	refused atomic.Bool
}

// Read is what the protocol reads by.
func (in *inbound) Read(b []byte) (int, error) {
	if in.refused.Load() {
		return 0, io.EOF
	}
	return in.conn.Read(b)
}

// oneConn is a listener that gives one connection.
type oneConn struct{ *inbound }

func (l oneConn) Accept() (net.Conn, error) {
	select {
	case c := <-l.accept:
		return c, nil
	case <-l.ended:
		return nil, net.ErrClosed
	}
}

func (l oneConn) Addr() net.Addr { return l.LocalAddr() }

func (l oneConn) Dial(raft.ServerAddress, time.Duration) (net.Conn, error) {
	return nil, net.ErrClosed // nothing is sent by it
}

// serve returns when the connection has ended.
func (t *transport) serve(c *conn) {
	in := &inbound{conn: c, accept: make(chan net.Conn, 1)}
	one := raft.NewNetworkTransportWithConfig(&raft.NetworkTransportConfig{
		Stream: oneConn{in}, Logger: hclog.NewNullLogger(),
	})
	defer one.Close() // closes the connection as well
	in.accept <- in
	for {
		select {
		case rpc := <-one.Consumer():
			t.take(in, rpc)
		case <-c.ended:
			return
		case <-t.closed:
			return
		}
	}
}

// take lets a message through to Raft, or answers it.
func (t *transport) take(in *inbound, rpc raft.RPC) {
	if err := t.admit(in.conn, rpc); err != nil {
		t.port.log.warn(in.peer, "a message of Raft was refused", err)
		in.refused.Store(true)
		rpc.Respond(nil, err)
		return
	}
	select {
	case t.rpcs <- rpc:
	case <-in.ended:
	case <-t.closed:
	}
}

func notVoter() error {
	return fmt.Errorf("%w: this node takes no messages of Raft from it any more", ErrNotVoter)
}

// checkSender looks whether a message says that it is of the peer that sent it.
func checkSender(peer nodeID, rpc raft.RPC) error {
	with, ok := rpc.Command.(raft.WithRPCHeader)
	if !ok {
		return fmt.Errorf("%w: a message of Raft without a sender", ErrProtocol)
	}
	header := with.GetRPCHeader()
	// The address is who leads, or who is voted for, to Raft.
	if id := peer.String(); string(header.ID) != id || string(header.Addr) != id {
		return fmt.Errorf("%w: a message of Raft that says that it is of %q at %q", ErrWrongNode, header.ID, header.Addr)
	}
	return nil
}
