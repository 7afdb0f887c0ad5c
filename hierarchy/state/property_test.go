package state_test

import (
	"bytes"
	"fmt"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"
	"pgregory.net/rapid"

	"github.com/kekd/kekd/hierarchy/commandpb"
	"github.com/kekd/kekd/hierarchy/policy"
	"github.com/kekd/kekd/hierarchy/state"
)

// anyCommand draws commands from few names, so that they meet, and now and then repeats an
// idempotency ID or goes back in time.
func anyCommand(t *rapid.T) *commandpb.Command {
	tenant := rapid.SampledFrom([]string{"acme", "globex", "initech"}).Draw(t, "tenant")
	key := tenant + "-" + rapid.SampledFrom([]string{"a", "b"}).Draw(t, "key")
	service := rapid.SampledFrom([]string{"web", "billing"}).Draw(t, "service")
	pattern := rapid.SampledFrom([]string{"acme/*", "*/orders", "*/*", "acme/orders", "bad"}).Draw(t, "pattern")
	n := rapid.Uint32Range(0, 4).Draw(t, "version")
	attempt := rapid.Uint32Range(1, 2).Draw(t, "attempt")
	count := rapid.SampledFrom([]uint64{0, 1, 1 << 16, 1 << 24}).Draw(t, "count")
	uid := rapid.SampledFrom([]*uint32{nil, ptr[uint32](0), ptr[uint32](1000)}).Draw(t, "uid")
	gid := rapid.SampledFrom([]*uint32{nil, ptr[uint32](5)}).Draw(t, "gid")
	hour := start.Add(time.Duration(rapid.IntRange(-1, 72).Draw(t, "hour")) * time.Hour)
	c := rapid.SampledFrom([]func() *commandpb.Command{
		func() *commandpb.Command { return createTenant(tenant) },
		func() *commandpb.Command { return disable(tenant) },
		func() *commandpb.Command { return enable(tenant) },
		func() *commandpb.Command { return setTenant(tenant, ptr(int64(n)*int64(time.Second))) },
		func() *commandpb.Command { return createKey(tenant, key) },
		func() *commandpb.Command { return rotate(tenant, key, n) },
		func() *commandpb.Command { return minted(tenant, key, n) },
		func() *commandpb.Command { return mintedAt(tenant, key, n, attempt) },
		func() *commandpb.Command { return restart(tenant, key, n, attempt) },
		func() *commandpb.Command { return setKey(tenant, key, nil, &n) },
		func() *commandpb.Command { return setKey(tenant, key, ptr(int64(n)*int64(time.Hour)), nil) },
		func() *commandpb.Command { return versionAction(tenant, key, n, suspend) },
		func() *commandpb.Command { return versionAction(tenant, key, n, resume) },
		func() *commandpb.Command { return versionAction(tenant, key, n, compromise) },
		func() *commandpb.Command { return createService(service, uid, gid) },
		func() *commandpb.Command { return deleteService(service) },
		func() *commandpb.Command { return allow(service, pattern) },
		func() *commandpb.Command { return limitRule(service, pattern, perSecond(5), perHour(uint64(n)*10)) },
		func() *commandpb.Command { return limitTenant(tenant, perDay(uint64(n)*20)) },
		func() *commandpb.Command { return reserveUses(tenant, service, pattern, policy.Hour, hour, count%64) },
		func() *commandpb.Command { return reserveUses(tenant, "", "", policy.Day, hour, count%64) },
		func() *commandpb.Command { return revoke(service, pattern) },
		func() *commandpb.Command { return reserve(tenant, key, n, count) },
		func() *commandpb.Command { return giveBack(tenant, key, n, count) },
		func() *commandpb.Command { return anchor(uint64(n), byte(n)) },
		tick,
		func() *commandpb.Command { return anyMembership(t, hour) },
		func() *commandpb.Command {
			return restoreRecords(
				tenantRecord(tenant, func(m *commandpb.Tenant) { m.State = commandpb.TenantState(1 + n%3) }),
				keyRecord(tenant, key, attempt, attempt+n, func(m *commandpb.Key) { m.MinUnwrapVersion = 1 + n }))
		},
	}).Draw(t, "kind")()
	c.Format = state.Format
	c.Id = id(fmt.Sprint("command", rapid.IntRange(0, 200).Draw(t, "id")))
	c.Stamp = hour.UnixNano()
	return c
}

// The same log gives the same state, also if it was written and read at any points of it. No state
// is ever invalid, none that a reader holds ever changes, and what was refused stays refused.
func TestSameLogSameState(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		log := rapid.SliceOfN(rapid.Custom(anyCommand), 1, 60).Draw(t, "log")
		restoreAt := rapid.SliceOfDistinct(rapid.IntRange(0, len(log)-1), rapid.ID).Draw(t, "restore at")
		looked := rapid.IntRange(0, len(log)-1).Draw(t, "looked at")

		a, _ := state.Apply(state.New(), state.Meta{Index: 1}, &commandpb.Command{
			Format: state.Format, Id: number(1), Stamp: start.UnixNano(), Body: &commandpb.Command_InitCluster{InitCluster: initCluster()},
		})
		b := a
		var kept *state.State
		var keptHash [32]byte
		var keptContents contents
		for i, c := range log {
			meta := state.Meta{Index: a.Index() + 1 + uint64(i%2)} // raft's own entries leave gaps
			before, wire := a, proto.Clone(c)
			nextA, resA := state.Apply(a, meta, c)
			nextB, resB := state.Apply(b, meta, c)
			if !proto.Equal(wire, c) {
				t.Fatalf("applying changed the command")
			}
			if diff := cmp.Diff(outcomeOf(resA), outcomeOf(resB)); diff != "" {
				t.Fatalf("command %d ended differently after a restore (-kept +restored):\n%s", i, diff)
			}
			a, b = nextA, nextB
			if a.Hash() != b.Hash() {
				t.Fatalf("command %d, %T, led to two states", i, c.GetBody())
			}
			if a.Stamp().Before(before.Stamp()) {
				t.Fatalf("cluster time went from %v back to %v", before.Stamp(), a.Stamp())
			}
			if resA.Err != nil && !resA.Replayed && a.Revision() != before.Revision() {
				t.Fatalf("refused with %v, but something changed", resA.Err)
			}
			check(t, a)
			for _, at := range restoreAt {
				if at == i {
					var buf bytes.Buffer
					if err := state.Write(&buf, b); err != nil {
						t.Fatal(err)
					}
					var err error
					if b, err = state.Read(&buf); err != nil {
						t.Fatal(err)
					}
				}
			}
			if i == looked {
				kept, keptHash, keptContents = a, a.Hash(), dump(a)
			}
		}
		if kept.Hash() != keptHash {
			t.Fatalf("a state changed under its reader")
		}
		if diff := cmp.Diff(keptContents, dump(kept)); diff != "" {
			t.Fatalf("a state changed under its reader (-then +now):\n%s", diff)
		}
		check(t, kept)
	})
}

type told struct {
	Index    uint64
	Err      string
	Replayed bool
}

func outcomeOf(r state.Result) told {
	o := told{Index: r.Index, Replayed: r.Replayed}
	if r.Err != nil {
		o.Err = r.Err.Error()
	}
	return o
}
