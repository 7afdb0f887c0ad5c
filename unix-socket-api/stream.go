package socketapi

import (
	"context"
	"errors"
	"io"
	"sync"
	"time"

	"github.com/kekd/kekd/hierarchy/custody"
	"github.com/kekd/kekd/unix-socket-api/apierr"
	"github.com/kekd/kekd/unix-socket-api/kekdv1"
	"github.com/kekd/kekd/unix-socket-api/vtcodec"
	"google.golang.org/grpc"
)

// runners is how many calls to custody one stream may have under way. While they are, what
// arrives is gathered, and the next one takes all of it: a stream of single items costs little
// more than one of batches, and a lone item waits for nobody.
const runners = 4

// pipeline is one call of KeyService.Stream. One goroutine reads, up to [runners] work and
// answer. What is in flight is bounded: a caller that does not read its answers keeps the
// runners waiting, then the reader, then itself.
type pipeline struct {
	k    *keyService
	conn *conn
	ss   grpc.ServerStream
	ctx  context.Context

	send   sync.Mutex    // held while answers are sent
	unread chan struct{} // of size 1: an answer was not read in time
	freed  chan struct{} // of size 1: there may be room again
	work   sync.WaitGroup

	mu      sync.Mutex
	queue   []message
	ops     int // in flight, those in the queue included
	bytes   int // the same
	running int
	closed  bool // nothing more is let in
}

// message is one that was let in.
type message struct {
	*kekdv1.BatchRequest
	bytes int // on the wire
}

func (k *keyService) stream(_ any, ss grpc.ServerStream) error {
	c, err := connOf(ss.Context())
	if err != nil {
		return apierr.From(err)
	}
	p := &pipeline{k: k, conn: c, ss: ss, ctx: ss.Context(), unread: make(chan struct{}, 1), freed: make(chan struct{}, 1)}

	read := make(chan error, 1)
	go func() { read <- p.read() }()
	select {
	case err = <-read:
	case <-k.stopping.Done():
		// Messages that were not let in are not answered: the end of the stream tells.
		err = errStopping
	case <-p.unread:
		// Whoever waits in SendMsg is released by this call's end, and not before.
		p.close()
		return k.gate.unread
	}
	p.close()
	p.work.Wait()
	return err
}

// read lets messages in until the caller has sent its last.
func (p *pipeline) read() (err error) {
	defer p.k.recovered("Stream", &err)
	for {
		if err := p.conn.streamTurn(p.ctx); err != nil {
			return err
		}
		m := message{BatchRequest: new(kekdv1.BatchRequest)}
		in := vtcodec.Incoming{Message: m.BatchRequest, Check: checkOperations}
		switch err := receiveInto(p.ss, &in); {
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return err
		}
		m.bytes = in.Size
		if err := checkBatch(m.Operations); err != nil {
			if err := p.refuse(m, err); err != nil {
				return err
			}
			continue
		}
		if err := p.reserve(m); err != nil {
			wipeOperations(m.Operations)
			return err
		}
		if err := p.conn.take(p.ctx, len(m.Operations)); err != nil {
			p.release(len(m.Operations), m.bytes)
			if err := p.refuse(m, err); err != nil {
				return err
			}
			continue
		}
		if !p.submit(m) {
			wipeOperations(m.Operations)
			p.conn.give(len(m.Operations))
			p.release(len(m.Operations), m.bytes)
			return nil
		}
	}
}

// reserve waits for room for a message.
func (p *pipeline) reserve(m message) error {
	ops := len(m.Operations)
	limits := &p.k.gate.limits
	for {
		p.mu.Lock()
		ok := p.ops+ops <= limits.StreamOps && p.bytes+m.bytes <= limits.StreamBytes
		if ok {
			p.ops += ops
			p.bytes += m.bytes
		}
		p.mu.Unlock()
		if ok {
			return p.conn.await(p.ctx, func() bool { return p.conn.mayHold(m.bytes) })
		}
		select {
		case <-p.freed:
		case <-p.ctx.Done():
			return p.ctx.Err()
		}
	}
}

func (p *pipeline) release(ops, bytes int) {
	p.mu.Lock()
	p.ops -= ops
	p.bytes -= bytes
	p.mu.Unlock()
	p.conn.drop(bytes)
	select {
	case p.freed <- struct{}{}:
	default:
	}
}

// submit queues a message, and starts a runner unless enough of them run.
func (p *pipeline) submit(m message) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return false
	}
	p.queue = append(p.queue, m)
	if p.running < runners {
		p.running++
		p.work.Go(p.run)
	}
	return true
}

func (p *pipeline) close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.closed = true
}

// run works until the queue is empty.
func (p *pipeline) run() {
	for {
		messages, ops, bytes := p.next()
		if ops == 0 {
			return
		}
		p.do(messages, ops)
		p.conn.give(ops)
		p.release(ops, bytes)
	}
}

// next takes what has gathered, up to a batch's size.
func (p *pipeline) next() (messages []message, ops, bytes int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	n := 0
	for n < len(p.queue) && ops+len(p.queue[n].Operations) <= custody.MaxBatch {
		ops += len(p.queue[n].Operations)
		bytes += p.queue[n].bytes
		n++
	}
	if n == 0 {
		p.running--
		return nil, 0, 0
	}
	messages = p.queue[:n:n]
	p.queue = p.queue[n:]
	return messages, ops, bytes
}

// do serves messages as one batch, and answers each for itself.
func (p *pipeline) do(messages []message, ops int) {
	reqs, resps := make([]custody.Request, ops), make([]custody.Response, ops)
	defer wipe(reqs, resps)
	sent := 0
	defer func() {
		if r := recover(); r != nil {
			err := p.k.panicked("Stream", r)
			for _, m := range messages[sent:] {
				p.refuse(m, err)
			}
		}
	}()
	i := 0
	for _, m := range messages {
		for _, op := range m.Operations {
			operationRequest(op, &reqs[i])
			i++
		}
	}
	turn := turn{mu: &p.send}
	defer turn.end()
	ctx, cancel := p.k.deadline(p.ctx)
	defer cancel()
	look := p.k.custody.DoInTurn(ctx, p.conn.principal, reqs, resps, &turn)
	i = 0
	for _, m := range messages {
		n := len(m.Operations)
		if i > 0 { // the one before may have waited long for its caller
			look(p.ctx, i, i+n)
		}
		answer := p.k.answer(m.Id, reqs[i:i+n], resps[i:i+n])
		i += n
		sent++
		if p.sendLocked(answer) != nil {
			return // the caller is gone, and the reader hears of it too
		}
	}
}

// turn is the right to send, which custody takes before its last look, unless it panics first.
type turn struct {
	mu   *sync.Mutex
	held bool
}

func (t *turn) Lock()   { t.mu.Lock(); t.held = true }
func (t *turn) Unlock() { t.held = false; t.mu.Unlock() }

func (t *turn) end() {
	if t.held {
		t.Unlock()
	}
}

// refuse answers a whole message with an error; the stream goes on.
func (p *pipeline) refuse(m message, err error) error {
	defer wipeOperations(m.Operations)
	p.send.Lock()
	defer p.send.Unlock()
	return p.sendLocked(&kekdv1.BatchResponse{Id: m.Id, Error: apierr.From(err).Proto()})
}

// sendLocked blocks while the caller does not read, for as long as its allowance in operations
// may be held for that.
func (p *pipeline) sendLocked(m *kekdv1.BatchResponse) error {
	timer := time.AfterFunc(p.k.gate.limits.SendTimeout, func() {
		select {
		case p.unread <- struct{}{}:
		default:
		}
	})
	defer timer.Stop()
	return p.ss.SendMsg(&vtcodec.Outgoing{Message: m, Pool: p.conn})
}
