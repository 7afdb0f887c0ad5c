package custody_test

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/kekd/kekd/hierarchy"
	"github.com/kekd/kekd/hierarchy/commandpb"
	"github.com/kekd/kekd/hierarchy/custody"
	"github.com/kekd/kekd/hierarchy/quota"
	"github.com/kekd/kekd/hierarchy/state"
)

var (
	farRegion = hierarchy.RegionID{ID: hierarchy.ID(id("far region"))}
	farNode   = hierarchy.NodeID{ID: hierarchy.ID(id("far node"))}
)

// far is the custody of a node whose region has no tenant.
func (w *world) far() *custody.Custody {
	w.t.Helper()
	proof := state.Proof([]byte("secret"))
	hash := state.ProofHash(proof[:])
	w.apply(&commandpb.Command{Body: &commandpb.Command_InviteNode{InviteNode: &commandpb.InviteNode{Invitation: &commandpb.Invitation{
		Id: id("invitation"), ProofHash: hash[:], Node: "us-1", Region: "us", Role: commandpb.RegionRole_REGION_ROLE_REPLICA,
		ExpiresAt: w.View().State.Stamp().Add(time.Hour).UnixNano(),
	}}}})
	w.apply(&commandpb.Command{Body: &commandpb.Command_JoinNode{JoinNode: &commandpb.JoinNode{
		InvitationId: id("invitation"), Proof: proof[:],
		Node:   &commandpb.Node{Id: farNode.ID[:], Name: "us-1", RegionId: farRegion.ID[:], Address: "us.example:7600"},
		Region: &commandpb.Region{Id: farRegion.ID[:], Name: "us", Role: commandpb.RegionRole_REGION_ROLE_REPLICA, Identity: []byte("another token's")},
	}}})
	return custody.New(custody.Self{Cluster: cluster, Region: farRegion, Node: farNode}, w, w.token, w.journal, quota.NewUses(farNode, w), w.budget, w.now)
}

// A node of another region than the tenant's says so, and which one it is; nothing is asked of its token,
// and nothing is reserved. Whoever may not use the key does not hear of it.
func TestATenantOfAnotherRegion(t *testing.T) {
	w := newWorld(t)
	envelope := w.sealed(acmeApp, "acme/orders")
	c := w.far()
	asked, taken, recorded := w.token.asked, w.budget.taken, len(w.journal.records)
	requests := []custody.Request{
		{Op: hierarchy.OpUnwrap, Envelope: envelope},
		{Op: hierarchy.OpRewrap, Envelope: envelope},
		{Op: hierarchy.OpWrap, Key: "acme/orders", Plaintext: []byte("data key")},
		{Op: hierarchy.OpDataKey, Key: "acme/orders"},
	}
	responses := make([]custody.Response, len(requests))
	c.Do(t.Context(), acmeApp, requests, responses)
	for i, r := range responses {
		if !errors.Is(r.Err, hierarchy.ErrFailedPrecondition) || !strings.Contains(r.Err.Error(), "in region eu, and this node is of us") {
			t.Errorf("%s: got %v", requests[i].Op, r.Err)
		}
		if r.Plaintext != nil || r.Envelope != nil {
			t.Errorf("%s: it handed something out", requests[i].Op)
		}
	}
	if w.token.asked != asked || w.budget.taken != taken {
		t.Errorf("the token was asked %d times, and %d seals were taken", w.token.asked-asked, w.budget.taken-taken)
	}
	if n := len(w.journal.records) - recorded; n != len(requests) {
		t.Errorf("%d of %d refusals are recorded", n, len(requests))
	}
	c.Do(t.Context(), stranger, requests, responses)
	for i, r := range responses {
		if !errors.Is(r.Err, hierarchy.ErrPermissionDenied) {
			t.Errorf("%s by a stranger: %v", requests[i].Op, r.Err)
		}
	}
}
