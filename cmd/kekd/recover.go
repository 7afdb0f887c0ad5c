package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"

	"github.com/spf13/cobra"

	"github.com/kekd/kekd/cluster"
	"github.com/kekd/kekd/hierarchy/audit"
	"github.com/kekd/kekd/hsm/markfile"
)

func recoverCommand() *cobra.Command {
	var o recoverOptions
	cmd := &cobra.Command{
		Use:   "recover",
		Short: "go on with this node alone, after the majority of the voters was lost for ever",
		Long: `recover makes this node, which must not run, the only member of a new epoch of its cluster. It is
for when so many voters are lost for ever that no majority is left; while there is one, remove nodes
and let others join. All other nodes have to be stopped and stay so: they are members no longer, and
join again with an empty data directory.

What this node has in its log, and does not know to have been committed, may only close: a disable is
applied, an enable is not. What the lost nodes had and this one never heard of is lost, disables too.
Of several nodes that are left, recover the one whose position is the highest, by term and then entry.

Without --reason it changes nothing, and says what it would do.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return runRecover(cmd.Context(), o, cmd.OutOrStdout(), cmd.ErrOrStderr())
		},
	}
	cmd.Flags().StringVar(&o.config, "config", "/etc/kekd/kekd.toml", "configuration")
	withinFlag(cmd, &o.within)
	cmd.Flags().StringVar(&o.reason, "reason", "", "why, for the record; without it nothing is changed")
	cmd.Flags().BoolVar(&o.rolledBack, "rolled-back", false, "take a data directory that is older than this node's mark, and disable every tenant")
	return cmd
}

type recoverOptions struct {
	config     string
	within     string // see mustBeOurs
	reason     string // empty: only look
	rolledBack bool
}

func runRecover(ctx context.Context, o recoverOptions, stdout, stderr io.Writer) (err error) {
	c, err := loadConfig(o.config)
	if err != nil {
		return err
	}
	log, err := newLogger(stderr, c.Log)
	if err != nil {
		return err
	}
	harden(false)
	if err := c.mustBeOurs(o.config, o.within); err != nil {
		return err
	}
	n, err := loadNode(c, o.config)
	if err != nil {
		return err
	}
	lock, err := lockDataDir(c.DataDir)
	if err != nil {
		return err
	}
	defer lock.Close()
	if err := checkStore(c.DataDir, n); err != nil {
		return err
	}
	open := shareSigning
	if !c.hasToken() {
		open = openSigning
	}
	s, err := open(ctx, c, log)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.close(context.WithoutCancel(ctx))) }()
	r, err := cluster.PlanRecovery(cluster.Config{Dir: raftDir(c.DataDir), Marks: marksOf(n, s.marks), Logger: log}, o.rolledBack)
	if errors.Is(err, cluster.ErrRolledBack) || errors.Is(err, cluster.ErrUnmarked) {
		return fmt.Errorf("%w. Put the newer one back; if it is lost, --rolled-back goes on with this one, and disables every tenant", err)
	}
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, r.Close()) }()
	if err := printRecovery(stdout, r); err != nil {
		return err
	}
	if o.reason == "" {
		_, err := fmt.Fprintf(stdout, "\nnothing was changed. To do it: kekd recover --config %s --reason REASON\n", o.config)
		return err
	}
	if err := recordRecovery(ctx, c, n, s, r, o.reason); err != nil {
		return err
	}
	kept, err := r.Do(o.reason)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(stdout, "\nepoch %d has begun. What was before is kept in %s.\nStart this node with kekd serve, and let others join it\n", r.Epoch(), kept)
	return err
}

// openSigning opens what a witness has in the place of a token, and makes nothing.
func openSigning(_ context.Context, c config, _ *slog.Logger) (signing, error) {
	key, err := openFileKey(c.Witness.Dir)
	if err != nil {
		return signing{}, err
	}
	kept, err := markfile.Open(marksDir(c.Witness))
	if err != nil {
		return signing{}, err
	}
	return signWith(key, kept, func(context.Context) error { return kept.Close() })
}

func printRecovery(w io.Writer, r *cluster.Recovery) error {
	var errs []error
	say := func(format string, args ...any) {
		_, err := fmt.Fprintf(w, format+"\n", args...)
		errs = append(errs, err)
	}
	st := r.State()
	say("cluster %s, epoch %d, cluster time %s", st.ClusterID(), st.Epoch(), st.Stamp().UTC().Format("2006-01-02T15:04:05Z"))
	say("position of this node: %s", r.Position)
	say("known to have been committed: up to entry %d", r.Proved)
	for _, u := range r.Unproved {
		done := "left out, since it may not have taken effect"
		if u.Taken {
			done = "applied as far as it closes"
		}
		say("entry %d: %s: %s", u.Index, u.What, done)
	}
	for _, n := range r.Lost {
		say("node %s (%s): a member no longer", n.Name, n.ID)
	}
	if r.Blind {
		say("what was closed since is not known: every tenant is disabled")
	}
	return errors.Join(errs...)
}

// recordRecovery is durable when it returns, and before anything is done.
func recordRecovery(ctx context.Context, c config, n nodeFile, s signing, r *cluster.Recovery, reason string) error {
	options := audit.Options{Cluster: n.ClusterID, Node: n.NodeID, Signer: s.signer}
	if a, ok := r.State().Anchor(n.NodeID); ok && !r.Blind {
		options.Anchor = &audit.Checkpoint{Cluster: n.ClusterID, Node: a.Node, Sequence: a.Sequence, Head: a.Head, Signature: a.Signature}
	}
	j, err := audit.Open(auditDir(c.DataDir), options)
	if err != nil {
		return fmt.Errorf("the audit journal: %w", err)
	}
	detail := fmt.Sprintf("epoch %d begins, after entry %d; known to have been committed up to %d; members lost: %d", r.Epoch(), r.Position.LastIndex, r.Proved, len(r.Lost))
	_, err = j.Write(ctx, []audit.Record{{Kind: "recover", Epoch: r.Epoch(), Outcome: audit.OutcomeOK, Reason: reason, Detail: detail}})
	return errors.Join(err, j.Close(ctx))
}
