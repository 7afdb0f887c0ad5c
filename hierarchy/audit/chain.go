package audit

import (
	"crypto/sha256"
	"fmt"
	"slices"

	"github.com/kekd/kekd/hierarchy"
)

// chain is where a journal stands: what the next record has to name.
type chain struct {
	seq   uint64
	hash  Hash
	heads []Head // in the order in which tenants first appeared
	index map[hierarchy.TenantID]int
}

func newChain() *chain {
	return &chain{index: make(map[hierarchy.TenantID]int)}
}

// startAt takes the place before a segment from the segment's header.
func (c *chain) startAt(header *Entry) {
	c.seq, c.hash = header.Sequence-1, header.Prev
	c.heads = nil
	clear(c.index)
	for _, h := range header.Segment.Heads {
		c.index[h.Tenant] = len(c.heads)
		c.heads = append(c.heads, h)
	}
}

// head of a tenant, nil if it has no record yet.
func (c *chain) head(tenant hierarchy.TenantID) *Head {
	if i, ok := c.index[tenant]; ok {
		return &c.heads[i]
	}
	return nil
}

// place returns the tenant's head to move on, made new if it has none. Nil without a tenant.
func (c *chain) place(tenant hierarchy.TenantID) *Head {
	if tenant.IsZero() {
		return nil
	}
	i, ok := c.index[tenant]
	if !ok {
		i = len(c.heads)
		c.index[tenant] = i
		c.heads = append(c.heads, Head{Tenant: tenant})
	}
	return &c.heads[i]
}

// add moves the chain on to a record that was checked.
func (c *chain) add(tenant hierarchy.TenantID, hash Hash) {
	c.seq++
	c.hash = hash
	if h := c.place(tenant); h != nil {
		h.move(c.seq, hash)
	}
}

func (h *Head) move(seq uint64, hash Hash) {
	h.TenantSequence++
	h.Sequence = seq
	h.Hash = hash
}

// appendLine appends the line of a record whose body was encoded before, newline included, and
// moves the chain on to it.
func (c *chain) appendLine(b, body []byte, tenant hierarchy.TenantID) []byte {
	start := len(b)
	b = append(b, body...)
	h := c.place(tenant)
	if h == nil {
		b = appendPlace(b, c.seq+1, &c.hash, 0, nil)
	} else {
		b = appendPlace(b, c.seq+1, &c.hash, h.TenantSequence+1, &h.Hash)
	}
	c.seq++
	c.hash = sha256.Sum256(b[start:])
	if h != nil {
		h.move(c.seq, c.hash)
	}
	return append(b, '\n')
}

// check tells whether a record is the one that comes next.
func (c *chain) check(e *Entry) error {
	switch {
	case e.Sequence != c.seq+1:
		return fmt.Errorf("record %d stands where record %d belongs", e.Sequence, c.seq+1)
	case e.Prev != c.hash:
		return fmt.Errorf("record %d does not name the hash of the record before it", e.Sequence)
	case e.Segment != nil && !slices.Equal(e.Segment.Heads, c.heads):
		return fmt.Errorf("record %d, the segment's header, does not name the tenants' last records", e.Sequence)
	case e.Checkpoint != nil && e.Checkpoint.Sequence >= e.Sequence:
		return fmt.Errorf("record %d is a checkpoint of a record to come, %d", e.Sequence, e.Checkpoint.Sequence)
	}
	return c.checkTenant(e)
}

func (c *chain) checkTenant(e *Entry) error {
	if e.Tenant.IsZero() {
		return nil
	}
	var last Head
	if h := c.head(e.Tenant); h != nil {
		last = *h
	}
	switch {
	case e.TenantSequence != last.TenantSequence+1:
		return fmt.Errorf("record %d is number %d of its tenant, and %d belongs there", e.Sequence, e.TenantSequence, last.TenantSequence+1)
	case e.TenantPrev != last.Hash:
		return fmt.Errorf("record %d does not name the hash of its tenant's record before it", e.Sequence)
	}
	return nil
}
