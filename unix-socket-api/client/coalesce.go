package client

import (
	"bytes"
	"context"
	"errors"
	"sync"
	"sync/atomic"

	"github.com/kekd/kekd/unix-socket-api/apierr"
	"github.com/kekd/kekd/unix-socket-api/kekdv1"
	"google.golang.org/grpc"
)

const (
	// maxUnderWay is how many messages may be unanswered. While they are, calls gather, and
	// the next message takes them all: nobody waits for company, and few travel alone. More
	// than one, so that a batch with a slow member does not hold up everybody.
	maxUnderWay = 4
	// maxBytes bounds a message well below the daemon's limit of 1 MiB.
	maxBytes = 512 << 10
)

// coalescer puts the calls of many goroutines on one stream of batches, to one daemon.
type coalescer struct {
	api  kekdv1.KeyServiceClient
	ctx  context.Context // ends with the client
	stop context.CancelFunc
	wake chan struct{} // of size 1: there may be something to send

	mu       sync.Mutex
	running  bool
	closed   bool
	queue    []*call
	underWay map[uint64][]*call // by message ID
	lastID   uint64
}

// call is one operation of one caller. What it sends is a copy: the caller may go before it is
// sent, and wipe or use again what he gave.
type call struct {
	op      *kekdv1.Operation
	size    int
	settled atomic.Bool  // by the result, or by the caller who has gone
	users   atomic.Int32 // of op: the coalescer until the call has ended, and who encodes it
	done    chan Result  // of size 1
}

func newCall(op *kekdv1.Operation) *call {
	switch o := op.Op.(type) {
	case *kekdv1.Operation_Wrap:
		o.Wrap.Plaintext = bytes.Clone(o.Wrap.Plaintext)
	case *kekdv1.Operation_Unwrap:
		o.Unwrap.Envelope = bytes.Clone(o.Unwrap.Envelope)
	case *kekdv1.Operation_Rewrap:
		o.Rewrap.Envelope = bytes.Clone(o.Rewrap.Envelope)
	}
	k := &call{op: op, size: op.SizeVT(), done: make(chan Result, 1)}
	k.users.Store(1)
	return k
}

// finish hands the result over, or wipes it if nobody is there to take it.
func (c *call) finish(r Result) {
	if c.settled.CompareAndSwap(false, true) {
		c.done <- r
	} else {
		clear(r.Plaintext)
	}
	c.release()
}

// release wipes the copy once nobody uses it any more.
func (c *call) release() {
	if c.users.Add(-1) == 0 {
		clear(c.op.GetWrap().GetPlaintext())
	}
}

func newCoalescer(api kekdv1.KeyServiceClient) *coalescer {
	c := &coalescer{api: api, wake: make(chan struct{}, 1), underWay: make(map[uint64][]*call)}
	c.ctx, c.stop = context.WithCancel(context.Background())
	return c
}

var errClosed = apierr.From(context.Canceled)

func (c *coalescer) do(ctx context.Context, op *kekdv1.Operation) Result {
	k := newCall(op)
	if !c.enqueue(k) {
		k.release()
		return Result{Err: errClosed}
	}
	select {
	case r := <-k.done:
		return r
	case <-ctx.Done():
		if k.settled.CompareAndSwap(false, true) {
			return Result{Err: apierr.From(ctx.Err())}
		}
		return <-k.done // it came just now
	}
}

func (c *coalescer) enqueue(k *call) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return false
	}
	c.queue = append(c.queue, k)
	if !c.running {
		c.running = true
		go c.run()
	}
	c.signal()
	return true
}

func (c *coalescer) signal() {
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

func (c *coalescer) close() {
	c.mu.Lock()
	c.closed = true
	c.mu.Unlock()
	c.stop()
	c.fail(errClosed)
}

// run sends what has gathered, on one stream after another.
func (c *coalescer) run() {
	for c.ctx.Err() == nil {
		select {
		case <-c.wake:
		case <-c.ctx.Done():
			return
		}
		if !c.waiting() {
			continue
		}
		if err := c.stream(); err != nil {
			c.fail(err)
		}
	}
}

func (c *coalescer) waiting() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.queue) > 0
}

// stream opens a stream and sends on it until it breaks. What it returns keeps the queue from
// being served at all; a stream that broke returns nothing, and the next may fare better.
func (c *coalescer) stream() error {
	ctx, cancel := context.WithCancel(c.ctx)
	defer cancel()
	s, err := c.api.Stream(ctx)
	if err != nil {
		return err
	}
	broken := make(chan error, 1)
	go func() { broken <- c.receive(s) }()
	c.signal()
	for {
		select {
		case <-c.wake:
		case err := <-broken:
			c.lose(err)
			c.signal()
			return nil
		}
		for {
			m, calls := c.next()
			if m == nil {
				break
			}
			err := s.Send(m) // which encodes it before it returns
			for _, k := range calls {
				k.release()
			}
			if err != nil {
				break // the receiver has the reason
			}
		}
	}
}

// next makes a message of what has gathered; nil if there is nothing, or enough is under way. Its
// calls are to be released when it is encoded.
func (c *coalescer) next() (m *kekdv1.BatchRequest, calls []*call) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.queue) == 0 || len(c.underWay) >= maxUnderWay {
		return nil, nil
	}
	m = &kekdv1.BatchRequest{}
	taken, size := 0, 0
	for _, k := range c.queue {
		if len(calls) == MaxBatch || len(calls) > 0 && size+k.size > maxBytes {
			break
		}
		taken++
		if k.settled.Load() {
			k.release()
			continue
		}
		k.users.Add(1)
		size += k.size
		calls = append(calls, k)
		m.Operations = append(m.Operations, k.op)
	}
	clear(c.queue[:taken])
	c.queue = c.queue[taken:]
	if len(calls) == 0 {
		return nil, nil
	}
	c.lastID++
	m.Id = c.lastID
	c.underWay[m.Id] = calls
	return m, calls
}

// receive hands results out until the stream breaks, and returns why it did.
func (c *coalescer) receive(s grpc.BidiStreamingClient[kekdv1.BatchRequest, kekdv1.BatchResponse]) error {
	for {
		m, err := s.Recv()
		if err != nil {
			return err
		}
		c.mu.Lock()
		calls := c.underWay[m.Id]
		delete(c.underWay, m.Id)
		c.mu.Unlock()
		c.signal()
		rs, err := results(m, len(calls))
		for i, k := range calls {
			if err != nil {
				k.finish(Result{Err: err})
			} else {
				k.finish(rs[i])
			}
		}
	}
}

// lose ends what was under way on a stream that broke. Its callers know where else to try.
func (c *coalescer) lose(err error) {
	e, ok := errors.AsType[*Error](err)
	if !ok { // io.EOF: the daemon ended a stream that nobody closed
		e = errAnswer
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, calls := range c.underWay {
		for _, k := range calls {
			k.finish(Result{Err: e})
		}
	}
	clear(c.underWay)
}

// fail ends all that waits.
func (c *coalescer) fail(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, k := range c.queue {
		k.finish(Result{Err: err})
	}
	c.queue = nil
}
