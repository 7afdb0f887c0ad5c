package cluster

import (
	"context"
	"sync"
	"time"

	"github.com/kekd/kekd/hierarchy/commandpb"
)

// tickTimeout bounds one Tick: as long as a renewal may take.
const tickTimeout = time.Second

// gathering is which part of the spacing whoever asks first waits for others, who were answered together with him the last time.
const gathering = 8

// ticks proposes one Tick for all who ask for one meanwhile. Who asks gets a Tick that is proposed after he
// asked: one that is under way already would prove that this node led before, and not now.
//
// One follows the other at some distance, so that nodes which ask at different moments come to share one: all who have waited for
// a Tick are answered at once, and so ask at once the next time. Each Tick is a write to every node's disk.
type ticks struct {
	propose func(context.Context) (uint64, error)
	// spacing is the distance from one proposal to the next, at least. A lease that was waited for is the older by it.
	spacing func() time.Duration

	mu   sync.Mutex
	next *tickBatch // who waits for the next one; nil: nobody
	busy bool       // one is under way, and takes up the next when it ends
	last time.Time  // when the last one was proposed; run's alone
}

type tickBatch struct {
	done  chan struct{}
	index uint64
	err   error
}

// tick returns the index of a Tick that was proposed after the call and is applied here, as committed in the
// term in which this node led when it proposed it.
func (t *ticks) tick(ctx context.Context) (uint64, error) {
	b := t.join()
	select {
	case <-b.done:
		return b.index, b.err
	case <-ctx.Done():
		return 0, ctx.Err()
	}
}

func (t *ticks) join() *tickBatch {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.next == nil {
		t.next = &tickBatch{done: make(chan struct{})}
	}
	b := t.next
	if !t.busy {
		t.busy = true
		go t.run()
	}
	return b
}

func (t *ticks) run() {
	for t.awaited() {
		spacing := t.spacing()
		time.Sleep(max(spacing/gathering, time.Until(t.last.Add(spacing))))
		var b *tickBatch
		if batchEndsFirst {
			b = t.take()
		}
		// It has nobody's deadline: those who wait have theirs.
		ctx, cancel := context.WithTimeout(context.Background(), tickTimeout)
		t.last = time.Now()
		index, err := t.propose(ctx)
		cancel()
		if !batchEndsFirst {
			b = t.take()
		}
		b.index, b.err = index, err
		close(b.done)
	}
}

// awaited tells whether somebody waits for the next one; if nobody does, the next who asks has to begin.
func (t *ticks) awaited() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.busy = t.next != nil
	return t.busy
}

// take closes the next batch: who comes from now on gets the one after.
func (t *ticks) take() *tickBatch {
	t.mu.Lock()
	defer t.mu.Unlock()
	b := t.next
	t.next = nil
	return b
}

// proposeTick proposes a Tick with the hash of the state that this node is at.
func (n *Node) proposeTick(ctx context.Context) (uint64, error) {
	s := n.State()
	hash := s.Hash()
	res, err := n.proposeHere(ctx, &commandpb.Command{Body: &commandpb.Command_Tick{Tick: &commandpb.Tick{StateHash: hash[:], StateIndex: s.Index()}}})
	if err != nil {
		return 0, err
	}
	return res.Index, nil
}
