package hsmtest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/kekd/kekd/hierarchy"
	"github.com/kekd/kekd/hsm"
)

func testInfo(t *testing.T, d Device) {
	i := info(t, d)
	if i.Label == "" || i.Manufacturer == "" || i.Serial == "" {
		t.Errorf("the token does not say who it is: %+v", i)
	}
	healthy(t, d)
}

// testOperations does each of the four operations, in an order in which the key becomes hot.
func testOperations(t *testing.T, d Device) {
	a, b := mint(t, d, kekID(acme, 1)), mint(t, d, kekID(acme, 2))
	dek := []byte("0123456789abcdef0123456789abcdef")
	for round := range hot {
		aad := fmt.Sprint("round ", round)
		wrapped := seal(t, d, a, aad, dek)
		mustOpen(t, d, a, aad, wrapped, dek)

		made := do(t, d, hsm.Operation{Random: 32, Reveal: true, To: []hsm.Target{{Key: a, AAD: []byte(aad)}, {Key: b, AAD: []byte(aad)}}})
		if made.Err != nil {
			t.Fatal(made.Err)
		}
		if len(made.Revealed) != 32 || len(made.Sealed) != 2 {
			t.Fatalf("a data key of %d bytes, sealed %d times", len(made.Revealed), len(made.Sealed))
		}
		mustOpen(t, d, a, aad, made.Sealed[0], made.Revealed)
		mustOpen(t, d, b, aad, made.Sealed[1], made.Revealed)

		hidden := do(t, d, hsm.Operation{Random: 16, To: []hsm.Target{{Key: a, AAD: []byte(aad)}}})
		if hidden.Err != nil || hidden.Revealed != nil {
			t.Fatalf("a data key that is not to be revealed: %v, %d bytes", hidden.Err, len(hidden.Revealed))
		}

		again := do(t, d, hsm.Operation{
			Open: &hsm.Opening{Key: a, AAD: []byte(aad), Sealed: wrapped},
			To:   []hsm.Target{{Key: b, AAD: []byte("new")}},
		})
		if again.Err != nil || again.Revealed != nil {
			t.Fatalf("rewrap: %v, revealed %d bytes", again.Err, len(again.Revealed))
		}
		mustOpen(t, d, b, "new", again.Sealed[0], dek)
	}
}

func testSizes(t *testing.T, d Device) {
	key := mint(t, d, kekID(acme, 1))
	for _, n := range []int{1, 15, 16, 17, 32, 64, 2400, hsm.MaxPlaintext} {
		dek := bytes.Repeat([]byte{0xa5}, n)
		sealed := seal(t, d, key, "size", dek)
		if len(sealed.Ciphertext) != n+hsm.TagSize || len(sealed.IV) != hsm.IVSize {
			t.Errorf("%d bytes: ciphertext of %d, IV of %d", n, len(sealed.Ciphertext), len(sealed.IV))
		}
		mustOpen(t, d, key, "size", sealed, dek)
	}
	long := string(bytes.Repeat([]byte{1}, hsm.MaxAAD))
	dek := bytes.Repeat([]byte{7}, hsm.MaxPlaintext)
	mustOpen(t, d, key, long, seal(t, d, key, long, dek), dek)

	// The largest operation that there is.
	op := hsm.Operation{Plaintext: dek}
	for range hsm.MaxTargets {
		op.To = append(op.To, hsm.Target{Key: key, AAD: []byte(long)})
	}
	if op = do(t, d, op); op.Err != nil {
		t.Fatalf("the largest operation: %v", op.Err)
	}
	mustOpen(t, d, key, long, op.Sealed[hsm.MaxTargets-1], dek)
}

// testMixedBatches runs batches of everything at once, good and bad, of several tenants.
func testMixedBatches(t *testing.T, d Device) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 1))
	keys := []hsm.KeyRef{mint(t, d, kekID(acme, 1)), mint(t, d, kekID(acme, 2)), mint(t, d, kekID(globex, 1))}
	absent := hsm.KeyRef{ID: kekID(globex, 99)}
	dek := []byte("a data key of 32 bytes, or so it")
	sealed := make([]hsm.Sealed, len(keys))
	for i, k := range keys {
		sealed[i] = seal(t, d, k, "aad", dek)
	}
	type want struct {
		err      error
		revealed []byte
	}
	for _, n := range []int{1, 2, 63, 64, 65, 1024} {
		ops := make([]hsm.Operation, n)
		wants := make([]want, n)
		for i := range ops {
			k := r.IntN(len(keys))
			op, w := opening(keys[k], "aad", sealed[k]), want{nil, dek}
			switch r.IntN(6) {
			case 0:
				op.Open.AAD = []byte("not the aad")
				w = want{err: hsm.ErrTagMismatch}
			case 1:
				op.Open.Key = keys[(k+1)%len(keys)]
				w = want{err: hsm.ErrTagMismatch}
			case 2:
				op = hsm.Operation{Plaintext: dek, To: []hsm.Target{{Key: keys[k], AAD: []byte("aad")}}}
				w = want{}
			case 3:
				op.Open.AAD = nil
				w = want{err: hsm.ErrInvalidInput}
			case 4:
				if r.IntN(20) == 0 {
					op.Open.Key = absent
					w = want{err: hsm.ErrKeyNotFound}
				}
			}
			op.Lane = hierarchy.TenantID{ID: hierarchy.ID{byte(r.IntN(4))}}
			ops[i], wants[i] = op, w
		}
		d.Token.Do(deadline(t), ops)
		for i, op := range ops {
			if !errors.Is(op.Err, wants[i].err) || (op.Err == nil) != (wants[i].err == nil) {
				t.Errorf("%d of %d: %v, want %v", i, n, op.Err, wants[i].err)
			}
			if !bytes.Equal(op.Revealed, wants[i].revealed) {
				t.Errorf("%d of %d: the data key revealed is not the one sealed", i, n)
			}
			if len(op.To) > 0 && op.Err == nil {
				mustOpen(t, d, op.To[0].Key, "aad", op.Sealed[0], dek)
			}
		}
	}
	healthy(t, d)
}

// testIVs: an IV that comes twice under one key gives both plaintexts away.
func testIVs(t *testing.T, d Device) {
	key := mint(t, d, kekID(acme, 1))
	seen := map[string]bool{}
	for range 3 {
		ops := make([]hsm.Operation, 1000)
		for i := range ops {
			ops[i] = hsm.Operation{Plaintext: make([]byte, 32), To: []hsm.Target{{Key: key, AAD: []byte("a")}}}
		}
		d.Token.Do(deadline(t), ops)
		for _, op := range ops {
			if op.Err != nil {
				t.Fatal(op.Err)
			}
			if seen[string(op.Sealed[0].IV)] {
				t.Fatal("an IV came twice")
			}
			seen[string(op.Sealed[0].IV)] = true
		}
	}
}

// testTags: whatever is altered, it does not open.
func testTags(t *testing.T, d Device) {
	key, other := mint(t, d, kekID(acme, 1)), mint(t, d, kekID(globex, 1))
	dek := []byte("0123456789abcdef")
	good := seal(t, d, key, "context", dek)
	flip := func(b []byte, i int) []byte {
		b = bytes.Clone(b)
		b[i] ^= 0x80
		return b
	}
	for round := range 3 { // the third is on a hot key
		for i := range good.Ciphertext {
			if _, err := open(t, d, key, "context", hsm.Sealed{IV: good.IV, Ciphertext: flip(good.Ciphertext, i)}); !errors.Is(err, hsm.ErrTagMismatch) {
				t.Fatalf("round %d, byte %d of the ciphertext altered: %v, want ErrTagMismatch", round, i, err)
			}
		}
		for i := range good.IV {
			if _, err := open(t, d, key, "context", hsm.Sealed{IV: flip(good.IV, i), Ciphertext: good.Ciphertext}); !errors.Is(err, hsm.ErrTagMismatch) {
				t.Fatalf("byte %d of the IV altered: %v, want ErrTagMismatch", i, err)
			}
		}
		short := hsm.Sealed{IV: good.IV, Ciphertext: good.Ciphertext[:len(good.Ciphertext)-1]}
		if _, err := open(t, d, key, "context", short); !errors.Is(err, hsm.ErrTagMismatch) {
			t.Errorf("a byte cut off: %v, want ErrTagMismatch", err)
		}
		for _, aad := range []string{"Context", "context ", "c"} {
			if _, err := open(t, d, key, aad, good); !errors.Is(err, hsm.ErrTagMismatch) {
				t.Errorf("AAD %q: %v, want ErrTagMismatch", aad, err)
			}
		}
		if _, err := open(t, d, other, "context", good); !errors.Is(err, hsm.ErrTagMismatch) {
			t.Errorf("another tenant's key: %v, want ErrTagMismatch", err)
		}
		mustOpen(t, d, key, "context", good, dek)
	}
	healthy(t, d)
}

// testGarbage: one caller's garbage does not take the token out for the others.
func testGarbage(t *testing.T, d Device) {
	key := mint(t, d, kekID(acme, 1))
	dek := []byte("0123456789abcdef")
	good := seal(t, d, key, "a", dek)
	garbage := hsm.Sealed{IV: good.IV, Ciphertext: bytes.Repeat([]byte{9}, 48)}

	stop := make(chan struct{})
	var flood sync.WaitGroup
	for range 4 {
		flood.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				ops := make([]hsm.Operation, 50)
				for i := range ops {
					ops[i] = opening(key, "a", garbage)
					ops[i].Lane = globex
				}
				d.Token.Do(context.Background(), ops)
				for _, op := range ops {
					if !errors.Is(op.Err, hsm.ErrTagMismatch) {
						t.Errorf("garbage: %v, want ErrTagMismatch", op.Err)
						return
					}
				}
			}
		})
	}
	for range 60 {
		mustOpen(t, d, key, "a", good, dek)
	}
	close(stop)
	flood.Wait()
	healthy(t, d)
}

func testInvalidInput(t *testing.T, d Device) {
	key := mint(t, d, kekID(acme, 1))
	dek := make([]byte, 32)
	good := seal(t, d, key, "a", dek)
	to := []hsm.Target{{Key: key, AAD: []byte("a")}}
	with := func(change func(*hsm.Opening)) hsm.Operation {
		o := hsm.Opening{Key: key, AAD: []byte("a"), Sealed: good}
		change(&o)
		return hsm.Operation{Open: &o, Reveal: true}
	}
	many := make([]hsm.Target, hsm.MaxTargets+1)
	for i := range many {
		many[i] = to[0]
	}
	for name, op := range map[string]hsm.Operation{
		"no source":              {To: to},
		"two sources":            {Plaintext: dek, Random: 32, To: to},
		"no result":              {Plaintext: dek},
		"reveals what it got":    {Plaintext: dek, To: to, Reveal: true},
		"empty plaintext":        {Plaintext: []byte{}, To: to},
		"plaintext too long":     {Plaintext: make([]byte, hsm.MaxPlaintext+1), To: to},
		"too little randomness":  {Random: 15, To: to},
		"too much randomness":    {Random: hsm.MaxPlaintext + 1, To: to},
		"negative randomness":    {Random: -1, To: to},
		"empty AAD to seal":      {Plaintext: dek, To: []hsm.Target{{Key: key}}},
		"too long AAD to seal":   {Plaintext: dek, To: []hsm.Target{{Key: key, AAD: make([]byte, hsm.MaxAAD+1)}}},
		"too many targets":       {Plaintext: dek, To: many},
		"empty AAD to open":      with(func(o *hsm.Opening) { o.AAD = nil }),
		"too long AAD to open":   with(func(o *hsm.Opening) { o.AAD = make([]byte, hsm.MaxAAD+1) }),
		"empty IV":               with(func(o *hsm.Opening) { o.IV = nil }),
		"short IV":               with(func(o *hsm.Opening) { o.IV = o.IV[:11] }),
		"long IV":                with(func(o *hsm.Opening) { o.IV = make([]byte, 16) }),
		"empty ciphertext":       with(func(o *hsm.Opening) { o.Ciphertext = nil }),
		"ciphertext of one byte": with(func(o *hsm.Opening) { o.Ciphertext = []byte{1} }),
		"only a tag":             with(func(o *hsm.Opening) { o.Ciphertext = o.Ciphertext[:hsm.TagSize] }),
		"too long ciphertext":    with(func(o *hsm.Opening) { o.Ciphertext = make([]byte, hsm.MaxPlaintext+hsm.TagSize+1) }),
	} {
		if op = do(t, d, op); !errors.Is(op.Err, hsm.ErrInvalidInput) {
			t.Errorf("%s: %v, want ErrInvalidInput", name, op.Err)
		}
		if op.Revealed != nil || op.Sealed != nil {
			t.Errorf("%s: it has a result", name)
		}
	}
	d.Token.Do(deadline(t), nil)
	mustOpen(t, d, key, "a", good, dek)
	healthy(t, d)
}

// testReferences: a key is what its reference says, or it is not used.
func testReferences(t *testing.T, d Device) {
	key := mint(t, d, kekID(acme, 1))
	good := seal(t, d, key, "a", []byte("0123456789abcdef"))

	wrong := key
	wrong.Check[0] ^= 1
	if _, err := open(t, d, wrong, "a", good); !errors.Is(err, hsm.ErrKeyRefused) {
		t.Errorf("another check value: %v, want ErrKeyRefused", err)
	}
	bridge := key
	bridge.Bridge = true
	if _, err := open(t, d, bridge, "a", good); !errors.Is(err, hsm.ErrKeyRefused) {
		t.Errorf("a KEK for a bridge: %v, want ErrKeyRefused", err)
	}
	absent := hsm.KeyRef{ID: kekID(globex, 7), Check: key.Check}
	for range 20 { // many times: it must not cost a search each
		if _, err := open(t, d, absent, "a", good); !errors.Is(err, hsm.ErrKeyNotFound) {
			t.Errorf("no such key: %v, want ErrKeyNotFound", err)
		}
	}
	// Not found is no verdict for ever.
	made := mint(t, d, absent.ID)
	if got := seal(t, d, made, "a", []byte("0123456789abcdef")); len(got.Ciphertext) == 0 {
		t.Error("nothing sealed")
	}
}

func testNoPartialResult(t *testing.T, d Device) {
	key := mint(t, d, kekID(acme, 1))
	absent := hsm.KeyRef{ID: kekID(globex, 7)}
	op := do(t, d, hsm.Operation{
		Random: 32, Reveal: true,
		To: []hsm.Target{{Key: key, AAD: []byte("a")}, {Key: absent, AAD: []byte("a")}},
	})
	if !errors.Is(op.Err, hsm.ErrKeyNotFound) || op.Revealed != nil || op.Sealed != nil {
		t.Errorf("%v, revealed %d bytes, sealed %d; want ErrKeyNotFound and no result", op.Err, len(op.Revealed), len(op.Sealed))
	}
	// What an operation had from before does not stay.
	op.To[1].Key = key
	op.Revealed, op.Sealed, op.Err = []byte("old"), make([]hsm.Sealed, 9), errors.New("old")
	if op = do(t, d, op); op.Err != nil || len(op.Revealed) != 32 || len(op.Sealed) != 2 {
		t.Errorf("an operation used again: %v, revealed %d bytes, sealed %d", op.Err, len(op.Revealed), len(op.Sealed))
	}
}

// testInputs: the token side changes nothing that the caller gave.
func testInputs(t *testing.T, d Device) {
	key := mint(t, d, kekID(acme, 1))
	dek := []byte("0123456789abcdef")
	sealed := seal(t, d, key, "a", dek)
	build := func() []hsm.Operation {
		return []hsm.Operation{
			{Lane: acme, Plaintext: bytes.Clone(dek), To: []hsm.Target{{Key: key, AAD: []byte("a")}}},
			{Lane: acme, Reveal: true, Open: &hsm.Opening{Key: key, AAD: []byte("a"), Sealed: hsm.Sealed{IV: bytes.Clone(sealed.IV), Ciphertext: bytes.Clone(sealed.Ciphertext)}}},
		}
	}
	got := build()
	d.Token.Do(deadline(t), got)
	for i := range got {
		if got[i].Err != nil {
			t.Fatal(got[i].Err)
		}
		got[i].Revealed, got[i].Sealed = nil, nil
	}
	if diff := cmp.Diff(build(), got); diff != "" {
		t.Errorf("an operation's inputs changed (-want +got):\n%s", diff)
	}
}

func testContext(t *testing.T, d Device) {
	key := mint(t, d, kekID(acme, 1))
	ops := []hsm.Operation{{Plaintext: make([]byte, 32), To: []hsm.Target{{Key: key, AAD: []byte("a")}}}}
	d.Token.Do(over(), ops)
	if ops[0].Err != nil && !errors.Is(ops[0].Err, hsm.ErrDeadline) {
		t.Errorf("do after the deadline: %v, want a result or ErrDeadline", ops[0].Err)
	}
	if _, err := d.Manager.Generate(over(), kekID(acme, 2), "late"); !errors.Is(err, hsm.ErrDeadline) {
		t.Errorf("generate after the deadline: %v, want ErrDeadline", err)
	}
	if _, err := d.Manager.List(over()); !errors.Is(err, hsm.ErrDeadline) {
		t.Errorf("list after the deadline: %v, want ErrDeadline", err)
	}
	healthy(t, d)
}

// testLeftCalls: when Do has returned, nobody writes into the caller's operations any more. The
// race detector and the comparison watch.
func testLeftCalls(t *testing.T, d Device) {
	key := mint(t, d, kekID(acme, 1))
	sealed := seal(t, d, key, "a", make([]byte, 32))
	var wg sync.WaitGroup
	for caller := range 4 {
		wg.Go(func() {
			for round := range 20 {
				ctx, cancel := context.WithTimeout(context.Background(), time.Duration(caller*20+round)*50*time.Microsecond)
				ops := make([]hsm.Operation, 256)
				for i := range ops {
					ops[i] = opening(key, "a", sealed)
				}
				d.Token.Do(ctx, ops)
				cancel()
				for i := range ops {
					switch op := &ops[i]; {
					case op.Err == nil && len(op.Revealed) != 32:
						t.Errorf("neither an error nor a data key")
					case op.Err != nil && !errors.Is(op.Err, hsm.ErrDeadline):
						t.Errorf("%v, want ErrDeadline", op.Err)
					case op.Err != nil && op.Revealed != nil:
						t.Error("an error and a data key")
					}
					ops[i] = hsm.Operation{} // a write that the detector can see
				}
			}
		})
	}
	wg.Wait()
	healthy(t, d)
}
