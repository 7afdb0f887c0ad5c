package main

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/kekd/kekd/cluster"
	"github.com/kekd/kekd/cluster/view"
	"github.com/kekd/kekd/hierarchy"
	"github.com/kekd/kekd/hierarchy/commandpb"
	"github.com/kekd/kekd/hierarchy/custody"
	"github.com/kekd/kekd/hierarchy/reconcile"
	"github.com/kekd/kekd/hierarchy/state"
	"github.com/kekd/kekd/hsm"
	"github.com/kekd/kekd/unix-socket-api/kekdv1"
)

// Here stand the joints: what one part asks for, in terms of what another offers.

// replica is this node's copy of the hierarchy as custody sees it.
type replica struct{ *view.Replica }

func (n *node) replica() replica { return replica{n.view} }

func (r replica) View() custody.View { return custody.View(r.Look()) }

// proposer is the Raft node for those who need no more than to know that a command took effect.
type proposer struct{ *cluster.Node }

func (p proposer) Propose(ctx context.Context, c *commandpb.Command) error {
	r, err := p.Node.Propose(ctx, c)
	if err == nil {
		err = r.Err
	}
	return err
}

// ledger is the Raft node for those who count by cluster time.
type ledger struct {
	proposer
	view *view.Replica
}

func (l ledger) Now() time.Time { return l.view.Now() }

// minting tells when a key version can be served.
type minting struct {
	raft       observed
	reconciler settler
	region     hierarchy.RegionID
}

// observed is a copy of the hierarchy, and word of its changes.
type observed interface {
	State() *state.State
	Changed() <-chan struct{}
}

// settler knows what the token has; see [reconcile.Reconciler.Settled].
type settler interface {
	Settled(ctx context.Context, index uint64, v reconcile.VersionID) error
}

// WaitServable waits for this region's token, and then for the other regions of the placement, with
// which the version becomes active. Then the token is waited for again: what is active asks for more
// of it.
func (m minting) WaitServable(ctx context.Context, tenant hierarchy.TenantID, key hierarchy.KeyID, version uint32) error {
	for {
		changed := m.raft.Changed() // before the state is read, so that no change is missed
		s := m.raft.State()
		if err := m.reconciler.Settled(ctx, s.Revision(), reconcile.VersionID{Tenant: tenant, Key: key, Version: version}); err != nil {
			return err
		}
		k, ok := s.Key(tenant, key)
		if !ok {
			return fmt.Errorf("%w: the key", hierarchy.ErrNotFound)
		}
		v, ok := k.Version(version)
		if !ok {
			return fmt.Errorf("%w: version %d", hierarchy.ErrNotFound, version)
		}
		if _, here := v.Region(m.region); !here {
			return fmt.Errorf("%w: version %d has no key in this node's region", hierarchy.ErrFailedPrecondition, version)
		}
		if v.State != hierarchy.PreActive {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return fmt.Errorf("%w: version %d is not active yet%s", ctx.Err(), version, m.lacking(v))
		}
	}
}

// lacking names the regions that a version waits for.
func (m minting) lacking(v *state.Version) string {
	var names []string
	for _, r := range v.Regions {
		if !r.Minted {
			names = append(names, m.regionName(r.Region))
		}
	}
	if len(names) == 0 {
		return ""
	}
	return ", it is not minted in " + strings.Join(names, ", ")
}

func (m minting) regionName(id hierarchy.RegionID) string {
	if r, ok := m.raft.State().Region(id); ok {
		return r.Name
	}
	return id.String()
}

// status tells how the node is.
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
		Fresh:        look.Serves(st.MinStaleness()) == nil,
		Version:      version(),
		ClusterTime:  st.Stamp().UnixNano(),
		AuditHealthy: n.journal.Healthy() == nil,
		DataDir:      n.config.DataDir,
		Warnings:     append([]string(nil), n.warnings...),
	}
	if r, ok := st.Region(n.self.RegionID); ok {
		m.Role = r.Role.String()
	}
	if leader, ok := n.raft.Leader(); ok {
		m.Leader = leader.String()
	}
	m.Hsm = s.hsm(ctx)
	if err := n.journal.Healthy(); err != nil {
		m.Warnings = append(m.Warnings, "audit journal: "+err.Error())
	}
	if js := n.journal.Status(); js.SpaceErr != nil {
		m.Warnings = append(m.Warnings, "audit journal: "+js.SpaceErr.Error())
	} else if js.SignErr != nil {
		m.Warnings = append(m.Warnings, "audit journal: its head is not signed: "+js.SignErr.Error())
	}
	for _, d := range disks(n.config) {
		if d.Verdict == hsm.Missing {
			m.Warnings = append(m.Warnings, d.Meaning+": "+d.Action)
		}
	}
	inventory := n.reconciler.Inventory()
	m.Hsm.Objects = inventory.Objects
	tellRoom(m.Hsm, n.room.Room())
	for _, missing := range inventory.Missing {
		m.Warnings = append(m.Warnings, "key version "+missing)
	}
	for _, refused := range inventory.Refused {
		m.Warnings = append(m.Warnings, "key version "+refused)
	}
	for _, orphan := range inventory.Orphans {
		m.Warnings = append(m.Warnings, "the token has a key object that the hierarchy does not know: "+orphan)
	}
	return m
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
