package custody

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/kekd/kekd/hierarchy"
	"github.com/kekd/kekd/hierarchy/audit"
)

// countRefusals leaves those without a record of their own that a user has had too many of: they
// are counted instead, and a record tells how many there were.
func (c *Custody) countRefusals(who hierarchy.Principal, items []item) {
	denied := func(it *item) bool {
		return it.known && it.asked == 0 && errors.Is(it.err, hierarchy.ErrPermissionDenied)
	}
	n := 0
	for i := range items {
		if denied(&items[i]) {
			n++
		}
	}
	if n == 0 {
		return
	}
	single := c.refusals.Admit(who.UID, c.now(), n)
	for i := range items {
		if denied(&items[i]) {
			if single--; single < 0 {
				items[i].known = false
			}
		}
	}
}

// recordRefusals writes how many refusals of seconds that are over have no record of their own.
// Nothing waits for these records: they say nothing that leaves the node.
func (c *Custody) recordRefusals(ctx context.Context) {
	ended := c.refusals.Ended(c.now())
	for len(ended) > 0 {
		n := min(len(ended), audit.MaxAppend)
		records := make([]audit.Record, n)
		for i, more := range ended[:n] {
			records[i] = audit.Record{
				Kind: "refusals", At: c.now(), Caller: &hierarchy.Principal{UID: more.UID},
				Outcome: audit.OutcomeDenied, Code: hierarchy.Code(hierarchy.ErrPermissionDenied),
				Detail: fmt.Sprintf("%d more refusals of this user in the second from %s", more.Count, more.Since.UTC().Format(time.RFC3339Nano)),
			}
		}
		if _, err := c.journal.Append(ctx, records); err != nil {
			return // what follows cannot be written either, and says so
		}
		ended = ended[n:]
	}
}
