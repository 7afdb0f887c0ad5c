package quota_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/kekd/kekd/hierarchy"
	"github.com/kekd/kekd/hierarchy/commandpb"
	"github.com/kekd/kekd/hierarchy/policy"
	"github.com/kekd/kekd/hierarchy/quota"
	"github.com/kekd/kekd/hierarchy/state"
)

// The state machine is the real one: what holds over all nodes is half there and half here.

// noon is a time in the middle of a day and at the beginning of an hour.
var noon = time.Date(2030, 6, 1, 12, 0, 0, 0, time.UTC)

// fataler is a testing.T or a rapid.T.
type fataler interface {
	Helper()
	Fatalf(string, ...any)
}

// cluster is what the nodes agree on.
type cluster struct {
	t fataler

	mu       sync.Mutex
	state    *state.State
	now      time.Time
	asked    []uint64 // sizes of the blocks that were asked for
	propose  func(*commandpb.Command) error
	proposed chan struct{} // a proposal waits for it
}

const members = 3

func memberID(i int) []byte { return append(make([]byte, 15), byte(i+1)) }

func newCluster(t fataler) *cluster {
	c := &cluster{t: t, state: state.New(), now: noon}
	c.do(&commandpb.Command{Body: &commandpb.Command_InitCluster{InitCluster: &commandpb.InitCluster{
		ClusterId: memberID(99),
		Region:    &commandpb.Region{Id: memberID(98), Name: "eu", Role: commandpb.RegionRole_REGION_ROLE_VOTING, Identity: []byte("i"), MintingNode: memberID(0)},
		Node:      &commandpb.Node{Id: memberID(0), Name: "a", RegionId: memberID(98), Voter: true},
	}}})
	for _, name := range tenants {
		c.do(&commandpb.Command{Body: &commandpb.Command_CreateTenant{CreateTenant: &commandpb.CreateTenant{TenantId: idOf(name), Name: name, MaxStaleness: int64(time.Second)}}})
	}
	uid := uint32(1)
	c.do(&commandpb.Command{Body: &commandpb.Command_CreateService{CreateService: &commandpb.CreateService{Name: "saas", Uid: &uid}}})
	return c
}

var (
	tenants = []string{"acme", "globex"}
	pattern = policy.Pattern{Tenant: policy.Any, Key: "orders"}
)

func idOf(name string) []byte { return append([]byte(name), make([]byte, 16-len(name))...) }

func (c *cluster) apply(m *commandpb.Command) error {
	m.Format = state.Format
	id := hierarchy.NewID()
	m.Id, m.Stamp = id[:], c.now.UnixNano()
	next, r := state.Apply(c.state, state.Meta{Index: c.state.Index() + 1}, m)
	c.state = next
	return r.Err
}

func (c *cluster) do(m *commandpb.Command) {
	c.t.Helper()
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.apply(m); err != nil {
		c.t.Fatalf("%T: %v", m.Body, err)
	}
}

func limitsOf(t fataler, texts ...string) (list []*commandpb.Limit) {
	t.Helper()
	ls, err := policy.ParseLimits(texts)
	if err != nil {
		t.Fatalf("%v", err)
	}
	for _, l := range ls.List() {
		list = append(list, &commandpb.Limit{Count: l.Count, Per: int64(l.Per)})
	}
	return list
}

func (c *cluster) limitRule(texts ...string) {
	c.t.Helper()
	c.do(&commandpb.Command{Body: &commandpb.Command_AllowPolicy{AllowPolicy: &commandpb.AllowPolicy{Rule: &commandpb.Rule{
		Service: "saas", Pattern: pattern.String(), Ops: uint32(hierarchy.OpUnwrap), Limits: limitsOf(c.t, texts...),
	}}}})
}

func (c *cluster) limitTenant(name string, texts ...string) {
	c.t.Helper()
	c.do(&commandpb.Command{Body: &commandpb.Command_SetTenant{SetTenant: &commandpb.SetTenant{TenantId: idOf(name), Limits: &commandpb.Limits{Limits: limitsOf(c.t, texts...)}}}})
}

func (c *cluster) pass(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = c.now.Add(d)
}

func (c *cluster) sizes() []uint64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return append([]uint64(nil), c.asked...)
}

// member is one node of it. All of them are the one that the state knows: it counts none apart.
type member struct {
	*cluster
	*quota.Uses
	skew time.Duration // of its clock
}

func (c *cluster) member() *member {
	n := &member{cluster: c}
	n.Uses = quota.NewUses(hierarchy.NodeID{ID: hierarchy.ID(memberID(0))}, n)
	return n
}

func (n *member) State() *state.State {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.state
}

func (n *member) Now() time.Time {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.now.Add(n.skew)
}

func (n *member) Propose(ctx context.Context, m *commandpb.Command) error {
	if n.proposed != nil {
		<-n.proposed
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.asked = append(n.asked, m.GetReserveUses().GetCount())
	if n.propose != nil {
		if err := n.propose(m); err != nil {
			return err
		}
	}
	return n.apply(m)
}

// take is n uses for a tenant, as of now.
func (n *member) take(ctx context.Context, tenant string, count int) (int, error) {
	s := n.State()
	t, _ := s.TenantByName(tenant)
	r, _ := s.Rule("saas", pattern)
	return n.Take(ctx, s, n.Now(), t, r, count)
}

// over takes what must be refused.
func (n *member) over(t *testing.T, tenant string) *hierarchy.OverLimit {
	t.Helper()
	got, err := n.take(t.Context(), tenant, 1)
	over, ok := errors.AsType[*hierarchy.OverLimit](err)
	if got != 0 || !ok {
		t.Fatalf("got %d, %v, want a refusal", got, err)
	}
	return over
}

// all takes what must be allowed.
func (n *member) all(t *testing.T, tenant string, count int) {
	t.Helper()
	if got, err := n.take(t.Context(), tenant, count); got != count || err != nil {
		t.Fatalf("got %d of %d: %v", got, count, err)
	}
}

func TestShortLimit(t *testing.T) {
	c := newCluster(t)
	c.limitRule("3/s")
	n := c.member()
	c.pass(300 * time.Millisecond)
	n.all(t, "acme", 2)
	if got, err := n.take(t.Context(), "acme", 5); got != 1 || !errors.Is(err, hierarchy.ErrRateLimited) {
		t.Fatalf("of five, one was left: %d, %v", got, err)
	}
	n.all(t, "globex", 3) // has a count of its own
	c.pass(700 * time.Millisecond)
	n.all(t, "acme", 3)
	n.over(t, "acme")
	if len(c.sizes()) != 0 {
		t.Errorf("the cluster was asked: %v", c.sizes())
	}
	// Another node counts for itself.
	c.member().all(t, "acme", 3)
}

func TestWhatARefusalSays(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t)
		c.limitRule("3/s", "100/h")
		c.limitTenant("globex", "2/m", "1000/d")
		n := c.member()
		c.pass(312 * time.Millisecond)
		n.all(t, "acme", 3)
		want := &hierarchy.OverLimit{
			Limit: "the rule of saas for */orders allows 3/s for each tenant", Wait: 689 * time.Millisecond,
			Detail: "the rule of saas for */orders allows 3/s for each tenant",
		}
		got := n.over(t, "acme")
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("(-want +got):\n%s", diff)
		}
		if want := "over the limit: the rule of saas for */orders allows 3/s for each tenant; wait 689ms"; got.Error() != want {
			t.Errorf("in words: %s", got)
		}
		for range 4 {
			if again := n.over(t, "acme"); again.Detail != "" {
				t.Errorf("the second refusal of a window is to be recorded: %q", again.Detail)
			}
		}
		// Who waits as long gets in; and the next to be recorded tells of those that were not.
		c.pass(got.Wait)
		n.all(t, "acme", 3)
		if got, want := n.over(t, "acme").Detail, want.Detail+"; in the window from 2030-06-01T12:00:00Z it refused 5"; got != want {
			t.Errorf("the next window's first refusal: %q, want %q", got, want)
		}
		c.pass(time.Second)
		n.all(t, "acme", 3)
		if got := n.over(t, "acme").Detail; got != want.Detail {
			t.Errorf("after a window with one refusal, which was recorded: %q", got)
		}
		n.all(t, "globex", 2)
		if got := n.over(t, "globex"); got.Limit != "tenant globex allows 2/m" || got.Wait != 58*time.Second {
			t.Errorf("the tenant's own: %+v", got)
		}
	})
}

// Ten a day are ten, whichever nodes they come to, and over restarts.
func TestSmallLongLimitIsExact(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t)
		c.limitRule("10/d")
		nodes := []*member{c.member(), c.member(), c.member()}
		for i := range 10 {
			if i == 5 {
				nodes[0] = c.member()
			}
			nodes[i%3].all(t, "acme", 1)
		}
		for _, n := range nodes {
			if over := n.over(t, "acme"); over.Wait != 12*time.Hour+time.Millisecond {
				t.Errorf("to wait %v, want until midnight", over.Wait)
			}
		}
		asked := len(c.sizes())
		for range 100 {
			nodes[0].over(t, "acme")
		}
		if got := len(c.sizes()); got != asked {
			t.Errorf("a limit that is used up asked the cluster %d times more", got-asked)
		}
		c.pass(12 * time.Hour)
		nodes[1].all(t, "acme", 1)
	})
}

// A batch takes what is left, and asks once.
func TestLongLimitOfABatch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t)
		c.limitRule("1000/h")
		n := c.member()
		if got, err := n.take(t.Context(), "acme", 1024); got != 1000 || !errors.Is(err, hierarchy.ErrRateLimited) {
			t.Fatalf("got %d, %v", got, err)
		}
		if diff := cmp.Diff([]uint64{1000}, c.sizes()); diff != "" {
			t.Errorf("blocks (-want +got):\n%s", diff)
		}
	})
}

func TestBlocksOfALargeLimit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t)
		c.limitRule("1000000/d")
		n := c.member()
		for range 20_000 {
			n.all(t, "acme", 50)
		}
		n.over(t, "acme")
		if sizes := c.sizes(); len(sizes) > 200 || sizes[0] != 1_000_000/128 || sizes[len(sizes)-1] > 50 {
			t.Errorf("%d blocks, from %d to %d", len(sizes), sizes[0], sizes[len(sizes)-1])
		}
	})
}

// A crash forfeits what is left of a block, and no more.
func TestCrashForfeitsItsBlock(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t)
		c.limitRule("12800/d")
		c.member().all(t, "acme", 1) // of a block of 100
		n, total := c.member(), 1
		for {
			got, err := n.take(t.Context(), "acme", 64)
			total += got
			if err != nil {
				break
			}
		}
		if total != 12800-99 {
			t.Errorf("%d were allowed, want %d", total, 12800-99)
		}
	})
}

func TestLimitChanges(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t)
		c.limitRule("5/m", "1280/d")
		n, other := c.member(), c.member()
		n.all(t, "acme", 4) // of a block of 10
		// At once, and what was counted stays.
		c.limitRule("6/m", "1280/d")
		n.all(t, "acme", 2)
		n.over(t, "acme")
		c.limitRule("3/m", "1280/d")
		n.over(t, "acme")
		c.limitRule("1280/d")
		n.all(t, "acme", 2)

		// Lowered below what is reserved: what of it the others have used is not known.
		c.limitRule("9/d")
		n.over(t, "acme")
		other.over(t, "acme")
		c.limitRule("10/d")
		n.all(t, "acme", 2)
		n.over(t, "acme")
		// Raised, used by another, and lowered to what it was.
		c.limitRule("1280/d")
		n.all(t, "acme", 1) // nine are left of its second block
		other.all(t, "acme", 50)
		c.limitRule("10/d")
		n.over(t, "acme")

		c.limitTenant("acme", "1/m")
		c.limitRule()
		n.all(t, "acme", 1)
		n.over(t, "acme")
		c.limitTenant("acme")
		n.all(t, "acme", 1000)

		// Hours, and days again.
		c.limitRule("2/h")
		n.all(t, "acme", 2)
		n.over(t, "acme")
		c.limitRule("10/d")
		n.over(t, "acme")
		c.limitRule("2/h")
		n.over(t, "acme")
	})
}

// What one limit refuses does not count against another.
func TestAllLimitsOrNone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t)
		c.limitRule("100/m", "100/h")
		c.limitTenant("acme", "10/s", "50/d")
		n := c.member()
		for range 5 {
			if got, err := n.take(t.Context(), "acme", 64); got != 10 || !errors.Is(err, hierarchy.ErrRateLimited) {
				t.Fatalf("got %d, %v", got, err)
			}
			c.pass(time.Second)
		}
		if got := n.over(t, "acme").Limit; got != "tenant acme allows 50/d" {
			t.Errorf("refused by: %s", got)
		}
		c.limitTenant("acme", "1000/s")
		n.all(t, "acme", 50)
		if got := n.over(t, "acme").Limit; got != "the rule of saas for */orders allows 100/m for each tenant" {
			t.Errorf("refused by: %s", got)
		}
	})
}

// However many ask at once, they wait for one reservation and not for one each.
func TestManyWaitForOneBlock(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t)
		c.limitRule("100/d")
		c.proposed = make(chan struct{})
		n := c.member()
		var got atomic.Int64
		var wg sync.WaitGroup
		for range 150 {
			wg.Go(func() {
				k, err := n.take(t.Context(), "acme", 1)
				if got.Add(int64(k)); (k == 1) != (err == nil) {
					t.Errorf("%d, %v", k, err)
				}
			})
		}
		synctest.Wait()
		close(c.proposed)
		wg.Wait()
		if got.Load() != 100 || len(c.sizes()) > 3 {
			t.Errorf("%d were allowed, by blocks of %v", got.Load(), c.sizes())
		}
	})
}

func TestNoReservation(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t)
		c.limitRule("1280/d")
		n := c.member()
		fail := hierarchy.ErrStale
		c.propose = func(*commandpb.Command) error { return fail }
		try := func(want error) {
			t.Helper()
			if got, err := n.take(t.Context(), "acme", 1); got != 0 || !errors.Is(err, want) || errors.Is(err, hierarchy.ErrRateLimited) {
				t.Errorf("got %d, %v, want %v", got, err, want)
			}
		}
		try(hierarchy.ErrStale)
		for range 50 {
			try(hierarchy.ErrStale)
		}
		if n := len(c.sizes()); n != 1 {
			t.Errorf("a leader that is away was asked %d times at once", n)
		}
		time.Sleep(time.Second) // of synctest's clock
		fail = hierarchy.ErrTenantDisabled
		try(hierarchy.ErrTenantDisabled)
		time.Sleep(time.Second)
		fail = hierarchy.ErrOutcomeUnknown
		if _, err := n.take(t.Context(), "acme", 1); !errors.Is(err, hierarchy.ErrStale) || errors.Is(err, hierarchy.ErrOutcomeUnknown) {
			t.Errorf("got %v: that of the caller's operation is known", err)
		}
		time.Sleep(time.Second)
		c.propose = nil
		n.all(t, "acme", 1)

		// Who leaves does not take the reservation along.
		c.proposed = make(chan struct{})
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := n.take(ctx, "globex", 1); !errors.Is(err, context.DeadlineExceeded) || !errors.Is(err, hierarchy.ErrStale) {
			t.Errorf("got %v", err)
		}
		close(c.proposed)
		synctest.Wait()
		asked := len(c.sizes())
		n.all(t, "globex", 1)
		if got := len(c.sizes()); got != asked {
			t.Errorf("it asked %d times more", got-asked)
		}
	})
}

// The limit goes while its reservation is under way.
func TestLimitIsTakenBackMeanwhile(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t)
		c.limitRule("10/d")
		n := c.member()
		c.proposed = make(chan struct{})
		done := make(chan error)
		go func() { _, err := n.take(t.Context(), "acme", 1); done <- err }()
		synctest.Wait()
		c.limitRule("10/h")
		close(c.proposed)
		if err := <-done; !errors.Is(err, hierarchy.ErrStale) {
			t.Errorf("got %v", err)
		}
		n.all(t, "acme", 1)
	})
}

// Nodes whose clocks differ go on: who is behind follows the others into the next window.
func TestClocksDiffer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t)
		c.limitRule("1280/h")
		ahead, behind := c.member(), c.member()
		ahead.skew, behind.skew = 500*time.Millisecond, -200*time.Millisecond
		behind.all(t, "acme", 3) // in the hour before
		c.pass(time.Hour - 300*time.Millisecond)
		ahead.all(t, "acme", 1)
		behind.all(t, "acme", 1)
		s := c.member().State()
		used, _ := s.Uses(state.LimitID{Tenant: hierarchy.TenantID{ID: hierarchy.ID(idOf("acme"))}, Service: "saas", Pattern: pattern, Per: policy.Hour})
		if !used.Start.Equal(noon.Add(time.Hour)) || used.Count != 20 {
			t.Errorf("reserved: %+v, want two blocks of 10 of the hour that comes", used)
		}
		// One that is too far ahead waits until the cluster is there.
		wrong := c.member()
		wrong.skew = time.Hour + 2*time.Second
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if got, err := wrong.take(ctx, "acme", 1); got != 0 || !errors.Is(err, hierarchy.ErrStale) {
			t.Errorf("two seconds and an hour ahead: %d, %v", got, err)
		}
		time.Sleep(time.Second) // of synctest's clock: its last try ends
	})
}

// A clock that goes back does not open a window again.
func TestClockGoesBack(t *testing.T) {
	c := newCluster(t)
	c.limitRule("3/s")
	n := c.member()
	n.all(t, "acme", 3)
	n.skew = -200 * time.Millisecond
	n.over(t, "acme")
}

// What is left of a block when its window ends is void.
func TestWhatIsLeftIsVoid(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t)
		c.limitRule("1280/h")
		n := c.member()
		n.all(t, "acme", 1) // of a block of ten
		c.pass(time.Hour)
		c.propose = func(*commandpb.Command) error { return hierarchy.ErrStale }
		if got, err := n.take(t.Context(), "acme", 1); got != 0 || !errors.Is(err, hierarchy.ErrStale) {
			t.Errorf("in the next hour, out of the block of the last: %d, %v", got, err)
		}
	})
}

// The same by a node whose clock is behind, when another has begun the next window.
func TestWhatIsLeftIsVoidForAll(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t)
		c.limitRule("1280/h")
		ahead, behind := c.member(), c.member()
		behind.all(t, "acme", 1)
		c.pass(time.Hour - 100*time.Millisecond)
		ahead.skew = 200 * time.Millisecond
		ahead.all(t, "acme", 1280)
		for range 3 {
			behind.over(t, "acme")
		}
	})
}

// A use that began in one window and ended in the next gives back what it took in the next only.
func TestGivingBackAfterTheWindow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t)
		c.limitRule("1280/h")
		c.limitTenant("acme", "9/d")
		n := c.member()
		n.all(t, "acme", 7) // three are left of the block
		c.proposed = make(chan struct{})
		done := make(chan int)
		go func() {
			got, _ := n.take(t.Context(), "acme", 5)
			done <- got
		}()
		synctest.Wait()
		c.pass(time.Hour)
		close(c.proposed)
		if got := <-done; got != 2 {
			t.Fatalf("%d were allowed, want the two that are left of the day", got)
		}
		c.limitTenant("acme")
		c.propose = func(*commandpb.Command) error { return hierarchy.ErrStale }
		if got, _ := n.take(t.Context(), "acme", 64); got != 10 {
			t.Errorf("%d were allowed out of a block of ten", got)
		}
	})
}

// Whatever many callers take at once on several nodes, no more is allowed than the limits say.
func TestNeverMoreThanTheLimit(t *testing.T) {
	c := newCluster(t)
	c.limitRule("700/m", "5000/h")
	c.limitTenant("acme", "2000/d")
	var total atomic.Int64
	for range 3 {
		n := c.member()
		var mine atomic.Int64
		var wg sync.WaitGroup
		for range 8 {
			wg.Go(func() {
				for range 40 {
					got, err := n.take(t.Context(), "acme", 7)
					if got < 7 && !errors.Is(err, hierarchy.ErrRateLimited) {
						t.Errorf("%d: %v", got, err)
					}
					mine.Add(int64(got))
				}
			})
		}
		wg.Wait()
		if mine.Load() > 700 {
			t.Errorf("a node allowed %d in a minute", mine.Load())
		}
		total.Add(mine.Load())
	}
	// A node that may do no more this minute keeps what it has left of a block.
	if got := total.Load(); got > 2000 || got < 1900 {
		t.Errorf("%d were allowed in a day, of 2000", got)
	}
}

// Counts of tenants that are not used any more are dropped, and no others.
func TestIdleCountsAreDropped(t *testing.T) {
	c := newCluster(t)
	c.limitRule("5/m")
	n := c.member()
	r, _ := n.State().Rule("saas", pattern)
	take := func(i, count int) (int, error) {
		id := hierarchy.TenantID{ID: hierarchy.ID{1: byte(i >> 8), 2: byte(i)}}
		return n.Take(t.Context(), n.State(), n.Now(), &state.Tenant{ID: id, Name: "t"}, r, count)
	}
	const many = 6000
	for i := range many {
		if got, err := take(i, 3); got != 3 {
			t.Fatal(err)
		}
	}
	if got := n.Size(); got != many {
		t.Fatalf("%d are counted, want %d", got, many)
	}
	for i := range many {
		if got, _ := take(i, 3); got != 2 {
			t.Fatalf("a count of this minute is lost: %d more are allowed, want 2", got)
		}
	}
	c.pass(2 * time.Hour)
	for i := range 10 * many {
		take(many+i, 1)
		if i%3000 == 0 {
			if got := n.Size(); got > 2*many {
				t.Fatalf("%d are counted", got)
			}
			c.pass(2 * time.Hour)
		}
	}
}

func drawLimits(t *rapid.T, what string) (texts []string) {
	count := rapid.IntRange(1, 40)
	if per := rapid.SampledFrom([]string{"", "s", "m"}).Draw(t, what+" short"); per != "" {
		texts = append(texts, fmt.Sprintf("%d/%s", count.Draw(t, what+" count"), per))
	}
	if per := rapid.SampledFrom([]string{"", "h", "d"}).Draw(t, what+" long"); per != "" {
		// Some that are taken in blocks of more than one.
		texts = append(texts, fmt.Sprintf("%d/%s", count.Draw(t, what+" count")*rapid.SampledFrom([]int{1, 50}).Draw(t, what+" times"), per))
	}
	return texts
}

// counted is one window of one limit.
type counted struct {
	node   *member // of a short one
	tenant string
	rule   bool
	per    time.Duration
	start  int64
}

// model counts what was allowed, by the words of the documentation.
type model map[counted]uint64

// of lists the limits in force for a tenant, as counted at a time.
func (m model) of(n *member, tenant string) map[counted]policy.Limit {
	s, now := n.State(), n.Now()
	t, _ := s.TenantByName(tenant)
	r, _ := s.Rule("saas", pattern)
	all := map[counted]policy.Limit{}
	for rule, limits := range map[bool]policy.Limits{true: r.Limits, false: t.Limits} {
		for _, l := range limits.List() {
			k := counted{tenant: tenant, rule: rule, per: l.Per, start: now.UnixNano() / int64(l.Per)}
			if l.Per <= time.Minute {
				k.node = n
			}
			all[k] = l
		}
	}
	return all
}

// For any takes on any nodes, windows that change, crashes, and limits that are set and lifted
// again: what is allowed in a window never exceeds the limit that is in force.
func TestAllowedIsWithinTheLimits(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		c := newCluster(t)
		c.limitRule(drawLimits(t, "rule")...)
		nodes := make([]*member, members)
		for i := range nodes {
			nodes[i] = c.member()
		}
		m := model{}
		t.Repeat(map[string]func(*rapid.T){
			"take": func(t *rapid.T) {
				n := nodes[rapid.IntRange(0, members-1).Draw(t, "node")]
				tenant := rapid.SampledFrom(tenants).Draw(t, "tenant")
				count := rapid.SampledFrom([]int{1, 1, 1, 2, 9, 64}).Draw(t, "count")
				got, err := n.take(context.Background(), tenant, count)
				if got < 0 || got > count || (got == count) != (err == nil) || err != nil && !errors.Is(err, hierarchy.ErrRateLimited) {
					t.Fatalf("%d of %d were allowed: %v", got, count, err)
				}
				limits := m.of(n, tenant)
				for k, l := range limits {
					if m[k] += uint64(got); got > 0 && m[k] > l.Count {
						t.Fatalf("%d were allowed in a window by %s (%+v)", m[k], l, k)
					}
				}
			},
			"time passes": func(t *rapid.T) {
				c.pass(rapid.SampledFrom([]time.Duration{time.Millisecond, 400 * time.Millisecond, time.Second, 20 * time.Second, time.Minute, 25 * time.Minute, time.Hour, 7 * time.Hour}).Draw(t, "d"))
			},
			"crash": func(t *rapid.T) {
				nodes[rapid.IntRange(0, members-1).Draw(t, "node")] = c.member()
			},
			"set the rule": func(t *rapid.T) { c.limitRule(drawLimits(t, "rule")...) },
			"set the tenant": func(t *rapid.T) {
				c.limitTenant(rapid.SampledFrom(tenants).Draw(t, "tenant"), drawLimits(t, "tenant")...)
			},
		})
	})
}

// One node whose limits do not change allows just what they say, and not one less.
func TestOneNodeAllowsAllThatItMay(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		c := newCluster(t)
		c.limitRule(drawLimits(t, "rule")...)
		c.limitTenant("acme", drawLimits(t, "acme")...)
		n, m := c.member(), model{}
		t.Repeat(map[string]func(*rapid.T){
			"take": func(t *rapid.T) {
				tenant := rapid.SampledFrom(tenants).Draw(t, "tenant")
				count := rapid.SampledFrom([]int{1, 2, 9, 64}).Draw(t, "count")
				got, err := n.take(context.Background(), tenant, count)
				limits, want := m.of(n, tenant), uint64(count)
				for k, l := range limits {
					want = min(want, l.Count-m[k])
				}
				if uint64(got) != want {
					t.Fatalf("%d of %d were allowed, want %d: %v", got, count, want, err)
				}
				for k := range limits {
					m[k] += want
				}
			},
			"time passes": func(t *rapid.T) {
				c.pass(rapid.SampledFrom([]time.Duration{time.Millisecond, 400 * time.Millisecond, time.Second, time.Minute, time.Hour}).Draw(t, "d"))
			},
		})
	})
}

func BenchmarkUses(b *testing.B) {
	for _, limits := range [][]string{{"1000000000/s"}, {"1000000000/d"}, {"1000000000/s", "1000000000/d"}} {
		b.Run(fmt.Sprint(limits), func(b *testing.B) {
			c := newCluster(b)
			c.limitRule(limits...)
			n := c.member()
			s, now := n.State(), n.Now()
			t, _ := s.TenantByName("acme")
			r, _ := s.Rule("saas", pattern)
			b.ReportAllocs()
			for b.Loop() {
				if got, err := n.Take(b.Context(), s, now, t, r, 1); got != 1 {
					b.Fatal(err)
				}
			}
		})
	}
}
