package main

import (
	"context"
	"io"

	"github.com/spf13/cobra"

	"github.com/kekd/kekd/unix-socket-api/kekdv1"
)

type orphanOut struct {
	CKAID string `json:"cka_id"` // hex
	Label string `json:"label"`
}

func newOrphansOut(list []*kekdv1.Orphan) []orphanOut {
	out := make([]orphanOut, 0, len(list))
	for _, o := range list {
		out = append(out, orphanOut{o.CkaId, o.Label})
	}
	return out
}

func (a *app) orphanCommand() *cobra.Command {
	return group("orphan", "Orphans: key objects in a node's token that the hierarchy does not know",
		a.orphanListCommand(),
		a.orphanSweepCommand(),
	)
}

func (a *app) printOrphans(list []*kekdv1.Orphan) error {
	return a.print(newOrphansOut(list), func(w io.Writer) {
		row(w, "CKA_ID", "LABEL")
		for _, o := range list {
			row(w, o.CkaId, o.Label)
		}
	})
}

func (a *app) orphanListCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "list",
		Short: "List the orphans in this node's token",
		Long: `List the key objects in this node's token that the hierarchy does not know: what a crash, or a change of the node
that mints, has left behind. They open nothing that kekd has sealed.`,
		Args: arguments(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			m, err := read(a, cmd, func(ctx context.Context, c kekdv1.AdminServiceClient) (*kekdv1.ListOrphansResponse, error) {
				return c.ListOrphans(ctx, &kekdv1.ListOrphansRequest{})
			})
			if err != nil {
				return err
			}
			return a.printOrphans(m.Orphans)
		},
	}
}

func (a *app) orphanSweepCommand() *cobra.Command {
	var yes bool
	cmd := &cobra.Command{
		Use:   "sweep --yes",
		Short: "Destroy the orphans in this node's token",
		Long: `Destroy the key objects in this node's token that the hierarchy does not know, and print which. Where a backup or
another cluster still has use for one, this is its end: see 'kekctl orphan list' first. Only the node that mints
for its region does it.`,
		Args: arguments(),
	}
	cmd.Flags().BoolVar(&yes, "yes", false, "destroy them (required)")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if !yes {
			f := usagef(cmd, "nothing was destroyed: say --yes to destroy what 'kekctl orphan list' lists")
			f.hint = "no backup brings a destroyed key back, unless it was taken before; " + f.hint
			return f
		}
		m, err := exchange(a, cmd, a.connectAdmin, func(ctx context.Context, c kekdv1.AdminServiceClient) (*kekdv1.SweepOrphansResponse, error) {
			return c.SweepOrphans(ctx, &kekdv1.SweepOrphansRequest{})
		})
		if err != nil {
			return err
		}
		return a.printOrphans(m.Destroyed)
	}
	return cmd
}
