package state_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"testing"
	"time"

	"github.com/kekd/kekd/hierarchy"
	"github.com/kekd/kekd/hierarchy/commandpb"
	"github.com/kekd/kekd/hierarchy/state"
)

// start is the cluster time of the first command.
var start = time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)

// id is the identifier of a name, so that tests can tell theirs apart.
func id(name string) []byte {
	sum := sha256.Sum256([]byte(name))
	return sum[:hierarchy.IDSize]
}

func tenantID(name string) hierarchy.TenantID { return hierarchy.TenantID{ID: hierarchy.ID(id(name))} }
func keyID(name string) hierarchy.KeyID       { return hierarchy.KeyID{ID: hierarchy.ID(id(name))} }

var (
	clusterID = hierarchy.ClusterID{ID: hierarchy.ID(id("cluster"))}
	regionID  = hierarchy.RegionID{ID: hierarchy.ID(id("region"))}
	nodeID    = hierarchy.NodeID{ID: hierarchy.ID(id("node"))}
)

// machine applies commands as a log would.
type machine struct {
	s     *state.State
	stamp time.Time
}

func (m *machine) command(c *commandpb.Command) state.Result {
	if c.Format == 0 {
		c.Format = state.Format
	}
	if c.Id == nil {
		c.Id = id(fmt.Sprint("command", m.s.Index()))
	}
	if c.Stamp == 0 {
		m.stamp = m.stamp.Add(time.Second)
		c.Stamp = m.stamp.UnixNano()
	}
	var res state.Result
	m.s, res = state.Apply(m.s, state.Meta{Index: m.s.Index() + 1}, c)
	return res
}

func (m *machine) do(t testing.TB, c *commandpb.Command) {
	t.Helper()
	if res := m.command(c); res.Err != nil {
		t.Fatalf("%T: %v", c.GetBody(), res.Err)
	}
}

func initCluster() *commandpb.InitCluster {
	return &commandpb.InitCluster{
		ClusterId: clusterID.ID[:],
		Region: &commandpb.Region{
			Id: regionID.ID[:], Name: "eu-west", Role: commandpb.RegionRole_REGION_ROLE_VOTING,
			Identity: []byte("identity"), Kdf: "x963-sha256", MintingNode: nodeID.ID[:],
		},
		Node: &commandpb.Node{Id: nodeID.ID[:], Name: "a", RegionId: regionID.ID[:], Voter: true},
	}
}

// initialised is a cluster of one node.
func initialised(t testing.TB) *machine {
	t.Helper()
	m := &machine{state.New(), start}
	m.do(t, &commandpb.Command{Body: &commandpb.Command_InitCluster{InitCluster: initCluster()}})
	return m
}

func createTenant(name string) *commandpb.Command {
	return &commandpb.Command{Body: &commandpb.Command_CreateTenant{CreateTenant: &commandpb.CreateTenant{
		TenantId: id(name), Name: name, MaxStaleness: int64(2 * time.Second),
	}}}
}

func createKey(tenant, key string) *commandpb.Command {
	return &commandpb.Command{Body: &commandpb.Command_CreateKey{CreateKey: &commandpb.CreateKey{
		TenantId: id(tenant), KeyId: id(key), Name: key,
	}}}
}

func rotate(tenant, key string, after uint32) *commandpb.Command {
	return &commandpb.Command{Body: &commandpb.Command_RotateKey{RotateKey: &commandpb.RotateKey{
		TenantId: id(tenant), KeyId: id(key), AfterVersion: after, Cause: commandpb.RotationCause_ROTATION_CAUSE_OPERATOR,
	}}}
}

func objectOf(tenant, key string, version, attempt uint32) []byte {
	object := hierarchy.KEKObjectID(clusterID, tenantID(tenant), keyID(key), version, regionID, attempt)
	return object[:]
}

func minted(tenant, key string, version uint32) *commandpb.Command {
	return mintedAt(tenant, key, version, 1)
}

func mintedAt(tenant, key string, version, attempt uint32) *commandpb.Command {
	return &commandpb.Command{Body: &commandpb.Command_RecordMinted{RecordMinted: &commandpb.RecordMinted{
		TenantId: id(tenant), KeyId: id(key), Version: version, Attempt: attempt, RegionId: regionID.ID[:],
		ObjectId: objectOf(tenant, key, version, attempt), CheckValue: []byte{1, 2, byte(version)},
	}}}
}

func versionAction(tenant, key string, version uint32, action commandpb.VersionAction) *commandpb.Command {
	return &commandpb.Command{Body: &commandpb.Command_SetVersionState{SetVersionState: &commandpb.SetVersionState{
		TenantId: id(tenant), KeyId: id(key), Version: version, Action: action, Reason: "a test",
	}}}
}

const (
	suspend    = commandpb.VersionAction_VERSION_ACTION_SUSPEND
	resume     = commandpb.VersionAction_VERSION_ACTION_RESUME
	compromise = commandpb.VersionAction_VERSION_ACTION_COMPROMISE
)

func setTenantState(tenant string, to commandpb.TenantState, reason string) *commandpb.Command {
	return &commandpb.Command{Body: &commandpb.Command_SetTenantState{SetTenantState: &commandpb.SetTenantState{
		TenantId: id(tenant), State: to, Reason: reason,
	}}}
}

func disable(tenant string) *commandpb.Command {
	return setTenantState(tenant, commandpb.TenantState_TENANT_STATE_DISABLED, "a test")
}

func enable(tenant string) *commandpb.Command {
	return setTenantState(tenant, commandpb.TenantState_TENANT_STATE_ENABLED, "")
}

func createService(name string, uid, gid *uint32) *commandpb.Command {
	return &commandpb.Command{Body: &commandpb.Command_CreateService{CreateService: &commandpb.CreateService{Name: name, Uid: uid, Gid: gid}}}
}

func allow(service, pattern string, required ...*commandpb.RequiredContext) *commandpb.Command {
	return &commandpb.Command{Body: &commandpb.Command_AllowPolicy{AllowPolicy: &commandpb.AllowPolicy{Rule: &commandpb.Rule{
		Service: service, Pattern: pattern, Ops: uint32(hierarchy.OpWrap | hierarchy.OpUnwrap), RequiredContext: required,
	}}}}
}

func reserve(tenant, key string, version uint32, count uint64) *commandpb.Command {
	return &commandpb.Command{Body: &commandpb.Command_ReserveWraps{ReserveWraps: &commandpb.ReserveWraps{
		TenantId: id(tenant), KeyId: id(key), Version: version, RegionId: regionID.ID[:], NodeId: nodeID.ID[:], Count: count,
	}}}
}

func giveBack(tenant, key string, version uint32, count uint64) *commandpb.Command {
	return &commandpb.Command{Body: &commandpb.Command_ReturnWraps{ReturnWraps: &commandpb.ReturnWraps{
		TenantId: id(tenant), KeyId: id(key), Version: version, RegionId: regionID.ID[:], NodeId: nodeID.ID[:], Count: count,
	}}}
}

func anchor(sequence uint64, head byte) *commandpb.Command {
	return &commandpb.Command{Body: &commandpb.Command_AnchorAudit{AnchorAudit: &commandpb.AnchorAudit{
		NodeId: nodeID.ID[:], Sequence: sequence, Head: bytes.Repeat([]byte{head}, 32), Signature: []byte{head},
	}}}
}

func tick() *commandpb.Command {
	return &commandpb.Command{Body: &commandpb.Command_Tick{Tick: &commandpb.Tick{}}}
}

func ptr[T any](v T) *T { return &v }

// populated has something of each kind.
func populated(t testing.TB) *machine {
	t.Helper()
	m := alone(t)
	for _, c := range append(moreNodes(), leases()...) {
		m.do(t, c)
	}
	return m
}

// alone is what populated has, on one node.
func alone(t testing.TB) *machine {
	t.Helper()
	m := initialised(t)
	for _, c := range []*commandpb.Command{
		createTenant("acme"), createTenant("globex"),
		createKey("acme", "orders"), minted("acme", "orders", 1),
		rotate("acme", "orders", 1), minted("acme", "orders", 2),
		createKey("acme", "fresh"),
		createService("billing", ptr[uint32](1000), nil), createService("web", ptr[uint32](1001), ptr[uint32](33)), createService("group", nil, ptr[uint32](33)),
		allow("billing", "acme/orders"), allow("billing", "*/orders", &commandpb.RequiredContext{Key: "app", Value: ptr("billing")}, &commandpb.RequiredContext{Key: "tenant"}),
		reserve("acme", "orders", 2, 1<<16),
		anchor(7, 1),
		disable("globex"),
	} {
		m.do(t, c)
	}
	return m
}

// snapshot writes a state.
func snapshot(t testing.TB, s *state.State) []byte {
	t.Helper()
	var buf bytes.Buffer
	if err := state.Write(&buf, s); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

// number turns a counter into 16 bytes that are not zero.
func number(n uint64) []byte { return binary.BigEndian.AppendUint64(id("number")[:8:8], n) }
