package main

import (
	"context"
	"time"

	"github.com/kekd/kekd/hsm"
	"github.com/kekd/kekd/unix-socket-api/kekdv1"
)

// status tells how the node is, also while it starts.
type status struct{ n *node }

// healthTimeout is how long the token may take to say that it is there.
const healthTimeout = 2 * time.Second

func (s status) Status(ctx context.Context) *kekdv1.Status {
	n := s.n
	look := n.replica().View()
	st := look.State
	m := &kekdv1.Status{
		ClusterId: n.self.ClusterID.String(), NodeId: n.self.NodeID.String(), NodeName: n.self.Node,
		Region: n.self.Region, Epoch: st.Epoch(), AppliedIndex: st.Index(),
		Fresh:       look.Serves(st.MinStaleness()) == nil,
		Version:     version(),
		ClusterTime: st.Stamp().UnixNano(),
		DataDir:     n.config.DataDir,
		Warnings:    append([]string(nil), n.warnings...),
	}
	if r, ok := st.Region(n.self.RegionID); ok {
		m.Role = r.Role.String()
	}
	if leader, ok := n.raft.Leader(); ok {
		m.Leader = leader.String()
	}
	for _, d := range disks(n.config) {
		if d.Verdict == hsm.Missing {
			m.Warnings = append(m.Warnings, d.Meaning+": "+d.Action)
		}
	}
	if n.token != nil {
		m.Hsm = s.hsm(ctx)
	}
	if !n.up.Load() {
		what := "its copy of the hierarchy to be confirmed"
		if waits := n.waits.Load(); waits != nil {
			what = *waits
		}
		m.Warnings = append(m.Warnings, "this node does not serve yet: it waits for "+what)
		return m
	}
	s.journal(m)
	if n.token != nil {
		s.keys(m)
	}
	return m
}

func (s status) journal(m *kekdv1.Status) {
	err, js := s.n.journal.Healthy(), s.n.journal.Status()
	m.AuditHealthy = err == nil
	if err != nil {
		m.Warnings = append(m.Warnings, "audit journal: "+err.Error())
	}
	if js.SpaceErr != nil {
		m.Warnings = append(m.Warnings, "audit journal: "+js.SpaceErr.Error())
	} else if js.SignErr != nil {
		m.Warnings = append(m.Warnings, "audit journal: its head is not signed: "+js.SignErr.Error())
	}
}

// keys tells what is in the token and ought not to be, or the reverse.
func (s status) keys(m *kekdv1.Status) {
	inventory := s.n.inventory()
	m.Hsm.Objects = inventory.Objects
	tellRoom(m.Hsm, s.n.room.Room())
	for _, missing := range inventory.Missing {
		m.Warnings = append(m.Warnings, "key version "+missing)
	}
	for _, refused := range inventory.Refused {
		m.Warnings = append(m.Warnings, "key version "+refused)
	}
	for _, orphan := range inventory.Orphans {
		m.Warnings = append(m.Warnings, "the token has a key object that the hierarchy does not know: "+orphan)
	}
}

func (s status) hsm(ctx context.Context) *kekdv1.HSMStatus {
	ctx, cancel := context.WithTimeout(ctx, healthTimeout)
	defer cancel()
	h := &kekdv1.HSMStatus{}
	info, err := s.n.token.Info(ctx)
	if err == nil {
		h.Label, h.Model, h.Serial = info.Label, info.Model, info.Serial
		err = s.n.token.Healthy(ctx)
	}
	if h.Healthy = err == nil; !h.Healthy {
		h.Fault = err.Error()
	}
	return h
}
