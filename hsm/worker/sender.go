package worker

import "sync"

// A sender writes frames in the order in which they were appended. Whoever appends while nobody
// writes does the writing, and takes along what others append meanwhile, so that one system
// call carries what many have to say.
//
// Nobody is held up by a peer that does not read: what the socket does not take at once is
// written by a goroutine.
type sender struct {
	to link

	mu      sync.Mutex
	idle    sync.Cond
	pending []byte // guarded by mu: appended and not written yet
	spare   []byte // guarded by mu: the other buffer, empty
	writing bool   // guarded by mu: somebody writes
	err     error  // guarded by mu: nothing is written any more
}

// keptBuffer is the largest buffer that is kept for later.
const keptBuffer = 1 << 20

func newSender(to link) *sender {
	s := &sender{to: to}
	s.idle.L = &s.mu
	return s
}

// begin gives the buffer to append to. It holds the sender until end.
func (s *sender) begin() []byte {
	s.mu.Lock()
	return s.pending
}

// end takes the buffer back and sees to it that it is written.
func (s *sender) end(b []byte) {
	s.pending = b
	if s.writing {
		s.mu.Unlock()
		return
	}
	s.writing = true
	s.flush()
}

// flush writes until nothing is left. It is called with mu held and writing set, and returns
// with mu released.
func (s *sender) flush() {
	for len(s.pending) > 0 && s.err == nil {
		b := s.pending
		s.pending, s.spare = s.spare, nil
		s.mu.Unlock()
		n, err := s.to.try(b)
		if err == nil && n < len(b) {
			go s.finish(b, n)
			return
		}
		s.wrote(b, err)
	}
	if s.err != nil {
		clear(s.pending)
		s.pending = s.pending[:0]
	}
	s.writing = false
	s.idle.Broadcast()
	s.mu.Unlock()
}

// finish writes the rest of what the socket did not take at once, and what came meanwhile.
func (s *sender) finish(b []byte, n int) {
	_, err := s.to.Write(b[n:])
	s.wrote(b, err)
	s.flush()
}

// wrote wipes what was written, and takes mu.
func (s *sender) wrote(b []byte, err error) {
	clear(b)
	s.mu.Lock()
	if err != nil {
		s.err = err
	}
	if cap(b) <= keptBuffer {
		s.spare = b[:0]
	}
}

// drain waits until nobody writes: all is written, or never will be.
func (s *sender) drain() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for s.writing {
		s.idle.Wait()
	}
}
