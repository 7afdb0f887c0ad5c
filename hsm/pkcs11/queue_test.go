package pkcs11_test

import (
	"testing"

	"pgregory.net/rapid"

	"github.com/kekd/kekd/hsm"
	kekd "github.com/kekd/kekd/hsm/pkcs11"
)

// TestQueueGivesEachOnce: whatever is pushed and taken in whatever order, each operation comes
// once, in the order in which it was pushed, in chunks that are not too large. Several slots get
// one operation each.
func TestQueueGivesEachOnce(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		slots := rapid.IntRange(1, 3).Draw(t, "slots")
		limit := kekd.ChunkSize
		if slots > 1 {
			limit = 1
		}
		q := kekd.NewQueue(slots)
		pushed, taken := 0, 0 // Random holds a serial number
		take := func() {
			ops := q.Take()
			if want := min(pushed-taken, limit); len(ops) != want {
				t.Fatalf("a chunk of %d, want %d", len(ops), want)
			}
			for _, op := range ops {
				if taken++; op.Random != taken {
					t.Fatalf("got %d, want %d", op.Random, taken)
				}
			}
		}
		for range rapid.IntRange(1, 30).Draw(t, "steps") {
			if rapid.Bool().Draw(t, "take") {
				take()
				continue
			}
			ops := make([]hsm.Operation, rapid.IntRange(1, 200).Draw(t, "operations"))
			for i := range ops {
				pushed++
				ops[i].Random = pushed
			}
			if !q.Push(ops) {
				t.Fatal("the queue is full")
			}
		}
		for taken < pushed {
			take()
		}
	})
}

func TestQueueIsBounded(t *testing.T) {
	q := kekd.NewQueue(1)
	ops := make([]hsm.Operation, kekd.QueueLimit)
	if !q.Push(ops) {
		t.Error("the queue is full before its limit")
	}
	if q.Push(ops[:1]) {
		t.Error("the queue takes more than its limit")
	}
	q.Take()
	if !q.Push(ops[:kekd.ChunkSize]) {
		t.Error("the queue stays full")
	}
}
