package envelope_test

import (
	"crypto/aes"
	"crypto/cipher"
	"encoding/hex"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/kekd/kekd/hierarchy"
	"github.com/kekd/kekd/hierarchy/envelope"
)

// The vectors were made by another implementation of docs/FORMATS.md, with AES keys that are
// in the file. They are never changed: a codec that does not fit them is wrong.

type hexBytes []byte

func (h *hexBytes) UnmarshalText(b []byte) error {
	var err error
	*h, err = hex.AppendDecode(nil, b)
	return err
}

type vector struct {
	Name       string              `json:"name"`
	Cluster    hierarchy.ClusterID `json:"cluster"`
	Tenant     hierarchy.TenantID  `json:"tenant"`
	Key        hierarchy.KeyID     `json:"key"`
	Version    uint32              `json:"version"`
	SealedIn   hierarchy.RegionID  `json:"sealed_in"`
	Context    map[string]string   `json:"context"`
	Plaintext  hexBytes            `json:"plaintext"`
	Recipients []struct {
		Region     hierarchy.RegionID `json:"region"`
		KEK        hexBytes           `json:"kek"` // AES-256
		IV         hexBytes           `json:"iv"`
		Ciphertext hexBytes           `json:"ciphertext"`
		AAD        hexBytes           `json:"aad"`
	} `json:"recipients"`
	Binary hexBytes `json:"binary"`
	Text   string   `json:"text"`
	SHA256 hexBytes `json:"sha256"`
}

func (v *vector) context(t testing.TB) hierarchy.Context {
	t.Helper()
	var entries []hierarchy.ContextEntry
	for key, value := range v.Context {
		entries = append(entries, hierarchy.ContextEntry{Key: key, Value: value})
	}
	ctx, err := hierarchy.NewContext(entries...)
	if err != nil {
		t.Fatal(err)
	}
	return ctx
}

func (v *vector) envelope() *envelope.Envelope {
	e := &envelope.Envelope{Header: envelope.Header{Tenant: v.Tenant, Key: v.Key, Version: v.Version, SealedIn: v.SealedIn}}
	for _, r := range v.Recipients {
		e.Recipients = append(e.Recipients, envelope.Recipient{Region: r.Region, IV: [12]byte(r.IV), Ciphertext: r.Ciphertext})
	}
	return e
}

type invalidVector struct {
	Why    string   `json:"why"`
	Field  string   `json:"field"` // what the error has to name
	Binary hexBytes `json:"binary"`
	Text   string   `json:"text"`
}

func (v *invalidVector) bytes() []byte {
	if v.Text != "" {
		return []byte(v.Text)
	}
	return v.Binary
}

func readJSON[T any](t testing.TB, file string) []T {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("testdata", file))
	if err != nil {
		t.Fatal(err)
	}
	var vs []T
	if err := json.Unmarshal(b, &vs); err != nil {
		t.Fatal(err)
	}
	if len(vs) == 0 {
		t.Fatalf("%s has no vectors", file)
	}
	return vs
}

func readVectors(t testing.TB) []vector        { return readJSON[vector](t, "valid.json") }
func readInvalid(t testing.TB) []invalidVector { return readJSON[invalidVector](t, "invalid.json") }

func gcm(t testing.TB, key []byte) cipher.AEAD {
	t.Helper()
	block, err := aes.NewCipher(key)
	if err != nil {
		t.Fatal(err)
	}
	aead, err := cipher.NewGCM(block)
	if err != nil {
		t.Fatal(err)
	}
	return aead
}

func TestVectors(t *testing.T) {
	for _, v := range readVectors(t) {
		t.Run(v.Name, func(t *testing.T) {
			want := v.envelope()
			for form, b := range map[string][]byte{"binary": v.Binary, "text": []byte(v.Text), "text with a newline": []byte(v.Text + "\n")} {
				got, err := envelope.Parse(b)
				if err != nil {
					t.Fatalf("%s: %v", form, err)
				}
				if diff := cmp.Diff(want, got); diff != "" {
					t.Errorf("%s (-want +got):\n%s", form, diff)
				}
			}
			binary, err := want.Marshal()
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff([]byte(v.Binary), binary); diff != "" {
				t.Errorf("binary (-want +got):\n%s", diff)
			}
			text, err := want.Text()
			if err != nil {
				t.Fatal(err)
			}
			if text != v.Text {
				t.Errorf("text %q, want %q", text, v.Text)
			}
			hash := envelope.Hash(binary)
			if diff := cmp.Diff([]byte(v.SHA256), hash[:]); diff != "" {
				t.Errorf("hash (-want +got):\n%s", diff)
			}
			ctx := v.context(t)
			for i, r := range v.Recipients {
				aad := envelope.AAD(v.Cluster, want.Header, r.Region, ctx)
				if diff := cmp.Diff([]byte(r.AAD), aad); diff != "" {
					t.Errorf("AAD of recipient %d (-want +got):\n%s", i+1, diff)
				}
				entry, ok := want.Recipient(r.Region)
				if !ok {
					t.Fatalf("recipient %d is not found by its region", i+1)
				}
				plaintext, err := gcm(t, r.KEK).Open(nil, entry.IV[:], entry.Ciphertext, aad)
				if err != nil {
					t.Fatalf("recipient %d does not open: %v", i+1, err)
				}
				if diff := cmp.Diff([]byte(v.Plaintext), plaintext); diff != "" {
					t.Errorf("recipient %d (-want +got):\n%s", i+1, diff)
				}
			}
		})
	}
}

// The example of docs/FORMATS.md. Its context is sorted by key, and its map by encoded key.
func TestAADOfTheDocumentation(t *testing.T) {
	ctx, err := hierarchy.NewContext(hierarchy.ContextEntry{Key: "b", Value: "2"}, hierarchy.ContextEntry{Key: "aa", Value: "1"})
	if err != nil {
		t.Fatal(err)
	}
	h := envelope.Header{Tenant: hierarchy.TenantID{ID: idOf(2)}, Key: hierarchy.KeyID{ID: idOf(3)}, Version: 3, SealedIn: regionOf(4)}
	got := hex.EncodeToString(envelope.AAD(hierarchy.ClusterID{ID: idOf(1)}, h, regionOf(4), ctx))
	want := "88" +
		"706b656b6420656e76656c6f7065207631" +
		"50" + strings.Repeat("01", 16) +
		"50" + strings.Repeat("02", 16) +
		"50" + strings.Repeat("03", 16) +
		"03" +
		"50" + strings.Repeat("04", 16) +
		"50" + strings.Repeat("04", 16) +
		"a2616261326261616131"
	if got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}

// What is sealed for one tenant, key, version, region, cluster or context opens for no other.
func TestVectorsOpenForNothingElse(t *testing.T) {
	type bound struct {
		cluster   hierarchy.ClusterID
		header    envelope.Header
		recipient hierarchy.RegionID
		context   map[string]string
	}
	changes := map[string]func(*bound){
		"cluster":          func(b *bound) { b.cluster.ID[0] ^= 1 },
		"tenant":           func(b *bound) { b.header.Tenant.ID[15] ^= 1 },
		"key":              func(b *bound) { b.header.Key.ID[7] ^= 0x80 },
		"version":          func(b *bound) { b.header.Version ^= 1 },
		"sealing region":   func(b *bound) { b.header.SealedIn.ID[3] ^= 4 },
		"recipient region": func(b *bound) { b.recipient.ID[3] ^= 4 },
		"tenant and key exchanged": func(b *bound) {
			b.header.Tenant.ID, b.header.Key.ID = b.header.Key.ID, b.header.Tenant.ID
		},
		"a context entry more": func(b *bound) { b.context["app2"] = "" },
		"a context entry less": func(b *bound) {
			for key := range b.context {
				delete(b.context, key)
				return
			}
			b.context["of an empty context"] = ""
		},
		"a context value": func(b *bound) {
			for key := range b.context {
				b.context[key] += "x"
				return
			}
			b.context["of an empty context"] = ""
		},
	}
	for _, v := range readVectors(t) {
		if len(v.Context) == hierarchy.MaxContextEntries {
			continue // has no room for an entry more
		}
		for what, change := range changes {
			for _, r := range v.Recipients {
				b := bound{v.Cluster, v.envelope().Header, r.Region, map[string]string{}}
				for key, value := range v.Context {
					b.context[key] = value
				}
				change(&b)
				aad := envelope.AAD(b.cluster, b.header, b.recipient, (&vector{Context: b.context}).context(t))
				if _, err := gcm(t, r.KEK).Open(nil, r.IV, r.Ciphertext, aad); err == nil {
					t.Errorf("%s: opens with %s changed", v.Name, what)
				}
			}
		}
	}
}

// Whatever bit is flipped: the envelope is refused, or some recipient's seal breaks.
func TestNoFlippedBitOpens(t *testing.T) {
	for _, v := range readVectors(t) {
		ctx := v.context(t)
		for i := range 8 * len(v.Binary) {
			b := slices.Clone(v.Binary)
			b[i/8] ^= 1 << (i % 8)
			e, err := envelope.Parse(b)
			if err != nil {
				continue
			}
			opened := 0
			for _, r := range v.Recipients {
				entry, ok := e.Recipient(r.Region)
				if !ok {
					continue
				}
				aad := envelope.AAD(v.Cluster, e.Header, r.Region, ctx)
				if _, err := gcm(t, r.KEK).Open(nil, entry.IV[:], entry.Ciphertext, aad); err == nil {
					opened++
				}
			}
			if opened == len(v.Recipients) {
				t.Errorf("%s: opens everywhere with bit %d of byte %d flipped", v.Name, i%8, i/8)
			}
		}
	}
}

func TestInvalidVectors(t *testing.T) {
	for _, v := range readInvalid(t) {
		t.Run(v.Why, func(t *testing.T) {
			e, err := envelope.Parse(v.bytes())
			if !errors.Is(err, hierarchy.ErrEnvelopeInvalid) {
				t.Fatalf("got %v, want an invalid envelope", err)
			}
			if e != nil {
				t.Error("got an envelope beside the error")
			}
			if !strings.Contains(err.Error(), v.Field) {
				t.Errorf("the error %q does not name %q", err, v.Field)
			}
			if v.Text == "" {
				if _, err := refParse(v.Binary); err == nil {
					t.Error("the reference accepts it")
				}
			}
		})
	}
}
