package cluster

import (
	"context"
	"fmt"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/status"

	"github.com/kekd/kekd/cluster/peer"
	"github.com/kekd/kekd/cluster/peerpb"
	"github.com/kekd/kekd/hierarchy"
)

// Peers says how this node and the others reach each other.
type Peers struct {
	// Name is this node's, which its certificate has.
	Name string
	// Listen is the host:port of the one port for peers.
	Listen string
	// Advertise is the host:port at which the others reach it; Listen if empty.
	Advertise string
	// Files are the certificate and key of this node and the authorities of all; PEM.
	Files peer.Files
}

func (p *Peers) address() string {
	if p.Advertise != "" {
		return p.Advertise
	}
	return p.Listen
}

// network is the port and what is served on it.
type network struct {
	port   *peer.Port
	server *grpc.Server
}

// listen opens the port. Raft's part of it works at once; calls are served by [network.serve].
func (n *Node) listen(p *Peers) (*network, error) {
	port, err := peer.Open(peer.Config{
		Listen: p.Listen, Files: p.Files, Self: peer.Self{Cluster: n.id.Cluster, Node: n.id.Node, Name: p.Name},
		Directory: n.directory, Log: n.cfg.Logger, Refused: n.refusedBy,
	})
	if err != nil {
		return nil, fmt.Errorf("the port for peers: %w", err)
	}
	return &network{port: port}, nil
}

// serve answers calls until close.
func (w *network) serve(n *Node) {
	w.server = grpc.NewServer(
		grpc.Creds(w.port.ServerCredentials()),
		grpc.UnaryInterceptor(admitCall),
		grpc.MaxRecvMsgSize(2*MaxCommand),
		grpc.MaxConcurrentStreams(1024),
		grpc.ConnectionTimeout(greetTime),
	)
	peerpb.RegisterPeerServer(w.server, &peerService{n: n})
	go func() {
		// It ends when the port is closed.
		_ = w.server.Serve(w.port.Listener())
	}()
}

// greetTime is how long a peer that was let in may take until it speaks gRPC; it has nothing else to do.
const greetTime = 2 * time.Second

// close ends the port first: the server's end waits for a peer that was let in and has said nothing since.
func (w *network) close(ctx context.Context) error {
	err := w.port.Close(ctx)
	if w.server != nil {
		w.server.Stop()
	}
	return err
}

// Peer waits until the connection stands, so that who gets an error knows that nothing was sent.
func (w *network) Peer(ctx context.Context, id hierarchy.NodeID) (peerpb.PeerClient, error) {
	conn, err := w.port.Conn(id)
	if err != nil {
		return nil, err
	}
	for {
		state := conn.GetState()
		if state == connectivity.Ready {
			return peerpb.NewPeerClient(conn), nil
		}
		if state == connectivity.Shutdown {
			return nil, peer.ErrClosed
		}
		conn.Connect()
		if state == connectivity.TransientFailure {
			return nil, fmt.Errorf("node %s cannot be connected to", id)
		}
		if !conn.WaitForStateChange(ctx, state) {
			return nil, fmt.Errorf("node %s cannot be connected to: %w", id, ctx.Err())
		}
	}
}

// admitCall keeps apart who is a member and who wants to become one.
func admitCall(ctx context.Context, req any, info *grpc.UnaryServerInfo, handle grpc.UnaryHandler) (any, error) {
	from, ok := peer.FromContext(ctx)
	joins := info.FullMethod == peerpb.Peer_Join_FullMethodName
	if !ok || joins != (from.Service == peer.Join) || !joins && from.Service != peer.Calls {
		return nil, status.Error(codes.PermissionDenied, "this connection is not for that")
	}
	if _, ok := ctx.Deadline(); !ok {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, callTimeout)
		defer cancel()
	}
	return handle(ctx, req)
}

// callTimeout is for callers who set no deadline. Ours all do.
const callTimeout = 10 * time.Second

// peerService is kekd.peer.v1.Peer on the port.
type peerService struct {
	peerpb.UnimplementedPeerServer
	n *Node
}

func (p *peerService) RenewLease(ctx context.Context, m *peerpb.RenewLeaseRequest) (*peerpb.RenewLeaseResponse, error) {
	from, _ := peer.FromContext(ctx)
	return p.n.renewLease(ctx, from.ID, m)
}

func (p *peerService) Propose(ctx context.Context, m *peerpb.ProposeRequest) (*peerpb.ProposeResponse, error) {
	from, _ := peer.FromContext(ctx)
	return p.n.propose(ctx, from.ID, m), nil
}

func (p *peerService) Members(context.Context, *peerpb.MembersRequest) (*peerpb.MembersResponse, error) {
	return p.n.members(), nil
}

func (p *peerService) TransferLeadership(ctx context.Context, m *peerpb.TransferLeadershipRequest) (*peerpb.TransferLeadershipResponse, error) {
	code, text := words(p.n.transferHere(ctx, m.GetNodeId()))
	return &peerpb.TransferLeadershipResponse{ErrorCode: code, ErrorMessage: text}, nil
}

func (p *peerService) AwaitFence(ctx context.Context, m *peerpb.AwaitFenceRequest) (*peerpb.AwaitFenceResponse, error) {
	return p.n.awaitFence(ctx, m.GetIndex())
}

func (p *peerService) Join(ctx context.Context, m *peerpb.JoinRequest) (*peerpb.JoinResponse, error) {
	from, _ := peer.FromContext(ctx)
	return p.n.join(ctx, from.Name, m), nil
}

// CAHash names the authority that this node's certificate is of, for invitations; zero without peers.
func (n *Node) CAHash() (hash [32]byte) {
	if n.network != nil {
		hash = n.network.port.CAHash()
	}
	return hash
}
