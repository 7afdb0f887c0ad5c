package softhsmtests

import (
	"context"
	"errors"
	"maps"
	"sync"
	"testing"
	"time"

	"github.com/kekd/kekd/unix-socket-api/kekdv1"
)

// Once a command that closes has returned, no unwrap that is invoked later succeeds, whatever is under
// way; and once one that opens has returned, the next succeeds at once.
func TestClosedUnderLoad(t *testing.T) {
	t.Parallel()
	n := initialised(t)
	d := n.serve()
	setUp(t, n.Node, "acme", "globex")
	callerOf(t, n, "acme-app", acmeUID, "acme/*")
	innocent := probe(t, n, "globex/orders")
	a, ctx := admin(t, n.Node), within(t, 2*time.Minute)
	uid := uint32(acmeUID)
	rule := &kekdv1.Rule{Service: "acme-app", Pattern: "acme/*", Ops: allOps}
	l := unwrapLoad(t, n, acmeUID, "acme/orders", 32)

	for _, c := range []struct {
		name        string
		close, open func() error
		code        string // what is refused meanwhile
	}{
		{"tenant disabled",
			func() error {
				_, err := a.DisableTenant(ctx, &kekdv1.DisableTenantRequest{Name: "acme", Reason: "test"})
				return err
			},
			func() error {
				_, err := a.EnableTenant(ctx, &kekdv1.EnableTenantRequest{Name: "acme"})
				return err
			}, "TENANT_DISABLED"},
		{"version suspended",
			func() error {
				_, err := a.SetKeyVersionState(ctx, &kekdv1.SetKeyVersionStateRequest{KeyVersion: "acme/orders@1", Action: "suspend", Reason: "test"})
				return err
			},
			func() error {
				_, err := a.SetKeyVersionState(ctx, &kekdv1.SetKeyVersionStateRequest{KeyVersion: "acme/orders@1", Action: "resume"})
				return err
			}, "KEY_VERSION_DISABLED"},
		{"policy revoked",
			func() error {
				_, err := a.RevokePolicy(ctx, &kekdv1.RevokePolicyRequest{Service: "acme-app", Pattern: "acme/*"})
				return err
			},
			func() error {
				_, err := a.AllowPolicy(ctx, &kekdv1.AllowPolicyRequest{Rule: rule})
				return err
			}, "PERMISSION_DENIED"},
		{"service deleted",
			func() error {
				_, err := a.DeleteService(ctx, &kekdv1.DeleteServiceRequest{Name: "acme-app"})
				return err
			},
			func() error {
				_, err := a.CreateService(ctx, &kekdv1.CreateServiceRequest{Name: "acme-app", Uid: &uid})
				_, allow := a.AllowPolicy(ctx, &kekdv1.AllowPolicyRequest{Rule: rule})
				return errors.Join(err, allow)
			}, "PERMISSION_DENIED"},
	} {
		t.Run(c.name, func(t *testing.T) {
			for round := range loops(5, 100) {
				l.await(t, "successes", func(s loadSeen) bool { return s.successes >= 100 })
				begun := time.Now()
				if err := c.close(); err != nil {
					t.Fatal(err)
				}
				closed := time.Now()
				before := l.seen().refused[c.code]
				l.await(t, "refusals", func(s loadSeen) bool { return s.refused[c.code] >= before+100 })
				if s := l.seen(); s.lastSuccess.After(closed) {
					t.Fatalf("round %d: an unwrap succeeded that was invoked %v after it had returned", round, s.lastSuccess.Sub(closed))
				}
				// Who was in the middle is told the same: not that the token, which is latched, refuses.
				for code, times := range l.seen().refused {
					if code != c.code {
						t.Errorf("round %d: %d calls were refused with %s", round, times, code)
					}
				}
				if err := c.open(); err != nil {
					t.Fatal(err)
				}
				if err := l.once(t.Context()); err != nil {
					t.Fatalf("round %d: the first unwrap after it was opened again: %v", round, err)
				}
				l.forget()
				t.Logf("closed within %v", closed.Sub(begun))
			}
		})
	}
	l.stop()
	innocent.stop()
	verifyAudit(t, n)
	d.stop()
}

// load is many callers that unwrap the same envelope all the time.
type load struct {
	k        kekdv1.KeyServiceClient
	envelope []byte
	cancel   context.CancelFunc
	running  sync.WaitGroup

	mu  sync.Mutex
	now loadSeen
}

// loadSeen is what became of the calls.
type loadSeen struct {
	since       time.Time // refusals of calls that were invoked before are forgotten
	successes   int
	lastSuccess time.Time      // when the latest of the calls that succeeded was *invoked*
	refused     map[string]int // by code
}

func unwrapLoad(t *testing.T, n *node, uid uint32, key string, callers int) *load {
	t.Helper()
	l := &load{k: keysAs(t, n, uid), now: loadSeen{refused: map[string]int{}}}
	sealed, err := l.k.GenerateDataKey(within(t, 10*time.Second), &kekdv1.GenerateDataKeyRequest{Key: key})
	if err != nil {
		t.Fatal(err)
	}
	l.envelope = sealed.Envelope
	ctx, cancel := context.WithCancel(t.Context())
	l.cancel = cancel
	t.Cleanup(l.stop)
	for range callers {
		l.running.Go(func() {
			for ctx.Err() == nil {
				invoked := time.Now()
				err := l.once(ctx)
				if ctx.Err() != nil {
					return
				}
				l.mu.Lock()
				if err != nil {
					if invoked.After(l.now.since) {
						l.now.refused[codeOf(err)]++
					}
				} else if l.now.successes++; invoked.After(l.now.lastSuccess) {
					l.now.lastSuccess = invoked
				}
				l.mu.Unlock()
			}
		})
	}
	return l
}

func (l *load) once(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	_, err := l.k.Unwrap(ctx, &kekdv1.UnwrapRequest{Envelope: l.envelope})
	return err
}

func (l *load) forget() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.now = loadSeen{since: time.Now(), lastSuccess: l.now.lastSuccess, refused: map[string]int{}}
}

func (l *load) seen() loadSeen {
	l.mu.Lock()
	defer l.mu.Unlock()
	s := l.now
	s.refused = maps.Clone(s.refused)
	return s
}

func (l *load) await(t *testing.T, what string, f func(loadSeen) bool) {
	t.Helper()
	eventually(t, 20*time.Second, what, func() bool {
		l.mu.Lock()
		defer l.mu.Unlock()
		return f(l.now)
	})
}

func (l *load) stop() {
	l.cancel()
	l.running.Wait()
}
