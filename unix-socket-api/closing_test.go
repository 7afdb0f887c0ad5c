package socketapi_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/testing/protocmp"

	"github.com/kekd/kekd/hierarchy"
	"github.com/kekd/kekd/hierarchy/commandpb"
	"github.com/kekd/kekd/hierarchy/state"
	socketapi "github.com/kekd/kekd/unix-socket-api"
	"github.com/kekd/kekd/unix-socket-api/client"
	"github.com/kekd/kekd/unix-socket-api/kekdv1"
)

// leased is a node that may hold a lease, so that what closes has a fence; each is complete once it was
// waited for.
func leased(t *testing.T) (kekdv1.AdminServiceClient, *node, *[]uint64) {
	t.Helper()
	api, n := newAdmin(t)
	n.do(t, &commandpb.Command{Body: &commandpb.Command_RegisterIncarnation{RegisterIncarnation: &commandpb.RegisterIncarnation{
		NodeId: testNode[:], Incarnation: testIncarnation[:],
	}}})
	waited := new([]uint64)
	n.fence = func(_ context.Context, f *state.Fence) (socketapi.Fenced, error) {
		*waited = append(*waited, f.Index)
		n.complete(t, f.Index)
		return socketapi.Fenced{Elapsed: 7 * time.Millisecond, Nodes: []socketapi.FencedNode{{Node: hierarchy.NodeID{ID: testNode}, How: "acknowledged"}}}, nil
	}
	return api, n, waited
}

var testIncarnation = hierarchy.NewID()

func (n *node) do(t *testing.T, c *commandpb.Command) {
	t.Helper()
	id := hierarchy.NewID()
	c.Format, c.Id = state.Format, id[:]
	n.mu.Lock()
	defer n.mu.Unlock()
	if r := n.apply(c); r.Err != nil {
		t.Error(r.Err)
	}
}

func (n *node) complete(t *testing.T, index uint64) {
	t.Helper()
	n.do(t, &commandpb.Command{Body: &commandpb.Command_CompleteFence{CompleteFence: &commandpb.CompleteFence{Index: index}}})
}

// Each change that closes answers when its fence is complete, and says so; what opens waits for nothing, and says nothing.
func TestClosingsWaitForTheirFence(t *testing.T) {
	api, n, waited := leased(t)
	rule := func(ops ...string) *kekdv1.Rule { return &kekdv1.Rule{Service: "billing", Pattern: "acme/*", Ops: ops} }
	type fenced interface{ GetFence() *kekdv1.Fence }
	for _, step := range []struct {
		name   string
		closes bool
		call   func(noWait bool) (fenced, error)
	}{
		{"a key", false, func(bool) (fenced, error) {
			return api.CreateKey(soon(t), &kekdv1.CreateKeyRequest{Key: "acme/orders"})
		}},
		{"another version", false, func(bool) (fenced, error) {
			return api.RotateKey(soon(t), &kekdv1.RotateKeyRequest{Key: "acme/orders"})
		}},
		{"max_staleness raised", false, func(noWait bool) (fenced, error) {
			return api.SetTenant(soon(t), &kekdv1.SetTenantRequest{Name: "acme", MaxStaleness: proto.Int64(int64(time.Minute)), NoWait: noWait})
		}},
		{"max_staleness lowered", true, func(noWait bool) (fenced, error) {
			return api.SetTenant(soon(t), &kekdv1.SetTenantRequest{Name: "acme", MaxStaleness: proto.Int64(int64(time.Second)), NoWait: noWait})
		}},
		{"limits", false, func(noWait bool) (fenced, error) {
			return api.SetTenant(soon(t), &kekdv1.SetTenantRequest{Name: "acme", Limits: &kekdv1.Limits{}, NoWait: noWait})
		}},
		{"version suspended", true, func(noWait bool) (fenced, error) {
			return api.SetKeyVersionState(soon(t), &kekdv1.SetKeyVersionStateRequest{KeyVersion: "acme/orders@2", Action: "suspend", Reason: "x", NoWait: noWait})
		}},
		{"version resumed", false, func(noWait bool) (fenced, error) {
			return api.SetKeyVersionState(soon(t), &kekdv1.SetKeyVersionStateRequest{KeyVersion: "acme/orders@2", Action: "resume", NoWait: noWait})
		}},
		{"min_unwrap_version raised", true, func(noWait bool) (fenced, error) {
			return api.SetKey(soon(t), &kekdv1.SetKeyRequest{Key: "acme/orders", MinUnwrapVersion: proto.Uint32(2), NoWait: noWait})
		}},
		{"rotation by time", false, func(noWait bool) (fenced, error) {
			return api.SetKey(soon(t), &kekdv1.SetKeyRequest{Key: "acme/orders", RotateEvery: proto.Int64(int64(time.Hour)), NoWait: noWait})
		}},
		{"version compromised", true, func(noWait bool) (fenced, error) {
			return api.SetKeyVersionState(soon(t), &kekdv1.SetKeyVersionStateRequest{KeyVersion: "acme/orders@2", Action: "compromise", Reason: "x", NoWait: noWait})
		}},
		{"rule", false, func(noWait bool) (fenced, error) {
			_, err := api.CreateService(soon(t), &kekdv1.CreateServiceRequest{Name: "billing", Uid: proto.Uint32(7)})
			if err != nil {
				return nil, err
			}
			return api.AllowPolicy(soon(t), &kekdv1.AllowPolicyRequest{Rule: rule("wrap", "unwrap"), NoWait: noWait})
		}},
		{"rule narrowed", true, func(noWait bool) (fenced, error) {
			return api.AllowPolicy(soon(t), &kekdv1.AllowPolicyRequest{Rule: rule("wrap"), NoWait: noWait})
		}},
		{"rule widened", false, func(noWait bool) (fenced, error) {
			return api.AllowPolicy(soon(t), &kekdv1.AllowPolicyRequest{Rule: rule("wrap", "unwrap"), NoWait: noWait})
		}},
		{"rule revoked", true, func(noWait bool) (fenced, error) {
			return api.RevokePolicy(soon(t), &kekdv1.RevokePolicyRequest{Service: "billing", Pattern: "acme/*", NoWait: noWait})
		}},
		{"rule, again", false, func(noWait bool) (fenced, error) {
			return api.AllowPolicy(soon(t), &kekdv1.AllowPolicyRequest{Rule: rule("wrap"), NoWait: noWait})
		}},
		{"service deleted", true, func(noWait bool) (fenced, error) {
			return api.DeleteService(soon(t), &kekdv1.DeleteServiceRequest{Name: "billing", NoWait: noWait})
		}},
		{"tenant disabled", true, func(noWait bool) (fenced, error) {
			return api.DisableTenant(soon(t), &kekdv1.DisableTenantRequest{Name: "acme", Reason: "x", NoWait: noWait})
		}},
		{"tenant enabled", false, func(bool) (fenced, error) {
			return api.EnableTenant(soon(t), &kekdv1.EnableTenantRequest{Name: "acme"})
		}},
	} {
		for _, noWait := range []bool{false, true} {
			before := n.State()
			*waited = nil
			got, err := step.call(noWait)
			if err != nil {
				t.Fatalf("%s: %v", step.name, err)
			}
			index := n.State().Index()
			if len(*waited) > 0 {
				index-- // of the command that records the fence
			}
			var want *kekdv1.Fence
			switch {
			case !step.closes:
			case noWait:
				want = &kekdv1.Fence{Index: index}
			default:
				want = &kekdv1.Fence{Fenced: true, Index: index, Elapsed: int64(7 * time.Millisecond),
					Nodes: []*kekdv1.FencedNode{{Id: testNode.String(), Name: "a", How: "acknowledged"}}}
			}
			if diff := cmp.Diff(want, got.GetFence(), protocmp.Transform()); diff != "" {
				t.Errorf("%s, no wait %v: %s", step.name, noWait, diff)
			}
			if want := step.closes && !noWait; want != (len(*waited) == 1) {
				t.Errorf("%s, no wait %v: waited for %v", step.name, noWait, *waited)
			}
			if !step.closes {
				break
			}
			// Once more, from the state before, without a wait.
			n.mu.Lock()
			if !noWait {
				n.state = before
			}
			n.mu.Unlock()
		}
	}
}

// What is closed already is waited for until that is recorded as complete, under whatever ID it is asked for.
func TestARepeatedDisableWaits(t *testing.T) {
	api, n, waited := leased(t)
	id := hierarchy.NewID()
	disable := func(id []byte, noWait bool) *kekdv1.Fence {
		return must[*kekdv1.Tenant](t)(api.DisableTenant(soon(t), &kekdv1.DisableTenantRequest{IdempotencyId: id, Name: "acme", Reason: "x", NoWait: noWait})).Fence
	}
	first := disable(id[:], true)
	if first.Fenced || first.Index != n.State().Index() {
		t.Errorf("without a wait: %v", first)
	}
	if f := disable(nil, false); !f.Fenced || f.Index != first.Index || len(f.Nodes) != 1 || len(*waited) != 1 {
		t.Errorf("again: %v, waited for %v", f, *waited)
	}
	for _, again := range [][]byte{nil, id[:]} { // it is recorded
		if f := disable(again, false); !f.Fenced || len(f.Nodes) != 0 || len(*waited) != 1 {
			t.Errorf("and again: %v, waited for %v", f, *waited)
		}
	}
}

// A fence that is not complete in time is no success: the error has what is known, and the ID to ask again with.
func TestNotFenced(t *testing.T) {
	api, n, waited := leased(t)
	complete := n.fence
	n.fence = func(ctx context.Context, f *state.Fence) (socketapi.Fenced, error) {
		<-ctx.Done()
		return socketapi.Fenced{Elapsed: time.Second}, fmt.Errorf("%w: it took effect, at index %d, and not with b", hierarchy.ErrOutcomeUnknown, f.Index)
	}
	must[*kekdv1.Tenant](t)(api.SetTenant(soon(t), &kekdv1.SetTenantRequest{Name: "acme", MaxStaleness: proto.Int64(int64(time.Second)), NoWait: true}))
	n.complete(t, n.State().Index())
	bound := time.Duration(must[*kekdv1.GetFenceBoundResponse](t)(api.GetFenceBound(soon(t), &kekdv1.GetFenceBoundRequest{Tenant: "acme"})).Bound)
	if bound != 1510*time.Millisecond {
		t.Errorf("the bound is %v", bound)
	}
	n.last()
	begun := time.Now()
	_, err := api.DisableTenant(soon(t), &kekdv1.DisableTenantRequest{Name: "acme", Reason: "x"})
	took := time.Since(begun)
	e, ok := errors.AsType[*client.Error](client.FromError(err))
	if !ok || e.Code != "OUTCOME_UNKNOWN" || !strings.Contains(e.Message, "not with b") || e.IdempotencyID.IsZero() {
		t.Fatalf("got %v", err)
	}
	if took < bound-500*time.Millisecond || took > bound {
		t.Errorf("after %v, the bound is %v", took, bound)
	}
	if r := newest(n); r.Outcome != socketapi.AdminFailed || r.Code != "OUTCOME_UNKNOWN" || !strings.Contains(r.Detail, "not fenced within 1s") {
		t.Errorf("the record: %+v", r)
	}
	n.fence = complete
	f := must[*kekdv1.Tenant](t)(api.DisableTenant(soon(t), &kekdv1.DisableTenantRequest{IdempotencyId: e.IdempotencyID.ID[:], Name: "acme", Reason: "x"})).Fence
	if !f.Fenced || len(*waited) != 1 {
		t.Errorf("again under its ID: %v, waited for %v", f, *waited)
	}
}

// The leader is lost in the middle: the same command is proposed again, and takes effect once.
func TestAClosingOutlivesItsLeader(t *testing.T) {
	api, n, _ := leased(t)
	lost := 0
	n.proposeErr = func(context.Context, *commandpb.Command) error {
		if lost++; lost > 2 {
			return nil
		}
		return hierarchy.ErrOutcomeUnknown
	}
	before := len(n.commands)
	f := must[*kekdv1.Tenant](t)(api.DisableTenant(soon(t), &kekdv1.DisableTenantRequest{Name: "acme", Reason: "x"})).Fence
	if tried := n.commands[before:]; !f.GetFenced() || len(tried) != 3 || string(tried[0].Id) != string(tried[2].Id) {
		t.Errorf("%v after %d proposals", f, len(tried))
	}
}

// Where no leader is found a closing has no outcome, soon, and no refusal: nobody has looked at it.
func TestAClosingWithoutALeader(t *testing.T) {
	api, n, _ := leased(t)
	n.proposeErr = func(ctx context.Context, _ *commandpb.Command) error {
		<-ctx.Done()
		return fmt.Errorf("%w: nobody leads: %w", hierarchy.ErrStale, ctx.Err())
	}
	begun := time.Now()
	_, err := api.DisableTenant(soon(t), &kekdv1.DisableTenantRequest{Name: "acme", Reason: "x"})
	e, ok := errors.AsType[*client.Error](client.FromError(err))
	if !ok || e.Code != "OUTCOME_UNKNOWN" || e.IdempotencyID.IsZero() || !strings.Contains(e.Hint, "same idempotency ID") {
		t.Errorf("got %v", err)
	}
	if took := time.Since(begun); took > 3*time.Second {
		t.Errorf("it took %v", took)
	}
}

func TestFenceBound(t *testing.T) {
	api, _, _ := leased(t)
	must[*kekdv1.Tenant](t)(api.CreateTenant(soon(t), &kekdv1.CreateTenantRequest{Name: "slow", MaxStaleness: int64(time.Hour)}))
	for tenant, want := range map[string]time.Duration{"acme": 2520 * time.Millisecond, "slow": 3636*time.Second + 500*time.Millisecond, "": 3636*time.Second + 500*time.Millisecond} {
		got := must[*kekdv1.GetFenceBoundResponse](t)(api.GetFenceBound(soon(t), &kekdv1.GetFenceBoundRequest{Tenant: tenant}))
		if time.Duration(got.Bound) != want {
			t.Errorf("of %q: %v, want %v", tenant, time.Duration(got.Bound), want)
		}
	}
	// A lowering that is not known to be effective counts with what it came from.
	must[*kekdv1.Tenant](t)(api.SetTenant(soon(t), &kekdv1.SetTenantRequest{Name: "slow", MaxStaleness: proto.Int64(int64(time.Second)), NoWait: true}))
	if got := must[*kekdv1.GetFenceBoundResponse](t)(api.GetFenceBound(soon(t), &kekdv1.GetFenceBoundRequest{Tenant: "slow"})); time.Duration(got.Bound) < time.Hour {
		t.Errorf("while it is lowered: %v", time.Duration(got.Bound))
	}
	if err := second(api.GetFenceBound(soon(t), &kekdv1.GetFenceBoundRequest{Tenant: "none"})); code(err) != "NOT_FOUND" {
		t.Errorf("of none: %v", err)
	}
}
