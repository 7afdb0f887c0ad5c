package custody_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/kekd/kekd/hierarchy"
	"github.com/kekd/kekd/hierarchy/audit"
	"github.com/kekd/kekd/hierarchy/commandpb"
	"github.com/kekd/kekd/hierarchy/custody"
	"github.com/kekd/kekd/hierarchy/envelope"
	"github.com/kekd/kekd/hierarchy/quota"
	"github.com/kekd/kekd/hsm"
)

func TestRoundTrips(t *testing.T) {
	w := newWorld(t)
	ctx := hierarchy.ContextEntry{Key: "app", Value: "billing"}
	secret := []byte("a data key of 31 bytes, as given")

	wrapped := w.do(acmeApp, custody.Request{Op: hierarchy.OpWrap, Key: "acme/orders", Plaintext: secret, Context: []hierarchy.ContextEntry{ctx}})
	if wrapped.Err != nil {
		t.Fatal(wrapped.Err)
	}
	e, err := envelope.Parse(wrapped.Envelope)
	if err != nil {
		t.Fatal(err)
	}
	text, err := e.Text()
	if err != nil {
		t.Fatal(err)
	}
	for _, form := range [][]byte{wrapped.Envelope, []byte(text), []byte(text + "\n")} {
		r := w.do(acmeApp, custody.Request{Op: hierarchy.OpUnwrap, Envelope: form, Context: []hierarchy.ContextEntry{ctx}})
		want := custody.Response{Plaintext: secret, Key: hierarchy.KeyName{Tenant: "acme", Key: "orders"}, Version: 1}
		if diff := cmp.Diff(want, r); diff != "" {
			t.Fatalf("unwrap (-want +got):\n%s", diff)
		}
	}

	made := w.do(acmeApp, custody.Request{Op: hierarchy.OpDataKey, Key: "acme/orders"})
	if made.Err != nil || len(made.Plaintext) != custody.DefaultDataKey {
		t.Fatalf("data key: %d bytes, %v", len(made.Plaintext), made.Err)
	}
	opened := w.do(acmeApp, custody.Request{Op: hierarchy.OpUnwrap, Envelope: made.Envelope})
	if !bytes.Equal(opened.Plaintext, made.Plaintext) {
		t.Fatal("the envelope of a data key opens to something else")
	}
	blind := w.do(acmeApp, custody.Request{Op: hierarchy.OpDataKey, Key: "acme/orders", Bytes: 64, WrappedOnly: true})
	if blind.Err != nil || blind.Plaintext != nil {
		t.Fatalf("wrapped only: %d bytes of plaintext, %v", len(blind.Plaintext), blind.Err)
	}
	if r := w.do(acmeApp, custody.Request{Op: hierarchy.OpUnwrap, Envelope: blind.Envelope}); len(r.Plaintext) != 64 {
		t.Fatalf("a data key of 64 bytes opens to %d: %v", len(r.Plaintext), r.Err)
	}
}

func TestRewrap(t *testing.T) {
	w := newWorld(t)
	old := w.sealed(acmeApp, "acme/orders")
	w.rotate("acme", 1)
	handed := len(w.token.handed)

	if r := w.do(acmeApp, custody.Request{Op: hierarchy.OpUnwrap, Envelope: old}); !r.NeedsRewrap || r.Version != 1 {
		t.Fatalf("an envelope of a retired version: %+v", r)
	}
	handed++
	r := w.do(acmeApp, custody.Request{Op: hierarchy.OpRewrap, Envelope: old})
	if r.Err != nil || r.Version != 2 || r.Plaintext != nil {
		t.Fatalf("rewrap: %+v", r)
	}
	if len(w.token.handed) != handed {
		t.Fatal("a rewrap made the token hand the data key out")
	}
	opened := w.do(acmeApp, custody.Request{Op: hierarchy.OpUnwrap, Envelope: r.Envelope})
	if string(opened.Plaintext) != "0123456789abcdef" || opened.NeedsRewrap {
		t.Fatalf("what was rewrapped: %+v", opened)
	}
}

func TestRefusals(t *testing.T) {
	w := newWorld(t)
	w.allow(&commandpb.Rule{Service: "acme-app", Pattern: "acme/orders", Ops: uint32(hierarchy.OpWrap | hierarchy.OpUnwrap), RequiredContext: []*commandpb.RequiredContext{{Key: "app"}}})
	app := hierarchy.ContextEntry{Key: "app", Value: "billing"}
	w.sealed(acmeApp, "acme/orders", app)
	good := w.sealed(acmeApp, "acme/orders", app)
	broken := bytes.Clone(good)
	broken[len(broken)-1] ^= 1
	foreign, err := envelope.Parse(good)
	if err != nil {
		t.Fatal(err)
	}
	foreign.Tenant.ID[0] ^= 1
	unknownTenant, err := foreign.Marshal()
	if err != nil {
		t.Fatal(err)
	}

	long := strings.Repeat("x", 300)
	for name, c := range map[string]struct {
		who  hierarchy.Principal
		req  custody.Request
		want error
	}{
		"stranger":           {stranger, custody.Request{Op: hierarchy.OpUnwrap, Envelope: good, Context: []hierarchy.ContextEntry{app}}, hierarchy.ErrPermissionDenied},
		"other tenant's":     {globexApp, custody.Request{Op: hierarchy.OpUnwrap, Envelope: good, Context: []hierarchy.ContextEntry{app}}, hierarchy.ErrPermissionDenied},
		"wrong context":      {acmeApp, custody.Request{Op: hierarchy.OpUnwrap, Envelope: good, Context: []hierarchy.ContextEntry{{Key: "app", Value: "other"}}}, hierarchy.ErrContextMismatch},
		"altered":            {acmeApp, custody.Request{Op: hierarchy.OpUnwrap, Envelope: broken, Context: []hierarchy.ContextEntry{app}}, hierarchy.ErrContextMismatch},
		"unknown tenant":     {acmeApp, custody.Request{Op: hierarchy.OpUnwrap, Envelope: unknownTenant}, hierarchy.ErrPermissionDenied},
		"no envelope":        {acmeApp, custody.Request{Op: hierarchy.OpUnwrap, Envelope: []byte("junk")}, hierarchy.ErrEnvelopeInvalid},
		"envelope too large": {acmeApp, custody.Request{Op: hierarchy.OpUnwrap, Envelope: make([]byte, 64<<10)}, hierarchy.ErrEnvelopeInvalid},
		"empty plaintext":    {acmeApp, custody.Request{Op: hierarchy.OpWrap, Key: "acme/orders"}, hierarchy.ErrInvalidArgument},
		"large plaintext":    {acmeApp, custody.Request{Op: hierarchy.OpWrap, Key: "acme/orders", Plaintext: make([]byte, hsm.MaxPlaintext+1)}, hierarchy.ErrInvalidArgument},
		"small data key":     {acmeApp, custody.Request{Op: hierarchy.OpDataKey, Key: "acme/orders", Bytes: 8}, hierarchy.ErrInvalidArgument},
		"bad name":           {acmeApp, custody.Request{Op: hierarchy.OpDataKey, Key: "acme"}, hierarchy.ErrInvalidArgument},
		"context twice":      {acmeApp, custody.Request{Op: hierarchy.OpWrap, Key: "acme/orders", Plaintext: []byte("x"), Context: []hierarchy.ContextEntry{app, app}}, hierarchy.ErrInvalidArgument},
		"long reason":        {acmeApp, custody.Request{Op: hierarchy.OpWrap, Key: "acme/orders", Plaintext: []byte("x"), Reason: long}, hierarchy.ErrInvalidArgument},
		"no operation":       {acmeApp, custody.Request{}, hierarchy.ErrInvalidArgument},
		"unknown key":        {acmeApp, custody.Request{Op: hierarchy.OpDataKey, Key: "acme/nothing"}, hierarchy.ErrNotFound},
		"hidden key":         {acmeApp, custody.Request{Op: hierarchy.OpDataKey, Key: "globex/orders"}, hierarchy.ErrPermissionDenied},
		"hidden absent key":  {acmeApp, custody.Request{Op: hierarchy.OpDataKey, Key: "globex/nothing"}, hierarchy.ErrPermissionDenied},
		"absent tenant":      {acmeApp, custody.Request{Op: hierarchy.OpDataKey, Key: "nobody/orders"}, hierarchy.ErrPermissionDenied},
		"operation not in":   {saas, custody.Request{Op: hierarchy.OpDataKey, Key: "acme/orders"}, hierarchy.ErrPermissionDenied},
	} {
		t.Run(name, func(t *testing.T) {
			asked := w.token.asked
			wantErr(t, w.do(c.who, c.req), c.want)
			if !errors.Is(c.want, hierarchy.ErrContextMismatch) && w.token.asked != asked {
				t.Fatal("the token was asked")
			}
		})
	}
}

// Whoever may not use a key cannot tell it from one that does not exist, not even by the words.
func TestExistenceIsHidden(t *testing.T) {
	w := newWorld(t)
	there := w.do(acmeApp, custody.Request{Op: hierarchy.OpDataKey, Key: "globex/orders"})
	absent := w.do(acmeApp, custody.Request{Op: hierarchy.OpDataKey, Key: "globex/nothing"})
	nobody := w.do(acmeApp, custody.Request{Op: hierarchy.OpDataKey, Key: "nobody/nothing"})
	if there.Err.Error() != absent.Err.Error() || there.Err.Error() != nobody.Err.Error() {
		t.Fatalf("told apart:\n%v\n%v\n%v", there.Err, absent.Err, nobody.Err)
	}
	theirs := w.sealed(globexApp, "globex/orders")
	e, err := envelope.Parse(theirs)
	if err != nil {
		t.Fatal(err)
	}
	e.Key.ID[3] ^= 1
	made, err := e.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	for _, st := range []commandpb.TenantState{commandpb.TenantState_TENANT_STATE_ENABLED, commandpb.TenantState_TENANT_STATE_DISABLED} {
		if st == commandpb.TenantState_TENANT_STATE_DISABLED {
			w.tenant("globex", st)
		}
		a := w.do(acmeApp, custody.Request{Op: hierarchy.OpUnwrap, Envelope: theirs})
		b := w.do(acmeApp, custody.Request{Op: hierarchy.OpUnwrap, Envelope: made})
		if a.Err.Error() != b.Err.Error() {
			t.Fatalf("told apart:\n%v\n%v", a.Err, b.Err)
		}
	}
}

func TestStatesOfTenantsAndVersions(t *testing.T) {
	w := newWorld(t)
	v1 := w.sealed(acmeApp, "acme/orders")
	w.rotate("acme", 1)
	v2 := w.sealed(acmeApp, "acme/orders")
	unwrap := func(e []byte) custody.Response {
		return w.do(acmeApp, custody.Request{Op: hierarchy.OpUnwrap, Envelope: e})
	}
	rewrap := func(e []byte) custody.Response {
		return w.do(acmeApp, custody.Request{Op: hierarchy.OpRewrap, Envelope: e})
	}
	ok := func(r custody.Response) {
		t.Helper()
		if r.Err != nil {
			t.Fatal(r.Err)
		}
	}

	w.version("acme", 1, commandpb.VersionAction_VERSION_ACTION_SUSPEND)
	wantErr(t, unwrap(v1), hierarchy.ErrVersionDisabled)
	wantErr(t, rewrap(v1), hierarchy.ErrVersionDisabled)
	ok(unwrap(v2))
	w.version("acme", 1, commandpb.VersionAction_VERSION_ACTION_RESUME)
	ok(unwrap(v1))

	w.version("acme", 1, commandpb.VersionAction_VERSION_ACTION_COMPROMISE)
	wantErr(t, unwrap(v1), hierarchy.ErrVersionDisabled)
	ok(rewrap(v1))

	two := uint32(2)
	w.apply(&commandpb.Command{Body: &commandpb.Command_SetKey{SetKey: &commandpb.SetKey{TenantId: id("acme"), KeyId: id("acme/orders"), MinUnwrapVersion: &two}}})
	wantErr(t, rewrap(v1), hierarchy.ErrVersionDisabled)

	w.version("acme", 2, commandpb.VersionAction_VERSION_ACTION_SUSPEND)
	wantErr(t, w.do(acmeApp, custody.Request{Op: hierarchy.OpDataKey, Key: "acme/orders"}), hierarchy.ErrVersionDisabled)
	w.version("acme", 2, commandpb.VersionAction_VERSION_ACTION_RESUME)

	w.tenant("acme", commandpb.TenantState_TENANT_STATE_DISABLED)
	wantErr(t, unwrap(v2), hierarchy.ErrTenantDisabled)
	w.tenant("acme", commandpb.TenantState_TENANT_STATE_ENABLED)
	ok(unwrap(v2))
}

// A disable that comes at any moment before the reply is obeyed. Without the second look the
// audit would say "ok"; without the third the plaintext would leave.
func TestDisabledMeanwhile(t *testing.T) {
	for name, when := range map[string]func(w *world, f func()){
		"while the token works":      func(w *world, f func()) { w.token.during = f },
		"while the record is synced": func(w *world, f func()) { w.journal.during = []func(){f} },
	} {
		for what, change := range map[string]struct {
			f    func(w *world)
			want error
		}{
			"tenant disabled":   {func(w *world) { w.tenant("acme", commandpb.TenantState_TENANT_STATE_DISABLED) }, hierarchy.ErrTenantDisabled},
			"version suspended": {func(w *world) { w.version("acme", 1, commandpb.VersionAction_VERSION_ACTION_SUSPEND) }, hierarchy.ErrVersionDisabled},
			"policy revoked": {func(w *world) {
				w.apply(&commandpb.Command{Body: &commandpb.Command_RevokePolicy{RevokePolicy: &commandpb.RevokePolicy{Service: "acme-app", Pattern: "acme/*"}}})
			}, hierarchy.ErrPermissionDenied},
			"service deleted": {func(w *world) {
				w.apply(&commandpb.Command{Body: &commandpb.Command_DeleteService{DeleteService: &commandpb.DeleteService{Name: "acme-app"}}})
			}, hierarchy.ErrPermissionDenied},
			"copy too old": {func(w *world) { w.setView(3*time.Second, nil) }, hierarchy.ErrStale},
			"lease lost":   {func(w *world) { w.setView(0, errors.New("no lease")) }, hierarchy.ErrStale},
		} {
			for _, op := range []hierarchy.Op{hierarchy.OpUnwrap, hierarchy.OpDataKey} {
				t.Run(name+"/"+what+"/"+op.String(), func(t *testing.T) {
					w := newWorld(t)
					env := w.sealed(acmeApp, "acme/orders")
					before := w.journal.count()
					when(w, func() { change.f(w); w.token.during = nil })
					wantErr(t, w.do(acmeApp, custody.Request{Op: op, Envelope: env, Key: "acme/orders"}), change.want)

					records := w.journal.since(before)
					if last := records[len(records)-1]; last.Outcome == audit.OutcomeOK {
						t.Fatalf("the audit says that it was released: %+v", last)
					}
					for _, p := range w.token.handed {
						if !bytes.Equal(p, make([]byte, len(p))) {
							t.Fatal("the plaintext that was held back was not wiped")
						}
					}
				})
			}
		}
	}
}

// A disable also latches the key. Who is in the middle is told why, and not that the token is sick.
func TestLatchedMeanwhile(t *testing.T) {
	w := newWorld(t)
	env := w.sealed(acmeApp, "acme/orders")
	w.token.err = hsm.ErrKeyLatched
	w.token.during = func() { w.tenant("acme", commandpb.TenantState_TENANT_STATE_DISABLED) }
	wantErr(t, w.do(acmeApp, custody.Request{Op: hierarchy.OpUnwrap, Envelope: env}), hierarchy.ErrTenantDisabled)
}

// A caller whose deadline ends at the token is told of the token, and the audit has what he tried.
func TestTimeIsUpAtTheToken(t *testing.T) {
	w := newWorld(t)
	env := w.sealed(acmeApp, "acme/orders")
	ctx, cancel := context.WithCancel(t.Context())
	w.token.err = hsm.ErrDeadline
	w.token.during = cancel
	before := w.journal.count()
	resps := make([]custody.Response, 1)
	w.Do(ctx, acmeApp, []custody.Request{{Op: hierarchy.OpUnwrap, Envelope: env}}, resps)
	wantErr(t, resps[0], hierarchy.ErrHSMUnavailable)
	if errors.Is(resps[0].Err, hierarchy.ErrAuditUnavailable) {
		t.Error("the audit is blamed")
	}
	wantSecondRecord(t, w, before, audit.OutcomeFailed, hierarchy.ErrHSMUnavailable)
}

// The record of what was held back takes time as well, in which another tenant may be disabled.
func TestDisabledWhileAnotherIsHeldBack(t *testing.T) {
	w := newWorld(t)
	w.allow(&commandpb.Rule{Service: "saas", Pattern: "*/orders", Ops: uint32(hierarchy.OpUnwrap)})
	reqs := []custody.Request{
		{Op: hierarchy.OpUnwrap, Envelope: w.sealed(acmeApp, "acme/orders")},
		{Op: hierarchy.OpUnwrap, Envelope: w.sealed(globexApp, "globex/orders")},
	}
	w.journal.during = []func(){
		func() { w.tenant("acme", commandpb.TenantState_TENANT_STATE_DISABLED) },
		func() { w.tenant("globex", commandpb.TenantState_TENANT_STATE_DISABLED) },
	}
	resps := make([]custody.Response, len(reqs))
	w.Do(context.Background(), saas, reqs, resps)
	for _, r := range resps {
		wantErr(t, r, hierarchy.ErrTenantDisabled)
	}
}

// A tenant that lowers max_staleness is held to the new one by the very next look.
func TestStalenessLoweredMeanwhile(t *testing.T) {
	w := newWorld(t)
	env := w.sealed(acmeApp, "acme/orders")
	second := int64(time.Second)
	w.token.during = func() {
		w.token.during = nil
		w.apply(&commandpb.Command{Body: &commandpb.Command_SetTenant{SetTenant: &commandpb.SetTenant{TenantId: id("acme"), MaxStaleness: &second}}})
	}
	w.journal.during = []func(){func() { w.setView(1500*time.Millisecond, nil) }}
	wantErr(t, w.do(acmeApp, custody.Request{Op: hierarchy.OpUnwrap, Envelope: env}), hierarchy.ErrStale)
}

// A rotation in the middle takes nothing away: what the retired version sealed opens.
func TestRotatedMeanwhile(t *testing.T) {
	w := newWorld(t)
	w.token.during = func() { w.token.during = nil; w.rotate("acme", 1) }
	r := w.do(acmeApp, custody.Request{Op: hierarchy.OpDataKey, Key: "acme/orders"})
	if r.Err != nil || r.Version != 1 {
		t.Fatalf("%+v", r)
	}
	if o := w.do(acmeApp, custody.Request{Op: hierarchy.OpUnwrap, Envelope: r.Envelope}); o.Err != nil || !o.NeedsRewrap {
		t.Fatalf("%+v", o)
	}
}

// After a rotation in the middle the present version is another, and the one that sealed is looked
// at all the same: what it sealed would not open any more.
func TestRotatedAndTakenOutOfUseMeanwhile(t *testing.T) {
	for name, when := range map[string]func(w *world, f func()){
		"while the token works":      func(w *world, f func()) { w.token.during = f },
		"while the record is synced": func(w *world, f func()) { w.journal.during = []func(){f} },
	} {
		for _, action := range []commandpb.VersionAction{commandpb.VersionAction_VERSION_ACTION_SUSPEND, commandpb.VersionAction_VERSION_ACTION_COMPROMISE} {
			for op, reveals := range map[hierarchy.Op]bool{hierarchy.OpWrap: false, hierarchy.OpDataKey: true} {
				t.Run(fmt.Sprintf("%s/%v/%s", name, action, op), func(t *testing.T) {
					w := newWorld(t)
					when(w, func() {
						w.token.during = nil
						w.rotate("acme", 1)
						w.version("acme", 1, action)
					})
					r := custody.Request{Op: op, Key: "acme/orders"}
					if op == hierarchy.OpWrap {
						r.Plaintext = []byte("0123456789abcdef")
					}
					wantErr(t, w.do(acmeApp, r), hierarchy.ErrVersionDisabled)
					if n := len(w.token.handed); reveals && (n != 1 || !bytes.Equal(w.token.handed[0], make([]byte, custody.DefaultDataKey))) {
						t.Errorf("the data key was not wiped, of %d", n)
					}
					if last := w.journal.since(w.journal.count() - 1)[0]; last.Outcome == audit.OutcomeOK || last.Code != "KEY_VERSION_DISABLED" {
						t.Errorf("the last record: %+v", last)
					}
				})
			}
		}
	}
}

// A version that a region has minted, and another has not, seals nothing and opens nothing: its key
// is usable in the token, for the tests that come first.
func TestAVersionThatIsNotActiveYet(t *testing.T) {
	w := newWorld(t)
	old := w.sealed(acmeApp, "acme/orders")
	us := hierarchy.RegionID{ID: hierarchy.ID(id("us"))}
	tenant, _ := w.state.TenantByName("acme")
	tenant.Placement = append(tenant.Placement, us) // no command does that yet
	w.rotate("acme", 1)
	k, _ := w.state.KeyByName(tenant.ID, "orders")
	if v := k.Newest(); v.State != hierarchy.PreActive || !v.Regions[0].Minted || v.Regions[1].Minted {
		t.Fatalf("%+v", v)
	}
	asked := w.token.asked
	forged := w.alter(old, func(e *envelope.Envelope) { e.Version = 2 })
	for _, op := range []hierarchy.Op{hierarchy.OpUnwrap, hierarchy.OpRewrap} {
		wantErr(t, w.do(acmeApp, custody.Request{Op: op, Envelope: forged}), hierarchy.ErrVersionDisabled)
	}
	if w.token.asked != asked {
		t.Error("the token was asked")
	}
	if r := w.do(acmeApp, custody.Request{Op: hierarchy.OpDataKey, Key: "acme/orders"}); r.Err != nil || r.Version != 1 {
		t.Errorf("%+v", r)
	}
}

// A region opens with its own key what it sealed itself. What another one sealed needs a bridge, and
// is told so from an altered envelope.
func TestOtherRegionsEnvelopes(t *testing.T) {
	w := newWorld(t)
	good := w.sealed(acmeApp, "acme/orders")
	us := hierarchy.RegionID{ID: hierarchy.ID(id("us"))}
	asked := w.token.asked
	for name, sealed := range map[string][]byte{
		"sealed in another region":          w.alter(good, func(e *envelope.Envelope) { e.SealedIn = us }),
		"sealed for another region, not us": w.alter(good, func(e *envelope.Envelope) { e.SealedIn, e.Recipients[0].Region = us, us }),
	} {
		for _, op := range []hierarchy.Op{hierarchy.OpUnwrap, hierarchy.OpRewrap} {
			if r := w.do(acmeApp, custody.Request{Op: op, Envelope: sealed}); !errors.Is(r.Err, hierarchy.ErrFailedPrecondition) {
				t.Errorf("%s: %s: %v", name, op, r.Err)
			}
		}
	}
	if w.token.asked != asked {
		t.Error("the token was asked")
	}
}

// What no record says was to be released is not said to have been withheld either: a journal that
// fails for a moment has nothing of the request.
func TestWhatWasNeverRecordedIsNotWithheld(t *testing.T) {
	w := newWorld(t)
	env := w.sealed(acmeApp, "acme/orders")
	before := w.journal.count()
	for _, r := range []custody.Request{
		{Op: hierarchy.OpUnwrap, Envelope: env},
		{Op: hierarchy.OpDataKey, Key: "acme/orders"},
	} {
		w.journal.failing = 1
		wantErr(t, w.do(acmeApp, r), hierarchy.ErrAuditUnavailable)
		if got := w.journal.since(before); len(got) != 0 {
			t.Errorf("%s: recorded: %+v", r.Op, got)
		}
	}
}

func TestNothingLeavesWithoutItsRecord(t *testing.T) {
	t.Run("not appended", func(t *testing.T) {
		nothingLeaves(t, func(j *journal) { j.err = hierarchy.ErrAuditUnavailable })
	})
	t.Run("appended, and not known to be durable", func(t *testing.T) {
		nothingLeaves(t, func(j *journal) { j.waitErr = hierarchy.ErrAuditUnavailable })
	})
}

func nothingLeaves(t *testing.T, fail func(*journal)) {
	w := newWorld(t)
	env := w.sealed(acmeApp, "acme/orders")
	fail(w.journal)
	handed := len(w.token.handed)
	for _, r := range []custody.Request{
		{Op: hierarchy.OpUnwrap, Envelope: env},
		{Op: hierarchy.OpDataKey, Key: "acme/orders"},
		{Op: hierarchy.OpWrap, Key: "acme/orders", Plaintext: []byte("0123456789abcdef")},
		{Op: hierarchy.OpRewrap, Envelope: env},
		{Op: hierarchy.OpUnwrap, Envelope: env, Context: []hierarchy.ContextEntry{{Key: "a", Value: "b"}}},
	} {
		wantErr(t, w.do(acmeApp, r), hierarchy.ErrAuditUnavailable)
	}
	wantErr(t, w.do(stranger, custody.Request{Op: hierarchy.OpUnwrap, Envelope: env}), hierarchy.ErrAuditUnavailable)
	for _, p := range w.token.handed[handed:] {
		if !bytes.Equal(p, make([]byte, len(p))) {
			t.Fatal("the plaintext was not wiped")
		}
	}
}

func TestFaultsOfTheToken(t *testing.T) {
	w := newWorld(t)
	env := w.sealed(acmeApp, "acme/orders")
	for _, c := range []struct{ err, want error }{
		{hsm.ErrTagMismatch, hierarchy.ErrContextMismatch},
		{hsm.ErrUnavailable, hierarchy.ErrHSMUnavailable},
		{hsm.ErrDeadline, hierarchy.ErrHSMUnavailable},
		{hsm.ErrKeyNotFound, hierarchy.ErrHSMUnavailable},
		{hsm.ErrKeyRefused, hierarchy.ErrHSMUnavailable},
		{hsm.ErrAmbiguous, hierarchy.ErrHSMUnavailable},
		{hsm.ErrKeyLatched, hierarchy.ErrHSMUnavailable},
		{hsm.ErrInvalidInput, hierarchy.ErrInvalidArgument},
	} {
		w.token.err = c.err
		before := w.journal.count()
		wantErr(t, w.do(acmeApp, custody.Request{Op: hierarchy.OpUnwrap, Envelope: env}), c.want)
		wantSecondRecord(t, w, before, audit.OutcomeFailed, c.want)
		before = w.journal.count()
		wantErr(t, w.do(acmeApp, custody.Request{Op: hierarchy.OpRewrap, Envelope: env}), c.want)
		got := w.journal.since(before)
		if len(got) != 1 || got[0].Outcome != audit.OutcomeFailed || got[0].Code != hierarchy.Code(c.want) {
			t.Fatalf("recorded of a rewrap: %+v", got)
		}
	}
}

// wantSecondRecord checks that after so many records there are two: that something is authorised,
// and what came of it.
func wantSecondRecord(t *testing.T, w *world, before int, outcome audit.Outcome, code error) {
	t.Helper()
	got := w.journal.since(before)
	if len(got) != 2 || got[0].Outcome != audit.OutcomeAuthorised || got[0].Code != "" || got[0].Of != 0 {
		t.Fatalf("recorded: %+v", got)
	}
	if got[1].Outcome != outcome || got[1].Code != hierarchy.Code(code) || got[1].Of != uint64(before)+1 {
		t.Fatalf("recorded second: %+v", got[1])
	}
}

// The record of an unwrap is in the journal before the token is asked, and without it the token is
// not asked; that of a wrap has the envelope, and follows it.
func TestUnwrapIsRecordedAhead(t *testing.T) {
	w := newWorld(t)
	env := w.sealed(acmeApp, "acme/orders")
	before, during := w.journal.count(), 0
	w.token.during = func() { during = w.journal.count() }
	if r := w.do(acmeApp, custody.Request{Op: hierarchy.OpUnwrap, Envelope: env}); r.Err != nil {
		t.Fatal(r.Err)
	}
	if during != before+1 || w.journal.count() != before+1 {
		t.Errorf("%d records before the token, %d after it", during-before, w.journal.count()-before)
	}
	before = w.journal.count()
	w.sealed(acmeApp, "acme/orders")
	if got := w.journal.since(before); during != before || len(got) != 1 || got[0].Outcome != audit.OutcomeOK || got[0].Envelope == (audit.Hash{}) {
		t.Errorf("%d records before the token sealed, and after it %+v", during-before, got)
	}
	asked := w.token.asked
	w.journal.err = errors.New("the disk is full")
	wantErr(t, w.do(acmeApp, custody.Request{Op: hierarchy.OpUnwrap, Envelope: env}), hierarchy.ErrAuditUnavailable)
	if w.token.asked != asked {
		t.Error("the token was asked for what cannot be recorded")
	}
}

func TestSealsAreCounted(t *testing.T) {
	w := newWorld(t)
	env := w.sealed(acmeApp, "acme/orders")
	w.budget.taken = 0
	reqs := make([]custody.Request, 9)
	for i := range reqs {
		switch {
		case i == 4:
			reqs[i] = custody.Request{Op: hierarchy.OpUnwrap, Envelope: env} // seals nothing
		case i == 5:
			reqs[i] = custody.Request{Op: hierarchy.OpDataKey, Key: "globex/orders"} // refused
		case i == 6:
			reqs[i] = custody.Request{Op: hierarchy.OpRewrap, Envelope: env}
		default:
			reqs[i] = custody.Request{Op: hierarchy.OpDataKey, Key: "acme/orders"}
		}
	}
	resps := make([]custody.Response, len(reqs))
	w.Do(context.Background(), acmeApp, reqs, resps)
	if w.budget.taken != 7 {
		t.Fatalf("%d seals were counted, 7 were done", w.budget.taken)
	}
	w.budget.err = hierarchy.ErrCapacity
	asked := w.token.asked
	wantErr(t, w.do(acmeApp, custody.Request{Op: hierarchy.OpDataKey, Key: "acme/orders"}), hierarchy.ErrCapacity)
	if w.token.asked != asked {
		t.Fatal("the token sealed over the limit")
	}
	if r := w.do(acmeApp, custody.Request{Op: hierarchy.OpUnwrap, Envelope: env}); r.Err != nil {
		t.Fatalf("a version that may seal no more still opens: %v", r.Err)
	}
}

func TestBatchIsPerItem(t *testing.T) {
	w := newWorld(t)
	env := w.sealed(acmeApp, "acme/orders")
	reqs := []custody.Request{
		{Op: hierarchy.OpUnwrap, Envelope: env},
		{Op: hierarchy.OpUnwrap, Envelope: []byte("junk")},
		{Op: hierarchy.OpDataKey, Key: "globex/orders"},
		{Op: hierarchy.OpDataKey, Key: "acme/orders"},
	}
	resps := make([]custody.Response, len(reqs))
	before := w.journal.count()
	w.Do(context.Background(), acmeApp, reqs, resps)
	want := []error{nil, hierarchy.ErrEnvelopeInvalid, hierarchy.ErrPermissionDenied, nil}
	for i := range want {
		if !errors.Is(resps[i].Err, want[i]) {
			t.Errorf("item %d: %v, want %v", i, resps[i].Err, want[i])
		}
	}
	var outcomes []audit.Outcome
	for _, r := range w.journal.since(before) {
		outcomes = append(outcomes, r.Outcome)
	}
	if diff := cmp.Diff([]audit.Outcome{audit.OutcomeAuthorised, audit.OutcomeDenied, audit.OutcomeOK}, outcomes); diff != "" {
		t.Errorf("recorded (-want +got):\n%s", diff)
	}
}

// A stranger's refusals cost the others next to nothing: those that are too many are counted.
func TestRefusalsAreBounded(t *testing.T) {
	w := newWorld(t)
	reqs := make([]custody.Request, custody.MaxBatch)
	for i := range reqs {
		reqs[i] = custody.Request{Op: hierarchy.OpDataKey, Key: "acme/orders", Reason: strings.Repeat("\x01", custody.MaxReason)}
	}
	resps := make([]custody.Response, len(reqs))
	before := w.journal.count()
	w.Do(context.Background(), stranger, reqs, resps)
	for i := range resps {
		if !errors.Is(resps[i].Err, hierarchy.ErrPermissionDenied) {
			t.Fatalf("item %d: %v", i, resps[i].Err)
		}
	}
	if n := w.journal.count() - before; n != quota.RefusalsPerSecond {
		t.Fatalf("%d records of %d refusals", n, len(reqs))
	}
	w.later(time.Second)
	w.sealed(acmeApp, "acme/orders")
	records := w.journal.since(before + quota.RefusalsPerSecond)
	if len(records) != 2 || records[1].Kind != "refusals" || *records[1].Caller != stranger || records[1].TenantName != "acme" || records[1].Tenant.IsZero() || !strings.HasPrefix(records[1].Detail, "924 more refusals") {
		t.Fatalf("%+v", records)
	}
}

// At the end there is no later record that would bring the numbers along, and no second more.
func TestRefusalsAreRecordedAtTheEnd(t *testing.T) {
	w := newWorld(t)
	before := w.journal.count()
	if err := w.RecordRefusals(t.Context()); err != nil || w.journal.count() != before {
		t.Fatalf("%v, and %d records of nothing", err, w.journal.count()-before)
	}
	refused := func() {
		t.Helper()
		reqs := make([]custody.Request, quota.RefusalsPerSecond+5)
		for i := range reqs {
			reqs[i] = custody.Request{Op: hierarchy.OpDataKey, Key: "acme/orders"}
		}
		w.Do(t.Context(), stranger, reqs, make([]custody.Response, len(reqs)))
	}
	refused()
	before = w.journal.count()
	waited := false
	w.journal.during = []func(){func() { waited = true }}
	if err := w.RecordRefusals(t.Context()); err != nil {
		t.Fatal(err)
	}
	got := w.journal.since(before)
	if len(got) != 1 || got[0].Kind != "refusals" || got[0].Caller.UID != stranger.UID || !strings.HasPrefix(got[0].Detail, "5 more refusals") {
		t.Fatalf("%+v", got)
	}
	if !waited {
		t.Error("the record was not waited for")
	}
	if err := w.RecordRefusals(t.Context()); err != nil || w.journal.count() != before+1 {
		t.Errorf("%v, and %d records instead of one", err, w.journal.count()-before)
	}

	refused()
	w.journal.waitErr = errors.New("the disk is full")
	if err := w.RecordRefusals(t.Context()); !errors.Is(err, w.journal.waitErr) {
		t.Errorf("the number may be lost, and nobody is told: %v", err)
	}
}

func TestRecordsNameTheirTenantAndEnvelope(t *testing.T) {
	w := newWorld(t)
	env := w.sealed(acmeApp, "acme/orders")
	before := w.journal.count()
	w.do(globexApp, custody.Request{Op: hierarchy.OpUnwrap, Envelope: env, Reason: "a try"})
	got := w.journal.since(before)[0]
	got.At = time.Time{}
	want := audit.Record{
		Kind: "unwrap", Tenant: hierarchy.TenantID{ID: hierarchy.ID(id("acme"))}, TenantName: "acme", Key: "orders", Version: 1,
		Caller: &globexApp, Outcome: audit.OutcomeDenied, Code: "PERMISSION_DENIED", Reason: "a try", Envelope: envelope.Hash(env),
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Fatalf("(-want +got):\n%s", diff)
	}
}

type locker func()

func (l locker) Lock() { l() }
func (locker) Unlock() {}

// TestDisableWhileWaitingForTheTurn: a response that has to wait until others have left is
// looked at after that, and leaves no more if its tenant was disabled meanwhile.
func TestDisableWhileWaitingForTheTurn(t *testing.T) {
	w := newWorld(t)
	env := w.sealed(acmeApp, "acme/orders")
	resps := make([]custody.Response, 1)
	w.DoInTurn(t.Context(), acmeApp, []custody.Request{{Op: hierarchy.OpUnwrap, Envelope: env}}, resps, locker(func() {
		w.tenant("acme", commandpb.TenantState_TENANT_STATE_DISABLED)
	}))
	wantErr(t, resps[0], hierarchy.ErrTenantDisabled)
	w.journal.mu.Lock()
	defer w.journal.mu.Unlock()
	if last := w.journal.records[len(w.journal.records)-1]; last.Outcome != audit.OutcomeWithheld {
		t.Errorf("the last record says %q", last.Outcome)
	}
}

// TestDisableBetweenTheParts: of responses that leave one after the other, those that have not left
// when their tenant is disabled are withheld, those of others are not, and each is recorded once.
func TestDisableBetweenTheParts(t *testing.T) {
	w := newWorld(t)
	env := w.sealed(acmeApp, "acme/orders")
	reqs := make([]custody.Request, 3)
	for i := range reqs {
		reqs[i] = custody.Request{Op: hierarchy.OpUnwrap, Envelope: env}
	}
	resps := make([]custody.Response, len(reqs))
	look := w.DoInTurn(t.Context(), acmeApp, reqs, resps, locker(func() {}))
	look(t.Context(), 0, 1)
	if resps[0].Err != nil {
		t.Fatal(resps[0].Err)
	}
	key := resps[2].Plaintext
	w.tenant("acme", commandpb.TenantState_TENANT_STATE_DISABLED)
	for range 2 {
		look(t.Context(), 1, 3)
	}
	if resps[0].Err != nil {
		t.Errorf("what has left: %v", resps[0].Err)
	}
	for _, r := range resps[1:] {
		wantErr(t, r, hierarchy.ErrTenantDisabled)
	}
	if !bytes.Equal(key, make([]byte, len(key))) {
		t.Error("a data key that is withheld is still in memory")
	}
	w.journal.mu.Lock()
	defer w.journal.mu.Unlock()
	withheld := 0
	for _, r := range w.journal.records {
		if r.Outcome == audit.OutcomeWithheld {
			withheld++
		}
	}
	if withheld != 2 {
		t.Errorf("%d records say that something was withheld, want 2", withheld)
	}
}
