package socketapi_test

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/testing/protocmp"

	"github.com/kekd/kekd/hierarchy"
	"github.com/kekd/kekd/hierarchy/state"
	socketapi "github.com/kekd/kekd/unix-socket-api"
	"github.com/kekd/kekd/unix-socket-api/kekdv1"
)

// fullRoom has room for so many keys and versions, and knows what is held of it.
type fullRoom struct {
	mu       sync.Mutex
	keys     int
	versions int
	held     int
}

func (r *fullRoom) take(left *int) (func(), error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if *left == 0 {
		return nil, fmt.Errorf("%w: of 20 objects", hierarchy.ErrCapacity)
	}
	*left--
	r.held++
	return func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.held--
	}, nil
}

func (r *fullRoom) ForKey(hierarchy.TenantID) (func(), error)     { return r.take(&r.keys) }
func (r *fullRoom) ForVersion(hierarchy.TenantID) (func(), error) { return r.take(&r.versions) }

func (r *fullRoom) Objects(s *state.State, tenant hierarchy.TenantID) (used, left uint64) {
	for range s.Keys(tenant) {
		used++
	}
	return used, 17
}

// Doctor finds two things, and notes how long it was given.
func (r *fullRoom) Doctor(ctx context.Context) []*kekdv1.Check {
	d, _ := ctx.Deadline()
	return []*kekdv1.Check{
		{Name: "latch", Status: "ok", Meaning: "works"},
		{Name: "room", Status: "missing", Meaning: "full", Action: fmt.Sprintf("within %v", time.Until(d) < 9500*time.Millisecond)},
	}
}

func adminWithRoom(t *testing.T, room *fullRoom) (kekdv1.AdminServiceClient, *node) {
	t.Helper()
	n, log := newNode(t), new(logs)
	s, err := socketapi.NewAdminServer(socketapi.Admin{
		Self: hierarchy.NodeID{ID: testNode}, Hierarchy: n, Minting: n, Audit: n, Node: n, Room: room, Doctor: room,
		Admins: socketapi.Admins{GID: -1}, Limits: socketapi.DefaultAdminLimits(), Log: slog.New(slog.NewTextHandler(log, nil)),
	})
	if err != nil {
		t.Fatal(err)
	}
	api := kekdv1.NewAdminServiceClient(raw(t, serve(t, s, log).path))
	must[*kekdv1.Tenant](t)(api.CreateTenant(soon(t), &kekdv1.CreateTenantRequest{Name: "acme"}))
	n.last()
	return api, n
}

// Without room nothing is proposed, the refusal is in the journal, and what was done before can be
// asked for again.
func TestRoom(t *testing.T) {
	room := &fullRoom{keys: 1, versions: 1}
	api, n := adminWithRoom(t, room)
	create := &kekdv1.CreateKeyRequest{Key: "acme/orders", IdempotencyId: idBytes(1)}
	rotate := &kekdv1.RotateKeyRequest{Key: "acme/orders", IdempotencyId: idBytes(2)}
	created := must[*kekdv1.Key](t)(api.CreateKey(soon(t), create))
	rotated := must[*kekdv1.Key](t)(api.RotateKey(soon(t), rotate))
	n.last()

	proposed := len(n.commands)
	for what, err := range map[string]error{
		"key-create": second(api.CreateKey(soon(t), &kekdv1.CreateKeyRequest{Key: "acme/mail"})),
		"key-rotate": second(api.RotateKey(soon(t), &kekdv1.RotateKeyRequest{Key: "acme/orders"})),
	} {
		if code(err) != "CAPACITY" {
			t.Errorf("%s without room: %v", what, err)
		}
	}
	if len(n.commands) != proposed {
		t.Errorf("%d commands were proposed without room", len(n.commands)-proposed)
	}
	refused := map[string]string{}
	for _, r := range n.last() {
		if r.Outcome == socketapi.AdminFailed {
			refused[r.Kind] = r.Code
		}
	}
	if diff := cmp.Diff(map[string]string{"key-create": "CAPACITY", "key-rotate": "CAPACITY"}, refused); diff != "" {
		t.Errorf("refusals in the journal (-want +got):\n%s", diff)
	}

	// A name that is taken is refused for that.
	if err := second(api.CreateKey(soon(t), &kekdv1.CreateKeyRequest{Key: "acme/orders"})); code(err) != "ALREADY_EXISTS" {
		t.Errorf("a key that exists, without room: %v", err)
	}
	for what, retry := range map[string]func() (*kekdv1.Key, error){
		"create": func() (*kekdv1.Key, error) { return api.CreateKey(soon(t), create) },
		"rotate": func() (*kekdv1.Key, error) { return api.RotateKey(soon(t), rotate) },
	} {
		if got, err := retry(); err != nil || got.Id != created.Id || len(got.Versions) != len(rotated.Versions) {
			t.Errorf("%s, asked for again: %v %v", what, got, err)
		}
	}
	if room.held != 0 {
		t.Errorf("room for %d objects is held by nobody", room.held)
	}
}

// Room that was held for a command that failed is given back.
func TestRoomOfAFailedCommand(t *testing.T) {
	room := &fullRoom{keys: 2, versions: 2}
	api, n := adminWithRoom(t, room)
	must[*kekdv1.Key](t)(api.CreateKey(soon(t), &kekdv1.CreateKeyRequest{Key: "acme/orders"}))
	must[*kekdv1.Tenant](t)(api.DisableTenant(soon(t), &kekdv1.DisableTenantRequest{Name: "acme", Reason: "leak"}))
	for what, err := range map[string]error{
		"create": second(api.CreateKey(soon(t), &kekdv1.CreateKeyRequest{Key: "acme/mail"})),
		"rotate": second(api.RotateKey(soon(t), &kekdv1.RotateKeyRequest{Key: "acme/orders"})),
	} {
		if code(err) != "TENANT_DISABLED" {
			t.Errorf("%s: %v", what, err)
		}
	}
	if room.keys != 0 || room.versions != 1 || room.held != 0 {
		t.Errorf("%d keys and %d versions could still be asked for, and %d are held; want 0, 1 and 0", room.keys, room.versions, room.held)
	}
	n.last()
}

func TestObjectsOfATenant(t *testing.T) {
	room := &fullRoom{keys: 1}
	api, _ := adminWithRoom(t, room)
	must[*kekdv1.Key](t)(api.CreateKey(soon(t), &kekdv1.CreateKeyRequest{Key: "acme/orders"}))
	shown := must[*kekdv1.Tenant](t)(api.GetTenant(soon(t), &kekdv1.GetTenantRequest{Name: "acme"}))
	list := must[*kekdv1.ListTenantsResponse](t)(api.ListTenants(soon(t), &kekdv1.ListTenantsRequest{}))
	for _, m := range append(list.Tenants, shown) {
		if m.ObjectsUsed != 1 || m.ObjectsLeft != 17 {
			t.Errorf("%d objects used and %d left, want 1 and 17", m.ObjectsUsed, m.ObjectsLeft)
		}
	}
}

// Doctor is given what it found, and has to be done before its caller gives up.
func TestDoctor(t *testing.T) {
	api, _ := adminWithRoom(t, &fullRoom{})
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	got := must[*kekdv1.DoctorResponse](t)(api.Doctor(ctx, &kekdv1.DoctorRequest{}))
	want := &kekdv1.DoctorResponse{Checks: []*kekdv1.Check{
		{Name: "latch", Status: "ok", Meaning: "works"},
		{Name: "room", Status: "missing", Meaning: "full", Action: "within true"},
	}}
	if diff := cmp.Diff(want, got, protocmp.Transform()); diff != "" {
		t.Errorf("checks (-want +got):\n%s", diff)
	}
}

func idBytes(b byte) []byte {
	id := make([]byte, hierarchy.IDSize)
	id[0] = b
	return id
}
