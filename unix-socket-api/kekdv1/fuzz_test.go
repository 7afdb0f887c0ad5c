package kekdv1_test

import (
	"bytes"
	"runtime"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/kekd/kekd/unix-socket-api/kekdv1"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	"google.golang.org/protobuf/testing/protocmp"
)

// fast is what vtprotobuf generates: it, and not the standard code, reads what any local user sends.
type fast interface {
	proto.Message
	UnmarshalVT([]byte) error
	MarshalVT() ([]byte, error)
	SizeVT() int
}

// messages are all of both services.
func messages(t testing.TB) (all []protoreflect.MessageType) {
	t.Helper()
	for _, file := range []protoreflect.FileDescriptor{kekdv1.File_key_proto, kekdv1.File_admin_proto} {
		for i := range file.Messages().Len() {
			m, err := protoregistry.GlobalTypes.FindMessageByName(file.Messages().Get(i).FullName())
			if err != nil {
				t.Fatal(err)
			}
			all = append(all, m)
		}
	}
	return all
}

// filled are messages of a type in which every field is set, one for each member of a oneof.
func filled(typ protoreflect.MessageType) (all []protoreflect.Message) {
	m := typ.New()
	var members []protoreflect.FieldDescriptor
	for i := range typ.Descriptor().Fields().Len() {
		f := typ.Descriptor().Fields().Get(i)
		if o := f.ContainingOneof(); o != nil && !o.IsSynthetic() {
			members = append(members, f)
			continue
		}
		fill(m, f)
	}
	if len(members) == 0 {
		return append(all, m)
	}
	for _, f := range members {
		c := proto.Clone(m.Interface()).ProtoReflect()
		fill(c, f)
		all = append(all, c)
	}
	return all
}

func fill(m protoreflect.Message, f protoreflect.FieldDescriptor) {
	switch {
	case f.IsList():
		list := m.Mutable(f).List()
		if f.Message() == nil {
			list.Append(value(f))
			list.Append(value(f))
			return
		}
		for _, element := range filled(list.NewElement().Message().Type()) {
			list.Append(protoreflect.ValueOfMessage(element))
		}
	case f.Message() != nil:
		m.Set(f, protoreflect.ValueOfMessage(filled(m.Mutable(f).Message().Type())[0]))
	default:
		m.Set(f, value(f))
	}
}

func value(f protoreflect.FieldDescriptor) protoreflect.Value {
	switch f.Kind() {
	case protoreflect.BoolKind:
		return protoreflect.ValueOfBool(true)
	case protoreflect.StringKind:
		return protoreflect.ValueOfString("ü")
	case protoreflect.BytesKind:
		return protoreflect.ValueOfBytes([]byte{0xff, 0})
	case protoreflect.Int32Kind:
		return protoreflect.ValueOfInt32(-1 << 31)
	case protoreflect.Int64Kind:
		return protoreflect.ValueOfInt64(-1 << 63)
	case protoreflect.Uint64Kind:
		return protoreflect.ValueOfUint64(1<<64 - 1)
	case protoreflect.Uint32Kind:
		return protoreflect.ValueOfUint32(1<<32 - 1)
	}
	panic("a kind that no field has: " + f.Kind().String())
}

// What a parser may take for n bytes. The most that a message asks for is some 60 bytes for each, of
// empty operations in a batch.
func memoryLimit(n int) uint64 { return 16<<10 + 128*uint64(n) }

// FuzzUnmarshal holds the generated parsers against the standard one, for every message. What the
// standard one reads, they read the same, but for unknown fields, which nobody looks at; or refuse,
// where a field has the wrong type, which makes it an unknown one there. They are laxer: with what is
// in a group, with field numbers that are too large, and with text that is no UTF-8, for which who uses
// the text has to look. What they make of such bytes is a message that both read.
func FuzzUnmarshal(f *testing.F) {
	types := messages(f)
	if len(types) > 256 {
		f.Fatal("a byte does not choose among all messages any more")
	}
	for i, typ := range types {
		for _, m := range filled(typ) {
			b, err := proto.Marshal(m.Interface())
			if err != nil {
				f.Fatal(err)
			}
			f.Add(byte(i), b)
			f.Add(byte(i), append(b, b...)) // merged
			if len(b) > 0 {
				f.Add(byte(i), b[:len(b)-1])
			}
		}
		for _, b := range [][]byte{
			{0x0a}, {0x0a, 0xff, 0xff, 0xff, 0xff, 0x07}, {0x0a, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f},
			bytes.Repeat([]byte{0xff}, 11), {0x08, 0x01, 0x10, 0x01, 0x18, 0x01}, {0x00, 0x00}, {0x0a, 0x01, 0xff},
			{0xfa, 0x3f, 0x01, 0x78}, {0xfb, 0x3f, 0xfc, 0x3f}, {0xfc, 0x3f}, bytes.Repeat([]byte{0xfb, 0x3f}, 100), []byte("C\xec0"), []byte("\xc1\x0000000000"), []byte("\xba\xba\xba\xba\xba0\x00"),
			bytes.Repeat([]byte{0x0a, 0x00}, 1000), bytes.Repeat([]byte{0x12, 0x02, 0x0a, 0x00}, 1000),
		} {
			f.Add(byte(i), b)
		}
	}
	f.Fuzz(func(t *testing.T, which byte, data []byte) {
		typ := types[int(which)%len(types)]
		want, got := typ.New().Interface(), typ.New().Interface().(fast)
		wantErr := proto.Unmarshal(data, want)
		took, err := measured(got, data)
		if took > memoryLimit(len(data)) {
			t.Errorf("%s: %d bytes of memory for %d", typ.Descriptor().FullName(), took, len(data))
		}
		if err != nil {
			if wantErr == nil && !strings.Contains(err.Error(), "wrong wireType") {
				t.Errorf("%s: %v, and the standard parser reads it", typ.Descriptor().FullName(), err)
			}
			return
		}
		b, err := got.MarshalVT()
		if err != nil || len(b) != got.SizeVT() {
			t.Fatalf("%s: written in %d bytes, to be %d: %v", typ.Descriptor().FullName(), len(b), got.SizeVT(), err)
		}
		again := typ.New().Interface().(fast)
		if err := again.UnmarshalVT(b); err != nil || !proto.Equal(got, again) {
			t.Errorf("%s: what is written does not read back: %v", typ.Descriptor().FullName(), err)
		}
		if wantErr != nil {
			forget(got.ProtoReflect())
			if b, err = got.MarshalVT(); err != nil {
				t.Fatal(err)
			}
			want = typ.New().Interface()
			if err := proto.Unmarshal(b, want); err != nil {
				if !strings.Contains(err.Error(), "invalid UTF-8") {
					t.Errorf("%s: the standard parser does not read what was made of it: %v", typ.Descriptor().FullName(), err)
				}
				return
			}
		}
		if diff := cmp.Diff(want, proto.Message(got), protocmp.Transform(), protocmp.IgnoreUnknown()); diff != "" {
			t.Errorf("%s: read (-standard +generated):\n%s", typ.Descriptor().FullName(), diff)
		}
	})
}

// forget drops the unknown fields of a message, and of those in it.
func forget(m protoreflect.Message) {
	m.SetUnknown(nil)
	m.Range(func(f protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		switch {
		case f.Message() == nil:
		case f.IsList():
			for i := range v.List().Len() {
				forget(v.List().Get(i).Message())
			}
		default:
			forget(v.Message())
		}
		return true
	})
}

// measured parses, and tells how much was allocated meanwhile.
func measured(m fast, data []byte) (uint64, error) {
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	err := m.UnmarshalVT(data)
	runtime.ReadMemStats(&after)
	return after.TotalAlloc - before.TotalAlloc, err
}
