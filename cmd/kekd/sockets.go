package main

import (
	"context"
	"errors"
	"fmt"
	"os/user"
	"strconv"
	"sync"
	"time"

	"github.com/kekd/kekd/hierarchy"
	"github.com/kekd/kekd/hierarchy/custody"
	"github.com/kekd/kekd/hierarchy/quota"
	"github.com/kekd/kekd/metrics"
	"github.com/kekd/kekd/unix-socket-api"
)

// sockets are what callers reach this node by.
type sockets struct {
	keys    *socketapi.Server
	admin   *socketapi.Server
	serving sync.WaitGroup
	failed  chan error
}

// openAdmin opens admin.sock, before there is much to be asked: status and doctor tell how the start goes,
// what is known of the hierarchy can be read, and to change it there is no journal yet.
func (n *node) openAdmin() error {
	gid, err := groupID(n.config.AdminSocket.Group)
	if err != nil {
		return fmt.Errorf("admin_socket.group: %w", err)
	}
	registry, err := metrics.New(version(), n.families()...)
	if err != nil {
		return err
	}
	if err := n.openMetrics(registry); err != nil {
		return err
	}
	a := socketapi.Admin{
		Self:      n.self.NodeID,
		Hierarchy: administered{n.raft},
		Audit:     &auditLog{journal: n.upJournal, state: n.raft.State, self: n.self.NodeID, cluster: n.self.ClusterID},
		Node:      status{n},
		Doctor:    doctor{n},
		Metrics:   registry.Handler(0),
		Admins:    socketapi.Admins{GID: gid},
		Limits:    socketapi.DefaultAdminLimits(),
		Log:       n.log,
	}
	if n.config.Peers != nil {
		a.Nodes = members{n}
	}
	if n.token != nil {
		n.room = n.newRoom()
		a.Minting, a.Room, a.Orphans = minting{n.raft, settling{n}, n.self.RegionID}, n.room, orphans{n}
	}
	if n.sockets.admin, err = socketapi.NewAdminServer(a); err != nil {
		return err
	}
	// It is closed with the other one; this is for a node that did not get that far.
	n.running.started("the admin socket", stopAdmin, func(ctx context.Context) error {
		return n.closeSockets(ctx, n.sockets.admin)
	})
	return n.open(n.sockets.admin, n.config.AdminSocket)
}

// openMetrics opens the port for scrapers, if there is to be one. That it fails later stops nobody who is served.
func (n *node) openMetrics(r *metrics.Registry) error {
	if n.config.Metrics == nil {
		return nil
	}
	port, err := r.Listen(n.config.Metrics.Listen)
	if err != nil {
		return fmt.Errorf("metrics.listen: %w", err)
	}
	n.running.started("the port for metrics", stopMetrics, port.Close)
	go func() {
		if err := <-port.Ended(); err != nil {
			n.log.Error("metrics are not served on their port any more, but on the admin socket", "listen", n.config.Metrics.Listen, "error", err)
		}
	}()
	return nil
}

// listen opens kekd.sock, last of all: who can connect is served.
func (n *node) listen() (err error) {
	limits := socketapi.DefaultLimits()
	limits.Known = func(p hierarchy.Principal) bool {
		return socketapi.Own(p) || len(n.raft.State().ServicesFor(p.UID, p.GID)) > 0
	}
	if n.sockets.keys, err = socketapi.NewKeyServer(n.custody(), limits, n.log); err != nil {
		return err
	}
	n.running.started("leadership", stopLeadership, n.handOn)
	n.running.started("the sockets", stopSockets, func(ctx context.Context) error {
		return n.closeSockets(ctx, n.sockets.keys, n.sockets.admin)
	})
	n.up.Store(true)
	n.sockets.admin.SetServing(true)
	n.sockets.keys.SetServing(n.token != nil)
	return n.open(n.sockets.keys, n.config.Socket)
}

// custody is who serves data keys: nobody, where there is no token.
func (n *node) custody() socketapi.Custody {
	if n.token == nil {
		return socketapi.WithoutToken{Self: n.self.NodeID, State: n.raft.State}
	}
	hot := custody.New(custody.Self{Cluster: n.self.ClusterID, Region: n.self.RegionID, Node: n.self.NodeID},
		n.replica(), doubting{n.token, n.reconciler.Doubt}, n.journal, quota.NewUses(n.self.NodeID, ledger{proposer{n.raft}, n.view}), n.wraps, time.Now)
	n.hot.Store(hot)
	n.running.started("the count of refusals", stopRefusals, n.recordRefusals(hot))
	return hot
}

func (n *node) open(s *socketapi.Server, c socketConfig) error {
	gid, err := groupID(c.Group)
	if err != nil {
		return fmt.Errorf("socket %s: %w", c.Path, err)
	}
	l, err := socketapi.Listen(c.Path, c.Mode.perm(), gid)
	if err != nil {
		return err
	}
	n.sockets.serving.Go(func() {
		if err := s.Serve(l); err != nil {
			n.sockets.failed <- fmt.Errorf("socket %s: %w", c.Path, err)
		}
	})
	return nil
}

// closeSockets has what is in flight answered, and takes nothing new.
func (n *node) closeSockets(ctx context.Context, servers ...*socketapi.Server) error {
	errs := make([]error, len(servers))
	var draining sync.WaitGroup
	for i, s := range servers {
		draining.Go(func() { errs[i] = s.Shutdown(ctx) })
	}
	draining.Wait()
	if err := errors.Join(errs...); err != nil {
		return err
	}
	n.sockets.serving.Wait()
	return nil
}

// groupID finds a group by name or number; none is -1.
func groupID(group string) (int, error) {
	if group == "" {
		return -1, nil
	}
	if id, err := strconv.Atoi(group); err == nil && id >= 0 {
		return id, nil
	}
	g, err := user.LookupGroup(group)
	if err != nil {
		return 0, fmt.Errorf("%w: make it with groupadd --system %s", err, group)
	}
	return strconv.Atoi(g.Gid)
}
