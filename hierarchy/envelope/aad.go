package envelope

import (
	"cmp"
	"slices"

	"github.com/kekd/kekd/hierarchy"
)

// aadDomain keeps these seals apart from any other use of a key.
const aadDomain = "kekd envelope v1"

// AAD returns the additional authenticated data of one recipient's seal: deterministic CBOR of
//
//	[aadDomain, cluster ID, tenant ID, key ID, version, sealing region, recipient region, context]
//
// It names IDs and never names, so that renaming breaks no seal and a reused name opens none.
// The context is one that [hierarchy.NewContext] made.
func AAD(cluster hierarchy.ClusterID, h Header, recipient hierarchy.RegionID, ctx hierarchy.Context) []byte {
	size := 1 + (1 + len(aadDomain)) + 5*(1+hierarchy.IDSize) + 5 + 1
	for _, e := range ctx {
		size += 3 + len(e.Key) + 3 + len(e.Value)
	}
	b := make([]byte, 0, size)
	b = appendHead(b, majorArray, 8)
	b = appendText(b, aadDomain)
	b = appendBytes(b, cluster.ID[:])
	b = appendBytes(b, h.Tenant.ID[:])
	b = appendBytes(b, h.Key.ID[:])
	b = appendHead(b, majorUint, h.Version)
	b = appendBytes(b, h.SealedIn.ID[:])
	b = appendBytes(b, recipient.ID[:])
	return appendContext(b, ctx)
}

// appendContext appends the context as a map. CBOR orders keys by their encoded form, which
// begins with the length, so this is not the order of the context itself.
func appendContext(b []byte, ctx hierarchy.Context) []byte {
	var onStack [hierarchy.MaxContextEntries]hierarchy.ContextEntry
	entries := append(onStack[:0], ctx...)
	slices.SortFunc(entries, func(x, y hierarchy.ContextEntry) int {
		return cmp.Or(cmp.Compare(len(x.Key), len(y.Key)), cmp.Compare(x.Key, y.Key))
	})
	b = appendHead(b, majorMap, uint32(len(entries)))
	for _, e := range entries {
		b = appendText(b, e.Key)
		b = appendText(b, e.Value)
	}
	return b
}
