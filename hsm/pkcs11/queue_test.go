package pkcs11_test

import (
	"testing"

	"pgregory.net/rapid"

	"github.com/kekd/kekd/hierarchy"
	"github.com/kekd/kekd/hsm"
	kekd "github.com/kekd/kekd/hsm/pkcs11"
)

func lane(n int) hsm.Lane {
	return hierarchy.TenantID{ID: hierarchy.ID{byte(n), byte(n >> 8)}}
}

// TestQueueGivesEachOnce: whatever is pushed and taken in whatever order, each operation comes
// once, in the order of its lane, in chunks that are not too large.
func TestQueueGivesEachOnce(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		q := kekd.NewQueue()
		waiting := map[hsm.Lane][]int{} // Random holds a serial number
		serial, left := 0, 0
		take := func() {
			ops := q.Take()
			if len(ops) == 0 || len(ops) > kekd.ChunkSize {
				t.Fatalf("a chunk of %d", len(ops))
			}
			for _, op := range ops {
				w := waiting[op.Lane]
				if len(w) == 0 || w[0] != op.Random {
					t.Fatalf("lane %s: got %d, want the first of %v", op.Lane, op.Random, w)
				}
				waiting[op.Lane] = w[1:]
				left--
			}
		}
		for range rapid.IntRange(1, 30).Draw(t, "steps") {
			if left > 0 && rapid.Bool().Draw(t, "take") {
				take()
				continue
			}
			ops := make([]hsm.Operation, rapid.IntRange(1, 200).Draw(t, "operations"))
			lanes := rapid.IntRange(1, 5).Draw(t, "lanes")
			for i := range ops {
				serial++
				ops[i] = hsm.Operation{Lane: lane(rapid.IntRange(0, lanes-1).Draw(t, "lane")), Random: serial}
				waiting[ops[i].Lane] = append(waiting[ops[i].Lane], serial)
			}
			if !q.Push(ops) {
				t.Fatal("the queue is full")
			}
			left += len(ops)
		}
		for left > 0 {
			take()
		}
	})
}

// TestQueueIsFair: who sends much waits for himself.
func TestQueueIsFair(t *testing.T) {
	q := kekd.NewQueue()
	flood := make([]hsm.Operation, 10_000)
	for i := range flood {
		flood[i].Lane = lane(0)
	}
	q.Push(flood)
	q.Take()
	const victims = 2
	for v := 1; v <= victims; v++ {
		q.Push([]hsm.Operation{{Lane: lane(v)}})
	}
	served := map[hsm.Lane]bool{}
	for _, op := range q.Take() {
		served[op.Lane] = true
	}
	for v := range victims + 1 {
		if !served[lane(v)] {
			t.Errorf("lane %d is not in the next chunk", v)
		}
	}
	// With more lanes than fit, each has its turn within as many chunks as it takes.
	const many = 20
	for v := 1; v <= many; v++ {
		q.Push(make20(lane(v)))
	}
	seen := map[hsm.Lane]bool{}
	for range (many+1)*kekd.Quantum/kekd.ChunkSize + 1 {
		for _, op := range q.Take() {
			seen[op.Lane] = true
		}
	}
	if len(seen) != many+1 {
		t.Errorf("%d of %d lanes had a turn", len(seen), many+1)
	}
}

func make20(l hsm.Lane) []hsm.Operation {
	ops := make([]hsm.Operation, 20)
	for i := range ops {
		ops[i].Lane = l
	}
	return ops
}

func TestQueueIsBounded(t *testing.T) {
	q := kekd.NewQueue()
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
