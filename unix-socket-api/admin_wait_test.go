package socketapi_test

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/kekd/kekd/hierarchy"
	"github.com/kekd/kekd/hierarchy/commandpb"
	"github.com/kekd/kekd/hierarchy/state"
	socketapi "github.com/kekd/kekd/unix-socket-api"
	"github.com/kekd/kekd/unix-socket-api/kekdv1"
)

// noMinting is asked for nothing.
type noMinting struct{ t *testing.T }

func (m noMinting) WaitServable(context.Context, hierarchy.TenantID, hierarchy.KeyID, uint32) error {
	m.t.Error("it waits for this node's token, which has no key of the version")
	return hierarchy.ErrFailedPrecondition
}

// elsewhere is a node from which the tenants' region is another one: a replica's, or a witness, which has
// no token at all.
func elsewhere(t *testing.T, role hierarchy.RegionRole) (kekdv1.AdminServiceClient, *node) {
	t.Helper()
	n := newNode(t)
	n.join(t, farNode, "far", farRegion, "us-east", role)
	api, _, _ := adminWith(t, n, func(a *socketapi.Admin) {
		a.Self = hierarchy.NodeID{ID: farNode}
		a.Room = &fullRoom{} // of a token that has nothing to do with it
		a.Minting = noMinting{t}
		if role == hierarchy.RoleWitness {
			a.Room, a.Minting = nil, nil
		}
	})
	must[*kekdv1.Tenant](t)(api.CreateTenant(soon(t), &kekdv1.CreateTenantRequest{Name: "acme"}))
	return api, n
}

// mintFar is the tenants' region, which makes what it has to.
func (n *node) mintFar(t *testing.T) (stop func()) {
	ended, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		for {
			changed := n.Changed()
			for k := range n.State().AllKeys() {
				v := k.Newest()
				if v.State != hierarchy.PreActive {
					continue
				}
				object := hierarchy.KEKObjectID(n.State().ClusterID(), k.Tenant, k.ID, v.Number, hierarchy.RegionID{ID: testRegion}, v.Attempt)
				id := hierarchy.NewID()
				n.mu.Lock()
				r := n.apply(&commandpb.Command{Format: state.Format, Id: id[:], Body: &commandpb.Command_RecordMinted{RecordMinted: &commandpb.RecordMinted{
					TenantId: k.Tenant.ID[:], KeyId: k.ID.ID[:], Version: v.Number, Attempt: v.Attempt,
					RegionId: testRegion[:], ObjectId: object[:], CheckValue: []byte{1, 2, 3},
				}}})
				n.mu.Unlock()
				if r.Err != nil {
					t.Error(r.Err)
				}
			}
			select {
			case <-changed:
			case <-ended:
				return
			}
		}
	}()
	return func() {
		close(ended)
		<-stopped
	}
}

// What is done about a tenant of another region succeeds here when it is done there.
func TestChangesOfATenantOfAnotherRegion(t *testing.T) {
	for _, role := range []hierarchy.RegionRole{hierarchy.RoleReplica, hierarchy.RoleWitness} {
		t.Run(role.String(), func(t *testing.T) {
			api, n := elsewhere(t, role)
			defer n.mintFar(t)()
			key := must[*kekdv1.Key](t)(api.CreateKey(soon(t), &kekdv1.CreateKeyRequest{Key: "acme/orders"}))
			if v := key.Versions[0]; v.State != "active" || v.Regions[0].Region != "eu-west" {
				t.Errorf("created: %v", key)
			}
			key = must[*kekdv1.Key](t)(api.RotateKey(soon(t), &kekdv1.RotateKeyRequest{Key: "acme/orders"}))
			if key.Versions[1].State != "active" {
				t.Errorf("rotated: %v", key)
			}
			must[*kekdv1.Tenant](t)(api.DisableTenant(soon(t), &kekdv1.DisableTenantRequest{Name: "acme", Reason: "leak"}))
			must[*kekdv1.Tenant](t)(api.EnableTenant(soon(t), &kekdv1.EnableTenantRequest{Name: "acme"}))
			must[*kekdv1.Key](t)(api.SetKeyVersionState(soon(t), &kekdv1.SetKeyVersionStateRequest{KeyVersion: "acme/orders@1", Action: "suspend", Reason: "x"}))
			must[*kekdv1.Key](t)(api.SetKeyVersionState(soon(t), &kekdv1.SetKeyVersionStateRequest{KeyVersion: "acme/orders@1", Action: "resume"}))
		})
	}
}

// While the other region makes nothing, the change stands, and what is lacking has a name.
func TestAnotherRegionDoesNotMint(t *testing.T) {
	for _, role := range []hierarchy.RegionRole{hierarchy.RoleReplica, hierarchy.RoleWitness} {
		t.Run(role.String(), func(t *testing.T) {
			t.Parallel() // they wait
			api, n := elsewhere(t, role)
			ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
			defer cancel()
			_, err := api.CreateKey(ctx, &kekdv1.CreateKeyRequest{Key: "acme/orders"})
			if code(err) != "OUTCOME_UNKNOWN" || !strings.Contains(err.Error(), "not minted in eu-west") {
				t.Errorf("got %v", err)
			}
			if _, ok := n.State().KeyByName(mustTenant(t, n, "acme"), "orders"); !ok {
				t.Error("it was not created")
			}
		})
	}
}
