package vtcodec_test

import (
	"bytes"
	"testing"

	"github.com/kekd/kekd/unix-socket-api/kekdv1"
	"github.com/kekd/kekd/unix-socket-api/vtcodec"
	"google.golang.org/grpc/encoding"
	_ "google.golang.org/grpc/encoding/proto"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/proto"
)

// spy is a pool that keeps what was given back to it.
type spy struct {
	mem.BufferPool
	back []*[]byte
}

func (s *spy) Put(b *[]byte) {
	s.BufferPool.Put(b)
	s.back = append(s.back, b)
}

func message(n int) *kekdv1.UnwrapResponse {
	return &kekdv1.UnwrapResponse{Plaintext: bytes.Repeat([]byte{0xAB}, n), Key: "acme/orders", KeyVersion: 3}
}

// TestSameAsGRPCsOwn: both ends may have the standard codec.
func TestSameAsGRPCsOwn(t *testing.T) {
	standard := encoding.GetCodecV2("proto")
	for _, n := range []int{0, 1, 32, 4096, 300 << 10} {
		sent := message(n)
		for name, pair := range map[string][2]encoding.CodecV2{"out": {vtcodec.Codec{}, standard}, "in": {standard, vtcodec.Codec{}}} {
			data, err := pair[0].Marshal(sent)
			if err != nil {
				t.Fatal(err)
			}
			got := new(kekdv1.UnwrapResponse)
			if err := pair[1].Unmarshal(data, got); err != nil {
				t.Fatal(err)
			}
			data.Free()
			if !proto.Equal(sent, got) {
				t.Errorf("%s, %d bytes: got another message", name, n)
			}
		}
	}
}

// TestWipedWhenSent: every size goes back to the pool, small ones too, and is wiped there.
func TestWipedWhenSent(t *testing.T) {
	for _, n := range []int{16, 32, 900, 4096, 100 << 10, 2 << 20} {
		pool := &spy{BufferPool: vtcodec.Pool}
		data, err := vtcodec.Codec{}.Marshal(&vtcodec.Outgoing{Message: message(n), Pool: pool})
		if err != nil {
			t.Fatal(err)
		}
		data.Ref() // as the transport does
		data.Free()
		if len(pool.back) != 0 {
			t.Fatalf("%d bytes: given back while it is in use", n)
		}
		data.Free()
		if len(pool.back) != 1 {
			t.Fatalf("%d bytes: not given back", n)
		}
		if bytes.Contains(*pool.back[0], []byte{0xAB}) {
			t.Errorf("%d bytes: not wiped", n)
		}
	}
}

// TestWipedWhenReceived covers one buffer and several, since gRPC hands over a buffer for each
// frame.
func TestWipedWhenReceived(t *testing.T) {
	for _, n := range []int{32, 40 << 10} {
		wire, err := message(n).MarshalVT()
		if err != nil {
			t.Fatal(err)
		}
		one := bytes.Clone(wire)
		a, b := bytes.Clone(wire[:20]), bytes.Clone(wire[20:])
		for _, data := range []mem.BufferSlice{{mem.SliceBuffer(one)}, {mem.SliceBuffer(a), mem.SliceBuffer(b)}} {
			got := new(kekdv1.UnwrapResponse)
			if err := (vtcodec.Codec{}).Unmarshal(data, got); err != nil {
				t.Fatal(err)
			}
			if !proto.Equal(message(n), got) {
				t.Errorf("%d bytes: got another message", n)
			}
			for _, part := range data {
				if bytes.Contains(part.ReadOnlyData(), []byte{0xAB}) {
					t.Error("what was received is not wiped")
				}
			}
		}
	}
}

func TestUndecodable(t *testing.T) {
	garbage := func() mem.BufferSlice { return mem.BufferSlice{mem.SliceBuffer([]byte{0xff, 0xff, 0xff})} }
	if err := (vtcodec.Codec{}).Unmarshal(garbage(), new(kekdv1.UnwrapResponse)); err == nil {
		t.Error("garbage was decoded")
	}
	in := &vtcodec.Incoming{Message: new(kekdv1.UnwrapResponse)}
	if err := (vtcodec.Codec{}).Unmarshal(garbage(), in); err != nil || in.Err == nil {
		t.Errorf("got %v and %v, want the error in the message alone", err, in.Err)
	}
	if _, err := (vtcodec.Codec{}).Marshal(3); err == nil {
		t.Error("a number was encoded")
	}
}

func TestMessagesOfOthers(t *testing.T) {
	sent := &grpc_health_v1.HealthCheckRequest{Service: "kekd"}
	data, err := vtcodec.Codec{}.Marshal(sent)
	if err != nil {
		t.Fatal(err)
	}
	got := new(grpc_health_v1.HealthCheckRequest)
	if err := (vtcodec.Codec{}).Unmarshal(data, got); err != nil {
		t.Fatal(err)
	}
	if !proto.Equal(sent, got) {
		t.Errorf("got %v", got)
	}
}
