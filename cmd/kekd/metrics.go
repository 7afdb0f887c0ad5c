package main

import (
	"slices"
	"time"

	"github.com/kekd/kekd/metrics"
	"github.com/kekd/kekd/stats"
)

// families are all metrics of a node. docs/METRICS.md says of each what it means, and what to do about it.
//
// They are read while the node starts, too: what is not there yet has no value. The token, Raft, the view and the
// sockets' room are there before admin.sock is; the rest is once the node is up.
func (n *node) families() []metrics.Family {
	return slices.Concat(n.ownMetrics(), n.requestMetrics(), n.socketMetrics(), n.leaseMetrics(), n.raftMetrics(),
		n.hierarchyMetrics(), n.tokenMetrics(), n.roomMetrics(), n.journalMetrics())
}

// ownMetrics tell whether the node serves.
func (n *node) ownMetrics() []metrics.Family {
	return []metrics.Family{
		truth("kekd_started", "Whether this node's start is complete", n.up.Load),
		truth("kekd_fresh", "Whether the copy of the hierarchy is fresh enough to serve every tenant", func() bool {
			look := n.replica().View()
			return look.Serves(look.State.MinStaleness()) == nil
		}),
		moment("kekd_certificate_expiry_timestamp_seconds", "When this node's certificate for its peers expires", func() time.Time {
			return n.raft.CertificateExpires()
		}),
	}
}

// whenUp has families read once the node is up.
func (n *node) whenUp(families []metrics.Family) []metrics.Family {
	return when(n.up.Load, families)
}

// withToken has families read on a node that is no witness.
func (n *node) withToken(families []metrics.Family) []metrics.Family {
	return when(func() bool { return n.token != nil }, families)
}

func when(holds func() bool, families []metrics.Family) []metrics.Family {
	for i := range families {
		read := families[i].Read
		families[i].Read = func(r metrics.Reading) {
			if holds() {
				read(r)
			}
		}
	}
	return families
}

// result is a label of what was tried.
var result = metrics.Label{Name: "result", Values: []string{"done", "failed"}}

func results(r metrics.Reading, done, failed uint64) {
	r.Value(float64(done), "done")
	r.Value(float64(failed), "failed")
}

func gauge[T int | int64 | uint32 | uint64](name, help string, read func() T) metrics.Family {
	return metrics.Family{Name: name, Kind: metrics.Gauge, Help: help, Read: func(r metrics.Reading) { r.Value(float64(read())) }}
}

func truth(name, help string, read func() bool) metrics.Family {
	return metrics.Family{Name: name, Kind: metrics.Gauge, Help: help, Read: func(r metrics.Reading) { r.Truth(read()) }}
}

// moment is a gauge without a value while its time is zero.
func moment(name, help string, read func() time.Time) metrics.Family {
	return metrics.Family{Name: name, Kind: metrics.Gauge, Help: help, Read: func(r metrics.Reading) {
		if at := read(); !at.IsZero() {
			r.Value(float64(at.UnixMilli()) / 1000)
		}
	}}
}

func counter(name, help string, read func() uint64) metrics.Family {
	return metrics.Family{Name: name, Kind: metrics.Counter, Help: help, Read: func(r metrics.Reading) { r.Value(float64(read())) }}
}

func histogram(name, help string, read func() stats.Distribution) metrics.Family {
	return metrics.Family{Name: name, Kind: metrics.Histogram, Help: help, Read: func(r metrics.Reading) { r.Distribution(read()) }}
}
