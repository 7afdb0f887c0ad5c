package custody

import (
	"context"
	"fmt"
	"time"

	"github.com/kekd/kekd/hierarchy"
	"github.com/kekd/kekd/hierarchy/audit"
)

// lateRecord is how long the record of a call may take whose caller waits no more.
const lateRecord = 2 * time.Second

// written is where the records of a batch end so far, or why they could not be written.
type written struct {
	position audit.Position
	some     bool
	err      error
}

// append puts records behind those before.
func (w *written) append(ctx context.Context, j Journal, records []audit.Record) {
	if len(records) == 0 || w.err != nil {
		return
	}
	var p audit.Position
	if p, w.err = j.Append(ctx, records); w.err == nil {
		w.position, w.some = p, true
	}
}

// unhurried is ctx, or a short time for a caller whose own is up, at the token for one: what he tried is
// recorded all the same.
func unhurried(ctx context.Context) (context.Context, context.CancelFunc) {
	if ctx.Err() == nil {
		return ctx, func() {}
	}
	return context.WithTimeout(context.WithoutCancel(ctx), lateRecord)
}

// recordAhead writes what can be written before the token has worked: what is refused already, and
// what is opened for the caller, whose record would have nothing to add. The journal makes that
// durable while the token works.
func (c *Custody) recordAhead(ctx context.Context, who hierarchy.Principal, items []item) (w written) {
	c.countRefusals(who, items)
	var records []audit.Record
	var of []*item
	for i := range items {
		it := &items[i]
		// What could not be read is about no tenant and no key: there is nothing to record.
		if !it.known || it.asked != 0 && it.op != hierarchy.OpUnwrap {
			continue
		}
		if records == nil {
			records, of = make([]audit.Record, 0, len(items)-i), make([]*item, 0, len(items)-i)
		}
		r := c.recordOf(who, it)
		if it.asked != 0 {
			r.Outcome = audit.OutcomeAuthorised
		}
		records, of = append(records, r), append(of, it)
	}
	ctx, cancel := unhurried(ctx)
	defer cancel()
	if w.append(ctx, c.journal, records); w.err == nil && len(of) > 0 {
		first := w.position.Sequence + 1 - uint64(len(of)) // nothing stands between them
		for i, it := range of {
			it.record = first + uint64(i)
		}
	}
	return w
}

// record writes what is not written yet, and waits until all of it is durable. Where that cannot
// be, nothing leaves.
func (c *Custody) record(ctx context.Context, who hierarchy.Principal, items []item, w written) {
	ctx, cancel := unhurried(ctx)
	defer cancel()
	var records []audit.Record
	for i := range items {
		it := &items[i]
		if it.known && (it.record == 0 || it.asked != 0 && it.err != nil) {
			records = append(records, c.recordOf(who, it))
		}
	}
	w.append(ctx, c.journal, records)
	if !w.some && w.err == nil {
		return
	}
	if w.err == nil {
		// How many more were refused: nothing that leaves depends on it.
		_, _ = c.appendRefusals(ctx, c.refusals.Ended(c.now()))
		w.err = c.journal.Wait(ctx, w.position)
	}
	if w.err == nil {
		return
	}
	var withheld []audit.Record
	for i := range items {
		it := &items[i]
		if !it.known {
			continue
		}
		released := it.err == nil
		it.err = fmt.Errorf("%w: %w", hierarchy.ErrAuditUnavailable, w.err)
		if released && w.some {
			withheld = append(withheld, c.withheldRecord(who, it))
		}
	}
	// The records may yet reach the disk, after their caller has been told that nothing is handed out.
	if len(withheld) > 0 {
		_, _ = c.journal.Append(ctx, withheld)
	}
}

// withhold takes back what the last look forbids, and records that. Making such a record durable
// takes time, in which more may be forbidden: so it looks again until a look forbids nothing, and
// nothing that blocks follows that one.
func (c *Custody) withhold(ctx context.Context, before View, who hierarchy.Principal, items []item) {
	for looksLast() {
		last, records := c.lastLook(before, who, items)
		if len(records) == 0 {
			return
		}
		// These are refused whether or not that can be written: nothing leaves that needs it.
		if p, err := c.journal.Append(ctx, records); err == nil {
			_ = c.journal.Wait(ctx, p)
		}
		before = last
	}
}

// lastLook decides once more, and gives the records of what it forbids. What acknowledges a closing waits until
// looks that began before it are over: see [Custody.Drained].
func (c *Custody) lastLook(before View, who hierarchy.Principal, items []item) (last View, records []audit.Record) {
	c.looks.RLock()
	defer c.looks.RUnlock()
	last = c.replica.View()
	for i := range items {
		it := &items[i]
		if it.err != nil {
			continue
		}
		if it.err = recheck(before, last, who, it); it.err != nil {
			c.tally.withheld.Add(1)
			records = append(records, c.withheldRecord(who, it))
		}
	}
	return last, records
}

func (c *Custody) withheldRecord(who hierarchy.Principal, it *item) audit.Record {
	r := c.recordOf(who, it)
	r.Outcome = audit.OutcomeWithheld
	return r
}

// recordOf is the audit record of an item as it stands.
func (c *Custody) recordOf(who hierarchy.Principal, it *item) audit.Record {
	g := &it.grant
	r := audit.Record{
		Kind:     it.op.String(),
		At:       c.now(),
		Caller:   &who,
		Service:  g.service,
		Outcome:  audit.OutcomeOK,
		Reason:   it.reason,
		Envelope: it.hash,
		Detail:   it.detail,
		Of:       it.record,
	}
	if g.tenant != nil {
		r.Tenant, r.TenantName = g.tenant.ID, g.tenant.Name
	} else {
		r.TenantName = it.name.Tenant
	}
	if g.key != nil {
		r.Key = g.key.Name
	} else {
		r.Key = it.name.Key
	}
	switch {
	case it.envelope != nil:
		r.Version = it.envelope.Version
	case g.seal != nil:
		r.Version = g.seal.Number
	}
	if it.err != nil {
		r.Code = hierarchy.Code(it.err)
		r.Outcome = audit.OutcomeFailed
		if it.asked == 0 {
			r.Outcome = audit.OutcomeDenied
		}
	}
	return r
}
