package peer_test

import (
	"bytes"
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/kekd/kekd/cluster/peer"
	"github.com/kekd/kekd/hierarchy"
)

var services = []peer.Service{peer.Raft, peer.Calls, peer.Join}

func drawID(t *rapid.T, label string) (id hierarchy.ID) {
	copy(id[:], rapid.SliceOfN(rapid.Byte(), hierarchy.IDSize, hierarchy.IDSize).Draw(t, label))
	id[0] |= 1 // never zero
	return id
}

var names = rapid.StringMatching(`[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?`)

// What is said arrives, and what follows it is left in the stream.
func TestHelloIsReadBack(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		self := peer.Self{
			Cluster: hierarchy.ClusterID{ID: drawID(t, "cluster")},
			Node:    hierarchy.NodeID{ID: drawID(t, "node")},
			Name:    names.Draw(t, "name"),
		}
		e := peer.Epoch{Number: rapid.Uint64().Draw(t, "epoch"), Statement: [32]byte{rapid.Byte().Draw(t, "statement")}}
		service := rapid.SampledFrom(services).Draw(t, "service")
		if service == peer.Join {
			self.Node, e = hierarchy.NodeID{}, peer.Epoch{}
		}
		b := peer.HelloOf(self, e, service)
		stream := bytes.NewReader(append(bytes.Clone(b), "more"...))
		got, err := peer.RoundTripHello(stream)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(b, got); diff != "" {
			t.Errorf("-want +got:\n%s", diff)
		}
		if stream.Len() != len("more") {
			t.Errorf("%d bytes are left of what follows", stream.Len())
		}
		if s, err := peer.CheckHello(bytes.NewReader(b)); err != nil || s != service {
			t.Errorf("read as %q, %v", s, err)
		}
		if cut := rapid.IntRange(0, len(b)-1).Draw(t, "cut"); true {
			if _, err := peer.RoundTripHello(bytes.NewReader(b[:cut])); !errors.Is(err, peer.ErrProtocol) {
				t.Errorf("the first %d bytes of %d: %v", cut, len(b), err)
			}
		}
	})
}

// The bytes are what the format says, so that two versions of the program mean the same.
func TestHelloFormat(t *testing.T) {
	got := peer.HelloOf(
		peer.Self{Cluster: hierarchy.ClusterID{ID: hierarchy.ID{1}}, Node: hierarchy.NodeID{ID: hierarchy.ID{2}}, Name: "ab"},
		peer.Epoch{Number: 0x0102, Statement: [32]byte{3}}, peer.Calls)
	zeros := func(n int) string { return strings.Repeat("\x00", n) }
	want := "kekp\x01\x02" + "\x01" + zeros(15) + "\x02" + zeros(15) + zeros(6) + "\x01\x02" + "\x03" + zeros(31) + "\x02ab"
	if diff := cmp.Diff(want, string(got)); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
}

func TestHelloRefuses(t *testing.T) {
	self := peer.Self{Cluster: ourCluster, Node: nodeID("a"), Name: "a"}
	good := peer.HelloOf(self, peer.Epoch{Number: 1}, peer.Raft)
	altered := func(at int, to byte) []byte {
		b := bytes.Clone(good)
		b[at] = to
		return b
	}
	nobody := peer.HelloOf(peer.Self{Cluster: ourCluster, Name: "a"}, peer.Epoch{}, peer.Calls)
	for name, c := range map[string]struct {
		b     []byte
		words string
	}{
		"another beginning":   {altered(0, 'K'), "it begins with"},
		"version 0":           {altered(4, 0), "version 0"},
		"no service":          {altered(5, 0), "no service 0"},
		"a service to come":   {altered(5, 4), "no service 4"},
		"a name of length 0":  {altered(78, 0), "a name is empty"},
		"a name of length 64": {append(altered(78, 64), make([]byte, 64)...), "at most 63"},
		"a capital letter":    {altered(79, 'A'), "use a-z"},
		"no cluster":          {peer.HelloOf(peer.Self{Node: self.Node, Name: "a"}, peer.Epoch{}, peer.Raft), "no cluster ID"},
		"no node":             {nobody, "no node ID"},
		"who joins has an ID": {peer.HelloOf(self, peer.Epoch{}, peer.Join), "no node ID and no epoch"},
		"who joins has an epoch": {peer.HelloOf(peer.Self{Cluster: ourCluster, Name: "a"}, peer.Epoch{Number: 1}, peer.Join),
			"no node ID and no epoch"},
	} {
		if _, err := peer.CheckHello(bytes.NewReader(c.b)); !errors.Is(err, peer.ErrProtocol) || !strings.Contains(err.Error(), c.words) {
			t.Errorf("%s: got %v, want an ErrProtocol that says %q", name, err, c.words)
		}
	}
	if err := peer.CheckAnswer(bytes.NewReader(altered(5, 8))); !errors.Is(err, peer.ErrProtocol) {
		t.Errorf("a verdict to come: %v", err)
	}
	if err := peer.CheckAnswer(bytes.NewReader(nobody)); !errors.Is(err, peer.ErrProtocol) {
		t.Errorf("an answer of nobody: %v", err)
	}
}

// There is one text for each hello, nothing is read beyond it, and every refusal is an ErrProtocol.
func FuzzHello(f *testing.F) {
	self := peer.Self{Cluster: ourCluster, Node: nodeID("a"), Name: "node-a"}
	for _, s := range services {
		f.Add(peer.HelloOf(self, peer.Epoch{Number: 7, Statement: [32]byte{1}}, s))
	}
	f.Add([]byte("kekp\x02"))
	f.Add([]byte("GET / HTTP/1.1\r\n\r\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		r := bytes.NewReader(b)
		got, err := peer.RoundTripHello(r)
		if err != nil {
			if !errors.Is(err, peer.ErrProtocol) {
				t.Fatal(err)
			}
			return
		}
		if read := b[:len(b)-r.Len()]; !bytes.Equal(read, got) {
			t.Fatalf("read %x, wrote %x", read, got)
		}
		if _, err := peer.CheckHello(bytes.NewReader(b)); err != nil && !errors.Is(err, peer.ErrProtocol) {
			t.Fatal(err)
		}
		if err := peer.CheckAnswer(bytes.NewReader(b)); err != nil && !errors.Is(err, peer.ErrProtocol) {
			t.Fatal(err)
		}
	})
}
