package peer

import (
	"context"
	"sync"
	"time"
)

// askTime is how long a question to [Config.Unknown] may take, and how long its answer then stands.
const askTime = time.Second

// maxAsked is how many nodes are asked for within that time. A certificate of the CA is enough to be
// asked for, under any ID.
const maxAsked = 64

// asked keeps [Config.Unknown] from being called for each message.
type asked struct {
	mu      sync.Mutex
	answers map[nodeID]*asking
}

type asking struct {
	done  chan struct{}
	yes   bool      // once done is closed
	until time.Time // zero while there is no answer
}

// ask asks about a node, unless an answer is there or on its way.
func (p *Port) ask(ctx context.Context, id nodeID) bool {
	if p.cfg.Unknown == nil {
		return false
	}
	q, first := p.asked.find(id)
	if q == nil {
		return false
	}
	if first {
		p.running.Go(func() {
			ctx, cancel := context.WithTimeout(p.ctx, askTime)
			defer cancel()
			p.asked.answer(q, p.cfg.Unknown(ctx, id))
		})
	}
	select {
	case <-q.done:
		return q.yes
	case <-ctx.Done():
		return false
	}
}

// find tells whether the caller is the first to ask, and has to put the question. It is nil where too
// many are asked for.
func (a *asked) find(id nodeID) (q *asking, first bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	now := time.Now()
	for id, q := range a.answers {
		if !q.until.IsZero() && now.After(q.until) {
			delete(a.answers, id)
		}
	}
	if q := a.answers[id]; q != nil {
		return q, false
	}
	if len(a.answers) >= maxAsked {
		return nil, false
	}
	if a.answers == nil {
		a.answers = map[nodeID]*asking{}
	}
	q = &asking{done: make(chan struct{})}
	a.answers[id] = q
	return q, true
}

func (a *asked) answer(q *asking, yes bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	q.yes, q.until = yes, time.Now().Add(askTime)
	close(q.done)
}
