package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"os/user"
	"strconv"
	"sync"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
	"github.com/hashicorp/raft"
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
	return cmd
}

type serveOptions struct {
	config          string
	acceptAuditLoss string
}

const (
	startTimeout    = 45 * time.Second
	shutdownTimeout = 10 * time.Second
	drainTimeout    = 5 * time.Second
)

// node is everything that runs, in the order in which it was started. It is stopped the other
// way round.
type node struct {
	config   config
	self     nodeFile
	log      *slog.Logger
	warnings []string // of the start, for status

	token      *worker.Pool
	journal    *audit.Journal
	raft       *cluster.Node
	view       *view.Replica
	wraps      *quota.Wraps
	reconciler *reconcile.Reconciler
	room       room
	keys       *socketapi.Server
	admin      *socketapi.Server

	background     sync.WaitGroup // of reconciler and servers
	stopBackground context.CancelFunc
	anchored       chan struct{} // closed when the last checkpoint was anchored
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
	self, err := loadNode(c, o.config)
	if err != nil {
		return err
	}
	lock, err := lockDataDir(c.DataDir)
	if err != nil {
		return err
	}
	defer lock.Close() // after all else has stopped
	n := &node{config: c, self: self, log: log.With("node", self.Node)}
	n.warnings = harden(c.LockMemory)
	tuneGC()
	for _, w := range n.warnings {
		n.log.Warn(w)
	}
	defer func() { err = errors.Join(err, n.stop()) }()

	starting, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	if err := n.start(starting, o); err != nil {
		return err
	}
	failed := make(chan error, 2)
	if err := n.listen(failed); err != nil {
		return err
	}
	n.log.Info("serving", "cluster", self.ClusterID.String(), "id", self.NodeID.String(), "region", self.Region, "socket", c.Socket.Path)
	if _, err := daemon.SdNotify(false, daemon.SdNotifyReady); err != nil {
		n.log.Warn("systemd was not told that this node is ready", "error", err)
	}

	select {
	case <-ctx.Done():
		n.log.Info("stopping")
		return nil
	case <-n.journal.Failed():
		return fmt.Errorf("the audit journal: %w", n.journal.Healthy())
	case err = <-n.raft.Failed():
		return fmt.Errorf("the cluster: %w", err)
	case err = <-failed:
		return err
	}
}

// start opens the parts, each on those before it.
func (n *node) start(ctx context.Context, o serveOptions) (err error) {
	repaired, err := repair(ctx, n.config.HSM, n.log)
	if err != nil {
		return err
	}
	if n.token, err = openWorkers(ctx, n.config, o.config, n.log); err != nil {
		return err
	}
	_, transport := raft.NewInmemTransport(raft.ServerAddress(n.self.NodeID.String()))
	n.raft, err = cluster.Open(cluster.Config{Dir: raftDir(n.config.DataDir), Transport: transport, Logger: n.log})
	if err != nil {
		return err
	}
	n.view = view.New(n.raft, n.self.NodeID)
	if err := n.awaitLease(ctx); err != nil {
		return err
	}
	if err := n.checkIdentity(); err != nil {
		return err
	}
	// After Raft, which knows where the journal has to be.
	if err := n.openJournal(ctx, o); err != nil {
		return err
	}
	begun := []audit.Record{{Kind: "start", Outcome: audit.OutcomeOK, Detail: "kekd " + version()}}
	if !repaired.Empty() {
		begun = append(begun, audit.Record{Kind: "token-repair", Outcome: audit.OutcomeOK, Detail: repaired.String()})
	}
	if _, err := n.journal.Write(ctx, begun); err != nil {
		return err
	}
	n.anchored = make(chan struct{})
	go n.anchor()

	n.wraps = quota.NewWraps(n.self.NodeID, n.self.RegionID, proposer{n.raft})
	n.reconciler = reconcile.New(reconcile.Self{Region: n.self.RegionID, Node: n.self.NodeID, MaxObjects: n.config.HSM.MaxObjects}, proposer{n.raft}, n.token, n.token, n.log)
	n.room = newRoom(n, n.reconciler)
	background, stop := context.WithCancel(context.Background())
	n.stopBackground = stop
	n.background.Go(func() { n.reconciler.Run(background) })
	return nil
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

// openJournal opens the audit journal, if it is the one that the cluster knows. One that was cut
// off, rolled back or replaced is not continued as if nothing had been: the next anchor would hide
// it. Nothing is written to it then, since it is evidence.
func (n *node) openJournal(ctx context.Context, o serveOptions) error {
	dir := auditDir(n.config.DataDir)
	options := audit.Options{Cluster: n.self.ClusterID, Node: n.self.NodeID, Signer: n.token.Signer(), Log: n.log}
	journal, err := audit.Open(dir, options)
	if err == nil {
		if err = n.checkAnchor(journal); err == nil {
			n.journal = journal
			return nil
		}
	}
	if !errors.Is(err, audit.ErrCorrupt) && !errors.Is(err, hierarchy.ErrNotFound) {
		return err
	}
	if o.acceptAuditLoss == "" {
		return fmt.Errorf("the audit journal in %s is not the one that the cluster knows: %w\n"+
			"put it back from where it is kept; or, to go on without what is lost, start once with\n"+
			"  kekd serve --config %s --accept-audit-loss REASON\n"+
			"which keeps what is there beside the new journal", dir, err, o.config)
	}
	if journal != nil { // a last checkpoint under what is left of it takes nothing away
		if err := journal.Close(ctx); err != nil {
			return err
		}
	}
	return n.acceptLoss(ctx, dir, options, err, o.acceptAuditLoss)
}

// checkAnchor holds a journal against its head as the cluster last agreed on it.
func (n *node) checkAnchor(j *audit.Journal) error {
	a, ok := n.raft.State().Anchor(n.self.NodeID)
	if !ok {
		return nil
	}
	return j.CheckAnchor(audit.Checkpoint{Cluster: n.self.ClusterID, Node: a.Node, Sequence: a.Sequence, Head: a.Head, Signature: a.Signature})
}

// acceptLoss puts a journal that cannot be continued aside and begins a new one, whose first
// record and first anchor say so.
func (n *node) acceptLoss(ctx context.Context, dir string, options audit.Options, loss error, reason string) (err error) {
	aside := fmt.Sprintf("%s.lost-%s", dir, time.Now().UTC().Format("20060102T150405Z"))
	if err := os.Rename(dir, aside); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := audit.Create(dir, options); err != nil {
		return err
	}
	if n.journal, err = audit.Open(dir, options); err != nil {
		return err
	}
	detail := "the cluster had anchored no record"
	if a, ok := n.raft.State().Anchor(n.self.NodeID); ok {
		detail = fmt.Sprintf("the cluster had anchored record %d, hash %x", a.Sequence, a.Head)
	}
	head, err := n.journal.Seal(ctx, audit.Record{Kind: "audit-loss", Outcome: audit.OutcomeOK, Reason: reason, Detail: detail})
	if err != nil {
		return err
	}
	command := anchorCommand(head)
	command.GetAnchorAudit().AcceptedLoss = reason
	if _, err := n.raft.Propose(ctx, command); err != nil {
		return fmt.Errorf("anchor the new audit journal: %w", err)
	}
	n.log.Error("the loss of audit records was accepted", "loss", loss, "reason", reason, "kept", aside)
	return nil
}

// anchor fixes the journal's signed heads in the hierarchy. One that cannot be is dropped: the
// next says more.
func (n *node) anchor() {
	defer close(n.anchored)
	for c := range n.journal.Checkpoints() {
		ctx, cancel := context.WithTimeout(context.Background(), drainTimeout)
		if _, err := n.raft.Propose(ctx, anchorCommand(c)); err != nil {
			n.log.Warn("the audit journal's head was not anchored", "sequence", c.Sequence, "error", err)
		}
		cancel()
	}
}

// listen opens the sockets, last of all: who can connect is served.
func (n *node) listen(failed chan<- error) (err error) {
	hot := custody.New(custody.Self{Cluster: n.self.ClusterID, Region: n.self.RegionID, Node: n.self.NodeID},
		n.replica(), n.token, n.journal, quota.NewUses(n.self.NodeID, ledger{proposer{n.raft}, n.view}), n.wraps, time.Now)
	if n.keys, err = socketapi.NewKeyServer(hot, socketapi.DefaultLimits(), n.log); err != nil {
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
		n.background.Go(func() {
			if err := s.server.Serve(l); err != nil {
				failed <- fmt.Errorf("socket %s: %w", s.config.Path, err)
			}
		})
	}
	return nil
}

// stop takes everything down in an order in which each part still has what it needs.
func (n *node) stop() error {
	ctx, cancel := context.WithTimeout(context.Background(), shutdownTimeout)
	defer cancel()
	var errs []error

	// Callers first: what is in flight is answered, nothing new is taken.
	var draining sync.WaitGroup
	for _, s := range []*socketapi.Server{n.keys, n.admin} {
		if s != nil {
			draining.Go(func() {
				ctx, cancel := context.WithTimeout(ctx, drainTimeout)
				defer cancel()
				s.Shutdown(ctx)
			})
		}
	}
	draining.Wait()
	// Then what acts by itself. A step of the reconciler that is cut off is taken up at the next
	// start.
	if n.stopBackground != nil {
		n.stopBackground()
		n.background.Wait()
	}
	// No seal can be done any more: what is left of the reservations goes back.
	if n.wraps != nil {
		returning, cancel := context.WithTimeout(ctx, drainTimeout)
		if err := n.wraps.Return(returning); err != nil {
			n.log.Warn("reserved seals were not all given back", "error", err)
		}
		cancel()
	}
	// The journal's last checkpoint is anchored while there is a Raft node to do it.
	if n.journal != nil {
		if _, err := n.journal.Write(ctx, []audit.Record{{Kind: "stop", Outcome: audit.OutcomeOK}}); err != nil {
			n.log.Warn("the stop is not in the audit journal", "error", err)
		}
		errs = append(errs, n.journal.Close(ctx))
		if n.anchored != nil {
			select {
			case <-n.anchored:
			case <-ctx.Done():
			}
		}
	}
	if n.raft != nil {
		errs = append(errs, n.raft.Close(ctx))
	}
	// The token last: the journal's signatures came from it.
	if n.token != nil {
		errs = append(errs, n.token.Close(ctx))
	}
	return errors.Join(errs...)
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
