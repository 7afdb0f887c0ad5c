package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"time"

	"github.com/kekd/kekd/hierarchy"
	"github.com/kekd/kekd/hierarchy/audit"
	"github.com/kekd/kekd/hierarchy/custody"
)

// startJournal opens the audit journal, and writes that this node has begun.
func (n *node) startJournal(ctx context.Context, o serveOptions) error {
	err := n.openJournal(ctx, o)
	if n.journal != nil {
		n.anchored = make(chan struct{})
		go n.anchor()
		n.running.started("the audit journal", stopJournal, n.closeJournal)
	}
	if err != nil {
		return err
	}
	begun := []audit.Record{{Kind: "start", Outcome: audit.OutcomeOK, Detail: "kekd " + version()}}
	if _, err = n.journal.Write(ctx, begun); err != nil {
		return err
	}
	return n.repairs.write(ctx, n.journal)
}

// upJournal is the journal for who comes in by a socket, once this node is up.
func (n *node) upJournal() (*audit.Journal, error) {
	if !n.up.Load() {
		return nil, fmt.Errorf("%w: node %s is starting: `kekctl status` says what it waits for", hierarchy.ErrAuditUnavailable, n.self.Node)
	}
	return n.journal, nil
}

// openedJournal is the same, for what other nodes bring.
func (n *node) openedJournal() (journal, error) { return n.upJournal() }

// closeJournal writes that this node has stopped. The last checkpoint is anchored while there is a
// Raft node to do it.
func (n *node) closeJournal(ctx context.Context) error {
	if _, err := n.journal.Write(ctx, []audit.Record{{Kind: "stop", Outcome: audit.OutcomeOK}}); err != nil {
		n.log.Warn("the stop is not in the audit journal", "error", err)
	}
	if err := n.journal.Close(ctx); err != nil {
		return err
	}
	if err := await(ctx, n.anchored); err != nil {
		// Where all nodes stop at once, the last ones have no leader. What is signed is in the journal.
		n.log.Warn("the audit journal's last head was not anchored", "error", err)
	}
	return nil
}

// recordRefusals writes what was counted of refusals and has no record yet, once nobody is refused
// any more.
func (n *node) recordRefusals(hot *custody.Custody) func(context.Context) error {
	return func(ctx context.Context) error {
		if err := hot.RecordRefusals(ctx); err != nil {
			n.log.Warn("the last refusals are not all in the audit journal", "error", err)
		}
		return nil
	}
}

// openJournal opens the audit journal, if it is the one that the cluster knows. One that was cut
// off, rolled back or replaced is not continued as if nothing had been: the next anchor would hide
// it. Nothing is written to it then, since it is evidence.
func (n *node) openJournal(ctx context.Context, o serveOptions) (err error) {
	dir := auditDir(n.config.DataDir)
	options := audit.Options{Cluster: n.self.ClusterID, Node: n.self.NodeID, Signer: n.signer, Anchor: n.knownHead(), Log: n.log}
	n.journal, err = audit.Open(dir, options)
	if !errors.Is(err, audit.ErrCorrupt) && !errors.Is(err, hierarchy.ErrNotFound) {
		return err
	}
	if o.acceptAuditLoss == "" {
		return fmt.Errorf("the audit journal in %s is not the one that the cluster knows: %w\n"+
			"put it back from where it is kept; or, to go on without what is lost, start once with\n"+
			"  kekd serve --config %s --accept-audit-loss REASON\n"+
			"which keeps what is there beside the new journal", dir, err, o.config)
	}
	return n.acceptLoss(ctx, dir, options, err, o.acceptAuditLoss)
}

// knownHead is the journal's head as the cluster last agreed on it; nil: on none.
func (n *node) knownHead() *audit.Checkpoint {
	a, ok := n.raft.State().Anchor(n.self.NodeID)
	if !ok {
		return nil
	}
	return &audit.Checkpoint{Cluster: n.self.ClusterID, Node: a.Node, Sequence: a.Sequence, Head: a.Head, Signature: a.Signature}
}

// acceptLoss puts a journal that cannot be continued aside and begins a new one, whose first
// record and first anchor say so.
func (n *node) acceptLoss(ctx context.Context, dir string, options audit.Options, loss error, reason string) (err error) {
	detail := "the cluster had anchored no record"
	if a := options.Anchor; a != nil {
		detail = fmt.Sprintf("the cluster had anchored record %d, hash %s", a.Sequence, a.Head)
	}
	options.Anchor = nil // of the old one
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

const anchorTimeout = 5 * time.Second

// anchor fixes the journal's signed heads in the hierarchy. One that cannot be is dropped: the
// next says more.
func (n *node) anchor() {
	defer close(n.anchored)
	for c := range n.journal.Checkpoints() {
		ctx, cancel := context.WithTimeout(context.Background(), anchorTimeout)
		if _, err := n.raft.Propose(ctx, anchorCommand(c)); err != nil {
			n.log.Warn("the audit journal's head was not anchored", "sequence", c.Sequence, "error", err)
		}
		cancel()
	}
}
