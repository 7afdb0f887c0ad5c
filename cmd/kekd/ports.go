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
	"github.com/kekd/kekd/unix-socket-api"
)

// Here stand the joints: what one part asks for, in terms of what another offers.

// replica is this node's copy of the hierarchy as custody sees it.
type replica struct {
	*view.Replica
	raft *cluster.Node
}

func (n *node) replica() replica { return replica{n.view, n.raft} }

func (r replica) Renewed() <-chan struct{} { return r.raft.Renewed() }

func (r replica) View() custody.View { return custody.View(r.Look()) }

// administered is the Raft node as administration sees it.
type administered struct{ *cluster.Node }

func (a administered) Fence(ctx context.Context, f *state.Fence) (socketapi.Fenced, error) {
	report, err := a.Await(ctx, f)
	fenced := socketapi.Fenced{Elapsed: report.Elapsed}
	for _, n := range report.Nodes {
		fenced.Nodes = append(fenced.Nodes, socketapi.FencedNode{Node: n.Node, How: string(n.How)})
	}
	return fenced, err
}

// proposer is the Raft node for those who need no more than to know that a command took effect.
type proposer struct{ *cluster.Node }

func (p proposer) Propose(ctx context.Context, c *commandpb.Command) error {
	r, err := p.Node.Propose(ctx, c)
	if err == nil {
		err = r.Err
	}
	return err
}

// ledger is the Raft node for those who count by cluster time, or have to know how old their copy is.
type ledger struct {
	proposer
	view *view.Replica
}

func (l ledger) Now() time.Time { return l.view.Now() }

// actWithin is how old a copy may be for the token to be changed by it. A node that mints and is not heard of
// is replaced after some seconds more, so that two never act.
const actWithin = 3 * time.Second

func (l ledger) Current() bool {
	v := l.view.Look()
	return v.Fault == nil && v.Age <= actWithin
}

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

// settling is the reconciler for who waits for a key, which he does only once this node is up.
type settling struct{ n *node }

func (s settling) Settled(ctx context.Context, index uint64, v reconcile.VersionID) error {
	return s.n.reconciler.Settled(ctx, index, v)
}
