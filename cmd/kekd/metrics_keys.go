package main

import (
	"github.com/kekd/kekd/hierarchy"
	"github.com/kekd/kekd/hierarchy/custody"
	"github.com/kekd/kekd/hsm/worker"
	"github.com/kekd/kekd/metrics"
	"github.com/kekd/kekd/stats"
	"github.com/kekd/kekd/unix-socket-api"
)

// requestMetrics tell what became of what services have asked for.
func (n *node) requestMetrics() []metrics.Family {
	var families []metrics.Family
	outcome := metrics.Label{Name: "outcome", Values: custody.Outcomes()}
	for _, op := range hierarchy.AllOps {
		families = append(families, metrics.Family{
			Name: "kekd_" + op.String() + "_total", Kind: metrics.Counter, Labels: []metrics.Label{outcome},
			Help: "Requests to " + op.String() + ", by what became of them",
			Read: func(r metrics.Reading) {
				for _, o := range outcome.Values {
					r.Value(float64(n.hot.Load().Answered(op, o)), o)
				}
			},
		})
	}
	families = append(families, counter("kekd_withheld_total", "Results that were taken back just before they were handed out", func() uint64 { return n.hot.Load().Withheld() }))
	return when(func() bool { return n.hot.Load() != nil }, families)
}

// socketMetrics tell what the callers of both sockets hold.
func (n *node) socketMetrics() []metrics.Family {
	socket := []metrics.Label{{Name: "socket", Values: []string{"keys", "admin"}}}
	of := func(kind metrics.Kind, name, help string, read func(socketapi.Load) float64) metrics.Family {
		return metrics.Family{Name: name, Kind: kind, Labels: socket, Help: help, Read: func(r metrics.Reading) {
			r.Value(read(n.sockets.keys.Load()), "keys")
			r.Value(read(n.sockets.admin.Load()), "admin")
		}}
	}
	return n.whenUp([]metrics.Family{
		of(metrics.Gauge, "kekd_socket_connections", "Open connections", func(l socketapi.Load) float64 { return float64(l.Connections) }),
		of(metrics.Gauge, "kekd_socket_calls", "Calls and streams that are not answered yet", func(l socketapi.Load) float64 { return float64(l.Calls) }),
		of(metrics.Gauge, "kekd_socket_operations", "Operations on data keys that are not answered yet", func(l socketapi.Load) float64 { return float64(l.Operations) }),
		of(metrics.Counter, "kekd_socket_connections_refused_total", "Connections that were refused for a limit of their caller's or of all", func(l socketapi.Load) float64 { return float64(l.RefusedConnections) }),
		of(metrics.Counter, "kekd_socket_calls_refused_total", "Calls that were refused unread for a limit of their caller's or of all", func(l socketapi.Load) float64 { return float64(l.RefusedCalls) }),
	})
}

// tokenMetrics tell how the token and its workers do.
func (n *node) tokenMetrics() []metrics.Family {
	operation := []metrics.Label{{Name: "operation", Values: worker.OperationNames()}}
	return n.withToken([]metrics.Family{
		truth("kekd_hsm_healthy", "Whether the token answered when it was last asked, each second", func() bool { return n.health.ok() }),
		{Name: "kekd_hsm_operation_duration_seconds", Kind: metrics.Histogram, Labels: operation, Help: "How long what was asked of the token took, its time in the queue included", Read: func(r metrics.Reading) {
			for name, d := range n.token.Durations() {
				r.Distribution(d, name)
			}
		}},
		gauge("kekd_hsm_workers", "Processes that drive the token", func() int { return n.token.Stats().Workers }),
		gauge("kekd_hsm_workers_wanted", "Processes that there ought to be", func() int { return n.token.Stats().Seats }),
		counter("kekd_hsm_worker_exits_total", "Processes that ended or were killed while they were wanted", func() uint64 { return n.token.Stats().Ended }),
		gauge("kekd_hsm_operations_queued", "Operations on data keys that wait for a process", func() int { return n.token.Stats().Queued }),
		gauge("kekd_hsm_operations_running", "Operations on data keys that a process has", func() int { return n.token.Stats().Sent }),
	})
}

// roomMetrics tell what is in the token, as its last listing has it.
func (n *node) roomMetrics() []metrics.Family {
	return n.whenUp(n.withToken([]metrics.Family{
		gauge("kekd_hsm_objects_used", "Objects that the token has, or will have when all is minted", func() uint64 { return n.room.Room().Used() }),
		gauge("kekd_hsm_objects_left", "Objects that may still be made", func() uint64 { return n.room.Room().Left() }),
		gauge("kekd_hsm_objects_reserved", "Objects left that are kept for one rotation of each key", func() uint64 {
			room := n.room.Room()
			return min(room.Rotations, room.Left())
		}),
		gauge("kekd_hsm_objects_max", "Objects that the token is to hold", func() uint64 { return n.room.Room().Max }),
		gauge("kekd_hsm_versions_missing", "Key versions whose object the token does not have, or not as it has to be", func() int { return len(n.inventory().Missing) }),
		gauge("kekd_hsm_versions_refused", "Key versions that cannot be minted, since the token's keys are not what they must be", func() int { return len(n.inventory().Refused) }),
		gauge("kekd_hsm_orphans", "Key objects of this cluster's that the hierarchy does not know", func() int { return len(n.inventory().Orphans) }),
	}))
}

// journalMetrics tell how the audit journal does.
func (n *node) journalMetrics() []metrics.Family {
	return n.whenUp([]metrics.Family{
		truth("kekd_audit_healthy", "Whether records can be written", func() bool { return n.journal.Healthy() == nil }),
		truth("kekd_audit_next_segment_ready", "Whether the journal has room for its next segment", func() bool { return n.journal.Status().SpaceErr == nil }),
		counter("kekd_audit_records_total", "Records in the journal, since it was made", func() uint64 { return n.journal.Status().Durable }),
		gauge("kekd_audit_unsigned_records", "Records after the last signed head", func() uint64 {
			s := n.journal.Status()
			return s.Durable - min(s.Durable, s.Signed)
		}),
		counter("kekd_audit_written_bytes_total", "Bytes of records that were made durable", func() uint64 { return n.journal.Written() }),
		histogram("kekd_audit_sync_duration_seconds", "How long the disk took to make records durable", func() stats.Distribution { return n.journal.Syncs() }),
	})
}
