package vtcodec

import (
	"sync"

	"google.golang.org/grpc/mem"
)

// Pool hands out buffers and wipes those that it gets back, because encoded messages hold data
// keys. It is a [mem.BufferPool].
var Pool mem.BufferPool = &pool{}

// The smallest size is above gRPC's threshold for pooling, 1 KiB: what is below is never given
// back, and so could not be wiped. The largest holds an answer with 1,024 data keys.
var sizes = [...]int{2 << 10, 16 << 10, 64 << 10, 256 << 10}

type pool struct {
	classes [len(sizes)]sync.Pool
}

// Get returns a buffer of n bytes. Its contents are what the last user left: nothing, or zeros.
func (p *pool) Get(n int) *[]byte {
	for i, size := range sizes {
		if n <= size {
			b, ok := p.classes[i].Get().(*[]byte)
			if !ok {
				b = new([]byte)
				*b = make([]byte, size)
			}
			*b = (*b)[:n]
			return b
		}
	}
	b := make([]byte, n)
	return &b
}

// Put wipes a buffer and keeps it, unless it is too large to be worth it.
func (p *pool) Put(b *[]byte) {
	clear(*b)
	for i, size := range sizes {
		if cap(*b) == size {
			p.classes[i].Put(b)
			return
		}
	}
}
