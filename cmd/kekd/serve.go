package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os/user"
	"strconv"
	"sync"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
	"github.com/spf13/cobra"

	"github.com/kekd/kekd/cluster"
	"github.com/kekd/kekd/cluster/view"
	"github.com/kekd/kekd/hierarchy"
	"github.com/kekd/kekd/hierarchy/audit"
	"github.com/kekd/kekd/hierarchy/custody"
	"github.com/kekd/kekd/hierarchy/quota"
	"github.com/kekd/kekd/hierarchy/reconcile"
	"github.com/kekd/kekd/hsm/worker"
	"github.com/kekd/kekd/unix-socket-api"
)

func serveCommand() *cobra.Command {
	var o serveOptions
	cmd := &cobra.Command{
		Use:   "serve",
		Short: "run this node",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return runServe(cmd.Context(), o, cmd.ErrOrStderr())
		},
	}
	cmd.Flags().StringVar(&o.config, "config", "/etc/kekd/kekd.toml", "configuration")
	cmd.Flags().StringVar(&o.acceptAuditLoss, "accept-audit-loss", "", "go on although the audit journal lacks records that the cluster has anchored; the `REASON` is recorded")
	withinFlag(cmd, &o.within)
	return cmd
}

type serveOptions struct {
	config          string
	within          string // see mustBeOurs
	acceptAuditLoss string
}

const startTimeout = 45 * time.Second

// node is everything that runs.
type node struct {
	config   config
	self     nodeFile
	log      *slog.Logger
	warnings []string // of the start, for status

	repairs    *repairs
	token      *worker.Pool
	journal    *audit.Journal
	raft       *cluster.Node
	view       *view.Replica
	wraps      *quota.Wraps
	reconciler *reconcile.Reconciler
	room       room
	keys       *socketapi.Server
	admin      *socketapi.Server

	running  lifecycle
	anchored chan struct{} // closed when the last checkpoint was anchored
}

func runServe(ctx context.Context, o serveOptions, stderr io.Writer) (err error) {
	c, err := loadConfig(o.config)
	if err != nil {
		return err
	}
	log, err := newLogger(stderr, c.Log)
	if err != nil {
		return err
	}
	if err := c.mustBeOurs(o.config, o.within); err != nil {
		return err
	}
	self, err := loadNode(c, o.config)
	if err != nil {
		return err
	}
	lock, err := lockDataDir(c.DataDir)
	if err != nil {
		return err
	}
	defer lock.Close() // after all else has stopped
	if err := checkStore(c.DataDir, self); err != nil {
		return err
	}
	n := &node{config: c, self: self, log: log.With("node", self.Node)}
	n.warnings = harden(c.LockMemory)
	limitMemory()
	spareP()
	for _, w := range n.warnings {
		n.log.Warn(w)
	}
	defer func() { err = errors.Join(err, n.running.stop()) }()

	starting, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	if err := n.start(starting, o); err != nil {
		return err
	}
	failed := make(chan error, 2)
	if err := n.listen(failed); err != nil {
		return err
	}
	go keepGCRoom(ctx)
	n.log.Info("serving", "cluster", self.ClusterID.String(), "id", self.NodeID.String(), "region", self.Region, "socket", c.Socket.Path)
	if _, err := daemon.SdNotify(false, daemon.SdNotifyReady); err != nil {
		n.log.Warn("systemd was not told that this node is ready", "error", err)
	}

	select {
	case <-ctx.Done():
		n.log.Info("stopping")
		return nil
	case <-n.journal.Failed():
		err = fmt.Errorf("the audit journal: %w", n.journal.Healthy())
	case err = <-n.raft.Failed():
		err = fmt.Errorf("the cluster: %w", err)
	case err = <-failed:
	}
	n.log.Error("this node has to stop", "error", err) // now: a stop takes its time
	return err
}

// start opens the parts, each on those before it.
func (n *node) start(ctx context.Context, o serveOptions) (err error) {
	n.repairs = newRepairs(n.log)
	if err := repair(ctx, n.config.HSM, n.repairs.report(n.config.HSM.SoftHSM)); err != nil {
		return err
	}
	if n.token, err = openWorkers(ctx, n.config, o.config, n.repairs, n.log); err != nil {
		return err
	}
	n.running.started("the token's workers", stopToken, n.token.Close)
	n.raft, err = cluster.Open(cluster.Config{Dir: raftDir(n.config.DataDir), Logger: n.log})
	if err != nil {
		return err
	}
	n.running.started("raft", stopRaft, n.raft.Close)
	n.view = view.New(n.raft, n.self.NodeID)
	if err := n.awaitLease(ctx); err != nil {
		return err
	}
	if err := n.checkIdentity(); err != nil {
		return err
	}
	// After Raft, which knows where the journal has to be, and anchors its last checkpoint.
	if err := n.startJournal(ctx, o); err != nil {
		return err
	}
	n.running.started("the records of repairs", stopRepairs, n.repairs.record(n.journal))
	n.wraps = quota.NewWraps(n.self.NodeID, n.self.RegionID, proposer{n.raft})
	n.running.started("the share of seals", stopWraps, n.returnWraps)

	n.reconciler = reconcile.New(reconcile.Self{Region: n.self.RegionID, Node: n.self.NodeID, MaxObjects: n.config.HSM.MaxObjects}, proposer{n.raft}, n.token, n.token, n.log)
	n.room = newRoom(n, n.reconciler)
	running, stop := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		n.reconciler.Run(running)
	}()
	n.running.started("the reconciler", stopReconciler, func(ctx context.Context) error {
		stop() // a step that is cut off is taken up at the next start
		return await(ctx, ended)
	})
	return nil
}

// returnWraps gives back what is left of the reservations, once no seal can be done any more.
func (n *node) returnWraps(ctx context.Context) error {
	if err := n.wraps.Return(ctx); err != nil {
		n.log.Warn("reserved seals were not all given back", "error", err)
	}
	return nil
}

// await returns when what closes done has happened.
func await(ctx context.Context, done <-chan struct{}) error {
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// awaitLease waits until this node's copy of the hierarchy is proved current for the first time.
func (n *node) awaitLease(ctx context.Context) error {
	for {
		renewed := n.raft.Renewed()
		if n.view.Look().Fault == nil {
			return nil
		}
		select {
		case <-renewed:
		case err := <-n.raft.Failed():
			return fmt.Errorf("the cluster: %w", err)
		case <-ctx.Done():
			return fmt.Errorf("%w: no leader has confirmed this node's copy of the hierarchy in %v", hierarchy.ErrStale, startTimeout)
		}
	}
}

// listen opens the sockets, last of all: who can connect is served.
func (n *node) listen(failed chan<- error) (err error) {
	hot := custody.New(custody.Self{Cluster: n.self.ClusterID, Region: n.self.RegionID, Node: n.self.NodeID},
		n.replica(), doubting{n.token, n.reconciler.Doubt}, n.journal, quota.NewUses(n.self.NodeID, ledger{proposer{n.raft}, n.view}), n.wraps, time.Now)
	n.running.started("the count of refusals", stopRefusals, n.recordRefusals(hot))
	limits := socketapi.DefaultLimits()
	limits.Known = func(p hierarchy.Principal) bool {
		return socketapi.Own(p) || len(n.raft.State().ServicesFor(p.UID, p.GID)) > 0
	}
	if n.keys, err = socketapi.NewKeyServer(hot, limits, n.log); err != nil {
		return err
	}
	adminGID, err := groupID(n.config.AdminSocket.Group)
	if err != nil {
		return fmt.Errorf("admin_socket.group: %w", err)
	}
	n.admin, err = socketapi.NewAdminServer(socketapi.Admin{
		Self:      n.self.NodeID,
		Hierarchy: n.raft,
		Minting:   minting{n.raft, n.reconciler, n.self.RegionID},
		Audit:     &auditLog{journal: n.journal, state: n.raft.State, self: n.self.NodeID, cluster: n.self.ClusterID},
		Node:      status{n},
		Doctor:    doctor{n},
		Room:      n.room,
		Admins:    socketapi.Admins{GID: adminGID},
		Limits:    socketapi.DefaultAdminLimits(),
		Log:       n.log,
	})
	if err != nil {
		return err
	}
	var serving sync.WaitGroup
	n.running.started("the sockets", stopSockets, func(ctx context.Context) error {
		return n.closeSockets(ctx, &serving)
	})
	for _, s := range []struct {
		server *socketapi.Server
		config socketConfig
	}{{n.admin, n.config.AdminSocket}, {n.keys, n.config.Socket}} {
		gid, err := groupID(s.config.Group)
		if err != nil {
			return fmt.Errorf("socket %s: %w", s.config.Path, err)
		}
		l, err := socketapi.Listen(s.config.Path, s.config.Mode.perm(), gid)
		if err != nil {
			return err
		}
		s.server.SetServing(true)
		serving.Go(func() {
			if err := s.server.Serve(l); err != nil {
				failed <- fmt.Errorf("socket %s: %w", s.config.Path, err)
			}
		})
	}
	return nil
}

// closeSockets has what is in flight answered, and takes nothing new.
func (n *node) closeSockets(ctx context.Context, serving *sync.WaitGroup) error {
	var errs [2]error
	var draining sync.WaitGroup
	for i, s := range []*socketapi.Server{n.keys, n.admin} {
		draining.Go(func() { errs[i] = s.Shutdown(ctx) })
	}
	draining.Wait()
	if err := errors.Join(errs[:]...); err != nil {
		return err
	}
	serving.Wait()
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
