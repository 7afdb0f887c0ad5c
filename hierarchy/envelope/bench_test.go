package envelope_test

import (
	"testing"

	"github.com/kekd/kekd/hierarchy"
	"github.com/kekd/kekd/hierarchy/envelope"
)

// What is measured is an envelope of a 32-byte data key in one region, and in three.
func benchEnvelope(regions int) *envelope.Envelope {
	e := &envelope.Envelope{Header: envelope.Header{
		Tenant: hierarchy.TenantID{ID: idOf(1)}, Key: hierarchy.KeyID{ID: idOf(2)}, Version: 3, SealedIn: hierarchy.RegionID{ID: idOf(4)},
	}}
	for i := range regions {
		e.Recipients = append(e.Recipients, envelope.Recipient{Region: hierarchy.RegionID{ID: idOf(byte(4 + i))}, Ciphertext: make([]byte, 48)})
	}
	return e
}

func BenchmarkParse(b *testing.B) {
	for name, e := range map[string]*envelope.Envelope{"regions=1": benchEnvelope(1), "regions=3": benchEnvelope(3)} {
		binary, text := must(e.Marshal()), []byte(must(e.Text()))
		for form, bytes := range map[string][]byte{"binary": binary, "text": text} {
			b.Run(name+"/"+form, func(b *testing.B) {
				b.ReportAllocs()
				for b.Loop() {
					must(envelope.Parse(bytes))
				}
			})
		}
		b.Run(name+"/reference", func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				must(refParse(binary))
			}
		})
	}
}

func BenchmarkMarshal(b *testing.B) {
	for name, e := range map[string]*envelope.Envelope{"regions=1": benchEnvelope(1), "regions=3": benchEnvelope(3)} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				must(e.Marshal())
			}
		})
		b.Run(name+"/reference", func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				refMarshal(e)
			}
		})
	}
}

func BenchmarkAAD(b *testing.B) {
	e := benchEnvelope(1)
	ctx := must(hierarchy.NewContext(hierarchy.ContextEntry{Key: "app", Value: "billing"}, hierarchy.ContextEntry{Key: "tenant", Value: "acme"}))
	cluster := hierarchy.ClusterID{ID: idOf(9)}
	b.Run("entries=2", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			envelope.AAD(cluster, e.Header, e.SealedIn, ctx)
		}
	})
	b.Run("entries=2/reference", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			refAAD(cluster, e.Header, e.SealedIn, ctx)
		}
	})
}
