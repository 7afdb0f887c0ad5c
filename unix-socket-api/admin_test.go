package socketapi_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/kekd/kekd/hierarchy"
	"github.com/kekd/kekd/hierarchy/commandpb"
	socketapi "github.com/kekd/kekd/unix-socket-api"
	"github.com/kekd/kekd/unix-socket-api/client"
	"github.com/kekd/kekd/unix-socket-api/kekdv1"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/testing/protocmp"
)

// newAdmin has a tenant acme.
func newAdmin(t *testing.T) (kekdv1.AdminServiceClient, *node) {
	t.Helper()
	n := newNode(t)
	api, _, _ := adminOf(t, n, socketapi.Admins{GID: -1})
	must[*kekdv1.Tenant](t)(api.CreateTenant(soon(t), &kekdv1.CreateTenantRequest{Name: "acme"}))
	n.last()
	return api, n
}

func TestTenants(t *testing.T) {
	api, n := newAdmin(t)
	got := must[*kekdv1.Tenant](t)(api.CreateTenant(soon(t), &kekdv1.CreateTenantRequest{Name: "beta", MaxStaleness: int64(time.Minute)}))
	want := &kekdv1.Tenant{Name: "beta", State: "enabled", MaxStaleness: int64(time.Minute), Placement: []string{"eu-west"}}
	forget := protocmp.IgnoreFields(&kekdv1.Tenant{}, "id", "created_at", "state_at", "index")
	if diff := cmp.Diff(want, got, protocmp.Transform(), forget); diff != "" {
		t.Error(diff)
	}
	if _, err := hierarchy.ParseID(got.Id); err != nil || got.CreatedAt == 0 || got.Index != n.State().Index() {
		t.Errorf("got %v", got)
	}

	got = must[*kekdv1.Tenant](t)(api.DisableTenant(soon(t), &kekdv1.DisableTenantRequest{Name: "beta", Reason: "leak"}))
	if got.State != "disabled" || got.StateReason != "leak" {
		t.Errorf("disabled: %v", got)
	}
	got = must[*kekdv1.Tenant](t)(api.SetTenant(soon(t), &kekdv1.SetTenantRequest{Name: "beta", MaxStaleness: proto.Int64(int64(time.Hour))}))
	if got.MaxStaleness != int64(time.Hour) {
		t.Errorf("set: %v", got)
	}
	got = must[*kekdv1.Tenant](t)(api.EnableTenant(soon(t), &kekdv1.EnableTenantRequest{Name: "beta", Reason: "over"}))
	if got.State != "enabled" {
		t.Errorf("enabled: %v", got)
	}
	list := must[*kekdv1.ListTenantsResponse](t)(api.ListTenants(soon(t), &kekdv1.ListTenantsRequest{}))
	if len(list.Tenants) != 2 || list.Tenants[0].Name != "acme" || list.Tenants[0].MaxStaleness != int64(2*time.Second) || list.Tenants[1].Name != "beta" {
		t.Errorf("list: %v", list)
	}
	shown := must[*kekdv1.Tenant](t)(api.GetTenant(soon(t), &kekdv1.GetTenantRequest{Name: "beta"}))
	if diff := cmp.Diff(got, shown, protocmp.Transform(), forget); diff != "" {
		t.Error(diff)
	}
	for name, err := range map[string]error{
		"NOT_FOUND":        second(api.DisableTenant(soon(t), &kekdv1.DisableTenantRequest{Name: "gamma", Reason: "x"})),
		"INVALID_ARGUMENT": second(api.GetTenant(soon(t), &kekdv1.GetTenantRequest{Name: "no/name"})),
		"ALREADY_EXISTS":   second(api.CreateTenant(soon(t), &kekdv1.CreateTenantRequest{Name: "acme"})),
	} {
		if code(err) != name {
			t.Errorf("want %s, got %v", name, err)
		}
	}
	if err := second(api.SetTenant(soon(t), &kekdv1.SetTenantRequest{Name: "acme"})); code(err) != "INVALID_ARGUMENT" {
		t.Errorf("nothing to set: %v", err)
	}
}

func TestKeys(t *testing.T) {
	api, n := newAdmin(t)
	got := must[*kekdv1.Key](t)(api.CreateKey(soon(t), &kekdv1.CreateKeyRequest{Key: "acme/orders", RotateEvery: int64(90 * 24 * time.Hour)}))
	k, _ := n.State().KeyByName(mustTenant(t, n, "acme"), "orders")
	region := &kekdv1.KeyVersionRegion{Region: "eu-west", State: "ready", CkaId: k.Versions[0].Regions[0].Object.String(), CheckValue: "010203"}
	want := &kekdv1.Key{Tenant: "acme", Key: "orders", Id: k.ID.String(), RotateEvery: int64(90 * 24 * time.Hour), MinUnwrapVersion: 1,
		Versions: []*kekdv1.KeyVersion{{Version: 1, State: "active", Regions: []*kekdv1.KeyVersionRegion{region}}}}
	if diff := cmp.Diff(want, got, protocmp.Transform(),
		protocmp.IgnoreFields(&kekdv1.Key{}, "created_at", "index"), protocmp.IgnoreFields(&kekdv1.KeyVersion{}, "created_at", "activated_at")); diff != "" {
		t.Error(diff)
	}
	states := func(k *kekdv1.Key) (s string) {
		for _, v := range k.Versions {
			s += fmt.Sprintf("%d:%s ", v.Version, v.State)
		}
		return s
	}
	got = must[*kekdv1.Key](t)(api.RotateKey(soon(t), &kekdv1.RotateKeyRequest{Key: "acme/orders"}))
	if s := states(got); s != "1:deactivated 2:active " {
		t.Errorf("rotated: %s", s)
	}
	got = must[*kekdv1.Key](t)(api.SetKey(soon(t), &kekdv1.SetKeyRequest{Key: "acme/orders", MinUnwrapVersion: proto.Uint32(2), RotateEvery: proto.Int64(0)}))
	if got.MinUnwrapVersion != 2 || got.RotateEvery != 0 {
		t.Errorf("set: %v", got)
	}
	for _, step := range []struct{ action, want string }{
		{"suspend", "1:deactivated 2:suspended "}, {"resume", "1:deactivated 2:active "}, {"compromise", "1:deactivated 2:compromised "},
	} {
		n.waited = nil
		got = must[*kekdv1.Key](t)(api.SetKeyVersionState(soon(t), &kekdv1.SetKeyVersionStateRequest{KeyVersion: "acme/orders@2", Action: step.action, Reason: "drill"}))
		if s := states(got); s != step.want {
			t.Errorf("%s: %s", step.action, s)
		}
		if waited := len(n.waited) > 0; waited != (step.action == "resume") {
			t.Errorf("%s: waited is %v", step.action, waited)
		}
	}
	list := must[*kekdv1.ListKeysResponse](t)(api.ListKeys(soon(t), &kekdv1.ListKeysRequest{Tenant: "acme"}))
	shown := must[*kekdv1.Key](t)(api.GetKey(soon(t), &kekdv1.GetKeyRequest{Key: "acme/orders"}))
	if diff := cmp.Diff([]*kekdv1.Key{shown}, list.Keys, protocmp.Transform()); diff != "" {
		t.Error(diff)
	}
	for what, err := range map[string]error{
		"no key":      second(api.RotateKey(soon(t), &kekdv1.RotateKeyRequest{Key: "acme/none"})),
		"no tenant":   second(api.CreateKey(soon(t), &kekdv1.CreateKeyRequest{Key: "none/orders"})),
		"no list":     second(api.ListKeys(soon(t), &kekdv1.ListKeysRequest{Tenant: "none"})),
		"no version":  second(api.SetKeyVersionState(soon(t), &kekdv1.SetKeyVersionStateRequest{KeyVersion: "acme/orders@9", Action: "suspend", Reason: "x"})),
		"not a key":   second(api.GetKey(soon(t), &kekdv1.GetKeyRequest{Key: "acme"})),
		"not a step":  second(api.SetKeyVersionState(soon(t), &kekdv1.SetKeyVersionStateRequest{KeyVersion: "acme/orders@1", Action: "burn"})),
		"not a thing": second(api.SetKey(soon(t), &kekdv1.SetKeyRequest{Key: "acme/orders"})),
	} {
		want := "NOT_FOUND"
		if strings.HasPrefix(what, "not ") {
			want = "INVALID_ARGUMENT"
		}
		if code(err) != want {
			t.Errorf("%s: %v", what, err)
		}
	}
}

func mustTenant(t *testing.T, n *node, name string) hierarchy.TenantID {
	t.Helper()
	tenant, ok := n.State().TenantByName(name)
	if !ok {
		t.Fatalf("no tenant %s", name)
	}
	return tenant.ID
}

// TestEnableWaitsForEveryKey: what was disabled is latched in the token.
func TestEnableWaitsForEveryKey(t *testing.T) {
	api, n := newAdmin(t)
	must[*kekdv1.Key](t)(api.CreateKey(soon(t), &kekdv1.CreateKeyRequest{Key: "acme/one"}))
	must[*kekdv1.Key](t)(api.CreateKey(soon(t), &kekdv1.CreateKeyRequest{Key: "acme/two"}))
	must[*kekdv1.Key](t)(api.RotateKey(soon(t), &kekdv1.RotateKeyRequest{Key: "acme/two"}))
	must[*kekdv1.Tenant](t)(api.DisableTenant(soon(t), &kekdv1.DisableTenantRequest{Name: "acme", Reason: "x"}))
	n.waited = nil
	must[*kekdv1.Tenant](t)(api.EnableTenant(soon(t), &kekdv1.EnableTenantRequest{Name: "acme", Reason: "x"}))
	if diff := cmp.Diff([]uint32{1, 1, 2}, n.waited); diff != "" {
		t.Error(diff)
	}
}

func TestServicesAndPolicies(t *testing.T) {
	api, _ := newAdmin(t)
	svc := must[*kekdv1.Service](t)(api.CreateService(soon(t), &kekdv1.CreateServiceRequest{Name: "billing", Uid: proto.Uint32(1001), Gid: proto.Uint32(0)}))
	if svc.Name != "billing" || svc.GetUid() != 1001 || svc.Gid == nil || svc.CreatedAt == 0 {
		t.Errorf("service: %v", svc)
	}
	if list := must[*kekdv1.ListServicesResponse](t)(api.ListServices(soon(t), &kekdv1.ListServicesRequest{})); len(list.Services) != 1 || !proto.Equal(list.Services[0], svc) {
		t.Errorf("services: %v", list)
	}
	rule := &kekdv1.Rule{Service: "billing", Pattern: "acme/*", Ops: []string{"wrap", "unwrap"}, RequireReason: true,
		RequiredContext: []*kekdv1.RequiredContext{{Key: "app", Value: proto.String("billing")}, {Key: "file"}}}
	got := must[*kekdv1.Rule](t)(api.AllowPolicy(soon(t), &kekdv1.AllowPolicyRequest{Rule: rule}))
	if diff := cmp.Diff(rule, got, protocmp.Transform()); diff != "" {
		t.Error(diff)
	}
	for _, service := range []string{"", "billing"} {
		list := must[*kekdv1.ListPoliciesResponse](t)(api.ListPolicies(soon(t), &kekdv1.ListPoliciesRequest{Service: service}))
		if diff := cmp.Diff([]*kekdv1.Rule{rule}, list.Rules, protocmp.Transform()); diff != "" {
			t.Error(diff)
		}
	}
	ask := &kekdv1.ExplainPolicyRequest{Service: "billing", Key: "acme/orders", Op: "unwrap", Context: entries("app", "billing", "file", "7"), Reason: "why"}
	said := must[*kekdv1.ExplainPolicyResponse](t)(api.ExplainPolicy(soon(t), ask))
	if !said.Allowed || !proto.Equal(said.Rule, rule) || said.Reason == "" {
		t.Errorf("allowed: %v", said)
	}
	for what, change := range map[string]func(*kekdv1.ExplainPolicyRequest){
		"op":      func(m *kekdv1.ExplainPolicyRequest) { m.Op = "rewrap" },
		"tenant":  func(m *kekdv1.ExplainPolicyRequest) { m.Key = "beta/orders" },
		"context": func(m *kekdv1.ExplainPolicyRequest) { m.Context = m.Context[:1] },
		"reason":  func(m *kekdv1.ExplainPolicyRequest) { m.Reason = "" },
	} {
		other := proto.Clone(ask).(*kekdv1.ExplainPolicyRequest)
		change(other)
		if said := must[*kekdv1.ExplainPolicyResponse](t)(api.ExplainPolicy(soon(t), other)); said.Allowed || said.Rule != nil || said.Reason == "" {
			t.Errorf("another %s: %v", what, said)
		}
	}
	must[*kekdv1.RevokePolicyResponse](t)(api.RevokePolicy(soon(t), &kekdv1.RevokePolicyRequest{Service: "billing", Pattern: "acme/*"}))
	if said := must[*kekdv1.ExplainPolicyResponse](t)(api.ExplainPolicy(soon(t), ask)); said.Allowed {
		t.Errorf("revoked: %v", said)
	}
	if got := must[*kekdv1.DeleteServiceResponse](t)(api.DeleteService(soon(t), &kekdv1.DeleteServiceRequest{Name: "billing"})); got.Index == 0 {
		t.Error("no index")
	}
	for what, err := range map[string]error{
		"not there: explain":  second(api.ExplainPolicy(soon(t), ask)),
		"not there: policies": second(api.ListPolicies(soon(t), &kekdv1.ListPoliciesRequest{Service: "billing"})),
		"not there: allow":    second(api.AllowPolicy(soon(t), &kekdv1.AllowPolicyRequest{Rule: rule})),
		"bad: no rule":        second(api.AllowPolicy(soon(t), &kekdv1.AllowPolicyRequest{})),
		"bad: no op":          second(api.AllowPolicy(soon(t), &kekdv1.AllowPolicyRequest{Rule: &kekdv1.Rule{Service: "billing", Pattern: "acme/*"}})),
	} {
		want := "NOT_FOUND"
		if strings.HasPrefix(what, "bad") {
			want = "INVALID_ARGUMENT"
		}
		if code(err) != want {
			t.Errorf("%s: %v", what, err)
		}
	}
}

// TestEveryChangeIsAudited: asked before, what became of it after, refused or not.
func TestEveryChangeIsAudited(t *testing.T) {
	api, n := newAdmin(t)
	id := hierarchy.NewID()
	me := hierarchy.Principal{UID: uint32(os.Getuid()), GID: uint32(os.Getgid()), PID: int32(os.Getpid())}
	acme := mustTenant(t, n, "acme")
	for _, test := range []struct {
		call func() error
		want socketapi.AdminRecord // of the request
		code string
	}{
		{func() error {
			return second(api.DisableTenant(soon(t), &kekdv1.DisableTenantRequest{IdempotencyId: id[:], Name: "acme", Reason: "leak"}))
		}, socketapi.AdminRecord{Kind: "tenant-disable", Tenant: acme, TenantName: "acme", Reason: "leak"}, ""},
		{func() error {
			return second(api.CreateKey(soon(t), &kekdv1.CreateKeyRequest{IdempotencyId: id[:], Key: "none/orders"}))
		}, socketapi.AdminRecord{Kind: "key-create", TenantName: "none", Key: "orders", Detail: "rotate_every=0s"}, "NOT_FOUND"},
		{func() error {
			return second(api.DeleteService(soon(t), &kekdv1.DeleteServiceRequest{IdempotencyId: id[1:], Name: "none"}))
		}, socketapi.AdminRecord{}, "INVALID_ARGUMENT"}, // nobody knows which command
	} {
		if err := test.call(); err != nil && code(err) != test.code || err == nil && test.code != "" {
			t.Errorf("%s: %v", test.want.Kind, err)
		}
		var want []socketapi.AdminRecord
		if test.want.Kind != "" {
			asked := test.want
			asked.Caller, asked.Command, asked.Outcome = me, hierarchy.CommandID{ID: id}, socketapi.AdminRequested
			became := asked
			became.Of, became.Outcome, became.Code = 1, socketapi.AdminOK, test.code
			if test.code != "" {
				became.Outcome = socketapi.AdminFailed
			}
			want = []socketapi.AdminRecord{asked, became}
		}
		if diff := cmp.Diff(want, n.last(), cmpopts.EquateEmpty()); diff != "" {
			t.Error(diff)
		}
	}
	c := n.commands[len(n.commands)-1]
	if diff := cmp.Diff(&commandpb.Actor{NodeId: testNode[:], Uid: me.UID, Gid: me.GID, Pid: me.PID}, c.Actor, protocmp.Transform()); diff != "" {
		t.Error(diff)
	}
}

// TestNoRecordNoChange: what cannot be written down is not done.
func TestNoRecordNoChange(t *testing.T) {
	api, n := newAdmin(t)
	n.auditErr = func(socketapi.AdminRecord) error { return errDisk }
	before := n.State().Index()
	if _, err := api.CreateTenant(soon(t), &kekdv1.CreateTenantRequest{Name: "beta"}); code(err) != "AUDIT_UNAVAILABLE" {
		t.Errorf("got %v", err)
	}
	if n.State().Index() != before {
		t.Error("a command was proposed")
	}
	// It is committed when the second record fails: an error, and none that says "refused".
	n.auditErr = func(r socketapi.AdminRecord) error {
		if r.Outcome != socketapi.AdminRequested {
			return errDisk
		}
		return nil
	}
	if _, err := api.CreateTenant(soon(t), &kekdv1.CreateTenantRequest{Name: "beta"}); code(err) != "OUTCOME_UNKNOWN" || !strings.Contains(err.Error(), "it took effect") {
		t.Errorf("got %v", err)
	}
	mustTenant(t, n, "beta")
}

// TestOutcomeIsRecordedThoughTheCallerLeft: it cancels while the cluster works.
func TestOutcomeIsRecordedThoughTheCallerLeft(t *testing.T) {
	api, n := newAdmin(t)
	ctx, cancel := context.WithCancel(soon(t))
	n.proposeErr = func(served context.Context, _ *commandpb.Command) error {
		cancel()
		<-served.Done() // the daemon has heard of it
		return fmt.Errorf("%w: %w", hierarchy.ErrOutcomeUnknown, served.Err())
	}
	if _, err := api.CreateTenant(ctx, &kekdv1.CreateTenantRequest{Name: "beta"}); err == nil {
		t.Error("no error")
	}
	eventually(t, "the outcome is in the journal", func() bool {
		n.mu.Lock()
		defer n.mu.Unlock()
		return len(n.records) == 2
	})
	if r := n.last()[1]; r.Outcome != socketapi.AdminFailed || r.Code != "OUTCOME_UNKNOWN" {
		t.Errorf("got %+v", r)
	}
}

// TestRetry: the answer to a change was lost; the same ID hears of the first one, and another
// request under it is refused.
func TestRetry(t *testing.T) {
	api, n := newAdmin(t)
	lose := func() {
		n.proposeErr = func(context.Context, *commandpb.Command) error {
			n.proposeErr = nil
			return hierarchy.ErrOutcomeUnknown
		}
	}
	steps := []struct {
		name string
		call func(id []byte) (string, error)
	}{
		{"tenant", func(id []byte) (string, error) {
			m, err := api.CreateTenant(soon(t), &kekdv1.CreateTenantRequest{IdempotencyId: id, Name: "beta"})
			return m.GetId(), err
		}},
		{"key", func(id []byte) (string, error) {
			m, err := api.CreateKey(soon(t), &kekdv1.CreateKeyRequest{IdempotencyId: id, Key: "beta/orders"})
			return fmt.Sprint(m.GetId(), len(m.GetVersions())), err
		}},
		{"rotation", func(id []byte) (string, error) {
			m, err := api.RotateKey(soon(t), &kekdv1.RotateKeyRequest{IdempotencyId: id, Key: "beta/orders"})
			return fmt.Sprint(m.GetId(), len(m.GetVersions())), err
		}},
		{"service", func(id []byte) (string, error) {
			m, err := api.CreateService(soon(t), &kekdv1.CreateServiceRequest{IdempotencyId: id, Name: "billing", Uid: proto.Uint32(7)})
			return m.GetName(), err
		}},
	}
	for _, step := range steps {
		lose()
		id := hierarchy.NewID()
		_, err := step.call(id[:])
		e, ok := errors.AsType[*client.Error](client.FromError(err))
		if !ok || e.Code != "OUTCOME_UNKNOWN" || e.IdempotencyID.ID != id {
			t.Fatalf("%s: %v", step.name, err)
		}
		first, err := step.call(id[:])
		if err != nil {
			t.Fatalf("%s, again: %v", step.name, err)
		}
		if again, err := step.call(id[:]); err != nil || again != first {
			t.Errorf("%s, and again: %s, %v; it was %s", step.name, again, err, first)
		}
		if _, err := api.CreateTenant(soon(t), &kekdv1.CreateTenantRequest{IdempotencyId: id[:], Name: "other"}); code(err) != "INVALID_ARGUMENT" {
			t.Errorf("%s: another request under its ID: %v", step.name, err)
		}
	}
	k, _ := n.State().KeyByName(mustTenant(t, n, "beta"), "orders")
	if len(k.Versions) != 2 {
		t.Errorf("the key has %d versions", len(k.Versions))
	}
}

// TestRetryOfWhatWasUndone: an idempotency ID of an earlier day closes nothing today, and is not told
// that it did.
func TestRetryOfWhatWasUndone(t *testing.T) {
	api, n := newAdmin(t)
	id := hierarchy.NewID()
	disable := func() error {
		return second(api.DisableTenant(soon(t), &kekdv1.DisableTenantRequest{IdempotencyId: id[:], Name: "acme", Reason: "leak"}))
	}
	for range 2 {
		if err := disable(); err != nil {
			t.Fatal(err)
		}
	}
	if became := newest(n); became.Outcome != socketapi.AdminOK || !strings.Contains(became.Detail, "done before, at index") {
		t.Errorf("the record of a repetition: %+v", became)
	}
	if err := second(api.EnableTenant(soon(t), &kekdv1.EnableTenantRequest{Name: "acme"})); err != nil {
		t.Fatal(err)
	}
	err := disable()
	if code(err) != "FAILED_PRECONDITION" || !strings.Contains(err.Error(), "was undone since") {
		t.Errorf("a disable that was undone, again under its ID: %v", err)
	}
	if became := newest(n); became.Outcome != socketapi.AdminFailed {
		t.Errorf("its record: %+v", became)
	}
}

func newest(n *node) socketapi.AdminRecord {
	all := n.last()
	return all[len(all)-1]
}

// TestRetryWithTheDaemonsID: who gave no ID learns the daemon's, and retries with that.
func TestRetryWithTheDaemonsID(t *testing.T) {
	api, n := newAdmin(t)
	n.proposeErr = func(context.Context, *commandpb.Command) error {
		n.proposeErr = nil
		return hierarchy.ErrOutcomeUnknown
	}
	_, err := api.CreateTenant(soon(t), &kekdv1.CreateTenantRequest{Name: "beta"})
	e, ok := errors.AsType[*client.Error](client.FromError(err))
	if !ok || e.IdempotencyID.IsZero() {
		t.Fatalf("got %v", err)
	}
	must[*kekdv1.Tenant](t)(api.CreateTenant(soon(t), &kekdv1.CreateTenantRequest{IdempotencyId: e.IdempotencyID.ID[:], Name: "beta"}))
}

// TestCommittedButNotServable: the command stands, and the words say what is lacking.
func TestCommittedButNotServable(t *testing.T) {
	api, n := newAdmin(t)
	n.mintErr = fmt.Errorf("%w: region eu-west has not minted it", context.DeadlineExceeded)
	id := hierarchy.NewID()
	_, err := api.CreateKey(soon(t), &kekdv1.CreateKeyRequest{IdempotencyId: id[:], Key: "acme/orders"})
	e, ok := errors.AsType[*client.Error](client.FromError(err))
	if !ok || e.Code != "OUTCOME_UNKNOWN" || e.IdempotencyID.ID != id {
		t.Fatalf("got %v", err)
	}
	for _, word := range []string{"it took effect", "acme/orders@1", "eu-west has not minted"} {
		if !strings.Contains(e.Message, word) {
			t.Errorf("%q is not in %q", word, e.Message)
		}
	}
	if !strings.Contains(e.Hint, "kekctl key show acme/orders") {
		t.Errorf("hint %q", e.Hint)
	}
	shown := must[*kekdv1.Key](t)(api.GetKey(soon(t), &kekdv1.GetKeyRequest{Key: "acme/orders"}))
	if v := shown.Versions[0]; v.State != "pre-active" || v.Regions[0].State != "pending" || v.Regions[0].CkaId != "" {
		t.Errorf("shown: %v", shown)
	}
	if r := n.last(); len(r) != 2 || r[1].Outcome != socketapi.AdminOK {
		t.Errorf("records: %v", r)
	}
	n.mintErr = nil
	must[*kekdv1.Key](t)(api.CreateKey(soon(t), &kekdv1.CreateKeyRequest{IdempotencyId: id[:], Key: "acme/orders"}))
}

// TestEnabledWithALostKey: the tenant is enabled, one of its versions stays closed, and nobody is told
// to wait for that.
func TestEnabledWithALostKey(t *testing.T) {
	api, n := newAdmin(t)
	must[*kekdv1.Key](t)(api.CreateKey(soon(t), &kekdv1.CreateKeyRequest{Key: "acme/orders"}))
	must[*kekdv1.Tenant](t)(api.DisableTenant(soon(t), &kekdv1.DisableTenantRequest{Name: "acme", Reason: "a test"}))
	version := hierarchy.VersionName{KeyName: hierarchy.KeyName{Tenant: "acme", Key: "orders"}, Version: 1}
	n.mintErr = fmt.Errorf("%w: %w", hierarchy.ErrHSMUnavailable, &hierarchy.KeyLost{Version: version, Why: errors.New("not in the token")})
	_, err := api.EnableTenant(soon(t), &kekdv1.EnableTenantRequest{Name: "acme"})
	e, ok := errors.AsType[*client.Error](client.FromError(err))
	if !ok || e.Code != "OUTCOME_UNKNOWN" { // done, and not complete: status 3
		t.Fatalf("got %v", err)
	}
	for text, words := range map[string][]string{
		e.Message: {"it took effect", "cannot serve acme/orders@1:", "not in the token"},
		e.Hint:    {"does not come back by itself", "backup", "kekctl key rotate acme/orders", "kekctl status"},
	} {
		for _, word := range words {
			if !strings.Contains(text, word) {
				t.Errorf("%q is not in %q", word, text)
			}
		}
	}
	if strings.Contains(e.Message+e.Hint, "goes on by itself") || strings.Contains(e.Message, "yet") {
		t.Errorf("it is told to wait: %s; %s", e.Message, e.Hint)
	}
	if tenant, _ := n.State().TenantByName("acme"); tenant.State != hierarchy.TenantEnabled {
		t.Errorf("the tenant is %s", tenant.State)
	}
}

func TestReasonIsBounded(t *testing.T) {
	api, n := newAdmin(t)
	if _, err := api.DisableTenant(soon(t), &kekdv1.DisableTenantRequest{Name: "acme", Reason: strings.Repeat("x", 257)}); code(err) != "INVALID_ARGUMENT" {
		t.Errorf("got %v", err)
	}
	if r := n.last(); len(r) != 0 {
		t.Errorf("records: %v", r)
	}
}

// TestAdminsAlone: root, and the group, as primary or supplementary one; everybody else is
// refused, and that is audited.
func TestAdminsAlone(t *testing.T) {
	n := newNode(t)
	_, conn, s := adminOf(t, n, socketapi.Admins{GID: 54400})
	for _, test := range []struct {
		uid, gid uint32
		groups   []uint32
		want     string
	}{
		{0, 54321, nil, "OK"},
		{54321, 54400, nil, "OK"},
		{54321, 54321, []uint32{54399, 54400}, "OK"},
		{54321, 54321, manyGroups(54400), "OK"},
		{54321, 54321, []uint32{54399, 54401}, "PERMISSION_DENIED"},
		{54321, 0, nil, "PERMISSION_DENIED"},
	} {
		for kind, method := range map[string]string{"status": "GetStatus", "tail": "TailAudit"} {
			pid, got := callAs(t, kind, s.path, test.uid, test.gid, test.groups...)
			if got != test.want {
				t.Errorf("%s by %+v: %s", kind, test, got)
			}
			var want []socketapi.AdminRecord
			if test.want != "OK" {
				want = []socketapi.AdminRecord{{Kind: "admin-call", Outcome: socketapi.AdminDenied, Code: "PERMISSION_DENIED", Detail: method,
					Caller: hierarchy.Principal{UID: test.uid, GID: test.gid, PID: pid}}}
			}
			if diff := cmp.Diff(want, n.last(), cmpopts.EquateEmpty()); diff != "" {
				t.Error(diff)
			}
		}
	}
	if _, err := grpc_health_v1.NewHealthClient(conn).Check(soon(t), &grpc_health_v1.HealthCheckRequest{}); err != nil {
		t.Errorf("health: %v", err)
	}
}

// manyGroups are more than one look at a peer's groups has room for.
func manyGroups(last uint32) (groups []uint32) {
	for i := range uint32(100) {
		groups = append(groups, 60_000+i)
	}
	return append(groups, last)
}

func TestNoGroupIsNobody(t *testing.T) {
	_, _, s := adminOf(t, newNode(t), socketapi.Admins{GID: -1})
	if _, got := callAs(t, "status", s.path, 54321, 54321); got != "PERMISSION_DENIED" {
		t.Errorf("got %s", got)
	}
}

func TestAuditCalls(t *testing.T) {
	api, n := newAdmin(t)
	acme := mustTenant(t, n, "acme")
	for _, test := range []struct {
		m    *kekdv1.TailAuditRequest
		want string
	}{
		{&kekdv1.TailAuditRequest{Tenant: "acme"}, acme.String() + " 20"},
		{&kekdv1.TailAuditRequest{Last: 5}, hierarchy.TenantID{}.String() + " 5"},
	} {
		s, err := api.TailAudit(soon(t), test.m)
		if err != nil {
			t.Fatal(err)
		}
		if got := must[*kekdv1.AuditRecord](t)(s.Recv()); got.Json != test.want {
			t.Errorf("got %q, want %q", got.Json, test.want)
		}
		if _, err := s.Recv(); code(err) != "AUDIT_UNAVAILABLE" {
			t.Errorf("then %v", err)
		}
	}
	s, err := api.TailAudit(soon(t), &kekdv1.TailAuditRequest{Tenant: "none"})
	if err == nil {
		_, err = s.Recv()
	}
	if code(err) != "NOT_FOUND" {
		t.Errorf("no such tenant: %v", err)
	}
	if v := must[*kekdv1.VerifyAuditResponse](t)(api.VerifyAudit(soon(t), &kekdv1.VerifyAuditRequest{})); !v.Ok || v.Chains[0].Records != 7 {
		t.Errorf("verify: %v", v)
	}
	if st := must[*kekdv1.Status](t)(api.GetStatus(soon(t), &kekdv1.GetStatusRequest{})); st.NodeName != "a" {
		t.Errorf("status: %v", st)
	}
}

// TestFollowersDoNotHoldUpTheEnd: a tail that follows ends when the daemon does.
func TestFollowersDoNotHoldUpTheEnd(t *testing.T) {
	api, _, server := adminOf(t, newNode(t), socketapi.Admins{GID: -1})
	s, err := api.TailAudit(soon(t), &kekdv1.TailAuditRequest{Follow: true})
	if err != nil {
		t.Fatal(err)
	}
	must[*kekdv1.AuditRecord](t)(s.Recv())
	ctx := soon(t)
	server.Shutdown(ctx)
	if ctx.Err() != nil {
		t.Error("it waited for the follower")
	}
	if _, err := s.Recv(); code(err) != "UNAVAILABLE" || errors.Is(err, io.EOF) {
		t.Errorf("the follower got %v", err)
	}
}
