package hsmtest

import (
	"context"
	"errors"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/kekd/kekd/hierarchy"
	"github.com/kekd/kekd/hsm"
)

func testGenerate(t *testing.T, d Device) {
	if n := len(list(t, d)); n != 0 {
		t.Fatalf("a fresh token lists %d key objects", n)
	}
	id := kekID(acme, 1)
	first, err := d.Manager.Generate(deadline(t), id, "kekd/acme/orders/v1/kek")
	if err != nil {
		t.Fatal(err)
	}
	if first.ID != id || first.Label != "kekd/acme/orders/v1/kek" || !first.Usable || first.Bridge || first.Fault != nil {
		t.Errorf("generated %+v", first)
	}
	again, err := d.Manager.Generate(deadline(t), id, "another label")
	if err != nil {
		t.Fatalf("generate again: %v", err)
	}
	if diff := cmp.Diff(first, again); diff != "" {
		t.Errorf("generating again gave another object (-first +again):\n%s", diff)
	}
	other, err := d.Manager.Generate(deadline(t), kekID(acme, 2), "kekd/acme/orders/v2/kek")
	if err != nil {
		t.Fatal(err)
	}
	if other.Check == first.Check {
		t.Error("two keys with one check value") // 1 in 16 million, or a constant key
	}
	if diff := cmp.Diff(map[hierarchy.ObjectID]hsm.Object{id: first, other.ID: other}, list(t, d)); diff != "" {
		t.Errorf("the listing is not what was made (-made +listed):\n%s", diff)
	}
}

func testLatch(t *testing.T, d Device) {
	id := kekID(acme, 1)
	key, other := mint(t, d, id), mint(t, d, kekID(globex, 1))
	dek := []byte("0123456789abcdef")
	sealed, others := seal(t, d, key, "a", dek), seal(t, d, other, "a", dek)
	for range hot { // session copies must not outlive the latch
		mustOpen(t, d, key, "a", sealed, dek)
	}
	if !info(t, d).CanLatch {
		if err := d.Manager.SetUsable(deadline(t), id, false); !errors.Is(err, hsm.ErrUnsupported) {
			t.Fatalf("a token that cannot latch: %v, want ErrUnsupported", err)
		}
		mustOpen(t, d, key, "a", sealed, dek)
		return
	}
	for round := range 3 {
		for range 2 { // the second changes nothing
			if err := d.Manager.SetUsable(deadline(t), id, false); err != nil {
				t.Fatalf("latch: %v", err)
			}
		}
		if got := list(t, d)[id]; got.Usable || got.Fault != nil {
			t.Errorf("a latched key is listed as %+v", got)
		}
		for range 3 {
			if _, err := open(t, d, key, "a", sealed); !errors.Is(err, hsm.ErrKeyLatched) {
				t.Fatalf("round %d: open with a latched key: %v, want ErrKeyLatched", round, err)
			}
		}
		if op := do(t, d, hsm.Operation{Random: 32, To: []hsm.Target{{Key: key, AAD: []byte("a")}}}); !errors.Is(op.Err, hsm.ErrKeyLatched) {
			t.Errorf("seal with a latched key: %v, want ErrKeyLatched", op.Err)
		}
		if _, err := d.Manager.Generate(deadline(t), id, "x"); !errors.Is(err, hsm.ErrKeyLatched) {
			t.Errorf("generate a key that is there and latched: %v, want ErrKeyLatched", err)
		}
		mustOpen(t, d, other, "a", others, dek)
		for range 2 {
			if err := d.Manager.SetUsable(deadline(t), id, true); err != nil {
				t.Fatalf("unlatch: %v", err)
			}
		}
		if got := list(t, d)[id]; !got.Usable {
			t.Error("the key is still listed as latched")
		}
		for range hot {
			mustOpen(t, d, key, "a", sealed, dek)
		}
	}
	if err := d.Manager.SetUsable(deadline(t), kekID(acme, 9), false); !errors.Is(err, hsm.ErrKeyNotFound) {
		t.Errorf("latch a key that is not there: %v, want ErrKeyNotFound", err)
	}
}

func testDestroy(t *testing.T, d Device) {
	id := kekID(acme, 1)
	key, other := mint(t, d, id), mint(t, d, kekID(globex, 1))
	dek := []byte("0123456789abcdef")
	sealed, others := seal(t, d, key, "a", dek), seal(t, d, other, "a", dek)
	for range hot {
		mustOpen(t, d, key, "a", sealed, dek)
	}
	for range 2 {
		if err := d.Manager.Destroy(deadline(t), id); err != nil {
			t.Fatal(err)
		}
		for range 3 {
			if _, err := open(t, d, key, "a", sealed); !errors.Is(err, hsm.ErrKeyNotFound) {
				t.Fatalf("open with a destroyed key: %v, want ErrKeyNotFound", err)
			}
		}
	}
	if _, still := list(t, d)[id]; still {
		t.Error("a destroyed key is listed")
	}
	mustOpen(t, d, other, "a", others, dek)

	// A new key under the ID is another key.
	again := mint(t, d, id)
	if again.Check == key.Check {
		t.Error("the key came back")
	}
	if _, err := open(t, d, key, "a", sealed); !errors.Is(err, hsm.ErrKeyRefused) {
		t.Errorf("the old reference: %v, want ErrKeyRefused", err)
	}
	if _, err := open(t, d, again, "a", sealed); !errors.Is(err, hsm.ErrTagMismatch) {
		t.Errorf("what the old key sealed: %v, want ErrTagMismatch", err)
	}
}

func testForget(t *testing.T, d Device) {
	key := mint(t, d, kekID(acme, 1))
	dek := []byte("0123456789abcdef")
	sealed := seal(t, d, key, "a", dek)
	for range 5 {
		for range hot {
			mustOpen(t, d, key, "a", sealed, dek)
		}
		if err := d.Token.Forget(deadline(t), []hierarchy.ObjectID{key.ID, kekID(globex, 3)}); err != nil {
			t.Fatal(err)
		}
	}
	if err := d.Token.Forget(over(), []hierarchy.ObjectID{key.ID}); !errors.Is(err, hsm.ErrDeadline) {
		t.Errorf("forget after the deadline: %v, want ErrDeadline", err)
	}
}

// testTogether does everything at once. One key is latched and unlatched, one is minted and
// destroyed, and a third must never notice.
func testTogether(t *testing.T, d Device) {
	steady, latched := mint(t, d, kekID(acme, 1)), mint(t, d, kekID(acme, 2))
	dek := []byte("0123456789abcdef")
	sealed, other := seal(t, d, steady, "a", dek), seal(t, d, latched, "a", dek)
	canLatch := info(t, d).CanLatch

	stop := make(chan struct{})
	var wg sync.WaitGroup
	for range 3 {
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				ops := []hsm.Operation{opening(steady, "a", sealed), opening(latched, "a", other), opening(steady, "b", sealed)}
				d.Token.Do(context.Background(), ops)
				if ops[0].Err != nil {
					t.Errorf("the key that nobody touches: %v", ops[0].Err)
					return
				}
				if err := ops[1].Err; err != nil && !errors.Is(err, hsm.ErrKeyLatched) {
					t.Errorf("the key that is latched now and then: %v", err)
					return
				}
				if !errors.Is(ops[2].Err, hsm.ErrTagMismatch) {
					t.Errorf("the wrong AAD: %v", ops[2].Err)
					return
				}
			}
		})
	}
	for i := range 8 {
		if canLatch {
			if err := d.Manager.SetUsable(deadline(t), latched.ID, i%2 == 1); err != nil {
				t.Fatal(err)
			}
			_, err := open(t, d, latched, "a", other)
			if want := i%2 == 1; (err == nil) != want {
				t.Errorf("round %d: open: %v, usable is %t", i, err, want)
			}
		}
		brief := mint(t, d, kekID(globex, uint32(i)))
		mustOpen(t, d, brief, "a", seal(t, d, brief, "a", dek), dek)
		if err := d.Token.Forget(deadline(t), []hierarchy.ObjectID{steady.ID}); err != nil {
			t.Fatal(err)
		}
		if err := d.Manager.Destroy(deadline(t), brief.ID); err != nil {
			t.Fatal(err)
		}
		if n := len(list(t, d)); n != 2 {
			t.Errorf("round %d: %d objects listed, want 2", i, n)
		}
	}
	close(stop)
	wg.Wait()
	healthy(t, d)
}
