package peer

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"time"

	"github.com/hashicorp/raft"

	"github.com/kekd/kekd/hierarchy"
)

type nodeID = hierarchy.NodeID

// Config is what a port needs from its surroundings.
type Config struct {
	// Listen is host:port, on all addresses of the host if that is empty.
	Listen string
	Files
	Self
	Directory Directory
	// Log is slog.Default() if nil. It never has more of a peer than its certificate and hello.
	Log *slog.Logger
	// Refused, if set, is told each time that a peer and this node, having said hello, turn each other
	// down, with one of this package's errors: when this node dials, whoever refuses; and when it is
	// dialled by a member whose epoch is not older (an [EpochError] with Superseded). It must not block.
	Refused func(id hierarchy.NodeID, err error)
	// Unknown, if set, is asked before a peer is refused because the directory does not know it as a
	// member, or as a voter: this node's own copy may be old. Its certificate is of the CA; that it is
	// this node's is proved only if the directory has it as a member. If it is no member, true makes the
	// directory be asked again. If it is no voter, true lets it send messages of Raft. An answer stands
	// for a second, and may take as long.
	Unknown func(ctx context.Context, id hierarchy.NodeID) bool
}

func (c Config) check() error {
	if c.Self.Cluster.IsZero() || c.Self.Node.IsZero() || c.Directory == nil {
		return fmt.Errorf("%w: a port for peers needs a cluster, a node and a directory", hierarchy.ErrInvalidArgument)
	}
	if err := hierarchy.ValidateName(c.Self.Name); err != nil {
		return fmt.Errorf("the node's name: %w", err)
	}
	return nil
}

// Port is the one port. Its methods may be called by several goroutines.
type Port struct {
	cfg      Config
	files    *keptFiles
	listener net.Listener
	waiting  waiting
	conns    conns
	asked    asked
	log      *onceLog

	raft    *transport
	calls   *callListener
	callers callers

	ctx     context.Context
	stop    context.CancelFunc
	running sync.WaitGroup
}

// Open listens. The error is an [ErrFiles] if certificate, key and CA are not usable, or do not fit
// together or the node's name.
func Open(cfg Config) (*Port, error) {
	if cfg.Log == nil {
		cfg.Log = slog.Default()
	}
	cfg.Log = cfg.Log.With("component", "peers")
	if err := cfg.check(); err != nil {
		return nil, err
	}
	files, err := openFiles(cfg.Files, cfg.Name, cfg.Log)
	if err != nil {
		return nil, err
	}
	listener, err := listenTCP(cfg.Listen)
	if err != nil {
		return nil, err
	}
	p := &Port{cfg: cfg, files: files, listener: listener, log: &onceLog{log: cfg.Log}}
	p.ctx, p.stop = context.WithCancel(context.Background())
	p.raft = newTransport(p)
	p.calls = newCallListener(listener.Addr())
	p.running.Go(p.accept)
	p.running.Go(p.watch)
	return p, nil
}

// Addr is where the port listens.
func (p *Port) Addr() net.Addr { return p.listener.Addr() }

// CAHash is how an invitation names the authority that this node's certificate is of.
func (p *Port) CAHash() [32]byte { return CAHash(p.files.now().ca) }

// CertificateExpires is when the node has to have another certificate.
func (p *Port) CertificateExpires() time.Time { return p.files.now().cert.Leaf.NotAfter }

// Transport is what Raft sends and receives by. A server's address is its ID, whatever Raft's
// configuration says. It can ask for pre-votes ([raft.WithPreVote]), and can be closed by itself
// ([raft.WithClose]).
func (p *Port) Transport() raft.Transport { return p.raft }

// Lead tells the transport whether this node leads, as Raft has said it last. Without it, replication to
// peers that cannot be reached is only tried more and more rarely.
func (p *Port) Lead(leads bool) { p.raft.reach.lead(leads) }

// Close ends all connections, and waits for what serves them until ctx ends.
func (p *Port) Close(ctx context.Context) error {
	p.stop()
	err := p.listener.Close()
	if errors.Is(err, net.ErrClosed) {
		err = nil
	}
	p.calls.Close()
	p.raft.Close()
	p.callers.close()
	p.waiting.closeAll()
	p.conns.close()
	done := make(chan struct{})
	go func() {
		p.running.Wait()
		close(done)
	}()
	select {
	case <-done:
		return err
	case <-ctx.Done():
		return errors.Join(err, fmt.Errorf("connections of peers are still served: %w", ctx.Err()))
	}
}

func (p *Port) accept() {
	for {
		raw, err := p.listener.Accept()
		if err != nil {
			if p.ctx.Err() != nil {
				return
			}
			p.log.warn(Peer{}, "no connections of peers can be taken", err) // no descriptors left, for one
			select {
			case <-time.After(50 * time.Millisecond):
				continue
			case <-p.ctx.Done():
				return
			}
		}
		s := p.waiting.enter(raw)
		p.running.Go(func() { p.receive(raw, s) })
	}
}

func (p *Port) receive(raw net.Conn, s *slot) {
	c, err := p.answer(raw)
	p.waiting.leave(s)
	if err != nil {
		return
	}
	if c.peer.Service == Raft {
		p.raft.serve(c)
		return
	}
	if !p.calls.hand(p.ctx, c) {
		c.sever()
	}
}

// turnedAway tells of a connection that did not come to be.
func (p *Port) turnedAway(from net.Addr, err error) {
	if r, ok := errors.AsType[*refusal](err); ok {
		p.log.warn(r.peer, "a peer that connected was refused", r.why, "from", from)
		if e, ok := errors.AsType[*EpochError](err); ok && e.Superseded() {
			p.refused(r.peer.ID, err)
		}
		return
	}
	if errors.Is(err, ErrCertificate) || errors.Is(err, ErrProtocol) {
		host, _, _ := net.SplitHostPort(from.String())
		p.log.warn(Peer{Name: host}, "a connection to the port for peers was refused", err, "from", from)
		return
	}
	// Scans and health checks of others: they are not peers, and the log is not for them.
	p.cfg.Log.Debug("a connection to the port for peers came to nothing", "from", from, "error", err)
}

func (p *Port) refused(id nodeID, err error) {
	if p.cfg.Refused != nil {
		p.cfg.Refused(id, err)
	}
}

func (p *Port) epoch() Epoch { return p.cfg.Directory.Epoch() }

// hello is what this node says of itself.
func (p *Port) hello(what byte, e Epoch) hello {
	return hello{what: what, cluster: p.cfg.Cluster, node: p.cfg.Node, epoch: e, name: p.cfg.Self.Name}
}

// dial connects to a member.
func (p *Port) dial(ctx context.Context, id nodeID, what byte) (*conn, error) {
	if p.ctx.Err() != nil {
		return nil, ErrClosed
	}
	m, ok := p.cfg.Directory.Member(id)
	if !ok {
		return nil, fmt.Errorf("%w: node %s", ErrNotMember, id)
	}
	is := Peer{id, m.Name, services[what]}
	c, err := p.dialMember(ctx, m, what)
	if err != nil {
		err = fmt.Errorf("node %q at %s: %w", m.Name, m.Address, err)
		if saysNo(err) {
			p.log.warn(is, "a peer cannot be talked to", err)
		}
		return nil, err
	}
	c.peer = is
	if !p.conns.add(c) {
		c.raw.Close()
		return nil, ErrClosed
	}
	p.log.forget(is)
	return c, nil
}

func (p *Port) dialMember(ctx context.Context, m Member, what byte) (*conn, error) {
	ctx, cancel := context.WithTimeout(ctx, dialTime)
	defer cancel()
	files, mine := p.files.now(), p.hello(what, p.epoch())
	name := func(c *x509.Certificate) error { return checkName(c, m.Name) }
	c, theirs, err := greet(ctx, m.Address, files.clientTLS(files.roots, name), mine)
	if err != nil {
		return nil, err
	}
	if err := p.heed(m, mine, theirs); err != nil {
		c.raw.Close()
		p.refused(m.ID, err)
		return nil, err
	}
	return c, nil
}
