package state

import (
	"testing"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/kekd/kekd/hierarchy/commandpb"
)

// drawn are the fields that the proposer draws or happens to know: a retry brings others.
var drawn = map[protoreflect.FullName]bool{
	"kekd.command.v1.CreateTenant.tenant_id":  true,
	"kekd.command.v1.CreateKey.key_id":        true,
	"kekd.command.v1.RotateKey.after_version": true,
}

// Every field of every command is compared when an idempotency ID comes again, but for those that are
// drawn. One that is added to a message later is in this test by itself.
func TestIntentCoversEveryField(t *testing.T) {
	bodies := (&commandpb.Command{}).ProtoReflect().Descriptor().Oneofs().ByName("body").Fields()
	seen := 0
	for i := range bodies.Len() {
		of := func(change func(protoreflect.Message)) [32]byte {
			c := new(commandpb.Command)
			body := c.ProtoReflect().Mutable(bodies.Get(i)).Message()
			fill(body)
			change(body)
			before := proto.Clone(c)
			hash := intent(c)
			if !proto.Equal(before, c) {
				t.Errorf("%s: it changed the command", bodies.Get(i).Name())
			}
			return hash
		}
		whole := of(func(protoreflect.Message) {})
		fields := bodies.Get(i).Message().Fields()
		for j := range fields.Len() {
			field := fields.Get(j)
			without := of(func(m protoreflect.Message) { m.Clear(field) })
			if covered := without != whole; covered == drawn[field.FullName()] {
				t.Errorf("%s is compared: %v", field.FullName(), covered)
			}
			if drawn[field.FullName()] {
				seen++
			}
		}
	}
	if seen != len(drawn) {
		t.Errorf("%d of %d fields that are drawn are there", seen, len(drawn))
	}
}

// fill sets every field to something.
func fill(m protoreflect.Message) {
	fields := m.Descriptor().Fields()
	for i := range fields.Len() {
		switch f := fields.Get(i); {
		case f.IsList() && f.Message() != nil:
			fill(m.Mutable(f).List().AppendMutable().Message())
		case f.IsList():
			m.Mutable(f).List().Append(something(f))
		case f.Message() != nil:
			fill(m.Mutable(f).Message())
		default:
			m.Set(f, something(f))
		}
	}
}

func something(f protoreflect.FieldDescriptor) protoreflect.Value {
	switch f.Kind() {
	case protoreflect.BoolKind:
		return protoreflect.ValueOfBool(true)
	case protoreflect.EnumKind:
		return protoreflect.ValueOfEnum(1)
	case protoreflect.Int32Kind:
		return protoreflect.ValueOfInt32(1)
	case protoreflect.Int64Kind:
		return protoreflect.ValueOfInt64(1)
	case protoreflect.Uint32Kind:
		return protoreflect.ValueOfUint32(1)
	case protoreflect.Uint64Kind:
		return protoreflect.ValueOfUint64(1)
	case protoreflect.StringKind:
		return protoreflect.ValueOfString("x")
	case protoreflect.BytesKind:
		return protoreflect.ValueOfBytes([]byte("x"))
	}
	panic("a field of a kind that is not thought of: " + f.Kind().String())
}
