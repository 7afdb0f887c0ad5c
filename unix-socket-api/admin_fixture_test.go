package socketapi_test

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"sync"
	"testing"
	"time"

	"github.com/kekd/kekd/hierarchy"
	"github.com/kekd/kekd/hierarchy/commandpb"
	"github.com/kekd/kekd/hierarchy/state"
	socketapi "github.com/kekd/kekd/unix-socket-api"
	"github.com/kekd/kekd/unix-socket-api/kekdv1"
	"google.golang.org/grpc"
)

var (
	testCluster = hierarchy.NewID()
	testRegion  = hierarchy.NewID()
	testNode    = hierarchy.NewID()
)

// node is a cluster of one: the real state machine, a token that mints when it is asked, and a
// journal in memory.
type node struct {
	mu       sync.Mutex
	state    *state.State
	stamp    time.Time
	commands []*commandpb.Command
	records  []socketapi.AdminRecord

	refuse     error                                           // of a command that is not proposed
	proposeErr func(context.Context, *commandpb.Command) error // after the command took effect
	mintErr    error                                           // nothing is minted
	fence      func(context.Context, *state.Fence) (socketapi.Fenced, error)
	auditErr   func(socketapi.AdminRecord) error
	waited     []uint32
	changed    chan struct{} // closed at the next change of state
}

func (n *node) State() *state.State {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.state
}

func (n *node) Changed() <-chan struct{} {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.changed
}

func (n *node) Propose(ctx context.Context, c *commandpb.Command) (state.Result, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.refuse != nil {
		return state.Result{}, n.refuse
	}
	r := n.apply(c)
	n.commands = append(n.commands, c)
	if n.proposeErr != nil {
		if err := n.proposeErr(ctx, c); err != nil {
			return state.Result{}, err
		}
	}
	return r, nil
}

// Fence is the test's own.
func (n *node) Fence(ctx context.Context, f *state.Fence) (socketapi.Fenced, error) {
	return n.fence(ctx, f)
}

func (n *node) apply(c *commandpb.Command) (r state.Result) {
	n.stamp = n.stamp.Add(time.Second)
	c.Stamp = n.stamp.UnixNano()
	n.state, r = state.Apply(n.state, state.Meta{Index: n.state.Index() + 1}, c)
	close(n.changed)
	n.changed = make(chan struct{})
	return r
}

func (n *node) WaitServable(ctx context.Context, tenant hierarchy.TenantID, key hierarchy.KeyID, version uint32) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.mintErr != nil {
		return n.mintErr
	}
	n.waited = append(n.waited, version)
	k, ok := n.state.Key(tenant, key)
	if !ok {
		return hierarchy.ErrNotFound
	}
	v, ok := k.Version(version)
	if !ok {
		return hierarchy.ErrNotFound
	}
	if v.State != hierarchy.PreActive {
		return nil
	}
	object := hierarchy.KEKObjectID(n.state.ClusterID(), tenant, key, version, v.Regions[0].Region, v.Attempt)
	id := hierarchy.NewID()
	return n.apply(&commandpb.Command{Format: state.Format, Id: id[:], Body: &commandpb.Command_RecordMinted{RecordMinted: &commandpb.RecordMinted{
		TenantId: tenant.ID[:], KeyId: key.ID[:], Version: version, Attempt: v.Attempt,
		RegionId: testRegion[:], ObjectId: object[:], CheckValue: []byte{1, 2, 3},
	}}}).Err
}

func (n *node) Append(ctx context.Context, r socketapi.AdminRecord) (uint64, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if err := ctx.Err(); err != nil {
		return 0, err
	}
	if n.auditErr != nil {
		if err := n.auditErr(r); err != nil {
			return 0, err
		}
	}
	n.records = append(n.records, r)
	return uint64(len(n.records)), nil
}

// Tail yields what it was asked for, and then, with follow, waits for the context.
func (n *node) Tail(ctx context.Context, tenant hierarchy.TenantID, last int, follow bool) iter.Seq2[[]byte, error] {
	return func(yield func([]byte, error) bool) {
		if !yield(fmt.Appendf(nil, "%s %d", tenant, last), nil) {
			return
		}
		if follow {
			<-ctx.Done()
			return
		}
		yield(nil, fmt.Errorf("%w: the end", hierarchy.ErrAuditUnavailable))
	}
}

// Watch yields an event that names the tenant, tells of some that were missed, and then waits for
// the context.
func (n *node) Watch(ctx context.Context, tenant hierarchy.TenantID) iter.Seq2[*kekdv1.TenantEvent, error] {
	return func(yield func(*kekdv1.TenantEvent, error) bool) {
		if yield(&kekdv1.TenantEvent{Kind: "watch", Detail: tenant.String()}, nil) && yield(&kekdv1.TenantEvent{Kind: "missed", Missed: 7}, nil) {
			<-ctx.Done()
		}
	}
}

func (n *node) Verify(context.Context) (*kekdv1.VerifyAuditResponse, error) {
	return &kekdv1.VerifyAuditResponse{Ok: true, Chains: []*kekdv1.AuditChain{{Node: "a", Records: 7}}}, nil
}

func (n *node) Status(context.Context) *kekdv1.Status {
	return &kekdv1.Status{NodeName: "a", AppliedIndex: n.State().Index()}
}

// last are the records since the last time.
func (n *node) last() []socketapi.AdminRecord {
	n.mu.Lock()
	defer n.mu.Unlock()
	r := n.records
	n.records = nil
	return r
}

func newNode(t testing.TB) *node {
	t.Helper()
	n := &node{state: state.New(), changed: make(chan struct{}), stamp: time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)}
	id := sha256.Sum256([]byte("init"))
	if r := n.apply(&commandpb.Command{Format: state.Format, Id: id[:16], Body: &commandpb.Command_InitCluster{InitCluster: &commandpb.InitCluster{
		ClusterId: testCluster[:],
		Region:    &commandpb.Region{Id: testRegion[:], Name: "eu-west", Role: commandpb.RegionRole_REGION_ROLE_VOTING, Identity: []byte("identity"), Kdf: "x963-sha256", MintingNode: testNode[:]},
		Node:      &commandpb.Node{Id: testNode[:], Name: "a", RegionId: testRegion[:], Voter: true},
	}}}); r.Err != nil {
		t.Fatal(r.Err)
	}
	return n
}

// adminOf serves a node, and is its client as root.
func adminOf(t testing.TB, n *node, admins socketapi.Admins) (kekdv1.AdminServiceClient, *grpc.ClientConn, *running) {
	t.Helper()
	return adminWith(t, n, func(a *socketapi.Admin) { a.Admins = admins })
}

// adminWith serves a node that has more, or less, than others.
func adminWith(t testing.TB, n *node, change func(*socketapi.Admin)) (kekdv1.AdminServiceClient, *grpc.ClientConn, *running) {
	t.Helper()
	log := new(logs)
	a := socketapi.Admin{
		Self: hierarchy.NodeID{ID: testNode}, Hierarchy: n, Minting: n, Audit: n, Node: n, Admins: socketapi.Admins{GID: -1},
		Limits: socketapi.DefaultAdminLimits(), Log: slog.New(slog.NewTextHandler(log, nil)),
	}
	change(&a)
	s, err := socketapi.NewAdminServer(a)
	if err != nil {
		t.Fatal(err)
	}
	r := serve(t, s, log)
	conn := raw(t, r.path)
	return kekdv1.NewAdminServiceClient(conn), conn, r
}

func must[T any](t *testing.T) func(T, error) T {
	return func(v T, err error) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

var errDisk = errors.New("no space left on device")
