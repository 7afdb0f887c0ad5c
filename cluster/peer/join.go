package peer

import (
	"context"
	"crypto/x509"
	"fmt"
	"net"
	"sync/atomic"

	"google.golang.org/grpc"
	"google.golang.org/grpc/connectivity"

	"github.com/kekd/kekd/hierarchy"
)

// DialJoin connects, under the name that will be its own, a node that is no member yet to a member at
// addr. It returns once the member has proved that it is of the authority that the token names, and of
// the token's cluster; the caller closes what it gets. The error is an [ErrForeignAuthority] where the
// CA file does not have that authority: then nobody was dialled. The token's secret is not used.
func DialJoin(ctx context.Context, addr string, files Files, t *JoinToken, name string) (*grpc.ClientConn, error) {
	if err := hierarchy.ValidateName(name); err != nil {
		return nil, fmt.Errorf("the node's name: %w", err)
	}
	m, err := files.load(name)
	if err != nil {
		return nil, err
	}
	roots := x509.NewCertPool()
	known := false
	for _, ca := range m.cas {
		if CAHash(ca) == t.CA {
			roots.AddCert(ca)
			known = true
		}
	}
	if !known {
		return nil, fmt.Errorf("%w: the join token is of a cluster whose authority is not in %s: it is another cluster's, or the file has to be had from the cluster", ErrForeignAuthority, files.CA)
	}
	dial := func(ctx context.Context) (net.Conn, error) {
		c, err := dialJoin(ctx, addr, m, roots, t, name)
		if err != nil {
			return nil, fmt.Errorf("the member at %s: %w", addr, err)
		}
		return c, nil
	}
	first, err := dial(ctx)
	if err != nil {
		return nil, err
	}
	var made atomic.Pointer[net.Conn]
	made.Store(&first)
	conn, err := newClient("join", func(ctx context.Context, _ string) (net.Conn, error) {
		if c := made.Swap(nil); c != nil {
			return *c, nil
		}
		return dial(ctx)
	})
	if err != nil {
		first.Close()
		return nil, err
	}
	if err := connected(ctx, conn); err != nil {
		conn.Close()
		first.Close()
		return nil, fmt.Errorf("the member at %s: %w", addr, err)
	}
	return conn, nil
}

// connected waits until gRPC has the connection, and so closes it.
func connected(ctx context.Context, conn *grpc.ClientConn) error {
	ctx, cancel := context.WithTimeout(ctx, handTime)
	defer cancel()
	conn.Connect()
	for s := conn.GetState(); s != connectivity.Ready; s = conn.GetState() {
		if !conn.WaitForStateChange(ctx, s) {
			return fmt.Errorf("it does not answer calls: %w", ctx.Err())
		}
	}
	return nil
}

func dialJoin(ctx context.Context, addr string, m *material, roots *x509.CertPool, t *JoinToken, name string) (*conn, error) {
	ctx, cancel := context.WithTimeout(ctx, helloTime)
	defer cancel()
	anyName := func(*x509.Certificate) error { return nil }
	mine := hello{what: forJoin, cluster: t.Cluster, name: name}
	c, theirs, err := greet(ctx, addr, m.clientTLS(roots, anyName), mine)
	if err != nil {
		return nil, err
	}
	if err := heedJoin(c, mine, theirs); err != nil {
		c.raw.Close()
		return nil, err
	}
	c.peer = Peer{ID: theirs.node, Name: theirs.name, Service: Join}
	c.ended = make(chan struct{})
	return c, nil
}

// heedJoin says why the member does not take who wants to join.
func heedJoin(c *conn, mine, theirs hello) error {
	if theirs.cluster != mine.cluster {
		return fmt.Errorf("%w: it is of cluster %s, the join token of %s", ErrForeignCluster, theirs.cluster, mine.cluster)
	}
	if err := checkName(c.ConnectionState().PeerCertificates[0], theirs.name); err != nil {
		return err
	}
	switch theirs.what {
	case accepted:
		return nil
	case otherName:
		return fmt.Errorf("%w: the member does not find %q in this node's certificate", ErrWrongName, mine.name)
	}
	return fmt.Errorf("%w: verdict %d to a hello that is not of its kind", ErrProtocol, theirs.what)
}
