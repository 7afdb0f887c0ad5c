package hsmtest

import (
	"bytes"
	"crypto/ecdh"
	"crypto/rand"
	"errors"
	"slices"
	"testing"

	"github.com/kekd/kekd/hierarchy"
	"github.com/kekd/kekd/hsm"
)

// commonKDF gives a way to agree that both tokens know. Without one the test ends, after it
// has seen that a token that cannot says so.
func commonKDF(t *testing.T, devices []Device) (hsm.KDF, bool) {
	t.Helper()
	a, b := info(t, devices[0]).KDFs, info(t, devices[1]).KDFs
	for _, kdf := range a {
		if slices.Contains(b, kdf) {
			return kdf, true
		}
	}
	for _, d := range devices {
		if len(info(t, d).KDFs) > 0 {
			continue
		}
		pair, err := d.Agreer.BeginAgreement(deadline(t))
		if err == nil {
			peer, kerr := ecdh.P256().GenerateKey(rand.Reader)
			must(t, kerr)
			_, err = pair.Derive(deadline(t), peer.PublicKey().Bytes(), hsm.KDFX963SHA256, []byte("info"), bridgeID(acme, east, west), "x")
			must(t, pair.End(deadline(t)))
		}
		if !errors.Is(err, hsm.ErrUnsupported) {
			t.Errorf("a token that says it cannot agree: %v, want ErrUnsupported", err)
		}
	}
	return "", false
}

func bridgeID(tenant hierarchy.TenantID, from, to hierarchy.RegionID) hierarchy.ObjectID {
	return hierarchy.BridgeObjectID(cluster, tenant, hierarchy.KeyID{ID: hierarchy.ID{1}}, 1, from, to, 1)
}

// bridgeInfo stands for the daemon's: whatever makes two bridges different is in it.
func bridgeInfo(tenant hierarchy.TenantID, from, to hierarchy.RegionID) []byte {
	return slices.Concat([]byte("kekd bridge test"), tenant.ID[:], from.ID[:], to.ID[:])
}

func begin(t *testing.T, d Device) hsm.Agreement {
	t.Helper()
	pair, err := d.Agreer.BeginAgreement(deadline(t))
	if err != nil {
		t.Fatalf("begin: %v", err)
	}
	if _, err := ecdh.P256().NewPublicKey(pair.Public()); err != nil || len(pair.Public()) != 65 {
		t.Fatalf("the public half is no uncompressed point of P-256: %v", err)
	}
	return pair
}

func derive(t *testing.T, pair hsm.Agreement, peer []byte, kdf hsm.KDF, tenant hierarchy.TenantID, from, to hierarchy.RegionID) hsm.KeyRef {
	t.Helper()
	obj, err := pair.Derive(deadline(t), peer, kdf, bridgeInfo(tenant, from, to), bridgeID(tenant, from, to), "kekd/test/bridge")
	if err != nil {
		t.Fatalf("derive: %v", err)
	}
	if obj.ID != bridgeID(tenant, from, to) || !obj.Usable || !obj.Bridge || obj.Fault != nil || obj.Label != "kekd/test/bridge" {
		t.Fatalf("derived %+v", obj)
	}
	return ref(obj)
}

// testAgreement: two tokens derive the same directed bridge inside themselves; each opens what
// the other sealed; the other direction and another tenant's bridge do not.
func testAgreement(t *testing.T, devices []Device) {
	kdf, ok := commonKDF(t, devices)
	if !ok {
		return
	}
	a, b := devices[0], devices[1]
	type sides struct{ a, b hsm.KeyRef }
	bridges := map[string]sides{}
	for name, tenant := range map[string]hierarchy.TenantID{"acme": acme, "globex": globex} {
		pa, pb := begin(t, a), begin(t, b)
		for dir, r := range map[string][2]hierarchy.RegionID{"there": {east, west}, "back": {west, east}} {
			bridges[name+" "+dir] = sides{
				derive(t, pa, pb.Public(), kdf, tenant, r[0], r[1]),
				derive(t, pb, pa.Public(), kdf, tenant, r[0], r[1]),
			}
		}
		must(t, pa.End(deadline(t)))
		must(t, pb.End(deadline(t)))
		if _, err := pa.Derive(deadline(t), pb.Public(), kdf, []byte("late"), kekID(tenant, 77), "late"); !errors.Is(err, hsm.ErrKeyNotFound) {
			t.Errorf("derive after the pair has ended: %v, want ErrKeyNotFound", err)
		}
	}
	dek := []byte("0123456789abcdef0123456789abcdef")
	for name, s := range bridges {
		there, back := seal(t, a, s.a, name, dek), seal(t, b, s.b, name, dek)
		for range hot { // bridges become hot, too
			mustOpen(t, b, s.b, name, there, dek)
			mustOpen(t, a, s.a, name, back, dek)
		}
		for other, o := range bridges {
			if other == name {
				continue
			}
			if _, err := open(t, b, o.b, name, there); !errors.Is(err, hsm.ErrTagMismatch) {
				t.Errorf("what %s sealed, opened by %s: %v, want ErrTagMismatch", name, other, err)
			}
			if _, err := open(t, a, o.a, name, there); !errors.Is(err, hsm.ErrTagMismatch) {
				t.Errorf("what %s sealed, opened by %s at home: %v, want ErrTagMismatch", name, other, err)
			}
		}
		// A bridge is not taken for a KEK.
		kek := s.b
		kek.Bridge = false
		if _, err := open(t, b, kek, name, there); !errors.Is(err, hsm.ErrKeyRefused) {
			t.Errorf("a bridge for a KEK: %v, want ErrKeyRefused", err)
		}
	}
	for _, d := range devices {
		listed := list(t, d)
		if len(listed) != len(bridges) {
			t.Errorf("%d objects are left, want the %d bridges", len(listed), len(bridges))
		}
		for id, o := range listed {
			if o.Fault != nil || !o.Bridge || !o.Usable {
				t.Errorf("bridge %s is listed as %+v", id, o)
			}
		}
		healthy(t, d)
	}
}

func testAgreementRefuses(t *testing.T, devices []Device) {
	kdf, ok := commonKDF(t, devices)
	if !ok {
		return
	}
	d := devices[0]
	pair := begin(t, d)
	peer := begin(t, devices[1]).Public()
	off := bytes.Clone(peer)
	off[64] ^= 1
	id := bridgeID(acme, east, west)
	for name, bad := range map[string][]byte{
		"no point":           nil,
		"a point too short":  peer[:64],
		"a compressed point": append([]byte{2}, peer[1:33]...),
		"off the curve":      off,
		"infinity":           {0},
		"zeros":              append([]byte{4}, make([]byte, 64)...),
		"its own point":      pair.Public(),
	} {
		if _, err := pair.Derive(deadline(t), bad, kdf, []byte("info"), id, "x"); !errors.Is(err, hsm.ErrInvalidInput) {
			t.Errorf("%s: %v, want ErrInvalidInput", name, err)
		}
	}
	if _, err := pair.Derive(deadline(t), peer, kdf, nil, id, "x"); !errors.Is(err, hsm.ErrInvalidInput) {
		t.Errorf("no info: %v, want ErrInvalidInput", err)
	}
	if _, err := pair.Derive(deadline(t), peer, "no-such-kdf", []byte("info"), id, "x"); !errors.Is(err, hsm.ErrUnsupported) {
		t.Errorf("an unknown KDF: %v, want ErrUnsupported", err)
	}
	if n := len(list(t, d)); n != 0 {
		t.Errorf("refused agreements left %d objects", n)
	}
	must(t, pair.End(deadline(t)))
	must(t, pair.End(deadline(t))) // ending twice is no error
}

// testAgreementAgain: who tries again finds what was made; another pair's key under the same
// ID is not taken for it.
func testAgreementAgain(t *testing.T, devices []Device) {
	kdf, ok := commonKDF(t, devices)
	if !ok {
		return
	}
	a := devices[0]
	pair, peer := begin(t, a), begin(t, devices[1])
	first := derive(t, pair, peer.Public(), kdf, acme, east, west)
	if again := derive(t, pair, peer.Public(), kdf, acme, east, west); again != first {
		t.Errorf("deriving again gave %+v, want %+v", again, first)
	}
	other := begin(t, a)
	if _, err := other.Derive(deadline(t), peer.Public(), kdf, bridgeInfo(acme, east, west), first.ID, "x"); !errors.Is(err, hsm.ErrAmbiguous) {
		t.Errorf("another pair's key under the same ID: %v, want ErrAmbiguous", err)
	}
	if n := len(list(t, a)); n != 1 {
		t.Errorf("%d objects, want 1", n)
	}
	if _, err := a.Manager.Generate(deadline(t), first.ID, "x"); !errors.Is(err, hsm.ErrKeyRefused) {
		t.Errorf("generate where a bridge is: %v, want ErrKeyRefused", err)
	}
}
