package main

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/spf13/cobra"

	"github.com/kekd/kekd/hierarchy"
	"github.com/kekd/kekd/unix-socket-api/client"
	"github.com/kekd/kekd/unix-socket-api/kekdv1"
)

func restoreCommand() *cobra.Command {
	var o restoreOptions
	cmd := &cobra.Command{
		Use:   "restore FILE",
		Short: "tighten the hierarchy of a running node's cluster by a snapshot of it",
		Long: `restore brings a snapshot that kekctl snapshot save has made to the node that runs under this
configuration, which closes in the whole cluster what was closed when it was made, and opens
nothing. docs/RESTORE.md has it field by field.

It may be run again, and changes nothing more then.`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return runRestore(cmd.Context(), o, args[0], cmd.OutOrStdout())
		},
	}
	cmd.Flags().StringVar(&o.config, "config", "/etc/kekd/kekd.toml", "configuration")
	cmd.Flags().StringVar(&o.id, "idempotency-id", "", "of a try whose outcome is not known, in `HEX`")
	cmd.Flags().DurationVar(&o.timeout, "timeout", 5*time.Minute, "how long it may take")
	return cmd
}

type restoreOptions struct {
	config  string
	id      string // 32 hex digits; empty: a new one
	timeout time.Duration
}

// restoreChunk is how much of a snapshot goes into one message, in bytes.
const restoreChunk = 256 << 10

func runRestore(ctx context.Context, o restoreOptions, path string, stdout io.Writer) error {
	c, err := loadConfig(o.config)
	if err != nil {
		return err
	}
	id := hierarchy.NewID()
	if o.id != "" {
		if id, err = hierarchy.ParseID(o.id); err != nil {
			return fmt.Errorf("--idempotency-id: %w", err)
		}
	}
	snapshot, err := os.Open(path)
	if err != nil {
		return err
	}
	defer snapshot.Close()
	admin, conn, err := client.DialAdmin(c.AdminSocket.Path)
	if err != nil {
		return err
	}
	defer conn.Close()
	ctx, cancel := context.WithTimeout(ctx, o.timeout)
	defer cancel()
	report, err := sendSnapshot(ctx, admin, id, snapshot)
	if e, ok := errors.AsType[*client.Error](err); ok && e.Code == hierarchy.Code(hierarchy.ErrOutcomeUnknown) {
		return fmt.Errorf("%w; run it again with --idempotency-id %s", err, hex.EncodeToString(id[:]))
	}
	if err != nil {
		return err
	}
	return printRestored(stdout, report)
}

func sendSnapshot(ctx context.Context, admin kekdv1.AdminServiceClient, id hierarchy.ID, snapshot io.Reader) (*kekdv1.RestoreSnapshotResponse, error) {
	call, err := admin.RestoreSnapshot(ctx)
	if err != nil {
		return nil, err
	}
	m := &kekdv1.RestoreSnapshotRequest{IdempotencyId: id[:]}
	for chunk := make([]byte, restoreChunk); ; {
		n, err := io.ReadFull(snapshot, chunk)
		if err != nil && err != io.EOF && err != io.ErrUnexpectedEOF {
			return nil, err
		}
		m.Data = chunk[:n]
		if sendErr := call.Send(m); sendErr != nil || err != nil {
			break // why the daemon takes no more is in its answer
		}
		m = &kekdv1.RestoreSnapshotRequest{}
	}
	return call.CloseAndRecv()
}

func printRestored(w io.Writer, r *kekdv1.RestoreSnapshotResponse) error {
	_, err := fmt.Fprintf(w, "%d records of %s, log index %d\n", r.Records, time.Unix(0, r.SnapshotTime).UTC().Format(time.RFC3339), r.SnapshotIndex)
	for _, c := range r.Tightened {
		before := c.Before
		if before == "" {
			before = "not there"
		}
		_, e := fmt.Fprintf(w, "%s: %s: %s -> %s\n", c.What, c.Field, before, c.After)
		err = errors.Join(err, e)
	}
	for _, l := range r.LeftOut {
		_, e := fmt.Fprintf(w, "left out: %s\n", l)
		err = errors.Join(err, e)
	}
	_, e := fmt.Fprintf(w, "%d changes, %d left out; no node serves from the state before it\n", r.TightenedCount, r.LeftOutCount)
	return errors.Join(err, e)
}
