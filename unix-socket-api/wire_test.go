package socketapi_test

import (
	"bytes"
	"runtime"
	"testing"

	"github.com/kekd/kekd/hierarchy"
	"github.com/kekd/kekd/unix-socket-api/kekdv1"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/encoding/protowire"
)

// TestAmplifyingMessages: what takes two bytes on the wire and a hundred when it is decoded is
// refused before that.
func TestAmplifyingMessages(t *testing.T) {
	s := startKeys(t, &fakeCustody{}, nil)
	conn := raw(t, s.path)
	entries := bytes.Repeat([]byte{0x12, 0}, 500_000)
	few := bytes.Repeat([]byte{0x12, 0}, 30)
	operation := func(unwraps ...[]byte) (op []byte) {
		for _, u := range unwraps {
			op = protowire.AppendBytes(protowire.AppendTag(op, 2, protowire.BytesType), u)
		}
		return protowire.AppendBytes(protowire.AppendTag(nil, 2, protowire.BytesType), op)
	}
	var merged [][]byte
	for range 15_000 {
		merged = append(merged, few)
	}
	for name, c := range map[string]struct {
		method string
		wire   []byte
	}{
		"one operation":             {kekdv1.KeyService_Unwrap_FullMethodName, entries},
		"one of many small entries": {kekdv1.KeyService_Unwrap_FullMethodName, entries[:60<<10]},
		"a batch's operation":       {kekdv1.KeyService_Batch_FullMethodName, operation(entries)},
		"merged operations":         {kekdv1.KeyService_Batch_FullMethodName, operation(merged...)},
		"empty operations":          {kekdv1.KeyService_Batch_FullMethodName, entries},
	} {
		call := func() {
			err := conn.Invoke(soon(t), c.method, c.wire, new([]byte), grpc.ForceCodecV2(garbage{}))
			if code(err) != "INVALID_ARGUMENT" {
				t.Errorf("%s: %v", name, err)
			}
		}
		call() // what is pooled is there
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		call()
		runtime.ReadMemStats(&after)
		// Client and server copy the message a few times, and decode nothing.
		if n, most := after.TotalAlloc-before.TotalAlloc, uint64(8*len(c.wire)+1<<20); n > most {
			t.Errorf("%s: %d bytes were allocated for %d", name, n, len(c.wire))
		}
	}
}

// TestLargestOperation: what custody allows is not refused before.
func TestLargestOperation(t *testing.T) {
	s := startKeys(t, &fakeCustody{}, nil)
	conn := kekdv1.NewKeyServiceClient(raw(t, s.path))
	m := &kekdv1.UnwrapRequest{Envelope: make([]byte, 24<<10), Reason: string(bytes.Repeat([]byte{'r'}, 256))}
	for range hierarchy.MaxContextEntries {
		m.Context = append(m.Context, &kekdv1.ContextEntry{
			Key:   string(bytes.Repeat([]byte{'k'}, hierarchy.MaxContextKeyLen)),
			Value: string(bytes.Repeat([]byte{'v'}, hierarchy.MaxContextValueLen)),
		})
	}
	if _, err := conn.Unwrap(soon(t), m); err != nil {
		t.Error(err)
	}
	batch := &kekdv1.BatchRequest{Operations: []*kekdv1.Operation{{Op: &kekdv1.Operation_Unwrap{Unwrap: m}}}}
	if _, err := conn.Batch(soon(t), batch); err != nil {
		t.Error(err)
	}
	m.Envelope = make([]byte, 64<<10)
	if _, err := conn.Unwrap(soon(t), m); code(err) != "INVALID_ARGUMENT" {
		t.Errorf("more than 64 KiB alone: %v", err)
	}
}
