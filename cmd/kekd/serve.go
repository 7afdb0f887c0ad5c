package main

import (
	"context"
	"crypto"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"sync/atomic"

	"github.com/coreos/go-systemd/v22/daemon"
	"github.com/spf13/cobra"

	"github.com/kekd/kekd/cluster"
	"github.com/kekd/kekd/cluster/view"
	"github.com/kekd/kekd/hierarchy/audit"
	"github.com/kekd/kekd/hierarchy/custody"
	"github.com/kekd/kekd/hierarchy/quota"
	"github.com/kekd/kekd/hierarchy/reconcile"
	"github.com/kekd/kekd/hsm"
	"github.com/kekd/kekd/hsm/worker"
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

// node is everything that runs. What start sets is not changed afterwards, and is read by others once up
// is set; those up to view are there before there is a socket.
type node struct {
	config   config
	self     nodeFile
	log      *slog.Logger
	warnings []string // of the start, for status

	repairs *repairs
	token   *worker.Pool // nil: a witness
	health  *health      // of the token; nil: a witness
	signer  crypto.Signer
	marks   hsm.Marks
	raft    *cluster.Node
	hot     atomic.Pointer[custody.Custody] // who serves, once somebody is
	view    *view.Replica
	room    room // of the token

	journal    *audit.Journal
	wraps      *quota.Wraps          // nil: a witness
	reconciler *reconcile.Reconciler // nil: a witness

	up      atomic.Bool
	waits   atomic.Pointer[string] // for what it waits until it is up
	sockets sockets
	running lifecycle

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
	n.sockets.failed = make(chan error, 2)
	n.warnings = harden(c.LockMemory)
	limitMemory()
	spareP()
	for _, w := range n.warnings {
		n.log.Warn(w)
	}
	// Why it ends comes last, where one looks first.
	defer func() { err = errors.Join(n.running.stop(), err) }()

	if err := n.start(ctx, o); err != nil {
		if errors.Is(err, errInterrupted) {
			n.log.Info("stopping")
			return nil
		}
		return err
	}
	go keepGCRoom(ctx)
	n.log.Info("serving", "cluster", self.ClusterID.String(), "id", self.NodeID.String(), "region", self.Region, "socket", c.Socket.Path)
	if _, err := daemon.SdNotify(false, daemon.SdNotifyReady+"\nSTATUS=serves"); err != nil {
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
	case err = <-n.sockets.failed:
	}
	n.log.Error("this node has to stop", "error", err) // now: a stop takes its time
	return err
}
