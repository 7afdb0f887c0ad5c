package worker

import (
	"sync"
	"time"

	"github.com/kekd/kekd/hsm"
)

// A call is one Do. Its operations are the caller's memory, which is read and written only under
// mu and only while the caller waits.
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

// abandon ends the call for its caller: what has no result gets err. Results that come later
// find the call empty.
func (c *call) abandon(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for i := range c.ops {
		if op := &c.ops[i]; op.Err == nil && op.Revealed == nil && op.Sealed == nil {
			op.Err = err
		}
	}
	c.ops = nil
}

// A piece is one operation of a call on its way through a worker.
type piece struct {
	call  *call
	lane  *lane
	frame *frame // that it was sent in
	i     int32
	cost  uint16
	tries uint8 // workers that ended with it
	kills uint8 // workers that were killed while they ran nothing else
	waits bool  // in the worker, and takes no room there
}

// A frame is what was sent at once.
type frame struct {
	left int           // operations that have no result and do not wait
	sent time.Duration // when, since epoch
}

// held locks the calls of consecutive pieces, once for each run of the same call.
type held struct{ c *call }

// op gives the piece's operation, or nil if the caller has left.
func (h *held) op(p *piece) *hsm.Operation {
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

// fail ends pieces with an error.
func fail(pieces []piece, err error) {
	var h held
	for i := range pieces {
		if op := h.op(&pieces[i]); op != nil {
			op.Err = err
			h.finish()
		}
	}
	h.release()
}
