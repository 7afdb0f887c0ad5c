package state_test

import (
	"bytes"
	"encoding/hex"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/kekd/kekd/hierarchy"
	"github.com/kekd/kekd/hierarchy/commandpb"
	"github.com/kekd/kekd/hierarchy/policy"
	"github.com/kekd/kekd/hierarchy/state"
)

const (
	// goldenLog has a line for each command: its index, its kind, what became of it, the hash of the
	// state after it, and its bytes. What became of it is ok or the code of a refusal, and for a retry
	// also the index of the command that it repeats.
	goldenLog = "testdata/v1.log"
	// goldenLogSnapshot is of a state on the way, with refusals in it.
	goldenLogSnapshot = "testdata/v1-log.snapshot"
)

// logEntry is a line of the golden log.
type logEntry struct {
	index   uint64
	outcome string
	hash    string
	command []byte
}

func (e *logEntry) kind() string {
	c, err := state.Decode(e.command)
	if err != nil {
		return err.Error()
	}
	m := c.ProtoReflect()
	return string(m.WhichOneof(m.Descriptor().Oneofs().ByName("body")).Name())
}

func (e *logEntry) String() string {
	return fmt.Sprintf("%d %s %s %s %x", e.index, e.kind(), e.outcome, e.hash, e.command)
}

// apply returns the state after an entry, which it fills in what became of the command and the hash.
func (e *logEntry) apply(t testing.TB, s *state.State) *state.State {
	t.Helper()
	c, err := state.Decode(e.command)
	if err != nil {
		t.Fatalf("entry %d: %v", e.index, err)
	}
	next, res := state.Apply(s, state.Meta{Index: e.index}, c)
	if state.Fatal(res.Err) {
		t.Fatalf("entry %d, %s: %v", e.index, e.kind(), res.Err)
	}
	if e.outcome = hierarchy.Code(res.Err); res.Err == nil {
		e.outcome = "ok"
	}
	if res.Replayed {
		e.outcome += fmt.Sprintf("@%d", res.Index)
	}
	hash := next.Hash()
	e.hash = hex.EncodeToString(hash[:])
	return next
}

func readLog(t testing.TB) (log []logEntry) {
	t.Helper()
	b, err := os.ReadFile(goldenLog)
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		var e logEntry
		var kind string
		if _, err := fmt.Sscanf(line, "%d %s %s %s %x\n", &e.index, &kind, &e.outcome, &e.hash, &e.command); err != nil {
			t.Fatalf("%q: %v", line, err)
		}
		log = append(log, e)
	}
	return log
}

// replay applies a log and finds the first entry that no longer means what it meant.
func replay(t testing.TB, s *state.State, log []logEntry) *state.State {
	t.Helper()
	for _, want := range log {
		got := want
		s = got.apply(t, s)
		if got.outcome != want.outcome || got.hash != want.hash {
			t.Fatalf("what an old log means has changed, nodes that hold it would not start again:\n got %.120s...\nwant %.120s...", got.String(), want.String())
		}
	}
	return s
}

// What a log meant when it was written it means for ever, from its beginning and from any snapshot: a
// node applies what follows its last snapshot anew, and the ticks in it say what the state has to be.
func TestGoldenLog(t *testing.T) {
	if *update {
		log, snap := story(t)
		var lines strings.Builder
		for _, e := range log {
			fmt.Fprintln(&lines, e.String())
		}
		if err := os.WriteFile(goldenLog, []byte(lines.String()), 0o644); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(goldenLogSnapshot, snap, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	log := readLog(t)
	end := replay(t, state.New(), log)
	check(t, end)

	b, err := os.ReadFile(goldenLogSnapshot)
	if err != nil {
		t.Fatal(err)
	}
	s, err := state.Read(bytes.NewReader(b))
	if err != nil {
		t.Fatal(err)
	}
	rest := log
	for len(rest) > 0 && rest[0].index <= s.Index() {
		rest = rest[1:]
	}
	if len(rest) == 0 || len(rest) == len(log) {
		t.Fatalf("the snapshot is of index %d, not of one within the log", s.Index())
	}
	check(t, replay(t, s, rest))

	// Intents are hashes of commands that were encoded again.
	for _, e := range log {
		c, err := state.Decode(e.command)
		if err != nil {
			t.Fatal(err)
		}
		if again, err := c.MarshalVT(); err != nil || !bytes.Equal(again, e.command) {
			t.Errorf("entry %d, %s, is written in other bytes today", e.index, e.kind())
		}
	}
}

// A kind of command that is not in the golden log could change what it does unnoticed.
func TestGoldenLogHasEveryKind(t *testing.T) {
	taken, refused := make(map[string]bool), make(map[string]bool)
	retries := make(map[bool]bool) // of what was taken, of what was refused
	for _, e := range readLog(t) {
		outcome, _, retry := strings.Cut(e.outcome, "@")
		switch {
		case retry:
			retries[outcome == "ok"] = true
		case outcome == "ok":
			taken[e.kind()] = true
		default:
			refused[e.kind()] = true
		}
	}
	fields := (&commandpb.Command{}).ProtoReflect().Descriptor().Oneofs().ByName("body").Fields()
	for i := range fields.Len() {
		name := string(fields.Get(i).Name())
		if !taken[name] || !refused[name] && name != "tick" {
			t.Errorf("%s: in the golden log it is taken: %v, refused: %v", name, taken[name], refused[name])
		}
	}
	if !retries[true] || !retries[false] {
		t.Error("the golden log has no retry of each sort")
	}
}

// A teller writes the golden log.
type teller struct {
	t     testing.TB
	s     *state.State
	stamp time.Time
	log   []logEntry
}

func (w *teller) tell(c *commandpb.Command) {
	w.t.Helper()
	c.Format = state.Format
	if c.Id == nil {
		c.Id = id(fmt.Sprint("told", len(w.log)))
	}
	w.stamp = w.stamp.Add(1234567890 * time.Nanosecond)
	if c.Stamp == 0 {
		c.Stamp = w.stamp.UnixNano()
	}
	data, err := c.MarshalVT()
	if err != nil {
		w.t.Fatal(err)
	}
	// Raft's own entries leave gaps.
	e := logEntry{index: w.s.Index() + 1 + uint64(len(w.log)%7/6), command: data}
	w.s = e.apply(w.t, w.s)
	w.log = append(w.log, e)
}

// tick is what a leader proposes.
func (w *teller) tick() {
	hash := w.s.Hash()
	w.tell(&commandpb.Command{Body: &commandpb.Command_Tick{Tick: &commandpb.Tick{StateHash: hash[:], StateIndex: w.s.Index()}}})
}

func (w *teller) all(cs ...*commandpb.Command) {
	for _, c := range cs {
		w.tell(c)
		w.tick()
	}
}

// named is a command with an idempotency ID that is used again.
func named(name string, c *commandpb.Command) *commandpb.Command {
	c.Id = id(name)
	return c
}

// story is the golden log, and a snapshot of a state on the way. What is new is told at its end, so that
// all lines before stay as they are.
func story(t testing.TB) (log []logEntry, snap []byte) {
	first := func(change func(*commandpb.InitCluster)) *commandpb.Command {
		m := initCluster()
		change(m)
		return &commandpb.Command{Body: &commandpb.Command_InitCluster{InitCluster: m}}
	}
	w := &teller{t: t, s: state.New(), stamp: start}
	w.all(
		createTenant("early"),
		first(func(m *commandpb.InitCluster) { m.Node.Voter = false }),
		first(func(m *commandpb.InitCluster) {}),
		first(func(m *commandpb.InitCluster) { m.ClusterId = id("another") }),
	)

	// Tenants.
	asked := createTenant("acme")
	asked.Actor = &commandpb.Actor{NodeId: nodeID.ID[:], Uid: 1000, Gid: 100, Pid: 4711}
	w.all(
		asked,
		createTenant("globex"),
		named("taken", createTenant("initech")),
		with(createTenant("acme"), getTenant, func(m *commandpb.CreateTenant) { m.TenantId = id("drawn") }),
		with(createTenant("acme"), getTenant, func(m *commandpb.CreateTenant) { m.Name = "hooli" }),
		createTenant("Acme"),
		with(createTenant("hooli"), getTenant, func(m *commandpb.CreateTenant) { m.MaxStaleness = 0 }),
		with(createTenant("hooli"), getTenant, func(m *commandpb.CreateTenant) { m.TenantId = badID }),
		setTenant("acme", ptr(int64(time.Minute))),
		setTenant("acme", ptr(int64(48*time.Hour))),
		setTenant("nobody", ptr(int64(time.Minute))),
		setTenant("acme", nil),
		disable("globex"),
		setTenantState("globex", commandpb.TenantState_TENANT_STATE_DISABLED, "another reason"),
		setTenantState("acme", commandpb.TenantState_TENANT_STATE_DISABLED, ""),
		setTenantState("acme", commandpb.TenantState_TENANT_STATE_DESTROYED, "r"),
		setTenantState("acme", 258, "r"),
		createKey("globex", "orders"),
		enable("globex"),
		enable("acme"),
	)

	// Keys and versions.
	w.all(
		with(createKey("acme", "orders"), getKey, func(m *commandpb.CreateKey) { m.RotateEvery = int64(90 * 24 * time.Hour) }),
		with(createKey("acme", "orders"), getKey, func(m *commandpb.CreateKey) { m.KeyId = id("drawn") }),
		with(createKey("globex", "orders"), getKey, func(m *commandpb.CreateKey) { m.Name = "invoices" }),
		with(createKey("acme", "invoices"), getKey, func(m *commandpb.CreateKey) { m.RotateEvery = int64(time.Minute) }),
		createKey("acme", "-"),
		createKey("nobody", "orders"),
		named("refused", rotate("acme", "orders", 1)),
		reserve("acme", "orders", 1, 1),
		with(minted("acme", "orders", 1), getMinted, func(m *commandpb.RecordMinted) { m.RegionId = id("elsewhere") }),
		with(minted("acme", "orders", 1), getMinted, func(m *commandpb.RecordMinted) { m.ObjectId = objectOf("acme", "orders", 2, 1) }),
		minted("acme", "orders", 1),
		minted("acme", "orders", 1),
		with(minted("acme", "orders", 1), getMinted, func(m *commandpb.RecordMinted) { m.CheckValue = []byte{9, 9, 9} }),
		reserve("acme", "orders", 1, 1<<16),
		reserve("acme", "orders", 1, 1<<20),
		reserve("acme", "orders", 1, state.MaxReservation+1),
		giveBack("acme", "orders", 1, 100),
		giveBack("acme", "orders", 1, 1),
		rotate("acme", "orders", 7),
		rotate("acme", "orders", 1),
		minted("acme", "orders", 2),
		reserve("acme", "orders", 1, 1),
		reserve("acme", "orders", 2, 1<<17),
		versionAction("acme", "orders", 2, suspend),
		versionAction("acme", "orders", 2, suspend),
		with(rotate("acme", "orders", 2), getRotate, func(m *commandpb.RotateKey) {
			m.Cause = commandpb.RotationCause_ROTATION_CAUSE_PERIOD
		}),
		minted("acme", "orders", 3),
		versionAction("acme", "orders", 2, resume),
		versionAction("acme", "orders", 3, suspend),
		versionAction("acme", "orders", 3, resume),
		versionAction("acme", "orders", 1, compromise),
		versionAction("acme", "orders", 1, suspend),
		versionAction("acme", "orders", 1, resume),
		versionAction("acme", "orders", 1, resume),
		versionAction("acme", "orders", 9, suspend),
		versionAction("acme", "orders", 3, 7),
		with(versionAction("acme", "orders", 3, suspend), getVersion, func(m *commandpb.SetVersionState) { m.Reason = "\xff" }),
		setKey("acme", "orders", ptr(int64(24*time.Hour)), ptr[uint32](2)),
		setKey("acme", "orders", nil, ptr[uint32](4)),
		setKey("acme", "orders", nil, nil),
		setKey("acme", "orders", ptr(int64(0)), ptr[uint32](1)),

		createKey("acme", "fresh"),
		versionAction("acme", "fresh", 1, suspend),
		restart("acme", "fresh", 1, 3),
		restart("acme", "fresh", 1, 2),
		minted("acme", "fresh", 1),
		mintedAt("acme", "fresh", 1, 2),
		restart("acme", "fresh", 1, 3),

		createKey("acme", "spoilt"),
		versionAction("acme", "spoilt", 1, compromise),
		minted("acme", "spoilt", 1),
		with(rotate("acme", "spoilt", 1), getRotate, func(m *commandpb.RotateKey) {
			m.Cause = commandpb.RotationCause_ROTATION_CAUSE_USE
		}),
		minted("acme", "spoilt", 2),

		disable("acme"),
		createKey("acme", "late"),
		rotate("acme", "spoilt", 2),
		reserve("acme", "spoilt", 2, 1),
		enable("acme"),
	)

	// Services and what they may.
	w.all(
		createService("billing", ptr[uint32](1000), nil),
		createService("web", ptr[uint32](1001), ptr[uint32](33)),
		createService("group", nil, ptr[uint32](33)),
		createService("web", ptr[uint32](1002), nil),
		createService("other", ptr[uint32](1000), nil),
		createService("other", nil, nil),
		allow("billing", "acme/orders"),
		allow("billing", "*/orders", &commandpb.RequiredContext{Key: "tenant"}, &commandpb.RequiredContext{Key: "app"}),
		with(allow("billing", "*/orders", &commandpb.RequiredContext{Key: "app", Value: ptr("billing")}, &commandpb.RequiredContext{Key: "tenant"}), getRule, func(r *commandpb.Rule) {
			r.Ops, r.RequireReason, r.Limits = 0xf, true, []*commandpb.Limit{perSecond(5), perDay(10)}
		}),
		limitRule("billing", "acme/orders", perSecond(100), perHour(1000)),
		limitRule("billing", "acme/orders", perHour(1), perDay(1)),
		allow("web", "acme/*"),
		allow("nobody", "acme/*"),
		allow("web", "acme"),
		revoke("web", "acme/*"),
		revoke("web", "acme/*"),
		limitTenant("acme", perHour(5)),
		limitTenant("acme", perHour(5), perHour(6)),
		ordersOf("acme", 6),
		ordersOf("acme", 5),
		ordersOf("acme", 4),
		reserveUses("acme", "", "", policy.Hour, start, 2),
		reserveUses("acme", "", "", policy.Hour, start.Add(policy.Hour), 2),
		reserveUses("globex", "", "", policy.Day, start, 2),
		allow("group", "*/*"),
		deleteService("group"),
		deleteService("group"),
	)

	// Journals.
	lost := anchor(3, 4)
	lost.GetAnchorAudit().AcceptedLoss = "the disk is gone"
	w.all(
		anchor(7, 1),
		anchor(6, 1),
		anchor(7, 2),
		anchor(7, 1),
		with(anchor(8, 1), getAnchor, func(m *commandpb.AnchorAudit) { m.NodeId = id("stranger") }),
		anchor(9, 3),
		lost,
	)
	snap = snapshot(t, w.s)

	// Retries, what is no good, and clocks.
	again := with(createTenant("initech"), getTenant, func(m *commandpb.CreateTenant) { m.TenantId = id("drawn again") })
	w.all(
		named("taken", again),
		named("refused", rotate("acme", "orders", 3)),
		named("refused", rotate("acme", "fresh", 1)),
		named("taken", createTenant("hooli")),
		&commandpb.Command{Id: badID, Body: createTenant("hooli").Body},
		&commandpb.Command{Stamp: start.UnixNano(), Body: createTenant("hooli").Body},
		&commandpb.Command{Stamp: -1, Body: disable("hooli").Body},
		&commandpb.Command{Body: &commandpb.Command_Tick{Tick: &commandpb.Tick{StateHash: make([]byte, 32), StateIndex: 1}}},
	)

	// Time goes by: windows end, and outcomes are forgotten.
	w.stamp = start.Add(policy.Hour)
	w.all(reserveUses("acme", "", "", policy.Hour, start.Add(policy.Hour), 5), tick())
	w.stamp = start.Add(policy.Day + 30*time.Second)
	w.all(
		tick(),
		named("taken", createTenant("initech")),
		reserveUses("acme", "billing", "*/orders", policy.Day, start.Add(policy.Day), 10),
	)
	w.stamp = start.Add(policy.Day + policy.Hour)
	w.all(
		tick(),
		named("refused", rotate("acme", "orders", 3)),
		minted("acme", "orders", 4),
		deleteService("billing"),
	)

	// Nodes come and go.
	soon := func(c *commandpb.Command) *commandpb.Command {
		return with(c, getInvitation, func(i *commandpb.Invitation) { i.ExpiresAt = w.stamp.Add(policy.Hour).UnixNano() })
	}
	w.all(
		createKey("globex", "waiting"),
		soon(invite("b", "eu-west", voting, true)),
		soon(invite("b", "eu-west", voting, true)),
		invite("late", "eu-west", voting, true),
		with(join("b", "eu-west"), getJoin, func(m *commandpb.JoinNode) { m.Proof = nil }),
		join("b", "eu-west"),
		soon(invite("c", "aa-east", replica, false)),
		joinFirst("c", "aa-east", replica),
		soon(invite("w", "site-w", witness, true)),
		joinFirst("w", "site-w", witness),
		soon(invite("unused", "site-w", witness, true)),
		createTenant("umbrella"),
		setNode(nodeB, ptr("192.0.2.7:7400"), ptr(false)),
		setNode(nodeC, nil, ptr(true)),
		setMinting(regionID, nodeB, nodeB),
		setMinting(regionID, nodeC, nodeC),
		setMinting(regionID, nodeID, nodeB),
		with(anchor(2, 2), getAnchor, func(m *commandpb.AnchorAudit) { m.NodeId = nodeB.ID[:] }),
		removeNode(nodeB),
		removeNode(nodeB),
		removeNode(nodeOf("stranger")),
		raise(1),
		raise(0),
	)
	w.stamp = w.stamp.Add(policy.Hour)
	w.all(join("unused", "site-w"))

	// A snapshot is restored.
	w.all(
		allow("web", "acme/*"),
		restoreRecords(
			tenantRecord("initech", func(m *commandpb.Tenant) {
				m.State, m.StateReason = commandpb.TenantState_TENANT_STATE_DISABLED, "there"
			}),
			tenantRecord("soylent", nil),
			tenantRecord("acme", func(m *commandpb.Tenant) { m.Id = id("another") }),
			keyRecord("acme", "orders", 1, 6, func(m *commandpb.Key) { m.MinUnwrapVersion = 2 }),
			keyRecord("acme", "came-back", 1, 2, nil),
			keyRecord("soylent", "mail", 1, 2, nil),
			&commandpb.SnapshotRecord{Record: &commandpb.SnapshotRecord_Rule{Rule: allow("web", "acme/*", &commandpb.RequiredContext{Key: "app"}).GetAllowPolicy().GetRule()}},
			&commandpb.SnapshotRecord{Record: &commandpb.SnapshotRecord_Uses{Uses: &commandpb.Uses{
				TenantId: id("acme"), Per: int64(policy.Hour), Start: policy.WindowOf(w.stamp, policy.Hour).UnixNano(), Count: 4,
			}}},
			&commandpb.SnapshotRecord{Record: &commandpb.SnapshotRecord_RemovedNode{RemovedNode: &commandpb.RemovedNode{
				Id: gone.ID[:], Name: "gone", RegionId: regionID.ID[:], RemovedAt: start.UnixNano(),
			}}},
		),
		with(restoreRecords(tenantRecord("acme", nil)), (*commandpb.Command).GetRestoreRecords, func(m *commandpb.RestoreRecords) { m.ClusterId = id("elsewhere") }),
		restoreRecords(),
	)
	// Who may hold a lease, and what waits for them.
	w.all(
		register(nodeID, "a1", ""),
		register(nodeOf("nobody"), "x1", ""),
		register(nodeID, "a2", ""),
		disable("globex"),
		complete(0),
	)
	for f := range w.s.Fences() {
		w.all(complete(f.Index))
		break
	}
	for tomb := range w.s.Tombstones() {
		w.all(retire(tomb.Holder, 0), retire(tomb.Holder, tomb.Index))
		break
	}
	return w.log, snap
}
