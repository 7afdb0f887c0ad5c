package envelope_test

import (
	"bytes"
	"errors"
	"reflect"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/kekd/kekd/hierarchy"
	"github.com/kekd/kekd/hierarchy/envelope"
	"github.com/kekd/kekd/hsm"
)

func idOf(b byte) hierarchy.ID { return hierarchy.ID(bytes.Repeat([]byte{b}, hierarchy.IDSize)) }

func regionOf(b byte) hierarchy.RegionID { return hierarchy.RegionID{ID: idOf(b)} }

// diff is cmp.Diff, which takes its time over bytes, for what is nearly always equal.
func diff(want, got *envelope.Envelope) string {
	if reflect.DeepEqual(want, got) {
		return ""
	}
	return cmp.Diff(want, got)
}

// What a token makes has to fit in an envelope, and the other way round.
func TestLimitsAreTheTokens(t *testing.T) {
	if envelope.IVSize != hsm.IVSize || envelope.TagSize != hsm.TagSize || envelope.MaxPlaintext != hsm.MaxPlaintext {
		t.Error("the limits of an envelope are not those of a token")
	}
}

func TestMarshalRefuses(t *testing.T) {
	for name, c := range map[string]struct {
		change func(*envelope.Envelope)
		reason string
	}{
		"no tenant":            {func(e *envelope.Envelope) { e.Tenant = hierarchy.TenantID{} }, "tenant ID"},
		"no key":               {func(e *envelope.Envelope) { e.Key = hierarchy.KeyID{} }, "key ID"},
		"version 0":            {func(e *envelope.Envelope) { e.Version = 0 }, "key version"},
		"no sealing region":    {func(e *envelope.Envelope) { e.SealedIn = hierarchy.RegionID{} }, "sealing region"},
		"no recipients":        {func(e *envelope.Envelope) { e.Recipients = nil }, "recipients: there are 0"},
		"seventeen recipients": {func(e *envelope.Envelope) { *e = *benchEnvelope(17) }, "recipients: there are 17"},
		"no region":            {func(e *envelope.Envelope) { e.Recipients[1].Region = hierarchy.RegionID{} }, "region: it is zero (recipient 2)"},
		"not sorted":           {func(e *envelope.Envelope) { e.Recipients[0].Region = regionOf(9) }, "not sorted by region ID (recipient 2)"},
		"a region twice":       {func(e *envelope.Envelope) { e.Recipients[1].Region = e.Recipients[0].Region }, "it is there twice (recipient 2)"},
		"no ciphertext":        {func(e *envelope.Envelope) { e.Recipients[0].Ciphertext = nil }, "ciphertext: it has 0 bytes"},
		"a tag alone":          {func(e *envelope.Envelope) { e.Recipients[0].Ciphertext = make([]byte, 16) }, "ciphertext: it has 16 bytes"},
		"long ciphertext":      {func(e *envelope.Envelope) { e.Recipients[1].Ciphertext = make([]byte, 4113) }, "ciphertext: it has 4113 bytes"},
		"too large": {func(e *envelope.Envelope) {
			*e = *benchEnvelope(4)
			for i := range e.Recipients {
				e.Recipients[i].Ciphertext = make([]byte, 4112)
			}
		}, "at most 16384"},
	} {
		t.Run(name, func(t *testing.T) {
			e := benchEnvelope(2)
			c.change(e)
			before := []byte("before")
			after, err := e.AppendBinary(before)
			if !errors.Is(err, hierarchy.ErrEnvelopeInvalid) || !strings.Contains(err.Error(), c.reason) {
				t.Errorf("got %v, want an invalid envelope that says %q", err, c.reason)
			}
			if diff := cmp.Diff(before, after); diff != "" {
				t.Errorf("something was appended (-want +got):\n%s", diff)
			}
			if text, err := e.Text(); !errors.Is(err, hierarchy.ErrEnvelopeInvalid) || text != "" {
				t.Errorf("Text: got %q, %v", text, err)
			}
		})
	}
}

// The limits are those of the documentation, and inclusive.
func TestLargestEnvelopes(t *testing.T) {
	for name, c := range map[string]struct{ regions, plaintext int }{
		"4096 bytes in three regions": {3, 4096},
		"64 bytes in sixteen regions": {16, 64},
		"one byte in one region":      {1, 1},
	} {
		t.Run(name, func(t *testing.T) {
			e := benchEnvelope(c.regions)
			for i := range e.Recipients {
				e.Recipients[i].Ciphertext = bytes.Repeat([]byte{byte(i)}, c.plaintext+16)
			}
			for _, form := range [][]byte{must(e.Marshal()), []byte(must(e.Text()))} {
				got, err := envelope.Parse(form)
				if err != nil {
					t.Fatal(err)
				}
				if diff := diff(e, got); diff != "" {
					t.Errorf("-want +got:\n%s", diff)
				}
			}
		})
	}
}

// Size is refused before anything is decoded, in either form.
func TestOversizedIsRefused(t *testing.T) {
	binary := append(must(benchEnvelope(1).Marshal()), make([]byte, 1<<20)...)
	text := append([]byte(must(benchEnvelope(1).Text())), bytes.Repeat([]byte("*"), 1<<20)...)
	for name, b := range map[string][]byte{"binary": binary, "text": text} {
		_, err := envelope.Parse(b)
		if !errors.Is(err, hierarchy.ErrEnvelopeInvalid) || !strings.Contains(err.Error(), "at most 16384") {
			t.Errorf("%s: got %v, want an envelope that is too large", name, err)
		}
	}
}

func TestAppendBinaryAppends(t *testing.T) {
	e := benchEnvelope(2)
	got := must(e.AppendBinary([]byte("before")))
	want := append([]byte("before"), must(e.Marshal())...)
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
}

// The ciphertexts of a parsed envelope lie in one buffer, and none can grow into the next.
func TestCiphertextsAreApart(t *testing.T) {
	want := benchEnvelope(2)
	got := must(envelope.Parse(must(want.Marshal())))
	first := got.Recipients[0].Ciphertext
	_ = append(first, bytes.Repeat([]byte{0xff}, 60)...)
	if diff := diff(want, got); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
}

func TestRecipient(t *testing.T) {
	e := benchEnvelope(3)
	for i := range e.Recipients {
		if r, ok := e.Recipient(e.Recipients[i].Region); !ok || r != &e.Recipients[i] {
			t.Errorf("recipient %d is not found", i+1)
		}
	}
	if r, ok := e.Recipient(regionOf(99)); ok || r != nil {
		t.Errorf("found %+v for a region that is not there", r)
	}
}

// Every request passes through here: three allocations to read, one to write.
func TestAllocations(t *testing.T) {
	e := benchEnvelope(3)
	binary := must(e.Marshal())
	ctx := must(hierarchy.NewContext(hierarchy.ContextEntry{Key: "b", Value: "1"}, hierarchy.ContextEntry{Key: "aa", Value: "2"}))
	for name, c := range map[string]struct {
		most float64
		do   func()
	}{
		"Parse":   {3, func() { must(envelope.Parse(binary)) }},
		"Marshal": {1, func() { must(e.Marshal()) }},
		"AAD":     {1, func() { envelope.AAD(hierarchy.ClusterID{}, e.Header, e.SealedIn, ctx) }},
	} {
		if n := testing.AllocsPerRun(100, c.do); n > c.most {
			t.Errorf("%s: %v allocations, want at most %v", name, n, c.most)
		}
	}
}
