package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"

	"github.com/kekd/kekd/hierarchy"
	"github.com/kekd/kekd/unix-socket-api/kekdv1"
)

// The cluster of a fake has the node that answers, which leads, and b, which does not vote. Whoever is
// invited has joined at once.

func (h *fakeHierarchy) nodes() map[string]*kekdv1.Node {
	if h.members == nil {
		h.members = map[string]*kekdv1.Node{
			"one": {Id: h.node.String(), Name: "one", Region: "local", Role: "voting", Voter: true, Votes: proto.Bool(true), Leader: true, Mints: true, Self: true, HeardAgo: proto.Int64(0), AppliedIndex: 7, FeatureLevel: 1},
			"b":   {Id: hierarchy.NewID().String(), Name: "b", Region: "local", Role: "voting", Address: "b.example:7600", Votes: proto.Bool(false), HeardAgo: proto.Int64(int64(120 * time.Millisecond)), AppliedIndex: 7, FeatureLevel: 1},
		}
	}
	return h.members
}

func (h *fakeHierarchy) member(name string) (*kekdv1.Node, error) {
	if n, ok := h.nodes()[name]; ok {
		return n, nil
	}
	return nil, fmt.Errorf("node %s: %w", name, hierarchy.ErrNotFound)
}

const fakeSecret = "c2VjcmV0"

func (f *fakeAdmin) InviteNode(_ context.Context, r *kekdv1.InviteNodeRequest) (*kekdv1.InviteNodeResponse, error) {
	return once(f.h, r.IdempotencyId, func() (*kekdv1.InviteNodeResponse, error) {
		if f.h.nodes()[r.Name] != nil {
			return nil, fmt.Errorf("node %s: %w", r.Name, hierarchy.ErrAlreadyExists)
		}
		if r.Region != "local" && r.Role == "" {
			return nil, fmt.Errorf("%w: region %s is not there yet: say which role it is to have", hierarchy.ErrInvalidArgument, r.Region)
		}
		role, ttl := r.Role, time.Duration(r.Ttl)
		if role == "" {
			role = "voting"
		}
		if ttl == 0 {
			ttl = 15 * time.Minute
		}
		voter := role != "replica" && !r.NoVote
		f.h.nodes()[r.Name] = &kekdv1.Node{Id: hierarchy.NewID().String(), Name: r.Name, Region: r.Region, Role: role, Voter: voter}
		return &kekdv1.InviteNodeResponse{Token: "kekd-join:v1:" + fakeSecret, ExpiresAt: time.Now().Add(ttl).UnixNano(), Name: r.Name, Region: r.Region, Role: role, Voter: voter}, nil
	})
}

func (f *fakeAdmin) ListNodes(context.Context, *kekdv1.ListNodesRequest) (*kekdv1.ListNodesResponse, error) {
	f.h.mu.Lock()
	defer f.h.mu.Unlock()
	out := &kekdv1.ListNodesResponse{}
	for _, name := range slices.Sorted(maps.Keys(f.h.nodes())) {
		n := proto.CloneOf(f.h.members[name])
		if n.Votes == nil {
			out.Unknown = "no leader is known"
		}
		out.Nodes = append(out.Nodes, n)
	}
	return out, nil
}

func (f *fakeAdmin) setVoter(id []byte, name string, voter bool) (*kekdv1.Node, error) {
	return once(f.h, id, func() (*kekdv1.Node, error) {
		n, err := f.h.member(name)
		if err != nil {
			return nil, err
		}
		if n.Leader && !voter {
			return nil, fmt.Errorf("%w: %s is the last voter", hierarchy.ErrFailedPrecondition, name)
		}
		n.Voter, n.Votes = voter, &voter
		return proto.CloneOf(n), nil
	})
}

func (f *fakeAdmin) PromoteNode(_ context.Context, r *kekdv1.PromoteNodeRequest) (*kekdv1.Node, error) {
	return f.setVoter(r.IdempotencyId, r.Name, true)
}

func (f *fakeAdmin) DemoteNode(_ context.Context, r *kekdv1.DemoteNodeRequest) (*kekdv1.Node, error) {
	return f.setVoter(r.IdempotencyId, r.Name, false)
}

func (f *fakeAdmin) RemoveNode(_ context.Context, r *kekdv1.RemoveNodeRequest) (*kekdv1.RemoveNodeResponse, error) {
	return once(f.h, r.IdempotencyId, func() (*kekdv1.RemoveNodeResponse, error) {
		n, err := f.h.member(r.Name)
		if err != nil {
			return nil, err
		}
		delete(f.h.members, r.Name)
		return &kekdv1.RemoveNodeResponse{Id: n.Id}, nil
	})
}

func (f *fakeAdmin) TransferLeadership(_ context.Context, r *kekdv1.TransferLeadershipRequest) (*kekdv1.TransferLeadershipResponse, error) {
	f.h.mu.Lock()
	defer f.h.mu.Unlock()
	if r.To == "" {
		r.To = "b"
	}
	to, err := f.h.member(r.To)
	if err != nil {
		return nil, err
	}
	for _, n := range f.h.members {
		n.Leader = n == to
	}
	return &kekdv1.TransferLeadershipResponse{Leader: to.Name}, nil
}

// SaveSnapshot sends what has the form of a snapshot.
func (f *fakeAdmin) SaveSnapshot(_ *kekdv1.SaveSnapshotRequest, ss grpc.ServerStreamingServer[kekdv1.SnapshotChunk]) error {
	all := append([]byte(snapshotMagic), bytes.Repeat([]byte("record"), 1000)...)
	sum := sha256.Sum256(all)
	for chunk := range slices.Chunk(append(all, sum[:]...), 1024) {
		if err := ss.Send(&kekdv1.SnapshotChunk{Data: chunk}); err != nil {
			return err
		}
	}
	return nil
}

// spoiledStream flips a bit of each chunk.
type spoiledStream struct{ grpc.ServerStream }

func (s spoiledStream) SendMsg(m any) error {
	m.(*kekdv1.SnapshotChunk).Data[100%len(m.(*kekdv1.SnapshotChunk).Data)] ^= 1
	return s.ServerStream.SendMsg(m)
}

func (f *fakeAdmin) ListOrphans(context.Context, *kekdv1.ListOrphansRequest) (*kekdv1.ListOrphansResponse, error) {
	f.h.mu.Lock()
	defer f.h.mu.Unlock()
	return &kekdv1.ListOrphansResponse{Orphans: f.h.orphans()}, nil
}

func (h *fakeHierarchy) orphans() []*kekdv1.Orphan {
	if h.swept {
		return nil
	}
	return []*kekdv1.Orphan{{CkaId: strings.Repeat("0a", 20), Label: "kekd/acme/orders/v3/kek"}}
}

func (f *fakeAdmin) SweepOrphans(context.Context, *kekdv1.SweepOrphansRequest) (*kekdv1.SweepOrphansResponse, error) {
	f.h.mu.Lock()
	defer f.h.mu.Unlock()
	m := &kekdv1.SweepOrphansResponse{Destroyed: f.h.orphans()}
	f.h.swept = true
	return m, nil
}
