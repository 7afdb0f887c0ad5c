package hierarchy_test

import (
	"bytes"
	"testing"

	"github.com/kekd/kekd/hierarchy"
)

// object is all that an object's ID is derived from.
type object struct {
	cluster  hierarchy.ClusterID
	tenant   hierarchy.TenantID
	key      hierarchy.KeyID
	version  uint32
	from, to hierarchy.RegionID // a KEK has no to
	attempt  uint32
}

func (o object) id() hierarchy.ObjectID {
	if o.to.IsZero() {
		return hierarchy.KEKObjectID(o.cluster, o.tenant, o.key, o.version, o.from, o.attempt)
	}
	return hierarchy.BridgeObjectID(o.cluster, o.tenant, o.key, o.version, o.from, o.to, o.attempt)
}

// repeated has identifiers of one byte repeated, 01 for the cluster to 04 for the region.
func repeated() object {
	id := func(b byte) hierarchy.ID { return hierarchy.ID(bytes.Repeat([]byte{b}, hierarchy.IDSize)) }
	return object{
		cluster: hierarchy.ClusterID{ID: id(1)}, tenant: hierarchy.TenantID{ID: id(2)}, key: hierarchy.KeyID{ID: id(3)},
		version: 1, from: hierarchy.RegionID{ID: id(4)}, attempt: 1,
	}
}

// counted has the bytes 00, 01, 02, ... in its identifiers, one after the other.
func counted() object {
	id := func(first byte) (id hierarchy.ID) {
		for i := range id {
			id[i] = first + byte(i)
		}
		return id
	}
	return object{
		cluster: hierarchy.ClusterID{ID: id(0)}, tenant: hierarchy.TenantID{ID: id(16)}, key: hierarchy.KeyID{ID: id(32)},
		version: 0x01020304, from: hierarchy.RegionID{ID: id(48)}, attempt: 7,
	}
}

func toRegion(o object, first, step byte) object {
	for i := range o.to.ID {
		o.to.ID[i] = first + step*byte(i)
	}
	return o
}

// The values were computed by another program from docs/FORMATS.md. Tokens hold objects under
// such IDs: a change loses every key.
func TestObjectIDsAreFrozen(t *testing.T) {
	bridge := toRegion(repeated(), 5, 0)
	back := bridge
	back.from, back.to = back.to, back.from
	next := repeated()
	next.attempt = 2
	last := repeated()
	last.version, last.attempt = 1<<32-1, 1<<32-1
	for name, c := range map[string]struct {
		object object
		want   string
	}{
		"KEK":                          {repeated(), "55669c6118ccf9d85a020860c5c272c311c30c99"},
		"KEK of the next attempt":      {next, "ede51650f5e198925ed5065a93e88559772ccc7a"},
		"KEK of the highest numbers":   {last, "f3bd00ab4417149ab3c4bd29ed25ad9fd16b4609"},
		"bridge":                       {bridge, "0ce2c70f078b73aff8b25111d59591d632c9ae2f"},
		"bridge of the other way":      {back, "62bd3e6da6a312af3bde3b40a286e99070fcbaf0"},
		"KEK of counted identifiers":   {counted(), "d178599e00b11b3964a27b31c0d66bbe60534c5c"},
		"bridge of counted identifier": {toRegion(counted(), 64, 1), "61e541c1be346fe12d69a18126155ea430581106"},
	} {
		if got := c.object.id().String(); got != c.want {
			t.Errorf("%s: got %s, want %s", name, got, c.want)
		}
	}
}

// Every part counts: no two objects share an ID.
func TestObjectIDsDiffer(t *testing.T) {
	seen := map[hierarchy.ObjectID]string{}
	for name, change := range map[string]func(*object){
		"itself":                    func(*object) {},
		"cluster":                   func(o *object) { o.cluster.ID[15] ^= 1 },
		"tenant":                    func(o *object) { o.tenant.ID[0] ^= 1 },
		"key":                       func(o *object) { o.key.ID[7] ^= 1 },
		"tenant and key exchanged":  func(o *object) { o.tenant.ID, o.key.ID = o.key.ID, o.tenant.ID },
		"version":                   func(o *object) { o.version = 2 },
		"attempt":                   func(o *object) { o.attempt = 2 },
		"version with attempt":      func(o *object) { o.version, o.attempt = 2, 2 },
		"region":                    func(o *object) { o.from.ID[3] ^= 1 },
		"a bridge":                  func(o *object) { *o = toRegion(*o, 5, 0) },
		"a bridge to itself":        func(o *object) { o.to = o.from },
		"a bridge to another":       func(o *object) { *o = toRegion(*o, 6, 0) },
		"a bridge of another start": func(o *object) { *o = toRegion(*o, 5, 0); o.from.ID[0] ^= 1 },
		"a bridge back":             func(o *object) { *o = toRegion(*o, 5, 0); o.from, o.to = o.to, o.from },
	} {
		o := repeated()
		change(&o)
		if other, ok := seen[o.id()]; ok {
			t.Errorf("%s and %s share an ID", name, other)
		}
		seen[o.id()] = name
	}
}

func TestCheckValueAsText(t *testing.T) {
	if got := (hierarchy.CheckValue{0xab, 0, 0x0f}).String(); got != "ab000f" {
		t.Errorf("got %s, want ab000f", got)
	}
}
