package hsm_test

import (
	"bytes"
	"errors"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/kekd/kekd/hierarchy"
	"github.com/kekd/kekd/hsm"
)

var owner = hsm.MarkOwner{
	Cluster: hierarchy.ClusterID{ID: hierarchy.ID{0xc1}},
	Node:    hierarchy.NodeID{ID: hierarchy.ID{0x0d}},
}

func TestMarkHalvesGrowByThemselves(t *testing.T) {
	for _, c := range []struct{ a, b, want hsm.Mark }{
		{hsm.Mark{5, 4, 9}, hsm.Mark{6, 4, 8}, hsm.Mark{6, 4, 9}},
		{hsm.Mark{5, 4, 9}, hsm.Mark{4, 5, 1}, hsm.Mark{5, 5, 1}}, // a later term, though at a lower index
		{hsm.Mark{5, 4, 9}, hsm.Mark{5, 3, 99}, hsm.Mark{5, 4, 9}},
		{hsm.Mark{5, 4, 9}, hsm.Mark{}, hsm.Mark{5, 4, 9}},
		{hsm.Mark{}, hsm.Mark{Term: 1}, hsm.Mark{Term: 1}},
	} {
		for _, got := range []hsm.Mark{c.a.Max(c.b), c.b.Max(c.a)} {
			if diff := cmp.Diff(c.want, got); diff != "" {
				t.Errorf("the higher of {%v} and {%v} (-want +got):\n%s", c.a, c.b, diff)
			}
		}
		if got, want := c.a.Covers(c.b), c.want == c.a; got != want {
			t.Errorf("{%v} covers {%v}: %t, want %t", c.a, c.b, got, want)
		}
	}
}

func drawMark(t *rapid.T) hsm.Mark {
	n := rapid.Uint64()
	return hsm.Mark{Term: n.Draw(t, "term"), LastTerm: n.Draw(t, "last term"), LastIndex: n.Draw(t, "last index")}
}

func TestMarkReadsBack(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		m := drawMark(t)
		written := hsm.AppendMark([]byte("x"), owner, m)[1:]
		if len(written) != hsm.MarkSize {
			t.Fatalf("%d bytes, want %d", len(written), hsm.MarkSize)
		}
		got, err := hsm.ParseMark(written, owner)
		if err != nil || got != m {
			t.Fatalf("wrote {%v}, read {%v}, %v", m, got, err)
		}
		damaged := bytes.Clone(written)
		damaged[rapid.IntRange(0, len(damaged)-1).Draw(t, "at")] ^= 1 << rapid.IntRange(0, 7).Draw(t, "bit")
		if _, err := hsm.ParseMark(damaged, owner); !errors.Is(err, hsm.ErrMarkUnreadable) {
			t.Fatalf("a damaged mark: %v, want ErrMarkUnreadable", err)
		}
	})
}

func TestMarkOfAnother(t *testing.T) {
	written := hsm.AppendMark(nil, owner, hsm.Mark{1, 2, 3})
	cluster, node := owner, owner
	cluster.Cluster.ID[15] = 1
	node.Node.ID[15] = 1
	for name, b := range map[string]struct {
		of      hsm.MarkOwner
		written []byte
	}{
		"cluster": {cluster, written}, "node": {node, written},
		"version": {owner, hsm.OtherFormat(written)}, "nothing": {owner, nil}, "more": {owner, append(bytes.Clone(written), 0)},
	} {
		if m, err := hsm.ParseMark(b.written, b.of); !errors.Is(err, hsm.ErrMarkUnreadable) {
			t.Errorf("another %s: {%v}, %v, want ErrMarkUnreadable", name, m, err)
		}
	}
}

// FuzzParseMark: what is read is what is written, whatever is read.
func FuzzParseMark(f *testing.F) {
	f.Add(hsm.AppendMark(nil, owner, hsm.Mark{1, 2, 3}))
	f.Add([]byte{1})
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := hsm.ParseMark(b, owner)
		if err == nil && !bytes.Equal(hsm.AppendMark(nil, owner, m), b) {
			t.Errorf("{%v} is written in two ways", m)
		}
	})
}
