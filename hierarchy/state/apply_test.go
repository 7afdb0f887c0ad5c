package state_test

import (
	"bytes"
	"encoding/hex"
	"errors"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"github.com/kekd/kekd/hierarchy"
	"github.com/kekd/kekd/hierarchy/commandpb"
	"github.com/kekd/kekd/hierarchy/state"
)

func TestRetryHearsTheSame(t *testing.T) {
	m := populated(t)
	first := createTenant("initech")
	first.Id = id("retry")
	res := m.command(first)
	if res.Err != nil || res.Replayed {
		t.Fatalf("got %+v", res)
	}
	m.do(t, disable("initech"))

	// Another node draws another tenant ID and another time; it is the same request.
	retry := createTenant("initech")
	retry.Id = id("retry")
	retry.GetCreateTenant().TenantId = id("drawn again")
	again := m.command(retry)
	if again.Err != nil || !again.Replayed || again.Index != res.Index {
		t.Errorf("got %+v, want what the first try heard, of index %d", again, res.Index)
	}
	if tenant, _ := m.s.TenantByName("initech"); tenant.State != hierarchy.TenantDisabled || tenant.ID != tenantID("initech") {
		t.Errorf("the retry took effect: %+v", tenant)
	}

	other := createTenant("hooli")
	other.Id = id("retry")
	if res := m.command(other); !errors.Is(res.Err, hierarchy.ErrInvalidArgument) || !strings.Contains(res.Err.Error(), hex.EncodeToString(id("retry"))) {
		t.Errorf("another command under the same ID: got error %v", res.Err)
	}
}

func TestRefusedRetryHearsTheSame(t *testing.T) {
	m := populated(t)
	refused := rotate("acme", "fresh", 1)
	refused.Id = id("retry")
	first := m.command(refused)
	m.do(t, minted("acme", "fresh", 1)) // now it would be taken

	again := m.command(refused)
	if !again.Replayed || again.Index != first.Index || !errors.Is(again.Err, hierarchy.ErrFailedPrecondition) || again.Err.Error() != first.Err.Error() {
		t.Errorf("got %+v, want %+v again", again, first)
	}
	check(t, m.s) // also the refusal reads back
}

// A rotation names the newest version that its proposer knew, which is another one at the retry.
func TestRotationRetriedLater(t *testing.T) {
	m := populated(t)
	c := rotate("acme", "orders", 2)
	c.Id = id("retry")
	m.do(t, c)
	m.do(t, minted("acme", "orders", 3))
	retry := rotate("acme", "orders", 3)
	retry.Id = id("retry")
	if res := m.command(retry); res.Err != nil || !res.Replayed {
		t.Errorf("got %+v, want the first outcome", res)
	}
	if k, _ := m.s.Key(tenantID("acme"), keyID("orders")); len(k.Versions) != 3 {
		t.Errorf("the key has %d versions, want 3", len(k.Versions))
	}
}

func TestReturningTwiceCountsOnce(t *testing.T) {
	m := populated(t)
	m.do(t, reserve("acme", "orders", 2, 100))
	c := giveBack("acme", "orders", 2, 10)
	c.Id = id("retry")
	m.do(t, c)
	m.do(t, reserve("acme", "orders", 2, 50))
	m.do(t, c)
	r, _ := version(t, m, "acme", "orders", 2).Region(regionID)
	if want := uint64(1<<16 + 100 - 10 + 50); r.WrapsReserved != want {
		t.Errorf("%d seals are reserved, want %d", r.WrapsReserved, want)
	}
}

func TestOutcomesAreForgottenAfterADay(t *testing.T) {
	m := populated(t)
	c := createTenant("initech")
	c.Id = id("retry")
	m.do(t, c)
	m.stamp = m.stamp.Add(24*time.Hour - time.Second)
	m.do(t, tick()) // a day later to the second
	if res := m.command(proto.Clone(c).(*commandpb.Command)); !res.Replayed {
		t.Errorf("got %+v, want the outcome of a day ago", res)
	}
	c.Stamp = m.stamp.Add(2 * time.Second).UnixNano()
	if res := m.command(c); res.Replayed || !errors.Is(res.Err, hierarchy.ErrAlreadyExists) {
		t.Errorf("got %+v, want it applied anew", res)
	}
}

// Many outcomes have had their day at once: each command drops some, the oldest first, and a node that
// started from a snapshot in between the same ones.
func TestOutcomesAreForgottenInTurn(t *testing.T) {
	m := initialised(t)
	const outcomes = 600
	for i := range outcomes - 1 { // after that of the first command
		c := createTenant("Refused")
		c.Id = number(uint64(i))
		m.command(c)
	}
	kept := func() (n int) {
		for i := range outcomes - 1 {
			if m.s.Decided(hierarchy.CommandID{ID: hierarchy.ID(number(uint64(i)))}) {
				n++
			} else if n > 0 {
				t.Fatalf("outcome %d is gone, and an older one is not", i)
			}
		}
		return n
	}
	m.stamp = m.stamp.Add(24 * time.Hour)
	for i, want := range []int{outcomes - 256, outcomes - 512, 0} {
		back, err := state.Read(bytes.NewReader(snapshot(t, m.s)))
		if err != nil {
			t.Fatal(err)
		}
		restored := &machine{back, m.stamp}
		m.do(t, tick())
		restored.do(t, tick())
		if got := kept(); got != want {
			t.Fatalf("after %d ticks %d outcomes are kept, want %d", i+1, got, want)
		}
		if restored.s.Hash() != m.s.Hash() {
			t.Fatal("after a restore others are forgotten")
		}
		check(t, m.s)
		// A retry that comes before the turn of its outcome hears what was said first; it drops some too.
		retry := createTenant("Refused")
		retry.Id = number(outcomes - 2)
		res := (&machine{m.s, m.stamp}).command(retry)
		if !errors.Is(res.Err, hierarchy.ErrInvalidArgument) || res.Replayed != (want > 256) {
			t.Errorf("with %d outcomes left: got %+v", want, res)
		}
	}
}

func TestNoIdempotencyID(t *testing.T) {
	m := populated(t)
	for name, bad := range map[string][]byte{"empty": {}, "short": badID, "zero": make([]byte, 16)} {
		c := createTenant("initech")
		c.Id = bad
		if res := m.command(c); !errors.Is(res.Err, hierarchy.ErrInvalidArgument) {
			t.Errorf("%s: got error %v, want %v", name, res.Err, hierarchy.ErrInvalidArgument)
		}
	}
	if _, ok := m.s.TenantByName("initech"); ok {
		t.Error("it took effect nevertheless")
	}
}

func TestClusterTimeNeverGoesBack(t *testing.T) {
	m := populated(t)
	now := m.s.Stamp()
	c := createTenant("initech")
	c.Stamp = now.Add(-time.Hour).UnixNano()
	m.do(t, c)
	tenant, _ := m.s.TenantByName("initech")
	if !m.s.Stamp().Equal(now) || !tenant.CreatedAt.Equal(now) {
		t.Errorf("cluster time is %v and the tenant of %v, want %v", m.s.Stamp(), tenant.CreatedAt, now)
	}
}

// unchanged applies a command that must stop the node.
func unchanged(t *testing.T, m *machine, meta state.Meta, c *commandpb.Command, want error) {
	t.Helper()
	next, res := state.Apply(m.s, meta, c)
	if !errors.Is(res.Err, want) || !state.Fatal(res.Err) {
		t.Errorf("got error %v, want %v", res.Err, want)
	}
	if next != m.s {
		t.Error("the state changed")
	}
}

func TestWhatStopsANode(t *testing.T) {
	m := populated(t)
	next := state.Meta{Index: m.s.Index() + 1}
	t.Run("higher format", func(t *testing.T) {
		c := tick()
		c.Format = state.Format + 1
		unchanged(t, m, next, c, state.ErrUnknownCommand)
	})
	t.Run("no format", func(t *testing.T) { unchanged(t, m, next, tick(), state.ErrUnknownCommand) })
	t.Run("no body", func(t *testing.T) {
		unchanged(t, m, next, &commandpb.Command{Format: state.Format}, state.ErrUnknownCommand)
	})
	t.Run("a feature level to come", func(t *testing.T) {
		c := raise(state.Level + 1)
		c.Format, c.Id = state.Format, id("x")
		unchanged(t, m, next, c, state.ErrUnknownCommand)
	})
	t.Run("an index again", func(t *testing.T) {
		c := tick()
		c.Format, c.Id = state.Format, id("x")
		unchanged(t, m, state.Meta{Index: m.s.Index()}, c, state.ErrDiverged)
	})

	hash := m.s.Hash()
	compared := func(hash []byte, index uint64) *commandpb.Command {
		return &commandpb.Command{Format: state.Format, Id: id("x"), Body: &commandpb.Command_Tick{Tick: &commandpb.Tick{StateHash: hash, StateIndex: index}}}
	}
	t.Run("another hash", func(t *testing.T) {
		wrong := hash
		wrong[5] ^= 1
		unchanged(t, m, next, compared(wrong[:], m.s.Index()), state.ErrDiverged)
		unchanged(t, m, next, compared(hash[:31], m.s.Index()), state.ErrDiverged)
	})
	t.Run("the same hash does not", func(t *testing.T) {
		if s, res := state.Apply(m.s, next, compared(hash[:], m.s.Index())); res.Err != nil || s.Index() != next.Index {
			t.Errorf("got %v at %d", res.Err, s.Index())
		}
	})
}

func TestDecode(t *testing.T) {
	c := createTenant("acme")
	c.Format = state.Format
	good, err := c.MarshalVT()
	if err != nil {
		t.Fatal(err)
	}
	back, err := state.Decode(good)
	if err != nil || !proto.Equal(back, c) {
		t.Fatalf("got %v, %v", back, err)
	}

	field := func(number protowire.Number, value []byte) []byte {
		return protowire.AppendBytes(protowire.AppendTag(nil, number, protowire.BytesType), value)
	}
	body, _ := c.GetCreateTenant().MarshalVT()
	frame := protowire.AppendVarint(protowire.AppendTag(nil, 1, protowire.VarintType), state.Format)
	for name, data := range map[string][]byte{
		"empty":                   {},
		"no protobuf":             {0xff},
		"a command to come":       append(frame, field(999, []byte{})...),
		"a field to come":         append(good, field(99, []byte("x"))...),
		"a field to come, inside": append(frame, field(12, append(body, field(99, []byte("x"))...))...),
		"two deep": append(frame, field(10, field(2, append([]byte(nil),
			field(99, []byte("x"))...)))...),
		"truncated": good[:len(good)-1],
	} {
		if _, err := state.Decode(data); !errors.Is(err, state.ErrUnknownCommand) {
			t.Errorf("%s: got error %v, want %v", name, err, state.ErrUnknownCommand)
		}
	}
}

func FuzzDecode(f *testing.F) {
	c := createTenant("acme")
	c.Format = state.Format
	b, _ := c.MarshalVT()
	f.Add(b)
	f.Fuzz(func(t *testing.T, data []byte) {
		c, err := state.Decode(data)
		if err != nil {
			return
		}
		m := populated(t)
		next, res := state.Apply(m.s, state.Meta{Index: m.s.Index() + 1}, c)
		if res.Err != nil && !state.Fatal(res.Err) && hierarchy.Code(res.Err) == hierarchy.CodeInternal {
			t.Errorf("refused with an error of no code: %v", res.Err)
		}
		check(t, next)
	})
}
