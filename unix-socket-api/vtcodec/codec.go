// Package vtcodec is the protobuf codec of kekd's sockets, on both ends: it uses the generated
// code of vtprotobuf where there is any, and it leaves no data key behind in the buffers that
// it fills and reads.
//
// What cannot be wiped from here: the read and write buffer that gRPC keeps for each
// connection (32 KiB each, overwritten by what comes next) and the kernel's socket buffers.
package vtcodec

import (
	"fmt"

	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/proto"
)

// Codec encodes and decodes. It calls itself "proto", as gRPC's own does: on the wire they are
// the same.
type Codec struct{}

var _ encoding.CodecV2 = Codec{}

type fast interface {
	SizeVT() int
	MarshalToSizedBufferVT([]byte) (int, error)
	UnmarshalVT([]byte) error
}

// Outgoing is a message whose encoded bytes come from, and go back to, a pool of the sender's.
type Outgoing struct {
	Message any
	Pool    mem.BufferPool
}

// Incoming is where a message is decoded to, when the receiver wants to answer for itself what
// cannot be decoded: gRPC would call it an internal error.
type Incoming struct {
	Message any
	Check   func(wire []byte) error // if set, asked before anything is decoded; keeps nothing of wire
	Size    int                     // of the message, in bytes
	Err     error                   // Check's, or why it cannot be decoded
}

func (Codec) Name() string { return "proto" }

func (Codec) Marshal(v any) (mem.BufferSlice, error) {
	if o, ok := v.(*Outgoing); ok {
		return marshal(o.Message, o.Pool)
	}
	return marshal(v, Pool)
}

func marshal(v any, pool mem.BufferPool) (mem.BufferSlice, error) {
	switch m := v.(type) {
	case fast:
		b := pool.Get(m.SizeVT())
		if _, err := m.MarshalToSizedBufferVT(*b); err != nil {
			pool.Put(b)
			return nil, err
		}
		return mem.BufferSlice{mem.NewBuffer(b, pool)}, nil
	case proto.Message: // health and reflection
		b, err := proto.Marshal(m)
		return mem.BufferSlice{mem.SliceBuffer(b)}, err
	}
	return nil, fmt.Errorf("cannot encode a %T", v)
}

// Unmarshal decodes, and wipes what it decoded from.
func (Codec) Unmarshal(data mem.BufferSlice, v any) error {
	in, ok := v.(*Incoming)
	if !ok {
		return unmarshal(data, v, nil)
	}
	in.Size = data.Len()
	in.Err = unmarshal(data, in.Message, in.Check)
	return nil
}

func unmarshal(data mem.BufferSlice, v any, check func([]byte) error) error {
	b := data.MaterializeToBuffer(Pool)
	defer func() {
		b.Free()
		// The bytes are this message's alone, though gRPC calls them read-only: nobody reads
		// them after the codec, and small ones are never given back to any pool.
		for _, part := range data {
			clear(part.ReadOnlyData())
		}
	}()
	if check != nil {
		if err := check(b.ReadOnlyData()); err != nil {
			return err
		}
	}
	switch m := v.(type) {
	case fast:
		return m.UnmarshalVT(b.ReadOnlyData())
	case proto.Message:
		return proto.Unmarshal(b.ReadOnlyData(), m)
	}
	return fmt.Errorf("cannot decode into a %T", v)
}
