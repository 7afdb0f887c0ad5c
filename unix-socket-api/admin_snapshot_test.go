package socketapi_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/kekd/kekd/hierarchy"
	"github.com/kekd/kekd/hierarchy/commandpb"
	"github.com/kekd/kekd/hierarchy/state"
	socketapi "github.com/kekd/kekd/unix-socket-api"
	"github.com/kekd/kekd/unix-socket-api/kekdv1"
	"google.golang.org/protobuf/testing/protocmp"
)

func save(t *testing.T, api kekdv1.AdminServiceClient) []byte {
	t.Helper()
	chunks, err := api.SaveSnapshot(soon(t), &kekdv1.SaveSnapshotRequest{})
	if err != nil {
		t.Fatal(err)
	}
	var all []byte
	for {
		m, err := chunks.Recv()
		if errors.Is(err, io.EOF) {
			return all
		}
		if err != nil {
			t.Fatal(err)
		}
		if len(m.Data) == 0 || len(m.Data) > 512<<10 {
			t.Fatalf("a chunk of %d bytes", len(m.Data))
		}
		all = append(all, m.Data...)
	}
}

func restore(t *testing.T, api kekdv1.AdminServiceClient, id hierarchy.ID, snapshot []byte, chunk int) (*kekdv1.RestoreSnapshotResponse, error) {
	t.Helper()
	up, err := api.RestoreSnapshot(soon(t))
	if err != nil {
		t.Fatal(err)
	}
	if err := up.Send(&kekdv1.RestoreSnapshotRequest{IdempotencyId: id[:]}); err != nil {
		t.Fatal(err)
	}
	for len(snapshot) > 0 {
		n := min(chunk, len(snapshot))
		if err := up.Send(&kekdv1.RestoreSnapshotRequest{Data: snapshot[:n]}); err != nil {
			break // the answer says why
		}
		snapshot = snapshot[n:]
	}
	return up.CloseAndRecv()
}

// disabledTenants makes a hierarchy that is large.
func (n *node) disabledTenants(count int) {
	n.mu.Lock()
	defer n.mu.Unlock()
	apply := func(body func(*commandpb.Command)) {
		id := hierarchy.NewID()
		c := &commandpb.Command{Format: state.Format, Id: id[:]}
		body(c)
		n.apply(c)
	}
	for i := range count {
		tenant := hierarchy.NewID()
		apply(func(c *commandpb.Command) {
			c.Body = &commandpb.Command_CreateTenant{CreateTenant: &commandpb.CreateTenant{TenantId: tenant[:], Name: fmt.Sprintf("t%d", i), MaxStaleness: int64(time.Second)}}
		})
		apply(func(c *commandpb.Command) {
			c.Body = &commandpb.Command_SetTenantState{SetTenantState: &commandpb.SetTenantState{TenantId: tenant[:], State: commandpb.TenantState_TENANT_STATE_DISABLED, Reason: strings.Repeat("r", 256)}}
		})
	}
}

func TestSaveSnapshot(t *testing.T) {
	api, n := newAdmin(t)
	n.disabledTenants(2000) // of more than one chunk
	n.last()
	saved := save(t, api)
	if len(saved) < 256<<10 {
		t.Fatalf("%d bytes are one chunk", len(saved))
	}
	whole, sum := saved[:len(saved)-32], saved[len(saved)-32:]
	if got := sha256.Sum256(whole); !bytes.Equal(got[:], sum) {
		t.Error("the last 32 bytes are not the SHA-256 of what is before them")
	}
	s, err := state.Read(bytes.NewReader(saved))
	if err != nil || s.Hash() != n.State().Hash() {
		t.Errorf("it is not the state that there is: %v", err)
	}
	if r := n.last(); len(r) != 2 || r[0].Kind != "snapshot-save" || r[0].Outcome != socketapi.AdminRequested || r[1].Outcome != socketapi.AdminOK {
		t.Errorf("recorded: %+v", r)
	}
	n.auditErr = func(socketapi.AdminRecord) error { return errDisk }
	chunks, err := api.SaveSnapshot(soon(t), &kekdv1.SaveSnapshotRequest{})
	if err == nil {
		_, err = chunks.Recv()
	}
	if code(err) != "AUDIT_UNAVAILABLE" {
		t.Errorf("without a journal: %v", err)
	}
}

func TestRestoreSnapshot(t *testing.T) {
	api, n := newAdmin(t)
	must[*kekdv1.Key](t)(api.CreateKey(soon(t), &kekdv1.CreateKeyRequest{Key: "acme/orders"}))
	must[*kekdv1.Tenant](t)(api.CreateTenant(soon(t), &kekdv1.CreateTenantRequest{Name: "beta"}))
	must[*kekdv1.Service](t)(api.CreateService(soon(t), &kekdv1.CreateServiceRequest{Name: "saas", Uid: new(uint32)}))
	must[*kekdv1.Tenant](t)(api.DisableTenant(soon(t), &kekdv1.DisableTenantRequest{Name: "acme", Reason: "leak"}))
	must[*kekdv1.Key](t)(api.SetKeyVersionState(soon(t), &kekdv1.SetKeyVersionStateRequest{KeyVersion: "acme/orders@1", Action: "compromise", Reason: "leak"}))
	saved := save(t, api)
	index := n.State().Index()
	must[*kekdv1.Tenant](t)(api.EnableTenant(soon(t), &kekdv1.EnableTenantRequest{Name: "acme"}))
	must[*kekdv1.Tenant](t)(api.DisableTenant(soon(t), &kekdv1.DisableTenantRequest{Name: "beta", Reason: "later"}))
	must[*kekdv1.DeleteServiceResponse](t)(api.DeleteService(soon(t), &kekdv1.DeleteServiceRequest{Name: "saas"}))
	n.last()

	id := hierarchy.NewID()
	got, err := restore(t, api, id, saved, 100)
	if err != nil {
		t.Fatal(err)
	}
	if got.SnapshotIndex != index || got.Records == 0 || got.Index != n.State().Index() || got.TightenedCount != 1 || got.LeftOutCount != 1 {
		t.Errorf("got %v", got)
	}
	want := []*kekdv1.RestoreChange{{What: "tenant acme", Field: "state", Before: "enabled", After: "disabled"}}
	if diff := cmp.Diff(want, got.Tightened, protocmp.Transform()); diff != "" {
		t.Error(diff)
	}
	if len(got.LeftOut) != 1 || !strings.Contains(got.LeftOut[0], "saas") {
		t.Errorf("left out: %v", got.LeftOut)
	}
	if beta, _ := n.State().TenantByName("beta"); beta.State != hierarchy.TenantDisabled {
		t.Error("the snapshot has enabled a tenant")
	}
	r := n.last()
	if len(r) != 2 || r[0].Kind != "snapshot-restore" || r[0].Outcome != socketapi.AdminRequested || r[1].Outcome != socketapi.AdminOK || !strings.Contains(r[1].Detail, "tightened=1 left_out=1") {
		t.Errorf("recorded: %+v", r)
	}

	// Under the same ID nothing is done twice, and anew it changes nothing more.
	before := n.State().Index()
	again, err := restore(t, api, id, saved, 1<<19)
	if err != nil || again.TightenedCount != 0 {
		t.Errorf("a retry: %v, %v", again, err)
	}
	if anew, err := restore(t, api, hierarchy.NewID(), saved, 1<<19); err != nil || anew.TightenedCount != 0 {
		t.Errorf("anew: %v, %v", anew, err)
	}
	if n.State().Index() == before {
		t.Error("nothing was proposed anew")
	}
}

// What is not a whole snapshot of this cluster does nothing.
func TestRestoreOfSomethingElse(t *testing.T) {
	api, n := newAdmin(t)
	saved := save(t, api)
	var other bytes.Buffer
	stranger := state.New()
	id, cluster := hierarchy.NewID(), hierarchy.NewID()
	stranger, r := state.Apply(stranger, state.Meta{Index: 1}, &commandpb.Command{Format: state.Format, Id: id[:], Stamp: time.Now().UnixNano(),
		Body: &commandpb.Command_InitCluster{InitCluster: &commandpb.InitCluster{
			ClusterId: cluster[:],
			Region:    &commandpb.Region{Id: testRegion[:], Name: "eu-west", Role: commandpb.RegionRole_REGION_ROLE_VOTING, Identity: []byte("identity"), Kdf: "x963-sha256", MintingNode: testNode[:]},
			Node:      &commandpb.Node{Id: testNode[:], Name: "a", RegionId: testRegion[:], Voter: true},
		}}})
	if r.Err != nil {
		t.Fatal(r.Err)
	}
	if err := state.Write(&other, stranger); err != nil {
		t.Fatal(err)
	}
	before := n.State().Index()
	flipped := bytes.Clone(saved)
	flipped[len(flipped)/2] ^= 1
	for name, test := range map[string]struct {
		bytes []byte
		code  string
	}{
		"nothing":         {nil, "INVALID_ARGUMENT"},
		"cut off":         {saved[:len(saved)-1], "INVALID_ARGUMENT"},
		"a byte too many": {append(bytes.Clone(saved), 0), "INVALID_ARGUMENT"},
		"flipped":         {flipped, "INVALID_ARGUMENT"},
		"garbage":         {bytes.Repeat([]byte("x"), 1<<20), "INVALID_ARGUMENT"},
		"another cluster": {other.Bytes(), "FAILED_PRECONDITION"},
	} {
		n.last()
		if _, err := restore(t, api, hierarchy.NewID(), test.bytes, 4096); code(err) != test.code {
			t.Errorf("%s: %v", name, err)
		}
		if r := n.last(); len(r) != 2 || r[1].Outcome != socketapi.AdminFailed || r[1].Code != test.code {
			t.Errorf("%s: recorded %+v", name, r)
		}
	}
	if now := n.State().Index(); now != before {
		t.Errorf("something was proposed: the index went from %d to %d", before, now)
	}

	// Who sends a part and then nothing is not waited for longer than his call may take.
	ctx, cancel := context.WithTimeout(context.Background(), 200*time.Millisecond)
	defer cancel()
	up, err := api.RestoreSnapshot(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if err := up.Send(&kekdv1.RestoreSnapshotRequest{Data: saved[:20]}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the daemon gives up", func() bool {
		for _, r := range n.last() {
			if r.Outcome == socketapi.AdminFailed {
				return true
			}
		}
		return false
	})
}

// A restore that is broken off in the middle says so, and goes on when it is asked for again.
func TestRestoreInParts(t *testing.T) {
	api, n := newAdmin(t)
	n.disabledTenants(2000) // of several commands
	saved := save(t, api)
	calls := 0
	n.proposeErr = func(context.Context, *commandpb.Command) error {
		if calls++; calls == 2 {
			return fmt.Errorf("%w: it does not lead the cluster", hierarchy.ErrStale)
		}
		return nil
	}
	id := hierarchy.NewID()
	if _, err := restore(t, api, id, saved, 1<<18); code(err) != "OUTCOME_UNKNOWN" || !strings.Contains(err.Error(), "1 of ") {
		t.Errorf("got %v", err)
	}
	if got, err := restore(t, api, id, saved, 1<<18); err != nil || got.Records < 2000 {
		t.Errorf("again: %v, %v", got, err)
	}
}
