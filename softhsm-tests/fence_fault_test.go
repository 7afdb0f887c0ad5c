package softhsmtests

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/kekd/kekd/hierarchy"
	"github.com/kekd/kekd/unix-socket-api/client"
	"github.com/kekd/kekd/unix-socket-api/kekdv1"
)

// Clients wrap and unwrap at all nodes of a cluster with voters and non-voters, while a tenant is disabled over and over, each time
// under a fault. None of what is invoked after a disable has returned succeeds anywhere.
func TestNobodyIsServedAfterADisable(t *testing.T) {
	t.Parallel()
	a := startMembers(t, "eu-west=voting*5")
	random := moments(t)
	setUp(t, a.leader().Node, "acme")
	for _, m := range a.nodes[3:] {
		if _, err := a.nodes[0].admin.DemoteNode(within(t, 30*time.Second), &kekdv1.DemoteNodeRequest{Name: m.Name}); err != nil {
			t.Fatal(err)
		}
	}
	a.converge()
	sealed, err := keys(t, a.nodes[0].Node).GenerateDataKey(within(t, 20*time.Second), "acme/orders", 32, client.Options{})
	if err != nil {
		t.Fatal(err)
	}
	u := usersOf(t, a, "acme/orders", sealed.Envelope)
	done := map[string]int{}
	var round []fault
	for i := range loops(15, 500) {
		u.served()
		if len(round) == 0 {
			round = slices.Clone(fencedFaults)
			random.Shuffle(len(round), func(i, j int) { round[i], round[j] = round[j], round[i] })
		}
		f := round[0]
		round = round[1:]
		a.disableUnder(t, i, f, u, random)
		done[f.name]++
		if t.Failed() {
			return
		}
	}
	u.stop()
	t.Logf("%s; %d operations succeeded, %d were refused", counts(done), u.succeeded, u.refused)
	for _, m := range a.nodes {
		r, err := m.admin.VerifyAudit(within(t, 30*time.Second), &kekdv1.VerifyAuditRequest{})
		if err != nil || !r.Ok {
			t.Errorf("the audit of %s: %v %v", m.Name, r, err)
		}
	}
}

// fencedFaults are those of histories, and what a disable has to outlive besides. Times are in milliseconds: a lease lasts for two
// seconds, so that some faults are over before a disable has returned, and some after.
var fencedFaults = slices.Concat(
	[]fault{
		{"leave alone", false, 300, func(*members, *member, *rand.Rand) func() { return nil }},
		{"take leadership from", true, 500, func(a *members, m *member, _ *rand.Rand) func() {
			_, _ = m.admin.TransferLeadership(within(a.t, 5*time.Second), &kekdv1.TransferLeadershipRequest{})
			return nil
		}},
		{"delete the token directory of", false, 1500, func(a *members, m *member, _ *rand.Rand) func() {
			tokens := filepath.Join(filepath.Dir(m.SoftHSM2Conf), "tokens")
			if err := os.Rename(tokens, tokens+".gone"); err != nil {
				a.t.Error(err)
			}
			return func() {
				_ = os.RemoveAll(tokens) // somebody may have made another
				if err := os.Rename(tokens+".gone", tokens); err != nil {
					a.t.Error(err)
				}
			}
		}},
	},
	longer(faults, "isolate", "divide at", "make deaf", "make mute", "hold back what is sent to", "pause", "pause", "kill", "kill"),
)

// longer are some of the faults, which may last longer than a lease.
func longer(of []fault, names ...string) (some []fault) {
	for _, name := range names {
		i := slices.IndexFunc(of, func(f fault) bool { return f.name == name })
		f := of[i]
		f.longest = 3500
		some = append(some, f)
	}
	return some
}

// disableUnder disables the tenant while a fault lasts, and enables it again when that is over.
func (a *members) disableUnder(t *testing.T, n int, f fault, u *users, random *rand.Rand) {
	t.Helper()
	m, through := a.pick(random, f.leader), a.nodes[random.IntN(len(a.nodes))]
	lasts, ahead := between(random, 200, f.longest), between(random, 0, 400)
	t.Logf("%d: %s %s for %v, and %v after that began disable at %s", n, f.name, m.Name, lasts, ahead, through.Name)
	var over sync.WaitGroup
	over.Go(func() {
		end := f.begin(a, m, random)
		pause(t.Context(), lasts)
		a.network.Heal()
		if end != nil {
			end()
		}
	})
	pause(t.Context(), ahead)
	begun := time.Now()
	fence, tries := a.disable(t, through)
	returned := time.Now()
	over.Wait()
	t.Logf("fenced after %v, in %d tries: %v", returned.Sub(begun).Round(time.Millisecond), tries, fence)
	if t.Failed() {
		return
	}
	u.refusedSince(time.Now()) // everybody, those too who were away
	u.judge(returned)
	eventually(t, 60*time.Second, "it is enabled again", func() bool {
		_, err := a.nodes[random.IntN(len(a.nodes))].admin.EnableTenant(within(t, 5*time.Second), &kekdv1.EnableTenantRequest{Name: "acme"})
		return err == nil
	})
}

// disable asks one node, and then others under the same ID, until it is told that no node serves any more.
func (a *members) disable(t *testing.T, m *member) (fence *kekdv1.Fence, tries int) {
	t.Helper()
	id := hierarchy.NewID()
	for deadline := time.Now().Add(60 * time.Second); time.Now().Before(deadline); {
		tries++
		ctx, cancel := context.WithTimeout(t.Context(), 4*time.Second)
		tenant, err := m.admin.DisableTenant(ctx, &kekdv1.DisableTenantRequest{IdempotencyId: id[:], Name: "acme", Reason: "test"})
		cancel()
		if err == nil {
			if !tenant.Fence.GetFenced() {
				t.Errorf("it has returned, and is not fenced: %v", tenant)
			}
			return tenant.Fence, tries
		}
		t.Logf("at %s: %v", m.Name, err)
		if t.Context().Err() != nil {
			break
		}
		i := slices.Index(a.nodes, m)
		m = a.nodes[(i+1)%len(a.nodes)]
		pause(t.Context(), 20*time.Millisecond)
	}
	t.Fatal("no node has disabled it")
	return nil, tries
}

// users wrap and unwrap at all nodes until they are stopped.
type users struct {
	t        *testing.T
	key      string
	envelope []byte
	cancel   context.CancelFunc
	running  sync.WaitGroup
	names    []string // of the nodes

	mu                 sync.Mutex
	succeeded, refused int
	last               map[string]*seen // by node
}

// seen is what became of operations at a node: when the latest of a kind was invoked.
type seen struct {
	success, refusal time.Time
	what             string // that succeeded
}

// opTime is how long an operation may take: longer than any node stands still.
const opTime = 15 * time.Second

func usersOf(t *testing.T, a *members, key string, envelope []byte) *users {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	u := &users{t: t, key: key, envelope: envelope, cancel: cancel, last: map[string]*seen{}}
	for _, m := range a.nodes {
		u.names = append(u.names, m.Name)
		u.last[m.Name] = new(seen)
		for i := range 3 {
			c := keys(t, m.Node) // each has a connection of its own
			u.running.Go(func() { u.work(ctx, c, m.Name, i == 0) })
		}
	}
	t.Cleanup(u.stop)
	return u
}

func (u *users) stop() {
	u.cancel()
	u.running.Wait()
}

func (u *users) work(ctx context.Context, c *client.Client, node string, wraps bool) {
	plaintext := make([]byte, 32)
	for ctx.Err() == nil {
		op, cancel := context.WithTimeout(ctx, opTime)
		invoked, what, err := time.Now(), "unwrap", error(nil)
		if wraps {
			what = "wrap"
			_, err = c.Wrap(op, u.key, plaintext, client.Options{})
		} else {
			_, err = c.Unwrap(op, u.envelope, client.Options{})
		}
		cancel()
		if ctx.Err() != nil {
			return
		}
		u.mu.Lock()
		at := u.last[node]
		if err == nil {
			u.succeeded++
			if invoked.After(at.success) {
				at.success, at.what = invoked, what
			}
		} else {
			u.refused++
			if invoked.After(at.refusal) {
				at.refusal = invoked
			}
		}
		u.mu.Unlock()
		pause(ctx, 5*time.Millisecond)
	}
}

// served waits until every node has served what was invoked after the call.
func (u *users) served() {
	u.t.Helper()
	u.await("serves", func(s *seen, since time.Time) bool { return s.success.After(since) }, time.Now())
}

// refusedSince waits until every node has refused what was invoked after that.
func (u *users) refusedSince(since time.Time) {
	u.t.Helper()
	u.await("refuses", func(s *seen, since time.Time) bool { return s.refusal.After(since) }, since)
}

func (u *users) await(what string, is func(*seen, time.Time) bool, since time.Time) {
	u.t.Helper()
	for _, name := range u.names {
		eventually(u.t, 60*time.Second, fmt.Sprintf("node %s %s", name, what), func() bool {
			u.mu.Lock()
			defer u.mu.Unlock()
			return is(u.last[name], since)
		})
	}
}

// judge fails the test for what was invoked after a disable had returned, and succeeded.
func (u *users) judge(returned time.Time) {
	u.t.Helper()
	u.mu.Lock()
	defer u.mu.Unlock()
	for _, name := range u.names {
		if s := u.last[name]; s.success.After(returned) {
			u.t.Errorf("node %s: a %s succeeded that was invoked %v after the disable had returned", name, s.what, s.success.Sub(returned))
		}
	}
}
