package main

import (
	"fmt"
	"time"

	"github.com/kekd/kekd/hierarchy"
	"github.com/kekd/kekd/metrics"
	"github.com/kekd/kekd/stats"
)

// leaseMetrics tell how old this node's copy of the hierarchy may be, and how long it takes to close something everywhere.
func (n *node) leaseMetrics() []metrics.Family {
	return []metrics.Family{
		{Name: "kekd_lease_age_seconds", Kind: metrics.Gauge, Help: "Time since the lease was asked for that covers this node's copy of the hierarchy", Read: func(r metrics.Reading) {
			if v := n.view.Look(); v.Fault == nil {
				r.Value(v.Age.Seconds())
			}
		}},
		{Name: "kekd_min_staleness_seconds", Kind: metrics.Gauge, Help: "Smallest max_staleness of a living tenant: up to this age of the lease every tenant is served", Read: func(r metrics.Reading) {
			r.Value(n.raft.State().MinStaleness().Seconds())
		}},
		{Name: "kekd_lease_renewals_total", Kind: metrics.Counter, Labels: []metrics.Label{result}, Help: "Tries to renew the lease", Read: func(r metrics.Reading) {
			s := n.raft.Stats()
			results(r, s.Renewals, s.RenewalsFailed)
		}},
		histogram("kekd_fence_seconds", "How long closings that this node was asked for took to be effective on every node", func() stats.Distribution { return n.raft.Stats().Fences }),
		counter("kekd_fences_unfinished_total", "Closings that this node was asked for and could not confirm to be effective on every node", func() uint64 { return n.raft.Stats().FencesUnfinished }),
		gauge("kekd_fences_pending", "Closings that are not recorded to be effective on every node", func() (pending int) {
			for range n.raft.State().Fences() {
				pending++
			}
			return pending
		}),
	}
}

// raftMetrics tell how the replication goes.
func (n *node) raftMetrics() []metrics.Family {
	return []metrics.Family{
		truth("kekd_leader", "Whether this node leads", func() bool { return n.raft.IsLeader() }),
		truth("kekd_leader_known", "Whether this node knows who leads", func() bool { _, known := n.raft.Leader(); return known }),
		counter("kekd_leader_changes_total", "Times that this node has seen another node begin to lead", func() uint64 { return n.raft.Stats().LeaderChanges }),
		gauge("kekd_term", "Raft's term", func() uint64 { return n.raft.Stats().Term }),
		gauge("kekd_log_last_index", "Index of the last entry of the log", func() uint64 { return n.raft.Stats().Last }),
		gauge("kekd_log_commit_index", "Index up to which this node knows the log to be committed", func() uint64 { return n.raft.Stats().Commit }),
		gauge("kekd_applied_index", "Index of the last command that this node's copy of the hierarchy has", func() uint64 { return n.raft.Stats().Applied }),
		gauge("kekd_snapshot_index", "Index of the last snapshot, 0 if there is none", func() uint64 { return n.raft.Stats().Snapshot }),
		moment("kekd_snapshot_timestamp_seconds", "When the last snapshot was written", func() time.Time { return n.raft.Stats().SnapshotAt }),
		{Name: "kekd_commands_forwarded_total", Kind: metrics.Counter, Labels: []metrics.Label{result}, Help: "Commands that the leader was asked to propose for this node", Read: func(r metrics.Reading) {
			s := n.raft.Stats()
			results(r, s.Forwarded, s.ForwardErrors)
		}},
		histogram("kekd_mark_duration_seconds", "How long it took to keep this node's mark outside of its disk", func() stats.Distribution { return n.raft.Stats().Marks }),
	}
}

// What a label of states may say.
var (
	tenantStates  = namesOf(hierarchy.TenantEnabled, hierarchy.TenantDestroyed)
	versionStates = namesOf(hierarchy.PreActive, hierarchy.Destroyed)
)

func namesOf[S interface {
	~uint8
	fmt.Stringer
}](first, last S) (names []string) {
	for s := first; s <= last; s++ {
		names = append(names, s.String())
	}
	return names
}

// hierarchyMetrics count what there is, as this node's copy has it. A scrape goes through all of it: some
// milliseconds for ten thousand tenants.
func (n *node) hierarchyMetrics() []metrics.Family {
	return []metrics.Family{
		{Name: "kekd_tenants", Kind: metrics.Gauge, Labels: []metrics.Label{{Name: "tenant_state", Values: tenantStates}}, Help: "Tenants", Read: func(r metrics.Reading) {
			count := map[string]int{}
			for t := range n.raft.State().Tenants() {
				count[t.State.String()]++
			}
			valueEach(r, tenantStates, count)
		}},
		{Name: "kekd_key_versions", Kind: metrics.Gauge, Labels: []metrics.Label{{Name: "version_state", Values: versionStates}}, Help: "Versions of all keys", Read: func(r metrics.Reading) {
			count := map[string]int{}
			for k := range n.raft.State().AllKeys() {
				for _, v := range k.Versions {
					count[v.State.String()]++
				}
			}
			valueEach(r, versionStates, count)
		}},
		{Name: "kekd_members", Kind: metrics.Gauge, Labels: []metrics.Label{{Name: "votes", Values: []string{"yes", "no"}}}, Help: "Nodes of the cluster, by whether they are to vote", Read: func(r metrics.Reading) {
			count := map[string]int{}
			for m := range n.raft.State().Nodes() {
				if m.Voter {
					count["yes"]++
				} else {
					count["no"]++
				}
			}
			valueEach(r, []string{"yes", "no"}, count)
		}},
		gauge("kekd_epoch", "Epoch of the cluster", func() uint64 { return n.raft.State().Epoch() }),
		gauge("kekd_feature_level", "Feature level of the cluster", func() uint32 { return n.raft.State().FeatureLevel() }),
		{Name: "kekd_cluster_time_offset_seconds", Kind: metrics.Gauge, Help: "Cluster time less this node's wall clock", Read: func(r metrics.Reading) {
			if n.raft.State().Initialised() {
				r.Value(time.Until(n.view.Now()).Seconds())
			}
		}},
	}
}

func valueEach(r metrics.Reading, names []string, count map[string]int) {
	for _, name := range names {
		r.Value(float64(count[name]), name)
	}
}
