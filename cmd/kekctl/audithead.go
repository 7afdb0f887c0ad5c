package main

import (
	"context"
	"errors"
	"io"

	"github.com/spf13/cobra"

	"github.com/kekd/kekd/hierarchy"
	"github.com/kekd/kekd/hierarchy/audit"
	"github.com/kekd/kekd/unix-socket-api/kekdv1"
)

type headOut struct {
	Cluster   string `json:"cluster_id"`
	Node      string `json:"node"`
	Sequence  uint64 `json:"sequence"`
	Head      string `json:"head"` // hex
	Signature []byte `json:"signature"`
	Anchor    string `json:"anchor"` // all of it, as --anchor of audit verify takes it
}

func (a *app) auditHeadCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "head",
		Short: "Print the journal's last signed head, to be kept where this node cannot change it",
		Long: `Print the journal's last signed head, to be kept where this node cannot change it.

It fixes every record up to its own: a copy of the journal that lacks one of them, or has another in its
place, does not verify with --anchor. Heads are signed every few seconds while there is something new.`,
		Example: `  kekctl audit head > head.txt
  kekctl audit verify --dir ./audit-copy --public-key node1.pem --anchor head.txt`,
		Args: arguments(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			head, err := read(a, cmd, lastHead)
			if err != nil {
				return err
			}
			text, err := head.MarshalText()
			if err != nil {
				return err
			}
			out := headOut{head.Cluster.String(), head.Node.String(), head.Sequence, head.Head.String(), head.Signature, string(text)}
			return a.print(out, func(w io.Writer) { w.Write(text) })
		},
	}
}

// How many of the last records are looked through for a signed head: few at first, and in the end far
// more than the journal ever leaves unsigned.
const (
	fewRecords  = 1 << 8
	mostRecords = 1 << 16
)

func lastHead(ctx context.Context, c kekdv1.AdminServiceClient) (audit.Checkpoint, error) {
	status, err := c.GetStatus(ctx, &kekdv1.GetStatusRequest{})
	if err != nil {
		return audit.Checkpoint{}, err
	}
	cluster, err := hierarchy.ParseID(status.ClusterId)
	if err != nil {
		return audit.Checkpoint{}, badAnswer("its cluster ID is %q", status.ClusterId)
	}
	for n := uint32(fewRecords); n <= mostRecords; n *= 16 {
		head, found, err := headAmong(ctx, c, n)
		if err != nil || found {
			head.Cluster = hierarchy.ClusterID{ID: cluster} // a checkpoint's record leaves it out
			return head, err
		}
	}
	return audit.Checkpoint{}, &fault{exit: exitLocal, code: codeLocal, message: "the journal has no signed head yet",
		hint: "a head is signed every few seconds; if there is none, 'kekctl status' says what keeps the token from signing"}
}

// headAmong finds the newest signed head among the last n records.
func headAmong(ctx context.Context, c kekdv1.AdminServiceClient, n uint32) (head audit.Checkpoint, found bool, err error) {
	records, err := c.TailAudit(ctx, &kekdv1.TailAuditRequest{Last: n})
	if err != nil {
		return head, false, err
	}
	for {
		record, err := records.Recv()
		if errors.Is(err, io.EOF) {
			return head, found, nil
		}
		if err != nil {
			return head, false, err
		}
		e, err := audit.ParseLine([]byte(record.Json))
		if err != nil {
			return head, false, badAnswer("a record of the journal: %v", err)
		}
		if e.Checkpoint != nil {
			head, found = *e.Checkpoint, true
		}
	}
}
