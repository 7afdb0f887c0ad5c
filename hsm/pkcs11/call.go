package pkcs11

import (
	"sync"

	"github.com/kekd/kekd/hsm"
)

// A call is one Do. Its operations are the caller's memory, which is read and written only
// under mu and only while the caller waits; what runs in the module works on copies.
type call struct {
	mu   sync.Mutex
	ops  []hsm.Operation // guarded by mu; nil once the caller has left
	left int             // guarded by mu: operations without a result
	done chan struct{}   // receives once, when left is 0
}

var calls = sync.Pool{New: func() any { return &call{done: make(chan struct{}, 1)} }}

func newCall(ops []hsm.Operation, left int) *call {
	c := calls.Get().(*call)
	c.ops, c.left = ops, left
	return c
}

// recycle takes back a call whose done was received: nothing else refers to it any more.
func (c *call) recycle() {
	c.ops = nil
	calls.Put(c)
}

// finished tells, to the call's caller alone, whether all its results are there.
func (c *call) finished() bool { return len(c.done) > 0 }

// abandon ends the call for its caller: what has no result gets err. The slots find the call
// empty and skip it.
func (c *call) abandon(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for i := range c.ops {
		if op := &c.ops[i]; isOpen(op) {
			op.Err = err
		}
	}
	c.ops = nil
}

// isOpen tells whether an operation has no result.
func isOpen(op *hsm.Operation) bool { return op.Err == nil && op.Revealed == nil && op.Sealed == nil }

// open gives the operations that have no result yet. The others are the caller's to read.
func (c *call) open() (late []int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for i := range c.ops {
		if isOpen(&c.ops[i]) {
			late = append(late, i)
		}
	}
	return late
}

// A piece is one operation of a call on its way through a slot.
type piece struct {
	call *call
	i    int

	tries     uint8 // after a transient code
	sessions  uint8 // sessions replaced under it
	searched  bool  // the token was searched for its keys
	rechecked bool  // its keys were looked at again
}

// held locks the calls of consecutive pieces, once for each run of the same call.
type held struct{ c *call }

// op gives the piece's operation, or nil if the caller has left.
func (h *held) op(p piece) *hsm.Operation {
	if h.c != p.call {
		h.release()
		h.c = p.call
		h.c.mu.Lock()
	}
	if h.c.ops == nil {
		return nil
	}
	return &h.c.ops[p.i]
}

// finish counts an operation of the held call as done.
func (h *held) finish() { h.c.left-- }

func (h *held) release() {
	c := h.c
	if c == nil {
		return
	}
	h.c = nil
	last := c.ops != nil && c.left == 0
	c.mu.Unlock()
	if last {
		c.done <- struct{}{}
	}
}

// fail ends one piece with an error.
func (p piece) fail(err error) {
	var h held
	if op := h.op(p); op != nil {
		op.Err = err
		h.finish()
	}
	h.release()
}
