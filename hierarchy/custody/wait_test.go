package custody_test

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/kekd/kekd/hierarchy"
	"github.com/kekd/kekd/hierarchy/commandpb"
	"github.com/kekd/kekd/hierarchy/custody"
)

// A request that meets a lease which has just run out waits for it, for a moment and within its deadline, and is decided by
// the state of then.
func TestWaitForTheLease(t *testing.T) {
	for name, c := range map[string]struct {
		age      time.Duration // when it is met; the tenant allows 2 s
		fault    error
		unwell   error
		deadline time.Duration
		then     func(w *world) // after 300 ms
		want     error
		took     time.Duration
		waits    bool
	}{
		"fresh":         {age: time.Second},
		"renewed":       {age: 2100 * time.Millisecond, then: func(w *world) { w.renew(0) }, took: 300 * time.Millisecond, waits: true},
		"not renewed":   {age: 2100 * time.Millisecond, want: hierarchy.ErrStale, took: time.Second, waits: true},
		"renewed late":  {age: 2100 * time.Millisecond, then: func(w *world) { w.renew(2500 * time.Millisecond) }, want: hierarchy.ErrStale, took: time.Second, waits: true},
		"no time":       {age: 2100 * time.Millisecond, deadline: 100 * time.Millisecond, want: hierarchy.ErrStale, took: 100 * time.Millisecond, waits: true},
		"long cut off":  {age: 3100 * time.Millisecond, want: hierarchy.ErrStale},
		"unwell":        {age: 2100 * time.Millisecond, unwell: hierarchy.ErrHSMUnavailable, want: hierarchy.ErrHSMUnavailable},
		"unwell, fresh": {age: time.Second, unwell: hierarchy.ErrHSMUnavailable},
		"with no lease": {fault: errors.New("no lease"), want: hierarchy.ErrStale},
		"disabled": {age: 2100 * time.Millisecond, then: func(w *world) {
			w.tenant("acme", commandpb.TenantState_TENANT_STATE_DISABLED)
			w.renew(0)
		}, want: hierarchy.ErrTenantDisabled, took: 300 * time.Millisecond, waits: true},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t)
				env := w.sealed(acmeApp, "acme/orders")
				w.setView(c.age, c.fault)
				w.unwell = c.unwell
				ctx, cancel := context.WithCancel(t.Context())
				if c.deadline > 0 {
					ctx, cancel = context.WithTimeout(t.Context(), c.deadline)
				}
				defer cancel()
				if c.then != nil {
					go func() {
						time.Sleep(300 * time.Millisecond)
						c.then(w)
					}()
				}
				begun, resps := time.Now(), make([]custody.Response, 1)
				w.Do(ctx, acmeApp, []custody.Request{{Op: hierarchy.OpUnwrap, Envelope: env}}, resps)
				if took := time.Since(begun); !errors.Is(resps[0].Err, c.want) || c.want == nil && resps[0].Err != nil || took != c.took {
					t.Errorf("%v after %v, want %v after %v", resps[0].Err, took, c.want, c.took)
				}
				if w.awaited > 0 != c.waits {
					t.Errorf("a renewal was asked for %d times", w.awaited)
				}
			})
		})
	}
}
