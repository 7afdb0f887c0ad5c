package envelope_test

import (
	"bytes"
	"errors"
	"fmt"
	"testing"

	"github.com/fxamacker/cbor/v2"
	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/kekd/kekd/hierarchy"
	"github.com/kekd/kekd/hierarchy/envelope"
)

// The reference is the format once more, by the general CBOR library and its options. It is
// what the package's own codec is held to.

type refEnvelope struct {
	Format     uint64         `cbor:"1,keyasint"`
	Tenant     []byte         `cbor:"2,keyasint"`
	Key        []byte         `cbor:"3,keyasint"`
	Version    uint64         `cbor:"4,keyasint"`
	SealedIn   []byte         `cbor:"5,keyasint"`
	Recipients []refRecipient `cbor:"6,keyasint"`
}

type refRecipient struct {
	Region     []byte `cbor:"1,keyasint"`
	IV         []byte `cbor:"2,keyasint"`
	Ciphertext []byte `cbor:"3,keyasint"`
}

var (
	refEncoding = must(cbor.CoreDetEncOptions().EncMode())
	refDecoding = must(cbor.DecOptions{
		DupMapKey:         cbor.DupMapKeyEnforcedAPF,
		IndefLength:       cbor.IndefLengthForbidden,
		TagsMd:            cbor.TagsForbidden,
		ExtraReturnErrors: cbor.ExtraDecErrorUnknownField,
		MaxArrayElements:  envelope.MaxRecipients,
		MaxMapPairs:       16,
		MaxNestedLevels:   4,
	}.DecMode())
)

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// refParse reads the binary form by the library, and refuses whatever does not encode to the
// same bytes again.
func refParse(b []byte) (*envelope.Envelope, error) {
	if len(b) > 16<<10 {
		return nil, errors.New("too large")
	}
	var ref refEnvelope
	if err := refDecoding.Unmarshal(b, &ref); err != nil {
		return nil, err
	}
	again, err := refEncoding.Marshal(ref)
	if err != nil {
		return nil, err
	}
	if !bytes.Equal(again, b) {
		return nil, errors.New("encodes otherwise")
	}
	if ref.Format != 1 || ref.Version < 1 || ref.Version > 1<<32-1 || len(ref.Recipients) < 1 || len(ref.Recipients) > 16 {
		return nil, errors.New("out of range")
	}
	e := &envelope.Envelope{Header: envelope.Header{Version: uint32(ref.Version)}}
	ids := []struct {
		from []byte
		to   *hierarchy.ID
	}{{ref.Tenant, &e.Tenant.ID}, {ref.Key, &e.Key.ID}, {ref.SealedIn, &e.SealedIn.ID}}
	e.Recipients = make([]envelope.Recipient, len(ref.Recipients))
	for i, r := range ref.Recipients {
		if i > 0 && bytes.Compare(ref.Recipients[i-1].Region, r.Region) >= 0 {
			return nil, errors.New("not sorted")
		}
		if len(r.IV) != 12 || len(r.Ciphertext) < 17 || len(r.Ciphertext) > 4096+16 {
			return nil, errors.New("recipient out of range")
		}
		ids = append(ids, struct {
			from []byte
			to   *hierarchy.ID
		}{r.Region, &e.Recipients[i].Region.ID})
		e.Recipients[i].IV, e.Recipients[i].Ciphertext = [12]byte(r.IV), r.Ciphertext
	}
	for _, id := range ids {
		if len(id.from) != 16 || bytes.Equal(id.from, make([]byte, 16)) {
			return nil, errors.New("no ID")
		}
		*id.to = hierarchy.ID(id.from)
	}
	return e, nil
}

func refMarshal(e *envelope.Envelope) []byte {
	ref := refEnvelope{Format: 1, Tenant: e.Tenant.ID[:], Key: e.Key.ID[:], Version: uint64(e.Version), SealedIn: e.SealedIn.ID[:]}
	for _, r := range e.Recipients {
		ref.Recipients = append(ref.Recipients, refRecipient{r.Region.ID[:], r.IV[:], r.Ciphertext})
	}
	return must(refEncoding.Marshal(ref))
}

func refAAD(cluster hierarchy.ClusterID, h envelope.Header, recipient hierarchy.RegionID, ctx hierarchy.Context) []byte {
	m := map[string]string{}
	for _, e := range ctx {
		m[e.Key] = e.Value
	}
	return must(refEncoding.Marshal([]any{
		"kekd envelope v1", cluster.ID[:], h.Tenant.ID[:], h.Key.ID[:], h.Version, h.SealedIn.ID[:], recipient.ID[:], m,
	}))
}

// agree fails unless the package and the reference say the same of b.
func agree(b []byte) error {
	got, err := envelope.Parse(b)
	want, refErr := refParse(b)
	if (err == nil) != (refErr == nil) {
		return fmt.Errorf("%x: Parse says %v, the reference says %v", b, err, refErr)
	}
	if diff := diff(want, got); diff != "" {
		return fmt.Errorf("%x (-reference +Parse):\n%s", b, diff)
	}
	return nil
}

func TestCodecIsTheReference(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		e := drawEnvelope(t)
		want := refMarshal(e)
		got, err := e.Marshal()
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Fatalf("-reference +Marshal:\n%s", diff)
		}
		if err := agree(got); err != nil {
			t.Fatal(err)
		}
		b := mutate(t, got)
		if bytes.HasPrefix(b, []byte("kekd:")) {
			return // the reference has no text form
		}
		if err := agree(b); err != nil {
			t.Fatal(err)
		}
	})
}

func TestAADIsTheReference(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		e, cluster, ctx := drawEnvelope(t), hierarchy.ClusterID{ID: drawID(t, "cluster")}, drawContext(t)
		region := e.Recipients[0].Region
		if diff := cmp.Diff(refAAD(cluster, e.Header, region, ctx), envelope.AAD(cluster, e.Header, region, ctx)); diff != "" {
			t.Fatalf("-reference +AAD:\n%s", diff)
		}
	})
}
