package socketapi_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/kekd/kekd/hierarchy"
	"github.com/kekd/kekd/hierarchy/commandpb"
	"github.com/kekd/kekd/hierarchy/state"
	socketapi "github.com/kekd/kekd/unix-socket-api"
	"github.com/kekd/kekd/unix-socket-api/kekdv1"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/testing/protocmp"
)

// testMembers are the members as Raft has them, which a test changes.
type testMembers struct {
	n *node

	mu        sync.Mutex
	list      []socketapi.Member
	err       error
	asked     int
	follows   bool // it votes who is to, as soon as it is asked
	transfers []hierarchy.NodeID
}

const testToken = "kekd-join:v1:a-secret"

func (f *testMembers) Invitation(_ context.Context, w socketapi.Invited, ttl time.Duration) (*commandpb.Invitation, string, error) {
	proof, id := sha256.Sum256([]byte("proof")), hierarchy.NewID()
	hash := state.ProofHash(proof[:])
	return &commandpb.Invitation{
		Id: id[:], ProofHash: hash[:], Node: w.Node, Region: w.Region, Role: commandpb.RegionRole(w.Role), Voter: w.Voter,
		ExpiresAt: f.n.State().Stamp().Add(ttl).UnixNano(),
	}, testToken, nil
}

func (f *testMembers) Members(ctx context.Context) ([]socketapi.Member, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.asked++
	if f.follows {
		f.list = nil
		for n := range f.n.State().Nodes() {
			f.list = append(f.list, socketapi.Member{ID: n.ID, Votes: n.Voter, Leader: n.ID.ID == testNode, Applied: 7, FeatureLevel: 1})
		}
	}
	return f.list, f.err
}

func (f *testMembers) TransferLeadership(_ context.Context, to hierarchy.NodeID) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.transfers = append(f.transfers, to)
	return f.err
}

var (
	farRegion = hierarchy.NewID()
	farNode   = hierarchy.NewID()
)

// join makes a node of another region a member, as who joins does.
func (n *node) join(t testing.TB, id hierarchy.ID, name string, region hierarchy.ID, regionName string, role hierarchy.RegionRole) {
	t.Helper()
	proof := sha256.Sum256([]byte(name))
	hash, invitation := state.ProofHash(proof[:]), hierarchy.NewID()
	_, there := n.State().RegionByName(regionName)
	brought := &commandpb.Region{Id: region[:], Name: regionName, Role: commandpb.RegionRole(role)}
	joining := &commandpb.Node{Id: id[:], Name: name, RegionId: region[:], Address: name + ".example:7600"}
	if role == hierarchy.RoleWitness {
		joining.Identity = []byte("file key")
	} else {
		brought.Identity, brought.Kdf = []byte("identity of "+regionName), "x963-sha256"
	}
	if there {
		brought = nil
	}
	for _, c := range []*commandpb.Command{
		{Body: &commandpb.Command_InviteNode{InviteNode: &commandpb.InviteNode{Invitation: &commandpb.Invitation{
			Id: invitation[:], ProofHash: hash[:], Node: name, Region: regionName, Role: commandpb.RegionRole(role),
			Voter: role != hierarchy.RoleReplica, ExpiresAt: n.State().Stamp().Add(time.Hour).UnixNano(),
		}}}},
		{Body: &commandpb.Command_JoinNode{JoinNode: &commandpb.JoinNode{InvitationId: invitation[:], Proof: proof[:], Node: joining, Region: brought}}},
	} {
		command := hierarchy.NewID()
		c.Format, c.Id = state.Format, command[:]
		n.mu.Lock()
		r := n.apply(c)
		n.mu.Unlock()
		if r.Err != nil {
			t.Fatal(r.Err)
		}
	}
}

// newCluster has the nodes a and b, of which a leads.
func newCluster(t *testing.T) (kekdv1.AdminServiceClient, *node, *testMembers, *running) {
	t.Helper()
	n := newNode(t)
	n.join(t, farNode, "b", testRegion, "eu-west", hierarchy.RoleVoting)
	f := &testMembers{n: n, follows: true}
	api, _, s := adminWith(t, n, func(a *socketapi.Admin) { a.Nodes = f })
	return api, n, f, s
}

func TestInvite(t *testing.T) {
	api, n, _, s := newCluster(t)
	id := hierarchy.NewID()
	ask := &kekdv1.InviteNodeRequest{IdempotencyId: id[:], Name: "c", Region: "us-east", Role: "replica", Ttl: int64(time.Hour)}
	got := must[*kekdv1.InviteNodeResponse](t)(api.InviteNode(soon(t), ask))
	invited := n.commands[len(n.commands)-1].GetInviteNode().GetInvitation()
	want := &kekdv1.InviteNodeResponse{Token: testToken, ExpiresAt: invited.ExpiresAt, Name: "c", Region: "us-east", Role: "replica", Index: n.State().Index()}
	if diff := cmp.Diff(want, got, protocmp.Transform()); diff != "" {
		t.Error(diff)
	}
	if _, err := api.InviteNode(soon(t), ask); code(err) != "FAILED_PRECONDITION" || !strings.Contains(err.Error(), "nobody has kept it") {
		t.Errorf("a retry: %v", err)
	}

	// In a region that is there the role is the region's, and who votes there votes.
	got = must[*kekdv1.InviteNodeResponse](t)(api.InviteNode(soon(t), &kekdv1.InviteNodeRequest{Name: "d", Region: "eu-west"}))
	left := time.Unix(0, got.ExpiresAt).Sub(n.State().Stamp())
	if got.Role != "voting" || !got.Voter || left > 15*time.Minute || left < 14*time.Minute {
		t.Errorf("got %v, for %v", got, left)
	}
	if got = must[*kekdv1.InviteNodeResponse](t)(api.InviteNode(soon(t), &kekdv1.InviteNodeRequest{Name: "e", Region: "eu-west", NoVote: true})); got.Voter {
		t.Error("it votes all the same")
	}
	for _, bad := range []struct {
		name, region, role string
		ttl                time.Duration
		code               string
	}{
		{"b", "eu-west", "", 0, "ALREADY_EXISTS"},
		{"x", "mars", "", 0, "INVALID_ARGUMENT"},
		{"x", "eu-west", "witness", 0, "FAILED_PRECONDITION"},
		{"x", "eu-west", "king", 0, "INVALID_ARGUMENT"},
		{"x", "eu-west", "", 25 * time.Hour, "INVALID_ARGUMENT"},
		{"x", "eu-west", "", time.Millisecond, "INVALID_ARGUMENT"},
		{"x", "eu-west", "", -time.Hour, "INVALID_ARGUMENT"},
		{"x/y", "eu-west", "", 0, "INVALID_ARGUMENT"},
		{"x", "", "voting", 0, "INVALID_ARGUMENT"},
	} {
		_, err := api.InviteNode(soon(t), &kekdv1.InviteNodeRequest{Name: bad.name, Region: bad.region, Role: bad.role, Ttl: int64(bad.ttl)})
		if code(err) != bad.code {
			t.Errorf("%+v: %v", bad, err)
		}
	}

	// The secret is in no record, in no command and in no log.
	records := n.last()
	if records[0].Kind != "node-invite" || records[0].Outcome != socketapi.AdminRequested || records[1].Outcome != socketapi.AdminOK || records[1].Command.ID != id {
		t.Errorf("recorded: %+v", records[:2])
	}
	all := fmt.Sprint(records, s.log.String())
	for _, c := range n.commands {
		all += c.String()
	}
	if strings.Contains(all, "a-secret") {
		t.Error("the token's secret is told elsewhere")
	}
}

func TestListNodes(t *testing.T) {
	api, n, f, _ := newCluster(t)
	f.follows = false
	f.list = []socketapi.Member{
		{ID: hierarchy.NodeID{ID: testNode}, Votes: true, Leader: true, Applied: 9, FeatureLevel: 1},
		{ID: hierarchy.NodeID{ID: farNode}, HeardAgo: -1},
		{ID: hierarchy.NodeID{ID: hierarchy.NewID()}, Votes: true}, // removed, and Raft has not followed yet
	}
	want := []*kekdv1.Node{
		{Id: testNode.String(), Name: "a", Region: "eu-west", Role: "voting", Voter: true, Mints: true, Self: true,
			Votes: proto.Bool(true), Leader: true, HeardAgo: proto.Int64(0), AppliedIndex: 9, FeatureLevel: 1, Index: n.State().Index()},
		{Id: farNode.String(), Name: "b", Region: "eu-west", Role: "voting", Address: "b.example:7600", Voter: true, Votes: proto.Bool(false), Index: n.State().Index()},
	}
	got := must[*kekdv1.ListNodesResponse](t)(api.ListNodes(soon(t), &kekdv1.ListNodesRequest{}))
	if diff := cmp.Diff(&kekdv1.ListNodesResponse{Nodes: want}, got, protocmp.Transform()); diff != "" {
		t.Error(diff)
	}
	// Without a leader what the hierarchy says is told all the same, and what is lacking.
	f.list, f.err = nil, fmt.Errorf("%w: no leader is known", hierarchy.ErrStale)
	got = must[*kekdv1.ListNodesResponse](t)(api.ListNodes(soon(t), &kekdv1.ListNodesRequest{}))
	if len(got.Nodes) != 2 || got.Nodes[0].Votes != nil || got.Nodes[0].HeardAgo != nil || !strings.Contains(got.Unknown, "no leader is known") {
		t.Errorf("got %v", got)
	}
}

// Promoting, demoting and removing return when Raft has followed.
func TestRaftFollows(t *testing.T) {
	api, n, f, _ := newCluster(t)
	demoted := must[*kekdv1.Node](t)(api.DemoteNode(soon(t), &kekdv1.DemoteNodeRequest{Name: "b"}))
	if demoted.Voter || demoted.GetVotes() || demoted.Index != n.State().Index() {
		t.Errorf("demoted: %v", demoted)
	}

	f.mu.Lock()
	f.follows, f.asked = false, 0
	f.mu.Unlock()
	promoted := make(chan error, 1)
	go func() { promoted <- second(api.PromoteNode(soon(t), &kekdv1.PromoteNodeRequest{Name: "b"})) }()
	eventually(t, "it is asked again", func() bool {
		f.mu.Lock()
		defer f.mu.Unlock()
		return f.asked >= 3
	})
	select {
	case err := <-promoted:
		t.Errorf("it returned before the node votes: %v", err)
	default:
	}
	f.mu.Lock()
	f.follows = true
	f.mu.Unlock()
	if err := <-promoted; err != nil {
		t.Errorf("promoted: %v", err)
	}

	id := hierarchy.NewID()
	remove := &kekdv1.RemoveNodeRequest{IdempotencyId: id[:], Name: "b"}
	removed := must[*kekdv1.RemoveNodeResponse](t)(api.RemoveNode(soon(t), remove))
	if removed.Id != farNode.String() {
		t.Errorf("removed: %v", removed)
	}
	if again, err := api.RemoveNode(soon(t), remove); err != nil || again.Id != removed.Id {
		t.Errorf("a retry: %v, %v", again, err)
	}
	for _, err := range []error{
		second(api.RemoveNode(soon(t), &kekdv1.RemoveNodeRequest{Name: "b"})),
		second(api.PromoteNode(soon(t), &kekdv1.PromoteNodeRequest{Name: "b"})),
		second(api.DemoteNode(soon(t), &kekdv1.DemoteNodeRequest{Name: "nobody"})),
	} {
		if code(err) != "NOT_FOUND" {
			t.Errorf("of nobody: %v", err)
		}
	}
	for _, err := range []error{
		second(api.RemoveNode(soon(t), &kekdv1.RemoveNodeRequest{Name: "a"})),
		second(api.DemoteNode(soon(t), &kekdv1.DemoteNodeRequest{Name: "a"})),
	} {
		if code(err) != "FAILED_PRECONDITION" {
			t.Errorf("of the last voter: %v", err)
		}
	}
}

// A node that does not catch up is told as what it is: promoted, and not voting yet.
func TestRaftDoesNotFollow(t *testing.T) {
	for lacks, list := range map[string][]socketapi.Member{
		"b does not vote yet":           {{ID: hierarchy.NodeID{ID: farNode}}},
		"not known: the leader is gone": nil,
	} {
		t.Run(lacks, func(t *testing.T) {
			t.Parallel() // they wait
			api, n, f, _ := newCluster(t)
			f.follows = false
			if f.list = list; list == nil {
				f.err = errors.New("the leader is gone")
			}
			ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
			defer cancel()
			_, err := api.PromoteNode(ctx, &kekdv1.PromoteNodeRequest{Name: "b"})
			if code(err) != "OUTCOME_UNKNOWN" || !strings.Contains(err.Error(), lacks) {
				t.Errorf("got %v", err)
			}
			if b, _ := n.State().NodeByName("b"); !b.Voter {
				t.Error("it was not promoted")
			}
		})
	}
}

func TestTransferLeadership(t *testing.T) {
	api, n, f, _ := newCluster(t)
	n.last()
	got := must[*kekdv1.TransferLeadershipResponse](t)(api.TransferLeadership(soon(t), &kekdv1.TransferLeadershipRequest{To: "b"}))
	if got.Leader != "a" {
		t.Errorf("got %v", got)
	}
	must[*kekdv1.TransferLeadershipResponse](t)(api.TransferLeadership(soon(t), &kekdv1.TransferLeadershipRequest{}))
	if diff := cmp.Diff([]hierarchy.NodeID{{ID: farNode}, {}}, f.transfers); diff != "" {
		t.Error(diff)
	}
	if r := n.last(); len(r) != 4 || r[0].Kind != "leadership-transfer" || r[0].Outcome != socketapi.AdminRequested || r[1].Outcome != socketapi.AdminOK || r[1].Of != 1 {
		t.Errorf("recorded: %+v", r)
	}
	f.err = fmt.Errorf("%w: b is too far behind", hierarchy.ErrFailedPrecondition)
	if err := second(api.TransferLeadership(soon(t), &kekdv1.TransferLeadershipRequest{To: "b"})); code(err) != "FAILED_PRECONDITION" {
		t.Errorf("got %v", err)
	}
	if r := n.last(); len(r) != 2 || r[1].Outcome != socketapi.AdminFailed || r[1].Code != "FAILED_PRECONDITION" {
		t.Errorf("recorded: %+v", r)
	}
	n.auditErr = func(socketapi.AdminRecord) error { return errDisk }
	if err := second(api.TransferLeadership(soon(t), &kekdv1.TransferLeadershipRequest{})); code(err) != "AUDIT_UNAVAILABLE" || len(f.transfers) != 3 {
		t.Errorf("without a journal: %v, %d transfers", err, len(f.transfers))
	}
}

// A cluster of one, and a node without a token, say what they lack.
func TestWhatANodeDoesNotHave(t *testing.T) {
	n := newNode(t)
	api, _, _ := adminWith(t, n, func(a *socketapi.Admin) { a.Minting = nil })
	for i, err := range []error{
		second(api.InviteNode(soon(t), &kekdv1.InviteNodeRequest{Name: "b", Region: "eu-west"})),
		second(api.RemoveNode(soon(t), &kekdv1.RemoveNodeRequest{Name: "a"})),
		second(api.PromoteNode(soon(t), &kekdv1.PromoteNodeRequest{Name: "a"})),
		second(api.DemoteNode(soon(t), &kekdv1.DemoteNodeRequest{Name: "a"})),
		second(api.TransferLeadership(soon(t), &kekdv1.TransferLeadershipRequest{})),
	} {
		if code(err) != "FAILED_PRECONDITION" || !strings.Contains(err.Error(), "cluster of one") {
			t.Errorf("%d: %v", i, err)
		}
	}
	for i, err := range []error{
		second(api.ListOrphans(soon(t), &kekdv1.ListOrphansRequest{})),
		second(api.SweepOrphans(soon(t), &kekdv1.SweepOrphansRequest{})),
	} {
		if code(err) != "FAILED_PRECONDITION" || !strings.Contains(err.Error(), "no HSM") {
			t.Errorf("%d: %v", i, err)
		}
	}
	list := must[*kekdv1.ListNodesResponse](t)(api.ListNodes(soon(t), &kekdv1.ListNodesRequest{}))
	if len(list.Nodes) != 1 || !strings.Contains(list.Unknown, "cluster of one") {
		t.Errorf("got %v", list)
	}
}

// testOrphans are in the token and in no hierarchy.
type testOrphans struct {
	list []socketapi.Orphan
	err  error
}

func (f *testOrphans) Orphans(context.Context) ([]socketapi.Orphan, error) { return f.list, nil }

func (f *testOrphans) Sweep(context.Context) ([]socketapi.Orphan, error) { return f.list, f.err }

func TestOrphans(t *testing.T) {
	n := newNode(t)
	f := &testOrphans{}
	for i := range 7 {
		f.list = append(f.list, socketapi.Orphan{ID: hierarchy.ObjectID(bytes.Repeat([]byte{byte(i)}, 20)), Label: fmt.Sprintf("kekd/acme/orders/v%d/kek", i)})
	}
	room := &fullRoom{}
	api, _, _ := adminWith(t, n, func(a *socketapi.Admin) { a.Orphans, a.Doctor = f, room })
	listed := must[*kekdv1.ListOrphansResponse](t)(api.ListOrphans(soon(t), &kekdv1.ListOrphansRequest{}))
	if len(listed.Orphans) != 7 || listed.Orphans[1].CkaId != strings.Repeat("01", 20) || listed.Orphans[1].Label != f.list[1].Label {
		t.Errorf("listed: %v", listed)
	}
	if told := must[*kekdv1.DoctorResponse](t)(api.Doctor(soon(t), &kekdv1.DoctorRequest{})); len(told.Orphans) != 7 {
		t.Errorf("doctor: %v", told)
	}
	n.last()
	swept := must[*kekdv1.SweepOrphansResponse](t)(api.SweepOrphans(soon(t), &kekdv1.SweepOrphansRequest{}))
	if diff := cmp.Diff(listed.Orphans, swept.Destroyed, protocmp.Transform()); diff != "" {
		t.Error(diff)
	}
	// Each is named in the journal, before the caller hears of it.
	records := n.last()
	named := ""
	for _, r := range records {
		if r.Kind == "orphan-destroyed" {
			named += r.Detail + " "
			if len(r.Detail) > 256 {
				t.Errorf("a record's detail is cut off: %d bytes", len(r.Detail))
			}
		}
	}
	for _, o := range f.list {
		if strings.Count(named, o.ID.String()) != 1 {
			t.Errorf("%s is not named once", o.ID)
		}
	}
	if first, last := records[0], records[len(records)-1]; first.Outcome != socketapi.AdminRequested || last.Kind != "orphan-sweep" || last.Outcome != socketapi.AdminOK || last.Detail != "destroyed=7" {
		t.Errorf("recorded: %+v, %+v", first, last)
	}
	// What was destroyed before it failed is named too.
	f.err = fmt.Errorf("%w: node b mints for eu-west: sweep there", hierarchy.ErrFailedPrecondition)
	f.list = f.list[:1]
	if err := second(api.SweepOrphans(soon(t), &kekdv1.SweepOrphansRequest{})); code(err) != "FAILED_PRECONDITION" || !strings.Contains(err.Error(), "node b") {
		t.Errorf("got %v", err)
	}
	if r := n.last(); len(r) != 3 || r[1].Detail != f.list[0].ID.String() || r[2].Outcome != socketapi.AdminFailed {
		t.Errorf("recorded: %+v", r)
	}
}
