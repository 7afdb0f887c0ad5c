// Package custody is the hot path and nothing else: wrap, unwrap, data key and rewrap.
//
// Every request takes the one path
//
//	authorise -> limits -> token -> authorise again -> audit, durable -> authorise again -> reply
//
// alone, in a batch or on a stream. The second look keeps the audit from saying that something
// was released which was forbidden while the token worked; the third is the promise of a
// disable: what changes until just before the reply is obeyed, by reading the clock and never
// by a timer. What the third look refuses gets a second record that says so.
//
// The record of an unwrap is complete before the token is asked, and is written while the token
// works: it says that the unwrap is authorised, and what comes of it otherwise gets a second one.
//
// Parsing, policy, counting, tokens and the journal are other packages'; custody joins them. From
// one request to the next it keeps nothing but counts: package quota's, of the refusals that the
// journal was spared, and for who watches the node, of what became of requests. No request is decided
// by them. A failure anywhere ends with no plaintext handed out.
package custody

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"
	"unicode/utf8"

	"github.com/kekd/kekd/hierarchy"
	"github.com/kekd/kekd/hierarchy/audit"
	"github.com/kekd/kekd/hierarchy/envelope"
	"github.com/kekd/kekd/hierarchy/quota"
	"github.com/kekd/kekd/hierarchy/state"
	"github.com/kekd/kekd/hsm"
)

// Self says where this node stands.
type Self struct {
	Cluster hierarchy.ClusterID
	Region  hierarchy.RegionID
	Node    hierarchy.NodeID
}

// Custody serves data keys. Its methods may be called by many goroutines at once.
type Custody struct {
	self    Self
	replica Replica
	token   Token
	journal Journal
	quotas  Quotas
	budget  Budget
	now     func() time.Time // for the records; decides nothing

	refusals quota.Refusals // those without a record of their own
	tally    *tally

	// looks is held for reading from a last look until what it lets pass is decided.
	looks sync.RWMutex
}

// Drained returns when every last look that began before the call is over. Looks that begin later see the
// state of then, or a later one. It waits for no disk and no token.
func (c *Custody) Drained(ctx context.Context) error {
	done := make(chan struct{})
	go func() {
		c.looks.Lock()
		close(done) // to have held it is all that counts
		c.looks.Unlock()
	}()
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// New joins the parts.
func New(self Self, r Replica, t Token, j Journal, q Quotas, b Budget, now func() time.Time) *Custody {
	return &Custody{self: self, replica: r, token: t, journal: j, quotas: q, budget: b, now: now, tally: newTally()}
}

// Do serves the requests, each for itself, and fills in resps, which is as long as reqs. It
// returns when every response may leave the node, at once: see DoInTurn for those that may have
// to wait.
func (c *Custody) Do(ctx context.Context, who hierarchy.Principal, reqs []Request, resps []Response) {
	c.DoInTurn(ctx, who, reqs, resps, nil)
}

// DoInTurn is Do for responses that leave one batch after the other. It locks turn before the
// last look, so that none waits for its turn while it might become forbidden. The caller
// unlocks it when the responses have left.
//
// Those that leave one part after the other may have to wait again, for a caller who does not read.
// So look, which is for one goroutine at a time, looks once more at the responses of a range: what is
// forbidden by now becomes an error, and is recorded as withheld. It has a context of its own, because
// the request's may have ended in that time.
func (c *Custody) DoInTurn(ctx context.Context, who hierarchy.Principal, reqs []Request, resps []Response, turn sync.Locker) (look func(ctx context.Context, from, to int)) {
	items := make([]item, len(reqs))

	for i := range reqs {
		items[i].err = parse(&reqs[i], &items[i])
		items[i].known = items[i].err == nil
	}
	first := c.firstLook(ctx, who, items)
	c.limit(ctx, first, items)
	c.spend(ctx, items)

	ops := make([]hsm.Operation, 0, len(reqs))
	for i := range reqs {
		it := &items[i]
		if it.err != nil {
			continue
		}
		var op hsm.Operation
		if op, it.err = c.operation(it, &reqs[i]); it.err == nil {
			ops = append(ops, op)
			it.asked = len(ops)
		}
	}
	at := c.recordAhead(ctx, who, items)
	if len(ops) > 0 && at.err == nil {
		c.token.Do(ctx, ops)
	}

	second := c.replica.View()
	for i := range items {
		it := &items[i]
		resps[i] = Response{}
		if it.asked == 0 || at.err != nil {
			continue
		}
		op := &ops[it.asked-1]
		// The hierarchy's word goes first: what was disabled meanwhile may be latched already, and
		// the token then says no more than that it refuses.
		if it.err = recheck(first, second, who, it); it.err == nil {
			it.err = tokenError(op.Err)
		}
		if it.err == nil {
			it.err = c.respond(it, op, &resps[i])
		}
		if it.err != nil {
			clear(op.Revealed)
		}
	}

	c.record(ctx, who, items, at)
	if turn != nil {
		turn.Lock()
	}
	look = func(ctx context.Context, from, to int) {
		c.withhold(ctx, second, who, items[from:to])
		for i := from; i < to; i++ {
			if items[i].err != nil {
				clear(resps[i].Plaintext)
				resps[i] = Response{Err: items[i].err}
			}
		}
	}
	look(ctx, 0, len(items))
	c.tally.count(items)
	return look
}

// parse checks what the caller sent, as far as that needs no hierarchy.
func parse(r *Request, it *item) (err error) {
	it.op = r.Op
	if len(r.Reason) > MaxReason || !utf8.ValidString(r.Reason) {
		return fmt.Errorf("%w: the reason has to be UTF-8 of at most %d bytes", hierarchy.ErrInvalidArgument, MaxReason)
	}
	it.reason = r.Reason
	if it.context, err = hierarchy.NewContext(r.Context...); err != nil {
		return err
	}
	switch r.Op {
	case hierarchy.OpWrap:
		if len(r.Plaintext) == 0 || len(r.Plaintext) > hsm.MaxPlaintext {
			return fmt.Errorf("%w: a data key to wrap has 1 to %d bytes, got %d", hierarchy.ErrInvalidArgument, hsm.MaxPlaintext, len(r.Plaintext))
		}
		it.name, err = hierarchy.ParseKeyName(r.Key)
	case hierarchy.OpDataKey:
		it.bytes = r.Bytes
		if it.bytes == 0 {
			it.bytes = DefaultDataKey
		}
		if it.bytes < MinDataKey || it.bytes > hsm.MaxPlaintext {
			return fmt.Errorf("%w: a data key has %d to %d bytes, %d were asked for", hierarchy.ErrInvalidArgument, MinDataKey, hsm.MaxPlaintext, r.Bytes)
		}
		it.name, err = hierarchy.ParseKeyName(r.Key)
	case hierarchy.OpUnwrap, hierarchy.OpRewrap:
		if it.envelope, err = envelope.Parse(r.Envelope); err != nil {
			return err
		}
		it.hash, err = envelopeHash(r.Envelope, it.envelope)
	default:
		err = fmt.Errorf("%w: no operation is set", hierarchy.ErrInvalidArgument)
	}
	return err
}

// envelopeHash is that of the binary form, whichever form the caller sent.
func envelopeHash(sent []byte, e *envelope.Envelope) (audit.Hash, error) {
	if !envelope.IsText(sent) {
		return envelope.Hash(sent), nil // there is one binary form only
	}
	binary, err := e.Marshal()
	return envelope.Hash(binary), err
}

// spend takes the seals of a batch from the budget, a run of the same version at a time.
func (c *Custody) spend(ctx context.Context, items []item) {
	seals := func(i int) *state.Version {
		if items[i].err != nil {
			return nil
		}
		return items[i].grant.seal
	}
	for i := 0; i < len(items); {
		version := seals(i)
		end := i + 1
		for end < len(items) && seals(end) == version {
			end++
		}
		if version != nil {
			g := &items[i].grant
			if err := c.budget.Take(ctx, g.tenant.ID, g.key.ID, version.Number, end-i); err != nil {
				for j := i; j < end; j++ {
					items[j].err = err
				}
			}
		}
		i = end
	}
}

// recheck decides again from a later view. What was sealed under a version that a rotation has
// since retired is still good: it opens.
func recheck(before, after View, who hierarchy.Principal, it *item) error {
	if before.State == after.State {
		// The tenant as it is now: the grant's may be of an older state, with another max_staleness.
		t, ok := after.State.Tenant(it.grant.tenant.ID)
		if !ok {
			return errDenied(it.op)
		}
		return fresh(after, t)
	}
	g, err := authorise(after, who, it)
	if err != nil {
		return err
	}
	if sealed := it.grant.seal; sealed != nil {
		now, ok := g.key.Version(sealed.Number)
		if !ok || now.State != hierarchy.Active && now.State != hierarchy.Deactivated {
			return fmt.Errorf("%w: version %d was taken out of use meanwhile", hierarchy.ErrVersionDisabled, sealed.Number)
		}
	}
	return nil
}

// tokenError says in the hierarchy's words how a token failed.
func tokenError(err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, hsm.ErrTagMismatch):
		return hierarchy.ErrContextMismatch
	case errors.Is(err, hsm.ErrBusy):
		return fmt.Errorf("%w: %w", hierarchy.ErrRateLimited, err)
	case errors.Is(err, hsm.ErrInvalidInput):
		return fmt.Errorf("%w: %w", hierarchy.ErrInvalidArgument, err)
	default:
		return fmt.Errorf("%w: %w", hierarchy.ErrHSMUnavailable, err)
	}
}
