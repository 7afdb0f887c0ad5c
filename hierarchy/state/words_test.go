package state_test

import (
	"bytes"
	"encoding/hex"
	"errors"
	"strings"
	"testing"

	"github.com/kekd/kekd/hierarchy"
	"github.com/kekd/kekd/hierarchy/commandpb"
	"github.com/kekd/kekd/hierarchy/state"
)

// refusedFor is a cluster that has refused a tenant because of the ID that was drawn for it. The ID is
// no part of what is asked, so that two such states differ in what was said and in nothing else, as
// those of two versions that word a refusal differently.
func refusedFor(t testing.TB, name string, drawn []byte) (*machine, *commandpb.Command, state.Result) {
	t.Helper()
	m := alone(t)
	c := with(createTenant(name), getTenant, func(m *commandpb.CreateTenant) { m.TenantId = drawn })
	c.Id = id("refused")
	res := m.command(c)
	if res.Err == nil {
		t.Fatalf("a tenant with the ID %x was made", drawn)
	}
	return m, c, res
}

func TestWordsAreNotCompared(t *testing.T) {
	a, asked, first := refusedFor(t, "hooli", id("acme"))
	b, _, second := refusedFor(t, "hooli", id("globex"))
	if first.Err.Error() == second.Err.Error() || hierarchy.Code(first.Err) != hierarchy.Code(second.Err) {
		t.Fatalf("%q and %q are to differ in words only", first.Err, second.Err)
	}
	if a.s.Hash() != b.s.Hash() {
		t.Error("two states that differ in the words of a refusal have two hashes")
	}
	// Each keeps what it said, also in a snapshot.
	for drawn, m := range map[string]*machine{"acme": a, "globex": b} {
		check(t, m.s)
		back, err := state.Read(bytes.NewReader(snapshot(t, m.s)))
		if err != nil {
			t.Fatal(err)
		}
		again := (&machine{back, m.stamp}).command(asked)
		if !again.Replayed || !errors.Is(again.Err, hierarchy.ErrAlreadyExists) || !strings.Contains(again.Err.Error(), hex.EncodeToString(id(drawn))) {
			t.Errorf("got %+v, want what was said of the ID %x", again, id(drawn))
		}
	}
	// Ticks of the one are good for the other, and both go on alike.
	hash := a.s.Hash()
	ticked := &commandpb.Command{Body: &commandpb.Command_Tick{Tick: &commandpb.Tick{StateHash: hash[:], StateIndex: a.s.Index()}}}
	b.do(t, ticked)
	a.do(t, ticked)
	a.stamp, b.stamp = start.AddDate(0, 0, 2), start.AddDate(0, 0, 2)
	a.do(t, tick()) // the refusal is forgotten
	b.do(t, tick())
	if a.s.Hash() != b.s.Hash() {
		t.Error("what was forgotten left something behind")
	}
	check(t, b.s)
}

// What a retry is decided by is compared.
func TestCodesAreCompared(t *testing.T) {
	a, _, first := refusedFor(t, "acme", id("drawn"))
	b, _, second := refusedFor(t, "acme", badID)
	if hierarchy.Code(first.Err) == hierarchy.Code(second.Err) {
		t.Fatalf("%q and %q are to differ in their codes", first.Err, second.Err)
	}
	if a.s.Hash() == b.s.Hash() {
		t.Errorf("%s and %s have one hash", hierarchy.Code(first.Err), hierarchy.Code(second.Err))
	}
}
