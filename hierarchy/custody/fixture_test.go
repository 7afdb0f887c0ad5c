package custody_test

import (
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"sync"
	"testing"
	"time"

	"github.com/kekd/kekd/hierarchy"
	"github.com/kekd/kekd/hierarchy/audit"
	"github.com/kekd/kekd/hierarchy/commandpb"
	"github.com/kekd/kekd/hierarchy/custody"
	"github.com/kekd/kekd/hierarchy/envelope"
	"github.com/kekd/kekd/hierarchy/quota"
	"github.com/kekd/kekd/hierarchy/state"
	"github.com/kekd/kekd/hsm"
)

// The state is the real one. Token, journal and budget are stand-ins, because these tests are
// about what happens between their steps: each can fail, and each can let something happen
// while it works. The real ones are joined in package softhsmtests.

func id(name string) []byte { sum := sha256.Sum256([]byte(name)); return sum[:hierarchy.IDSize] }

var (
	cluster = hierarchy.ClusterID{ID: hierarchy.ID(id("cluster"))}
	region  = hierarchy.RegionID{ID: hierarchy.ID(id("region"))}
	node    = hierarchy.NodeID{ID: hierarchy.ID(id("node"))}

	acmeApp   = hierarchy.Principal{UID: 1001, GID: 1001, PID: 11}
	globexApp = hierarchy.Principal{UID: 1002, GID: 1002, PID: 12}
	saas      = hierarchy.Principal{UID: 1003, GID: 1003, PID: 13}
	stranger  = hierarchy.Principal{UID: 1999, GID: 1999, PID: 99}
)

// world is one node with everything around custody.
type world struct {
	t testing.TB
	*custody.Custody

	mu     sync.Mutex
	state  *state.State
	age    time.Duration
	fault  error
	unwell error
	clock  time.Time

	proposeErr error // of reservations
	awaited    int   // renewals that somebody waits for
	renewed    chan struct{}

	token   *token
	journal *journal
	budget  *budget
}

func newWorld(t testing.TB) *world {
	w := &world{t: t, state: state.New(), journal: &journal{}, budget: &budget{}, clock: time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)}
	w.token = &token{keys: map[hierarchy.ObjectID]cipher.AEAD{}}
	w.Custody = custody.New(custody.Self{Cluster: cluster, Region: region, Node: node}, w, w.token, w.journal, quota.NewUses(node, w), w.budget, w.now)
	w.apply(&commandpb.Command{Body: &commandpb.Command_InitCluster{InitCluster: &commandpb.InitCluster{
		ClusterId: cluster.ID[:],
		Region:    &commandpb.Region{Id: region.ID[:], Name: "eu", Role: commandpb.RegionRole_REGION_ROLE_VOTING, Identity: []byte("not looked at here"), MintingNode: node.ID[:]},
		Node:      &commandpb.Node{Id: node.ID[:], Name: "eu-1", RegionId: region.ID[:], Voter: true},
	}}})
	for _, tenant := range []string{"acme", "globex"} {
		w.apply(&commandpb.Command{Body: &commandpb.Command_CreateTenant{CreateTenant: &commandpb.CreateTenant{TenantId: id(tenant), Name: tenant, MaxStaleness: int64(2 * time.Second)}}})
		w.apply(&commandpb.Command{Body: &commandpb.Command_CreateKey{CreateKey: &commandpb.CreateKey{TenantId: id(tenant), KeyId: id(tenant + "/orders"), Name: "orders"}}})
		w.mint(tenant, 1)
	}
	w.service("acme-app", acmeApp.UID, "acme/*", hierarchy.AllOps...)
	w.service("globex-app", globexApp.UID, "globex/*", hierarchy.AllOps...)
	w.service("saas", saas.UID, "*/orders", hierarchy.OpWrap, hierarchy.OpUnwrap)
	return w
}

func (w *world) View() custody.View {
	w.mu.Lock()
	defer w.mu.Unlock()
	return custody.View{State: w.state, Age: w.age, Fault: w.fault, Unwell: func() error { return w.unwell }, Now: w.clock}
}

func (w *world) Renewed() <-chan struct{} {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.awaited++
	if w.renewed == nil {
		w.renewed = make(chan struct{})
	}
	return w.renewed
}

// renew has the lease be so old from now on.
func (w *world) renew(age time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.age = age
	close(w.renewed)
	w.renewed = nil
}

func (w *world) now() time.Time {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.clock
}

func (w *world) later(d time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.clock = w.clock.Add(d)
}

func (w *world) setView(age time.Duration, fault error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.age, w.fault = age, fault
}

func (w *world) apply(c *commandpb.Command) {
	w.t.Helper()
	w.mu.Lock()
	defer w.mu.Unlock()
	if err := w.propose(c); err != nil {
		w.t.Fatalf("%T: %v", c.Body, err)
	}
}

// propose is called with mu held.
func (w *world) propose(c *commandpb.Command) error {
	if c.GetReserveUses() != nil && w.proposeErr != nil {
		return w.proposeErr
	}
	c.Format = 1
	cid := hierarchy.NewID()
	c.Id = cid[:]
	c.Stamp = time.Date(2026, 1, 1, 0, 0, int(w.state.Index()), 0, time.UTC).UnixNano()
	next, r := state.Apply(w.state, state.Meta{Index: w.state.Index() + 1}, c)
	w.state = next
	return r.Err
}

func (w *world) mint(tenant string, version uint32) {
	object := hierarchy.KEKObjectID(cluster, hierarchy.TenantID{ID: hierarchy.ID(id(tenant))}, hierarchy.KeyID{ID: hierarchy.ID(id(tenant + "/orders"))}, version, region, 1)
	w.token.make(object)
	w.apply(&commandpb.Command{Body: &commandpb.Command_RecordMinted{RecordMinted: &commandpb.RecordMinted{
		TenantId: id(tenant), KeyId: id(tenant + "/orders"), Version: version, Attempt: 1, RegionId: region.ID[:], ObjectId: object[:], CheckValue: object[:3],
	}}})
}

func (w *world) rotate(tenant string, after uint32) {
	w.apply(&commandpb.Command{Body: &commandpb.Command_RotateKey{RotateKey: &commandpb.RotateKey{
		TenantId: id(tenant), KeyId: id(tenant + "/orders"), AfterVersion: after, Cause: commandpb.RotationCause_ROTATION_CAUSE_OPERATOR,
	}}})
	w.mint(tenant, after+1)
}

// alter is an envelope with something changed in it.
func (w *world) alter(sealed []byte, change func(*envelope.Envelope)) []byte {
	w.t.Helper()
	e, err := envelope.Parse(sealed)
	if err != nil {
		w.t.Fatal(err)
	}
	change(e)
	altered, err := e.Marshal()
	if err != nil {
		w.t.Fatal(err)
	}
	return altered
}

func (w *world) service(name string, uid uint32, pattern string, ops ...hierarchy.Op) {
	w.apply(&commandpb.Command{Body: &commandpb.Command_CreateService{CreateService: &commandpb.CreateService{Name: name, Uid: &uid}}})
	var set uint32
	for _, o := range ops {
		set |= uint32(o)
	}
	w.allow(&commandpb.Rule{Service: name, Pattern: pattern, Ops: set})
}

func (w *world) allow(r *commandpb.Rule) {
	w.apply(&commandpb.Command{Body: &commandpb.Command_AllowPolicy{AllowPolicy: &commandpb.AllowPolicy{Rule: r}}})
}

func (w *world) tenant(name string, to commandpb.TenantState) {
	w.apply(&commandpb.Command{Body: &commandpb.Command_SetTenantState{SetTenantState: &commandpb.SetTenantState{TenantId: id(name), State: to, Reason: "test"}}})
}

func (w *world) version(tenant string, n uint32, action commandpb.VersionAction) {
	w.apply(&commandpb.Command{Body: &commandpb.Command_SetVersionState{SetVersionState: &commandpb.SetVersionState{
		TenantId: id(tenant), KeyId: id(tenant + "/orders"), Version: n, Action: action, Reason: "test",
	}}})
}

// do is one request.
func (w *world) do(who hierarchy.Principal, r custody.Request) custody.Response {
	resps := make([]custody.Response, 1)
	w.Do(context.Background(), who, []custody.Request{r}, resps)
	return resps[0]
}

// sealed wraps a data key, which has to work.
func (w *world) sealed(who hierarchy.Principal, key string, context ...hierarchy.ContextEntry) []byte {
	w.t.Helper()
	r := w.do(who, custody.Request{Op: hierarchy.OpWrap, Key: key, Plaintext: []byte("0123456789abcdef"), Context: context})
	if r.Err != nil {
		w.t.Fatal(r.Err)
	}
	return r.Envelope
}

func wantErr(t *testing.T, r custody.Response, want error) {
	t.Helper()
	if !errors.Is(r.Err, want) {
		t.Fatalf("got %v, want %v", r.Err, want)
	}
	if r.Plaintext != nil || r.Envelope != nil {
		t.Fatalf("a refusal hands something out: %d bytes of plaintext, %d of envelope", len(r.Plaintext), len(r.Envelope))
	}
}

// token holds keys in memory.
type token struct {
	mu     sync.Mutex
	keys   map[hierarchy.ObjectID]cipher.AEAD
	asked  int
	err    error  // every operation ends with it
	during func() // runs after the work, before Do returns
	handed [][]byte
}

func (k *token) make(object hierarchy.ObjectID) {
	key := make([]byte, 32)
	rand.Read(key)
	block, err := aes.NewCipher(key)
	if err != nil {
		panic(err)
	}
	aead, err := cipher.NewGCM(block)
	if err != nil {
		panic(err)
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.keys[object] = aead
}

func (k *token) Do(_ context.Context, ops []hsm.Operation) {
	k.mu.Lock()
	for i := range ops {
		k.asked++
		ops[i].Err = k.one(&ops[i])
	}
	during := k.during
	k.mu.Unlock()
	if during != nil {
		during()
	}
}

func (k *token) one(op *hsm.Operation) error {
	if k.err != nil {
		return k.err
	}
	if err := op.Validate(); err != nil {
		return err
	}
	plain := op.Plaintext
	switch {
	case op.Random > 0:
		plain = make([]byte, op.Random)
		rand.Read(plain)
	case op.Open != nil:
		aead, ok := k.keys[op.Open.Key.ID]
		if !ok {
			return hsm.ErrKeyNotFound
		}
		var err error
		if plain, err = aead.Open(nil, op.Open.IV, op.Open.Ciphertext, op.Open.AAD); err != nil {
			return hsm.ErrTagMismatch
		}
	}
	for _, to := range op.To {
		aead, ok := k.keys[to.Key.ID]
		if !ok {
			return hsm.ErrKeyNotFound
		}
		iv := make([]byte, hsm.IVSize)
		rand.Read(iv)
		op.Sealed = append(op.Sealed, hsm.Sealed{IV: iv, Ciphertext: aead.Seal(nil, iv, plain, to.AAD)})
	}
	if op.Reveal {
		op.Revealed = plain
		k.handed = append(k.handed, plain)
	}
	return nil
}

// journal keeps records in memory.
type journal struct {
	mu       sync.Mutex
	records  []audit.Record
	sequence uint64 // of the last
	dropped  bool   // they are counted for nothing
	failing  int    // so many Appends to come fail
	err      error
	waitErr  error
	during   []func() // each runs while one Wait waits
}

func (j *journal) Append(ctx context.Context, r []audit.Record) (audit.Position, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if ctx.Err() != nil {
		return audit.Position{}, ctx.Err()
	}
	if j.failing > 0 {
		j.failing--
		return audit.Position{}, errors.New("for a moment there is no room")
	}
	if j.err != nil {
		return audit.Position{}, j.err
	}
	j.sequence += uint64(len(r))
	if !j.dropped {
		j.records = append(j.records, r...)
	}
	return audit.Position{Sequence: j.sequence}, nil
}

func (j *journal) Wait(ctx context.Context, _ audit.Position) error {
	j.mu.Lock()
	var during func()
	if len(j.during) > 0 {
		during, j.during = j.during[0], j.during[1:]
	}
	err := j.waitErr
	j.mu.Unlock()
	if during != nil {
		during()
	}
	return errors.Join(err, ctx.Err())
}

// since returns what was recorded after the first n records.
func (j *journal) since(n int) []audit.Record {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.records[n:]
}

func (j *journal) count() int { return len(j.since(0)) }

// budget lets everything through, and counts.
type budget struct {
	taken int
	err   error
}

func (b *budget) Take(_ context.Context, _ hierarchy.TenantID, _ hierarchy.KeyID, _ uint32, n int) error {
	b.taken += n
	return b.err
}
