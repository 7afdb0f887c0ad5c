package peer

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"time"
)

const (
	// helloTime is how long a dialler may take from connecting to the end of its hello.
	helloTime = 2 * time.Second
	// dialTime is how long this node waits for a peer to do its part of that. Raft elects within 250 to
	// 500 ms, and dials while it does.
	dialTime = time.Second
)

// answer is the acceptor's side of the handshake. It tells of what goes wrong itself: before the other
// side learns it, and may have tried again.
func (p *Port) answer(raw net.Conn) (_ *conn, err error) {
	ctx, cancel := context.WithTimeout(p.ctx, helloTime)
	defer cancel()
	end, _ := ctx.Deadline()
	raw.SetDeadline(end)
	counted := newBounded(raw)
	t := tls.Server(counted, &tls.Config{
		MinVersion:         tls.VersionTLS13,
		GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) { return p.files.now().serverTLS(), nil },
	})
	var epoch Epoch
	defer func() {
		if err == nil {
			return
		}
		p.turnedAway(raw.RemoteAddr(), err)
		if verdict, ok := verdictOf(err); ok {
			t.Write(p.hello(verdict, epoch).marshal())
			t.CloseWrite()
		}
		hangUp(raw)
	}()
	if err := t.HandshakeContext(ctx); err != nil {
		return nil, seenByAcceptor(err)
	}
	h, err := readHello(t)
	epoch = p.epoch()
	if err != nil {
		return nil, seenByAcceptor(err)
	}
	service, err := h.checkHello()
	if err != nil {
		return nil, err
	}
	c := &conn{Conn: t, raw: raw, peer: Peer{h.node, h.name, service}, epoch: epoch}
	if err := p.judge(ctx, h, c, t.ConnectionState().PeerCertificates[0]); err != nil {
		return nil, &refusal{c.peer, err}
	}
	counted.open()
	// The port knows it before the peer may use it, and closes it with all others.
	if !p.conns.add(c) {
		return nil, ErrClosed
	}
	p.log.forget(c.peer)
	if _, err := t.Write(p.hello(accepted, c.epoch).marshal()); err != nil {
		c.sever()
		return nil, err
	}
	raw.SetDeadline(time.Time{})
	return c, nil
}

// judge says why the node that has said hello is not let in.
func (p *Port) judge(ctx context.Context, h hello, c *conn, leaf *x509.Certificate) error {
	own := p.cfg.Self
	if h.cluster != own.Cluster {
		return fmt.Errorf("%w: it is of cluster %s, this node of %s; look which addresses it was given", ErrForeignCluster, h.cluster, own.Cluster)
	}
	if err := checkName(leaf, h.name); err != nil {
		return err
	}
	if c.peer.Service == Join {
		return nil
	}
	if h.node == own.Node {
		return fmt.Errorf("%w: it says that it is this node itself: its address leads here, or its directory is a copy of this node's, which must not be used", ErrWrongNode)
	}
	if err := p.checkMember(ctx, c.peer); err != nil {
		return err
	}
	if h.epoch != c.epoch {
		return &EpochError{Own: c.epoch, Peer: h.epoch}
	}
	if c.peer.Service == Raft && !p.mayVote(ctx, h.node) {
		return fmt.Errorf("%w: it has no vote here, and so sends no messages of Raft", ErrNotVoter)
	}
	return nil
}

// checkMember looks whether a peer is a member, and has the name of it.
func (p *Port) checkMember(ctx context.Context, is Peer) error {
	m, ok := p.cfg.Directory.Member(is.ID)
	if !ok && p.ask(ctx, is.ID) {
		m, ok = p.cfg.Directory.Member(is.ID)
	}
	switch {
	case !ok:
		return fmt.Errorf("%w: this node knows no member with its ID; if it was removed, it has to join again", ErrNotMember)
	case m.Name != is.Name:
		return fmt.Errorf("%w: the member with its ID is called %q", ErrWrongName, m.Name)
	}
	return nil
}

// mayVote tells whether messages of Raft are taken from a member.
func (p *Port) mayVote(ctx context.Context, peer nodeID) bool {
	return p.cfg.Directory.Voter(peer) || p.ask(ctx, peer)
}

// refusal is why a peer that has said who it is was not let in.
type refusal struct {
	peer Peer
	why  error
}

func (r *refusal) Error() string { return fmt.Sprintf("%v: %v", r.peer, r.why) }
func (r *refusal) Unwrap() error { return r.why }

// verdicts are what a dialler is told of each refusal.
var verdicts = map[error]byte{
	ErrNotMember: unknownNode, ErrNotVoter: noVoter, ErrForeignCluster: otherCluster,
	ErrEpoch: otherEpoch, ErrWrongName: otherName, ErrWrongNode: ownNode,
}

// verdictOf is what a dialler is told of an error; false: nothing, since it is no peer.
func verdictOf(err error) (byte, bool) {
	if _, other := errors.AsType[errVersion](err); other {
		return otherVersion, true
	}
	if r, ok := errors.AsType[*refusal](err); ok {
		for sentinel, verdict := range verdicts {
			if errors.Is(r.why, sentinel) {
				return verdict, true
			}
		}
	}
	return 0, false
}

// seenByAcceptor puts what TLS failed with in words.
func seenByAcceptor(err error) error {
	if said, ok := alert(err); ok {
		return fmt.Errorf("%w: who connected does not take this node's: %s; its log says why", ErrCertificate, said)
	}
	if bad, ok := errors.AsType[*tls.CertificateVerificationError](err); ok {
		return fmt.Errorf("%w: that of who connected, for %q: %w", ErrCertificate, bad.UnverifiedCertificates[0].DNSNames, bad.Err)
	}
	return err
}

// greet dials and is the dialler's side of the handshake, up to an answer of whatever verdict.
func greet(ctx context.Context, address string, config *tls.Config, mine hello) (_ *conn, _ hello, err error) {
	raw, err := dialTCP(ctx, address, mine.what)
	if err != nil {
		return nil, hello{}, err
	}
	defer func() {
		if err != nil {
			raw.Close()
		}
	}()
	end, _ := ctx.Deadline() // zero: none
	raw.SetDeadline(end)
	cut := context.AfterFunc(ctx, func() { raw.SetDeadline(time.Unix(1, 0)) })
	defer cut()
	counted := newBounded(raw)
	t := tls.Client(counted, config)
	if err := t.HandshakeContext(ctx); err != nil {
		return nil, hello{}, seenByDialler(err)
	}
	if _, err := t.Write(mine.marshal()); err != nil {
		return nil, hello{}, seenByDialler(err)
	}
	theirs, err := readHello(t)
	if err != nil {
		return nil, hello{}, seenByDialler(err)
	}
	if err := theirs.checkAnswer(); err != nil {
		return nil, hello{}, err
	}
	if !cut() { // the deadline may be set at this moment, and stay
		return nil, hello{}, ctx.Err()
	}
	raw.SetDeadline(time.Time{})
	counted.open()
	return &conn{Conn: t, raw: raw, address: address, epoch: mine.epoch}, theirs, nil
}

// seenByDialler puts what TLS failed with in words.
func seenByDialler(err error) error {
	if said, ok := alert(err); ok {
		return fmt.Errorf("%w: the peer does not take this node's: %s; look whether both have the same CA file, and whether the certificate has expired", ErrCertificate, said)
	}
	return err
}

// heed says why the dialled member, having answered, is not one to talk to.
func (p *Port) heed(m Member, mine, theirs hello) error {
	own := p.cfg.Self
	switch {
	case theirs.cluster != own.Cluster:
		return fmt.Errorf("%w: the node there is of cluster %s, this one of %s; look whether the address is right", ErrForeignCluster, theirs.cluster, own.Cluster)
	case theirs.node == own.Node:
		return fmt.Errorf("%w: the address leads to this node itself", ErrWrongNode)
	case theirs.node != m.ID:
		return fmt.Errorf("%w: the node there says that it is %s; look whether the address is right, or whether it has joined anew and the old ID is to be removed", ErrWrongNode, theirs.node)
	case theirs.name != m.Name:
		return fmt.Errorf("%w: the node there says that it is called %q", ErrWrongName, theirs.name)
	case theirs.epoch != mine.epoch:
		return &EpochError{Own: mine.epoch, Peer: theirs.epoch}
	}
	switch theirs.what {
	case accepted:
		return nil
	case unknownNode:
		return fmt.Errorf("%w: the peer does not know this node; if it was removed, it has to join again under a new ID; if it has just joined, the peer has not heard of it yet", ErrNotMember)
	case noVoter:
		return fmt.Errorf("%w: the peer takes no messages of Raft from this node, which has no vote as far as the peer knows", ErrNotVoter)
	case otherName:
		return fmt.Errorf("%w: the peer knows this node under another name than %q, or its certificate is for another; see the peer's log", ErrWrongName, own.Name)
	case otherEpoch:
		return fmt.Errorf("%w: the peer says so, and has changed it since", ErrEpoch)
	}
	return fmt.Errorf("%w: verdict %d to a hello that is not of its kind", ErrProtocol, theirs.what)
}
