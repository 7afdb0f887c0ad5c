package socketapi

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/kekd/kekd/hierarchy"
	"github.com/kekd/kekd/hierarchy/state"
	"github.com/kekd/kekd/unix-socket-api/apierr"
	"github.com/kekd/kekd/unix-socket-api/kekdv1"
	"google.golang.org/grpc"
)

const (
	// restoreCommand is the size of the largest command of a restore, in bytes: what raft suggests.
	restoreCommand = 512 << 10
	// maxReported is how much of each kind a report names.
	maxReported = 4096
)

// RestoreSnapshot takes a snapshot in, and proposes what it closes, in as many commands as that needs.
// Each stands for itself: a restore that is broken off is made again, whole.
func (a *adminService) RestoreSnapshot(ss grpc.ClientStreamingServer[kekdv1.RestoreSnapshotRequest, kekdv1.RestoreSnapshotResponse]) error {
	ctx, cancel := a.deadline(ss.Context())
	defer cancel()
	first, err := ss.Recv()
	if err != nil {
		return broken(err)
	}
	id, err := commandID(first.IdempotencyId)
	if err != nil {
		return err
	}
	var report *kekdv1.RestoreSnapshotResponse
	err = a.recorded(ctx, id, AdminRecord{Kind: "snapshot-restore"}, func(who hierarchy.Principal, r *AdminRecord) (string, error) {
		snapshot, err := receiveSnapshot(ctx, &chunkReader{from: ss, rest: first.Data})
		if err != nil {
			return "", err
		}
		r.Detail = fmt.Sprintf("snapshot_index=%d snapshot_hash=%x", snapshot.Index(), snapshot.Hash())
		report, err = a.restore(ctx, who, id, snapshot)
		if report != nil {
			r.Detail += fmt.Sprintf(" tightened=%d left_out=%d", report.TightenedCount, report.LeftOutCount)
		}
		return "the snapshot was restored", err
	})
	if err != nil {
		return err
	}
	return ss.SendAndClose(report)
}

// receiveSnapshot does not wait longer than the call may take: the reader ends with the call.
func receiveSnapshot(ctx context.Context, r io.Reader) (*state.State, error) {
	type result struct {
		snapshot *state.State
		err      error
	}
	received := make(chan result, 1)
	go func() {
		s, err := state.Read(r)
		received <- result{s, err}
	}()
	select {
	case got := <-received:
		if got.err != nil {
			return nil, notWhole(got.err)
		}
		return got.snapshot, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// restore proposes what a snapshot closes, and reports what has become of it.
func (a *adminService) restore(ctx context.Context, who hierarchy.Principal, id hierarchy.CommandID, snapshot *state.State) (*kekdv1.RestoreSnapshotResponse, error) {
	before := a.Hierarchy.State()
	if snapshot.ClusterID() != before.ClusterID() {
		return nil, fmt.Errorf("%w: the snapshot is of cluster %s, this is cluster %s", hierarchy.ErrFailedPrecondition, snapshot.ClusterID(), before.ClusterID())
	}
	commands, err := state.RestoreCommands(snapshot, restoreCommand)
	if err != nil {
		return nil, err
	}
	var closed *state.Fence
	report := &kekdv1.RestoreSnapshotResponse{SnapshotIndex: snapshot.Index(), SnapshotTime: nanoseconds(snapshot.Stamp())}
	for i, c := range commands {
		a.address(c, who, partOf(id, i))
		result, err := a.Hierarchy.Propose(ctx, c)
		if err == nil {
			err = result.Err
		}
		if err != nil {
			if i > 0 { // a refusal would say that nothing was done
				err = apierr.WithHint(fmt.Errorf("%w: %d of %d commands of the restore took effect: %w", hierarchy.ErrOutcomeUnknown, i, len(commands), err),
					"restore the snapshot again: what it closed stays closed, and the rest follows")
			}
			return nil, err
		}
		report.Index = result.Index
		report.Records += uint64(len(c.GetRestoreRecords().GetRecords()))
		if f := a.Hierarchy.State().Awaited(c, result.Index); f != nil {
			closed = state.Together(closed, f)
		}
	}
	after := a.Hierarchy.State()
	report.Tightened, report.TightenedCount = differences(before, after)
	left := state.LeftOut(after, snapshot)
	report.LeftOut, report.LeftOutCount = left[:min(len(left), maxReported)], uint64(len(left))
	report.Fence = &kekdv1.Fence{Fenced: true, Index: report.Index}
	if closed != nil {
		report.Fence, err = a.fence(ctx, closed)
	}
	return report, err
}

// partOf is the ID of one command of a restore, the same at each try.
func partOf(id hierarchy.CommandID, part int) hierarchy.CommandID {
	sum := sha256.Sum256(binary.BigEndian.AppendUint64(append([]byte("kekd restore part v1"), id.ID[:]...), uint64(part)))
	return hierarchy.CommandID{ID: hierarchy.ID(sum[:len(id.ID)])}
}

// chunkReader reads what comes in chunks.
type chunkReader struct {
	from grpc.ClientStreamingServer[kekdv1.RestoreSnapshotRequest, kekdv1.RestoreSnapshotResponse]
	rest []byte
}

func (r *chunkReader) Read(b []byte) (int, error) {
	for len(r.rest) == 0 {
		m, err := r.from.Recv()
		if err != nil {
			return 0, err
		}
		r.rest = m.Data
	}
	n := copy(b, r.rest)
	r.rest = r.rest[n:]
	return n, nil
}

// broken is a stream that ended before it said anything.
func broken(err error) error {
	if errors.Is(err, io.EOF) {
		return fmt.Errorf("%w: no snapshot was sent", hierarchy.ErrInvalidArgument)
	}
	return err
}

// notWhole is what is wrong with a snapshot that somebody sent: his fault, or that of his file.
func notWhole(err error) error {
	if !errors.Is(err, state.ErrSnapshot) {
		return err
	}
	return apierr.WithHint(fmt.Errorf("%w: %w", hierarchy.ErrInvalidArgument, err),
		"nothing was restored: `sha256sum` of the file less its last 32 bytes has to be those; take another snapshot")
}
