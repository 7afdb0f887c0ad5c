package softhsmtests

import (
	"context"
	"fmt"
	"maps"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/kekd/kekd/hierarchy/audit"
	"github.com/kekd/kekd/hierarchy/envelope"
	"github.com/kekd/kekd/unix-socket-api/client"
	"github.com/kekd/kekd/unix-socket-api/kekdv1"
)

// Users of these tests. They need not exist: the kernel tells their numbers alone.
const (
	acmeUID   = 61001
	globexUID = 61002
	floodUID  = 61003
	nobodyUID = 61004
)

// Who calls is said by the kernel, and what he may do by the policy.
func TestCallersAreToldApart(t *testing.T) {
	t.Parallel()
	n := initialised(t)
	d := n.serve()
	setUp(t, n.Node, "acme", "globex")
	callerOf(t, n, "acme-app", acmeUID, "acme/*")
	callerOf(t, n, "globex-app", globexUID, "globex/orders")

	envelopes := map[string][]byte{}
	for tenant, uid := range map[string]uint32{"acme": acmeUID, "globex": globexUID} {
		r, err := keysAs(t, n, uid).GenerateDataKey(within(t, 10*time.Second), &kekdv1.GenerateDataKeyRequest{Key: tenant + "/orders"})
		if err != nil {
			t.Fatalf("%s by its own service: %v", tenant, err)
		}
		envelopes[tenant] = r.Envelope
	}
	for _, c := range []struct {
		uid     uint32
		tenant  string
		allowed bool
	}{
		{acmeUID, "acme", true}, {globexUID, "globex", true},
		{acmeUID, "globex", false}, {globexUID, "acme", false},
		{nobodyUID, "acme", false}, {nobodyUID, "globex", false},
	} {
		want := "PERMISSION_DENIED"
		if c.allowed {
			want = ""
		}
		for op, err := range each(t, keysAs(t, n, c.uid), c.tenant+"/orders", envelopes[c.tenant]) {
			if code := codeOf(err); code != want {
				t.Errorf("uid %d: %s of %s: %q, want %q: %v", c.uid, op, c.tenant, code, want, err)
			}
		}
	}

	denied := map[uint32]int{}
	for _, e := range journalOf(t, n) {
		if e.Caller != nil && e.Outcome == audit.OutcomeDenied {
			denied[e.Caller.UID]++
		}
	}
	if denied[acmeUID] != 4 || denied[globexUID] != 4 || denied[nobodyUID] != 8 {
		t.Errorf("denials in the audit, by uid: %v", denied)
	}
	d.stop()
}

// each does every operation once.
func each(t *testing.T, k kekdv1.KeyServiceClient, key string, sealed []byte) map[string]error {
	t.Helper()
	ctx := within(t, 20*time.Second)
	_, wrap := k.Wrap(ctx, &kekdv1.WrapRequest{Key: key, Plaintext: canary()})
	_, unwrap := k.Unwrap(ctx, &kekdv1.UnwrapRequest{Envelope: sealed})
	_, datakey := k.GenerateDataKey(ctx, &kekdv1.GenerateDataKeyRequest{Key: key})
	_, rewrap := k.Rewrap(ctx, &kekdv1.RewrapRequest{Envelope: sealed})
	return map[string]error{"wrap": wrap, "unwrap": unwrap, "datakey": datakey, "rewrap": rewrap}
}

// The program of another user is told what a client in this process is.
func TestKekctlOfAnotherUser(t *testing.T) {
	t.Parallel()
	n := initialised(t)
	d := n.serve()
	setUp(t, n.Node, "acme")
	callerOf(t, n, "acme-app", acmeUID, "acme/*")
	for uid, want := range map[uint32]int{acmeUID: 0, nobodyUID: 2} {
		cmd := exec.Command(kekctl, "--socket", n.Socket, "datakey", "acme/orders", "-o", "json")
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid}}
		cmd.Dir = "/"
		out, _ := cmd.CombinedOutput()
		if got := cmd.ProcessState.ExitCode(); got != want || (want == 2) != strings.Contains(string(out), "PERMISSION_DENIED") {
			t.Errorf("uid %d: status %d, want %d", uid, got, want)
		}
	}
	d.stop()
}

// The admin socket serves administrators alone, also where its mode lets others through, and every
// refused call is in the audit.
func TestAdminSocketOfAnotherUser(t *testing.T) {
	t.Parallel()
	n := initialised(t)
	d := n.serve()
	setUp(t, n.Node, "acme")
	a := adminAs(t, n, nobodyUID)
	ctx := within(t, 20*time.Second)
	calls := map[string]func() error{
		"GetStatus":   func() error { _, err := a.GetStatus(ctx, &kekdv1.GetStatusRequest{}); return err },
		"ListTenants": func() error { _, err := a.ListTenants(ctx, &kekdv1.ListTenantsRequest{}); return err },
		"DisableTenant": func() error {
			_, err := a.DisableTenant(ctx, &kekdv1.DisableTenantRequest{Name: "acme", Reason: "x"})
			return err
		},
		"CreateTenant": func() error { _, err := a.CreateTenant(ctx, &kekdv1.CreateTenantRequest{Name: "mine"}); return err },
		"AllowPolicy": func() error {
			_, err := a.AllowPolicy(ctx, &kekdv1.AllowPolicyRequest{Rule: &kekdv1.Rule{Service: "me", Pattern: "*/*", Ops: allOps}})
			return err
		},
		"TailAudit": func() error {
			s, err := a.TailAudit(ctx, &kekdv1.TailAuditRequest{})
			if err == nil {
				_, err = s.Recv()
			}
			return err
		},
	}
	for name, call := range calls {
		if err := call(); codeOf(err) != "PERMISSION_DENIED" {
			t.Errorf("%s by another user: %v", name, err)
		}
	}
	var recorded []string
	for _, e := range journalOf(t, n) {
		if e.Kind == "admin-call" && e.Outcome == audit.OutcomeDenied && e.Caller.UID == nobodyUID {
			recorded = append(recorded, e.Detail)
		}
	}
	slices.Sort(recorded)
	if want := slices.Sorted(maps.Keys(calls)); !slices.Equal(recorded, want) {
		t.Errorf("refused calls in the audit: %q, want %q", recorded, want)
	}
	sealAndOpen(t, n, "acme/orders")
	d.stop()
}

// Whoever may not use a key cannot tell by code, words or time whether it is there.
func TestWhetherAKeyExistsIsHidden(t *testing.T) {
	n := initialised(t)
	d := n.serve()
	setUp(t, n.Node, "acme", "globex")
	callerOf(t, n, "acme-app", acmeUID, "acme/*")
	k := keysAs(t, n, acmeUID)
	theirs, err := keys(t, n.Node).GenerateDataKey(within(t, 10*time.Second), "globex/orders", 32, client.Options{})
	if err != nil {
		t.Fatal(err)
	}
	e, err := envelope.Parse(theirs.Envelope)
	if err != nil {
		t.Fatal(err)
	}
	e.Key.ID[7] ^= 1
	noKey, err := e.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	e.Tenant.ID[7] ^= 1
	noTenant, err := e.Marshal()
	if err != nil {
		t.Fatal(err)
	}

	datakey := func(key string) func(context.Context) error {
		return func(ctx context.Context) error {
			_, err := k.GenerateDataKey(ctx, &kekdv1.GenerateDataKeyRequest{Key: key})
			return err
		}
	}
	unwrap := func(envelope []byte) func(context.Context) error {
		return func(ctx context.Context) error {
			_, err := k.Unwrap(ctx, &kekdv1.UnwrapRequest{Envelope: envelope})
			return err
		}
	}
	// The first of each is there.
	for what, calls := range map[string][]func(context.Context) error{
		"data key": {datakey("globex/orders"), datakey("globex/nothing"), datakey("nobody/orders")},
		"unwrap":   {unwrap(theirs.Envelope), unwrap(noKey), unwrap(noTenant)},
	} {
		const rounds = 300
		words, took := make([]string, len(calls)), make([][]time.Duration, len(calls))
		for range rounds {
			for i, call := range calls {
				begun := time.Now()
				err := call(within(t, 10*time.Second))
				took[i] = append(took[i], time.Since(begun))
				if words[i] = fmt.Sprint(err); codeOf(err) != "PERMISSION_DENIED" {
					t.Fatalf("%s %d: %v", what, i, err)
				}
			}
		}
		there := median(took[0])
		for i := range calls {
			if words[i] != words[0] {
				t.Errorf("%s: told apart by words:\n%s\n%s", what, words[0], words[i])
			}
			// Half of a durable record's time, which the disk varies by more than that.
			if m := median(took[i]); m > there*3/2 || m < there*2/3 {
				t.Errorf("%s: told apart by time: %v where the key is, %v where none is", what, there, m)
			}
		}
		t.Logf("%s: median %v where the key is, %v and %v where none is", what, there, median(took[1]), median(took[2]))
	}
	d.stop()
}

func median(ds []time.Duration) time.Duration { return slices.Sorted(slices.Values(ds))[len(ds)/2] }
