package state_test

import (
	"bytes"
	"fmt"
	"io"
	"testing"

	"github.com/kekd/kekd/hierarchy"
	"github.com/kekd/kekd/hierarchy/commandpb"
	"github.com/kekd/kekd/hierarchy/state"
)

const benchTenants = 10_000

// large has 10,000 tenants of one key each.
func large(b *testing.B) (*machine, []hierarchy.TenantID, []hierarchy.KeyID) {
	b.Helper()
	m := initialised(b)
	var tenants []hierarchy.TenantID
	var keys []hierarchy.KeyID
	for i := range benchTenants {
		tenant, key := fmt.Sprint("t", i), fmt.Sprint("k", i)
		m.do(b, createTenant(tenant))
		m.do(b, createKey(tenant, key))
		m.do(b, minted(tenant, key, 1))
		tenants, keys = append(tenants, tenantID(tenant)), append(keys, keyID(key))
	}
	return m, tenants, keys
}

func BenchmarkLookup(b *testing.B) {
	m, tenants, keys := large(b)
	for i := 0; b.Loop(); i++ {
		n := i * 7919 % benchTenants
		_, ok := m.s.Tenant(tenants[n])
		_, found := m.s.Key(tenants[n], keys[n])
		if !ok || !found {
			b.Fatal("not found")
		}
	}
}

func BenchmarkLookupByName(b *testing.B) {
	m, _, _ := large(b)
	names := make([]string, benchTenants)
	for i := range names {
		names[i] = fmt.Sprint(i)
	}
	for i := 0; b.Loop(); i++ {
		n := i * 7919 % benchTenants
		t, ok := m.s.TenantByName("t" + names[n])
		if !ok {
			b.Fatal("not found")
		}
		if _, ok := m.s.KeyByName(t.ID, "k"+names[n]); !ok {
			b.Fatal("not found")
		}
	}
}

func BenchmarkApply(b *testing.B) {
	m, _, _ := large(b)
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		c := disable(fmt.Sprint("t", i*7919%benchTenants))
		c.Id = number(uint64(i))
		m.do(b, c)
	}
}

// What a tick costs, four times a second.
func BenchmarkTick(b *testing.B) {
	m, _, _ := large(b)
	b.ReportAllocs()
	for b.Loop() {
		hash := m.s.Hash()
		m.do(b, &commandpb.Command{Id: id("tick"), Body: &commandpb.Command_Tick{Tick: &commandpb.Tick{StateHash: hash[:], StateIndex: m.s.Index()}}})
	}
}

func BenchmarkSnapshot(b *testing.B) {
	m, _, _ := large(b)
	b.Run("write", func(b *testing.B) {
		for b.Loop() {
			if err := state.Write(io.Discard, m.s); err != nil {
				b.Fatal(err)
			}
		}
	})
	buf := snapshot(b, m.s)
	b.Run("read", func(b *testing.B) {
		b.SetBytes(int64(len(buf)))
		for b.Loop() {
			if _, err := state.Read(bytes.NewReader(buf)); err != nil {
				b.Fatal(err)
			}
		}
	})
}
