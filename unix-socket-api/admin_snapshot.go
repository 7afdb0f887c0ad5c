package socketapi

import (
	"bufio"
	"fmt"

	"github.com/kekd/kekd/hierarchy"
	"github.com/kekd/kekd/hierarchy/state"
	"github.com/kekd/kekd/unix-socket-api/kekdv1"
	"google.golang.org/grpc"
)

// snapshotChunk is the size of a message of a snapshot, in bytes.
const snapshotChunk = 256 << 10

// SaveSnapshot sends one state, which does not change while it is sent.
func (a *adminService) SaveSnapshot(_ *kekdv1.SaveSnapshotRequest, ss grpc.ServerStreamingServer[kekdv1.SnapshotChunk]) error {
	s := a.Hierarchy.State()
	r := AdminRecord{Kind: "snapshot-save", Detail: fmt.Sprintf("index=%d", s.Index())}
	return a.recorded(ss.Context(), hierarchy.CommandID{}, r, func(hierarchy.Principal, *AdminRecord) (string, error) {
		out := bufio.NewWriterSize(&chunkWriter{ss}, snapshotChunk)
		err := state.Write(out, s)
		if err == nil {
			err = out.Flush()
		}
		return "the snapshot was sent", err
	})
}

type chunkWriter struct {
	to grpc.ServerStreamingServer[kekdv1.SnapshotChunk]
}

// Write sends what is too large for one message in several.
func (w *chunkWriter) Write(b []byte) (n int, err error) {
	for n < len(b) {
		end := min(len(b), n+snapshotChunk)
		if err := w.to.Send(&kekdv1.SnapshotChunk{Data: b[n:end]}); err != nil {
			if ended := w.to.Context().Err(); ended != nil {
				err = ended
			}
			return n, err
		}
		n = end
	}
	return n, nil
}
