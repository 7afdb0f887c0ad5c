package reconcile_test

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"sync"
	"time"

	"github.com/kekd/kekd/hierarchy"
	"github.com/kekd/kekd/hierarchy/commandpb"
	"github.com/kekd/kekd/hierarchy/reconcile"
	"github.com/kekd/kekd/hierarchy/state"
	"github.com/kekd/kekd/hsm"
)

func id(name string) hierarchy.ID {
	sum := sha256.Sum256([]byte(name))
	return hierarchy.ID(sum[:hierarchy.IDSize])
}

var (
	cluster = hierarchy.ClusterID{ID: id("cluster")}
	region  = hierarchy.RegionID{ID: id("region")}
	us      = hierarchy.RegionID{ID: id("us")} // another one
	self    = hierarchy.NodeID{ID: id("self")}
	other   = hierarchy.NodeID{ID: id("other")}
)

// fault is when something goes wrong: not at all, before it was done, or when it was done and
// the answer was lost.
type fault int

const (
	none fault = iota
	before
	after
)

var errFault = errors.New("a fault that was asked for")

// replicated is the real state machine with a log of one.
type replicated struct {
	mu      sync.Mutex
	state   *state.State
	changed chan struct{}
	leader  bool
	old     bool // nobody confirms the state
	fault   func() fault
}

func newReplicated() *replicated {
	r := &replicated{state: state.New(), changed: make(chan struct{}), leader: true, fault: func() fault { return none }}
	r.must(&commandpb.Command{Body: &commandpb.Command_InitCluster{InitCluster: &commandpb.InitCluster{
		ClusterId: cluster.ID[:],
		Region:    &commandpb.Region{Id: region.ID[:], Name: "eu", Role: commandpb.RegionRole_REGION_ROLE_VOTING, Identity: []byte("not looked at here"), MintingNode: self.ID[:]},
		Node:      &commandpb.Node{Id: self.ID[:], Name: "eu-1", RegionId: region.ID[:], Voter: true},
	}}})
	return r
}

func (r *replicated) State() *state.State {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.state
}

func (r *replicated) Changed() <-chan struct{} {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.changed
}

func (r *replicated) IsLeader() bool { return r.leader }

func (r *replicated) Current() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return !r.old
}

func (r *replicated) setOld(old bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.old = old
}

func (r *replicated) Propose(_ context.Context, c *commandpb.Command) error {
	switch r.fault() {
	case before:
		return errFault
	case after:
		_ = r.apply(c, time.Time{})
		return errFault
	}
	return r.apply(c, time.Time{})
}

func (r *replicated) apply(c *commandpb.Command, stamp time.Time) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	cid := hierarchy.NewID()
	c.Format, c.Id = state.Format, cid[:]
	if stamp.IsZero() {
		stamp = r.state.Stamp().Add(time.Millisecond)
		if r.state.Index() == 0 {
			stamp = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
		}
	}
	c.Stamp = stamp.UnixNano()
	next, res := state.Apply(r.state, state.Meta{Index: r.state.Index() + 1}, c)
	moved := next.Revision() != r.state.Revision()
	r.state = next
	if moved {
		close(r.changed)
		r.changed = make(chan struct{})
	}
	return res.Err
}

func (r *replicated) must(c *commandpb.Command) {
	if err := r.apply(c, time.Time{}); err != nil {
		panic(fmt.Sprintf("%T: %v", c.Body, err))
	}
}

func tenantID(name string) []byte { i := id(name); return i[:] }
func keyID(name string) []byte    { i := id("key " + name); return i[:] }

func (r *replicated) create(tenant, key string, every time.Duration) {
	if _, ok := r.State().TenantByName(tenant); !ok {
		r.must(&commandpb.Command{Body: &commandpb.Command_CreateTenant{CreateTenant: &commandpb.CreateTenant{TenantId: tenantID(tenant), Name: tenant, MaxStaleness: int64(time.Second)}}})
	}
	r.must(&commandpb.Command{Body: &commandpb.Command_CreateKey{CreateKey: &commandpb.CreateKey{TenantId: tenantID(tenant), KeyId: keyID(tenant + key), Name: key, RotateEvery: int64(every)}}})
}

func (r *replicated) setTenant(tenant string, to commandpb.TenantState) error {
	return r.apply(&commandpb.Command{Body: &commandpb.Command_SetTenantState{SetTenantState: &commandpb.SetTenantState{TenantId: tenantID(tenant), State: to, Reason: "test"}}}, time.Time{})
}

func (r *replicated) setVersion(tenant, key string, n uint32, action commandpb.VersionAction) error {
	return r.apply(&commandpb.Command{Body: &commandpb.Command_SetVersionState{SetVersionState: &commandpb.SetVersionState{
		TenantId: tenantID(tenant), KeyId: keyID(tenant + key), Version: n, Action: action, Reason: "test"}}}, time.Time{})
}

func (r *replicated) rotate(tenant, key string, after uint32) error {
	return r.apply(&commandpb.Command{Body: &commandpb.Command_RotateKey{RotateKey: &commandpb.RotateKey{
		TenantId: tenantID(tenant), KeyId: keyID(tenant + key), AfterVersion: after, Cause: commandpb.RotationCause_ROTATION_CAUSE_OPERATOR}}}, time.Time{})
}

// rotateAnyway enables the tenant first.
func (r *replicated) rotateAnyway(tenant, key string) error {
	return errors.Join(r.setTenant(tenant, enabled), r.rotate(tenant, key, r.key(tenant, key).Newest().Number))
}

// spread places a tenant in two regions: there is no command that does it. What is created for it
// from now on is of both.
func (r *replicated) spread(tenant string) {
	r.must(&commandpb.Command{Body: &commandpb.Command_CreateTenant{CreateTenant: &commandpb.CreateTenant{TenantId: tenantID(tenant), Name: tenant, MaxStaleness: int64(time.Second)}}})
	t, _ := r.State().TenantByName(tenant)
	t.Placement = append(t.Placement, us)
}

// mintElsewhere records what the other region has made of a key's newest version.
func (r *replicated) mintElsewhere(tenant, key string) error {
	k := r.key(tenant, key)
	v := k.Newest()
	object := hierarchy.KEKObjectID(cluster, k.Tenant, k.ID, v.Number, us, v.Attempt)
	return r.apply(&commandpb.Command{Body: &commandpb.Command_RecordMinted{RecordMinted: &commandpb.RecordMinted{
		TenantId: k.Tenant.ID[:], KeyId: k.ID.ID[:], Version: v.Number, Attempt: v.Attempt, RegionId: us.ID[:], ObjectId: object[:], CheckValue: object[:3],
	}}}, time.Time{})
}

func version(r *replicated, tenant, key string, n uint32) reconcile.VersionID {
	k := r.key(tenant, key)
	return reconcile.VersionID{Tenant: k.Tenant, Key: k.ID, Version: n}
}

func (r *replicated) key(tenant, key string) *state.Key {
	k, ok := r.State().Key(hierarchy.TenantID{ID: id(tenant)}, hierarchy.KeyID{ID: id("key " + tenant + key)})
	if !ok {
		panic(tenant + "/" + key + " is not there")
	}
	return k
}

// token is a token's object store, with faults. A real one stands in real_test.go.
type token struct {
	mu       sync.Mutex
	objects  map[hierarchy.ObjectID]hsm.Object
	halfMade map[hierarchy.ObjectID]bool
	unfit    func(label string) bool // keys that it makes badly
	slow     time.Duration           // a generation

	stuck       hierarchy.ObjectID // whose attributes cannot be changed
	stuckTries  int
	keepsCopies bool
	unlisted    bool
	whileLatch  func()   // happens while it latches
	labels      []string // of what was generated
	generated   int
	destroyed   []hierarchy.ObjectID
	forgotten   map[hierarchy.ObjectID]int
	calls       []string
	fault       func() fault
	noLatch     bool
	info        hsm.Info
	full        bool // it makes no key
}

func newToken() *token {
	return &token{
		objects: map[hierarchy.ObjectID]hsm.Object{}, halfMade: map[hierarchy.ObjectID]bool{}, forgotten: map[hierarchy.ObjectID]int{},
		fault: func() fault { return none },
		info:  hsm.Info{MaxObjects: 1000, FreeBytes: ^uint64(0), FreeObjects: ^uint64(0), CanLatch: true},
	}
}

func (k *token) do(call string, f func() error) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.calls = append(k.calls, call)
	switch k.fault() {
	case before:
		return errFault
	case after:
		_ = f()
		return errFault
	}
	return f()
}

func (k *token) List(context.Context) (list []hsm.Object, err error) {
	err = k.do("list", func() error {
		if k.unlisted {
			return errFault
		}
		for o := range maps.Values(k.objects) {
			list = append(list, o)
		}
		return nil
	})
	return list, err
}

func (k *token) Generate(_ context.Context, id hierarchy.ObjectID, label string) (made hsm.Object, err error) {
	k.mu.Lock()
	slow := k.slow
	k.mu.Unlock()
	time.Sleep(slow)
	err = k.do("generate", func() error {
		if k.halfMade[id] {
			return hsm.ErrKeyRefused
		}
		var there bool
		if made, there = k.objects[id]; !there {
			if k.full {
				return hsm.ErrCapacity
			}
			k.generated++
			k.labels = append(k.labels, label)
			if k.unfit != nil && k.unfit(label) {
				k.halfMade[id] = true
				k.objects[id] = hsm.Object{ID: id, RawID: id[:], Label: label, Fault: hsm.ErrKeyRefused}
				return hsm.ErrKeyRefused
			}
			made = hsm.Object{ID: id, RawID: id[:], Label: label, Check: hierarchy.CheckValue(id[:3]), Usable: true}
			k.objects[id] = made
		}
		return nil
	})
	return made, err
}

func (k *token) SetUsable(_ context.Context, id hierarchy.ObjectID, usable bool) error {
	if !usable && k.whileLatch != nil {
		k.whileLatch()
	}
	return k.do(fmt.Sprintf("usable=%v", usable), func() error {
		if k.noLatch {
			return hsm.ErrUnsupported
		}
		if id == k.stuck {
			k.stuckTries++
			return errFault
		}
		o, ok := k.objects[id]
		if !ok {
			return hsm.ErrKeyNotFound
		}
		o.Usable = usable
		k.objects[id] = o
		return nil
	})
}

func (k *token) Destroy(_ context.Context, id hierarchy.ObjectID) error {
	return k.do("destroy", func() error {
		k.destroyed = append(k.destroyed, id)
		delete(k.objects, id)
		delete(k.halfMade, id)
		return nil
	})
}

func (k *token) Info(context.Context) (hsm.Info, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.info, nil
}

func (k *token) Forget(_ context.Context, ids []hierarchy.ObjectID) error {
	return k.do("forget", func() error {
		if k.keepsCopies {
			return errFault
		}
		for _, id := range ids {
			k.forgotten[id]++
		}
		return nil
	})
}

// faults sets what goes wrong with the calls to come, of the token and of whoever asks nextFault.
func (k *token) faults(list []fault) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.fault = func() fault {
		if len(list) == 0 {
			return none
		}
		f := list[0]
		list = list[1:]
		return f
	}
}

func (k *token) nextFault() fault {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.fault()
}

func (k *token) usable(id hierarchy.ObjectID) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.objects[id].Usable
}

// run starts a reconciler, as a process would, and returns what stops it.
func run(ctx context.Context, r *replicated, m hsm.Manager, t reconcile.Token, node hierarchy.NodeID) (*reconcile.Reconciler, func()) {
	rec := reconcile.New(reconcile.Self{Region: region, Node: node}, r, m, t, slog.New(slog.DiscardHandler))
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() { rec.Run(ctx); close(done) }()
	return rec, func() { cancel(); <-done }
}

// settled waits for all versions of a tenant.
func settled(ctx context.Context, r *replicated, rec *reconcile.Reconciler, tenant string) error {
	return settledIn(ctx, 20*time.Second, r, rec, tenant)
}

func settledIn(ctx context.Context, d time.Duration, r *replicated, rec *reconcile.Reconciler, tenant string) error {
	ctx, cancel := context.WithTimeout(ctx, d)
	defer cancel()
	s := r.State()
	for k := range s.Keys(hierarchy.TenantID{ID: id(tenant)}) {
		for _, v := range k.Versions {
			if err := rec.Settled(ctx, s.Revision(), reconcile.VersionID{Tenant: k.Tenant, Key: k.ID, Version: v.Number}); err != nil {
				return err
			}
		}
	}
	return nil
}
