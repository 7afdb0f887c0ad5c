package envelope_test

import (
	"bytes"
	"errors"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/kekd/kekd/hierarchy"
	"github.com/kekd/kekd/hierarchy/envelope"
)

func drawID(t *rapid.T, label string) hierarchy.ID {
	var id hierarchy.ID
	copy(id[:], rapid.SliceOfN(rapid.Byte(), hierarchy.IDSize, hierarchy.IDSize).Draw(t, label))
	if id.IsZero() {
		id[hierarchy.IDSize-1] = 1
	}
	return id
}

func drawHeader(t *rapid.T) envelope.Header {
	return envelope.Header{
		Tenant: hierarchy.TenantID{ID: drawID(t, "tenant")},
		Key:    hierarchy.KeyID{ID: drawID(t, "key")},
		Version: rapid.OneOf(
			rapid.SampledFrom([]uint32{1, 23, 24, 255, 256, 65535, 65536, 1<<32 - 1}),
			rapid.Uint32Min(1),
		).Draw(t, "version"),
		SealedIn: hierarchy.RegionID{ID: drawID(t, "sealed in")},
	}
}

func drawEnvelope(t *rapid.T) *envelope.Envelope {
	e := &envelope.Envelope{Header: drawHeader(t)}
	// Lengths on both sides of each form of a CBOR head.
	length := rapid.SampledFrom([]int{1, 7, 8, 32, 239, 240, 241, 600}).Draw(t, "plaintext length") + envelope.TagSize
	for range rapid.IntRange(1, 4).Draw(t, "recipients") {
		r := envelope.Recipient{Region: hierarchy.RegionID{ID: drawID(t, "region")}}
		copy(r.IV[:], rapid.SliceOfN(rapid.Byte(), 12, 12).Draw(t, "IV"))
		fill := rapid.Byte().Draw(t, "fill")
		for i := range length {
			r.Ciphertext = append(r.Ciphertext, fill+byte(i))
		}
		e.Recipients = append(e.Recipients, r)
	}
	byRegion := func(x, y envelope.Recipient) int { return bytes.Compare(x.Region.ID[:], y.Region.ID[:]) }
	slices.SortFunc(e.Recipients, byRegion)
	e.Recipients = slices.CompactFunc(e.Recipients, func(x, y envelope.Recipient) bool { return byRegion(x, y) == 0 })
	return e
}

func drawContext(t *rapid.T) hierarchy.Context {
	key := rapid.OneOf(rapid.StringN(1, 12, 40), rapid.StringMatching(`[ab]{1,40}`))
	value := rapid.OneOf(rapid.StringN(0, 12, 40), rapid.StringMatching(`[v]{250,260}`))
	var entries []hierarchy.ContextEntry
	for k, v := range rapid.MapOfN(key, value, 0, hierarchy.MaxContextEntries).Draw(t, "context") {
		entries = append(entries, hierarchy.ContextEntry{Key: k, Value: v})
	}
	ctx, err := hierarchy.NewContext(entries...)
	if err != nil {
		t.Fatal(err)
	}
	return ctx
}

// mutate changes, removes or inserts one byte.
func mutate(t *rapid.T, b []byte) []byte {
	b = slices.Clone(b)
	at := rapid.IntRange(0, len(b)-1).Draw(t, "at")
	switch rapid.IntRange(0, 3).Draw(t, "mutation") {
	case 0:
		return slices.Delete(b, at, at+1)
	case 1:
		return slices.Insert(b, at, rapid.Byte().Draw(t, "inserted"))
	default:
		b[at] ^= rapid.ByteMin(1).Draw(t, "flip")
		return b
	}
}

func TestParseGivesBackWhatWasMarshalled(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		e := drawEnvelope(t)
		binary, err := e.Marshal()
		if err != nil {
			t.Fatal(err)
		}
		text, err := e.Text()
		if err != nil {
			t.Fatal(err)
		}
		for _, form := range [][]byte{binary, []byte(text), []byte(text + "\n")} {
			got, err := envelope.Parse(form)
			if err != nil {
				t.Fatal(err)
			}
			if diff := diff(e, got); diff != "" {
				t.Fatalf("-want +got:\n%s", diff)
			}
			// What the caller does with its buffer later, is nothing to the envelope.
			for i := range form {
				form[i] = 0xff
			}
			if diff := diff(e, got); diff != "" {
				t.Fatalf("the envelope points into the caller's buffer:\n%s", diff)
			}
		}
	})
}

// Whatever byte is changed: either it is no envelope any more, or it is another one. There are
// not two forms of one envelope.
func TestNotMalleable(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		e := drawEnvelope(t)
		binary, err := e.Marshal()
		if err != nil {
			t.Fatal(err)
		}
		text, err := e.Text()
		if err != nil {
			t.Fatal(err)
		}
		for _, form := range [][]byte{binary, []byte(text)} {
			b := mutate(t, form)
			got, err := envelope.Parse(b)
			if err != nil || bytes.Equal(b, form) || string(b) == text+"\n" {
				continue
			}
			if diff(e, got) == "" {
				t.Fatalf("%q and %q are both this envelope", form, b)
			}
		}
	})
}

// AAD tells apart everything that it is made of.
func TestAADIsInjective(t *testing.T) {
	type bound struct {
		Cluster   hierarchy.ClusterID
		Header    envelope.Header
		Recipient hierarchy.RegionID
		Context   hierarchy.Context
	}
	draw := func(t *rapid.T) bound {
		return bound{hierarchy.ClusterID{ID: drawID(t, "cluster")}, drawHeader(t), hierarchy.RegionID{ID: drawID(t, "recipient")}, drawContext(t)}
	}
	aad := func(b bound) []byte { return envelope.AAD(b.Cluster, b.Header, b.Recipient, b.Context) }
	rapid.Check(t, func(t *rapid.T) {
		x, y := draw(t), draw(t)
		// Only one part differs, and may be equal by chance.
		switch z := x; rapid.IntRange(0, 6).Draw(t, "part") {
		case 0:
			z.Cluster = y.Cluster
			y = z
		case 1:
			z.Header.Tenant = y.Header.Tenant
			y = z
		case 2:
			z.Header.Key = y.Header.Key
			y = z
		case 3:
			z.Header.Version = y.Header.Version
			y = z
		case 4:
			z.Header.SealedIn = y.Header.SealedIn
			y = z
		case 5:
			z.Recipient = y.Recipient
			y = z
		case 6:
			z.Context = y.Context
			y = z
		}
		if same := cmp.Equal(x, y); same != bytes.Equal(aad(x), aad(y)) {
			t.Fatalf("equal: %v, equal AAD: %v\n%+v\n%+v", same, !same, x, y)
		}
	})
}

func FuzzParse(f *testing.F) {
	for _, v := range readVectors(f) {
		f.Add([]byte(v.Binary))
		f.Add([]byte(v.Text))
	}
	for _, v := range readInvalid(f) {
		f.Add(v.bytes())
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		e, err := envelope.Parse(b)
		if err != nil {
			if !errors.Is(err, hierarchy.ErrEnvelopeInvalid) || e != nil {
				t.Fatalf("%v, with an envelope: %v", err, e != nil)
			}
			return
		}
		binary, err := e.Marshal()
		if err != nil {
			t.Fatalf("parsed, and cannot be marshalled: %v", err)
		}
		text, err := e.Text()
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(b, binary) && string(b) != text && string(b) != text+"\n" {
			t.Fatalf("%q is a further form of %q", b, binary)
		}
		for _, form := range [][]byte{binary, []byte(text)} {
			again, err := envelope.Parse(form)
			if err != nil {
				t.Fatal(err)
			}
			if diff := diff(e, again); diff != "" {
				t.Fatalf("-first +again:\n%s", diff)
			}
		}
	})
}

func FuzzParseIsTheReference(f *testing.F) {
	for _, v := range readVectors(f) {
		f.Add([]byte(v.Binary))
	}
	for _, v := range readInvalid(f) {
		f.Add(v.bytes())
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		if bytes.HasPrefix(b, []byte("kekd:")) {
			return // the reference has no text form
		}
		if err := agree(b); err != nil {
			t.Fatal(err)
		}
	})
}
