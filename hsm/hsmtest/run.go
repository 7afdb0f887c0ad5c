package hsmtest

import (
	"bytes"
	"context"
	"testing"

	"github.com/kekd/kekd/hierarchy"
	"github.com/kekd/kekd/hsm"
)

// Device is one token, by the sides that the daemon asks.
type Device struct {
	Token   hsm.Token
	Manager hsm.Manager
	Agreer  hsm.Agreer
}

// Factory opens n fresh tokens side by side, and sees to it that they are closed when the test
// ends. It is called once for each test of the suite.
type Factory func(t *testing.T, n int) []Device

// Run is the conformance suite.
func Run(t *testing.T, factory Factory) {
	one := func(name string, test func(*testing.T, Device)) {
		t.Run(name, func(t *testing.T) { test(t, factory(t, 1)[0]) })
	}
	one("Info", testInfo)
	one("Operations", testOperations)
	one("Sizes", testSizes)
	one("MixedBatches", testMixedBatches)
	one("IVs", testIVs)
	one("Tags", testTags)
	one("Garbage", testGarbage)
	one("InvalidInput", testInvalidInput)
	one("References", testReferences)
	one("NoPartialResult", testNoPartialResult)
	one("Inputs", testInputs)
	one("Context", testContext)
	one("LeftCalls", testLeftCalls)

	one("Generate", testGenerate)
	one("Latch", testLatch)
	one("Destroy", testDestroy)
	one("Forget", testForget)
	one("Together", testTogether)
	one("Examine", testExamine)

	t.Run("Agreement", func(t *testing.T) { testAgreement(t, factory(t, 2)) })
	t.Run("AgreementRefuses", func(t *testing.T) { testAgreementRefuses(t, factory(t, 2)) })
	t.Run("AgreementAgain", func(t *testing.T) { testAgreementAgain(t, factory(t, 2)) })
}

// hot is how many uses make a key hot for every token that caches.
const hot = 20

// names for the objects of the tests.
var (
	cluster = hierarchy.ClusterID{ID: hierarchy.ID{0xc1}}
	acme    = hierarchy.TenantID{ID: hierarchy.ID{0xac}}
	globex  = hierarchy.TenantID{ID: hierarchy.ID{0x61}}
	east    = hierarchy.RegionID{ID: hierarchy.ID{0xea}}
	west    = hierarchy.RegionID{ID: hierarchy.ID{0xe5}}
)

func kekID(tenant hierarchy.TenantID, version uint32) hierarchy.ObjectID {
	return hierarchy.KEKObjectID(cluster, tenant, hierarchy.KeyID{ID: hierarchy.ID{1}}, version, east, 1)
}

// mint generates a KEK and gives the reference to it.
func mint(t *testing.T, d Device, id hierarchy.ObjectID) hsm.KeyRef {
	t.Helper()
	obj, err := d.Manager.Generate(deadline(t), id, "kekd/test/"+id.String()[:8])
	if err != nil {
		t.Fatalf("generate: %v", err)
	}
	return ref(obj)
}

func ref(obj hsm.Object) hsm.KeyRef {
	return hsm.KeyRef{ID: obj.ID, Check: obj.Check, Bridge: obj.Bridge}
}

// do runs one operation.
func do(t *testing.T, d Device, op hsm.Operation) hsm.Operation {
	t.Helper()
	ops := []hsm.Operation{op}
	d.Token.Do(deadline(t), ops)
	return ops[0]
}

func seal(t *testing.T, d Device, key hsm.KeyRef, aad string, plaintext []byte) hsm.Sealed {
	t.Helper()
	op := do(t, d, hsm.Operation{Lane: acme, Plaintext: plaintext, To: []hsm.Target{{Key: key, AAD: []byte(aad)}}})
	if op.Err != nil {
		t.Fatalf("seal: %v", op.Err)
	}
	if len(op.Sealed) != 1 || op.Revealed != nil {
		t.Fatalf("seal gave %d sealed data keys, and revealed %d bytes", len(op.Sealed), len(op.Revealed))
	}
	return op.Sealed[0]
}

func open(t *testing.T, d Device, key hsm.KeyRef, aad string, sealed hsm.Sealed) ([]byte, error) {
	t.Helper()
	op := do(t, d, opening(key, aad, sealed))
	return op.Revealed, op.Err
}

func opening(key hsm.KeyRef, aad string, sealed hsm.Sealed) hsm.Operation {
	return hsm.Operation{Lane: acme, Reveal: true, Open: &hsm.Opening{Key: key, AAD: []byte(aad), Sealed: sealed}}
}

func mustOpen(t *testing.T, d Device, key hsm.KeyRef, aad string, sealed hsm.Sealed, want []byte) {
	t.Helper()
	got, err := open(t, d, key, aad, sealed)
	if err != nil {
		t.Fatalf("open: %v", err)
	}
	if !bytes.Equal(got, want) {
		t.Fatal("what was opened is not what was sealed")
	}
}

func healthy(t *testing.T, d Device) {
	t.Helper()
	if err := d.Token.Healthy(deadline(t)); err != nil {
		t.Errorf("the token is not healthy any more: %v", err)
	}
}

func info(t *testing.T, d Device) hsm.Info {
	t.Helper()
	i, err := d.Manager.Info(deadline(t))
	if err != nil {
		t.Fatalf("info: %v", err)
	}
	return i
}

func list(t *testing.T, d Device) map[hierarchy.ObjectID]hsm.Object {
	t.Helper()
	objects, err := d.Manager.List(deadline(t))
	if err != nil {
		t.Fatalf("list: %v", err)
	}
	m := map[hierarchy.ObjectID]hsm.Object{}
	for _, o := range objects {
		if _, twice := m[o.ID]; twice {
			t.Errorf("object %s is listed twice", o.ID)
		}
		m[o.ID] = o
	}
	return m
}

// over is a context that has ended.
func over() context.Context {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	return ctx
}
