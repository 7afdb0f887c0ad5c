package softhsmtests

import (
	"context"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/kekd/kekd/hierarchy"
	"github.com/kekd/kekd/unix-socket-api/kekdv1"
)

// leaderless is how long no command may be accepted after the leader was killed. Timeouts are 250 ms, and
// raft draws an election's from once to twice that: one that fails is made good by a second.
const leaderless = 1200 * time.Millisecond

// The leader is killed at random moments. Through each of the other nodes a command that is asked for after
// that is accepted again in time.
func TestLeaderKilled(t *testing.T) {
	a := startMembers(t, "eu-west=voting*3")
	random := moments(t)
	setUp(t, a.leader().Node, "acme")
	var took []time.Duration
	for range loops(5, 50) {
		a.converge() // else there is no majority without the leader
		leader := a.leader()
		ctx, cancel := context.WithCancel(t.Context())
		var asking sync.WaitGroup
		var mu sync.Mutex
		accepted := map[string]time.Time{} // the last
		for _, m := range a.nodes {
			if m == leader {
				continue
			}
			asking.Go(func() {
				for n := uint64(1); ctx.Err() == nil; n++ {
					begun := time.Now()
					if err := m.set(ctx, "acme", n); err == nil {
						mu.Lock()
						accepted[m.Name] = begun
						mu.Unlock()
					}
				}
			})
		}
		time.Sleep(between(random, 0, 500))
		killed := leader.kill()
		var worst time.Duration
		eventually(t, 20*time.Second, "the others accept commands again", func() bool {
			mu.Lock()
			defer mu.Unlock()
			for _, m := range a.nodes {
				if m != leader && !accepted[m.Name].After(killed) {
					return false
				}
			}
			worst = time.Since(killed)
			return true
		})
		cancel()
		asking.Wait()
		took = append(took, worst)
		leader.restart()
	}
	slices.Sort(took)
	t.Logf("from the kill to commands through both others, of %d: least %v, half %v, most %v; all: %v", len(took), took[0], took[len(took)/2], took[len(took)-1], took)
	if most := took[len(took)-1]; most > leaderless {
		t.Errorf("once no command was accepted for %v", most)
	}
}

// set asks for a change, which a node without a leader holds on to until there is one.
func (m *member) set(ctx context.Context, tenant string, n uint64) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	id := hierarchy.NewID()
	_, err := m.admin.SetTenant(ctx, &kekdv1.SetTenantRequest{IdempotencyId: id[:], Name: tenant,
		Limits: &kekdv1.Limits{Limits: []*kekdv1.Limit{{Count: valueBase + n, Per: int64(time.Minute)}}}})
	return err
}
