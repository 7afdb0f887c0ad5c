package custody

import (
	"fmt"

	"github.com/kekd/kekd/hierarchy"
	"github.com/kekd/kekd/hierarchy/envelope"
	"github.com/kekd/kekd/hierarchy/state"
	"github.com/kekd/kekd/hsm"
)

// operation says what the token has to do for an authorised item.
func (c *Custody) operation(it *item, r *Request) (op hsm.Operation, err error) {
	op.Lane = it.grant.tenant.ID
	switch it.op {
	case hierarchy.OpWrap:
		op.Plaintext = r.Plaintext
	case hierarchy.OpDataKey:
		op.Random = it.bytes
		op.Reveal = !r.WrappedOnly
	case hierarchy.OpUnwrap:
		op.Reveal = true
	}
	if it.grant.open != nil {
		if op.Open, err = c.opening(it); err != nil {
			return op, err
		}
	}
	if it.grant.seal != nil {
		op.To, err = c.targets(it)
	}
	return op, err
}

// opening finds this region's recipient in the envelope and the key that opens it.
func (c *Custody) opening(it *item) (*hsm.Opening, error) {
	rcpt, ok := it.envelope.Recipient(c.self.Region)
	if !ok {
		return nil, fmt.Errorf("%w: the envelope was not sealed for this node's region", hierarchy.ErrFailedPrecondition)
	}
	if it.envelope.SealedIn != c.self.Region {
		return nil, fmt.Errorf("%w: this region has no bridge from the region that sealed the envelope", hierarchy.ErrFailedPrecondition)
	}
	key, err := c.kek(it.grant.open)
	if err != nil {
		return nil, err
	}
	return &hsm.Opening{
		Key:    key,
		AAD:    envelope.AAD(c.self.Cluster, it.envelope.Header, c.self.Region, it.context),
		Sealed: hsm.Sealed{IV: rcpt.IV[:], Ciphertext: rcpt.Ciphertext},
	}, nil
}

// targets are the keys that seal for each region of the version.
func (c *Custody) targets(it *item) ([]hsm.Target, error) {
	key, err := c.kek(it.grant.seal)
	if err != nil {
		return nil, err
	}
	return []hsm.Target{{
		Key: key,
		AAD: envelope.AAD(c.self.Cluster, c.header(&it.grant), c.self.Region, it.context),
	}}, nil
}

func (c *Custody) header(g *grant) envelope.Header {
	return envelope.Header{Tenant: g.tenant.ID, Key: g.key.ID, Version: g.seal.Number, SealedIn: c.self.Region}
}

// kek is this region's own key of a version.
func (c *Custody) kek(v *state.Version) (hsm.KeyRef, error) {
	r, ok := v.Region(c.self.Region)
	if !ok || !r.Minted {
		return hsm.KeyRef{}, fmt.Errorf("%w: version %d has no key in this node's region", hierarchy.ErrFailedPrecondition, v.Number)
	}
	return hsm.KeyRef{ID: r.Object, Check: r.Check}, nil
}

// respond turns the token's result into the caller's.
func (c *Custody) respond(it *item, op *hsm.Operation, r *Response) error {
	r.Key = hierarchy.KeyName{Tenant: it.grant.tenant.Name, Key: it.grant.key.Name}
	r.Plaintext = op.Revealed
	if it.grant.seal == nil {
		r.Version = it.grant.open.Number
		active, ok := it.grant.key.Active()
		r.NeedsRewrap = ok && active.Number > r.Version
		return nil
	}
	r.Version = it.grant.seal.Number
	sealed := envelope.Envelope{
		Header:     c.header(&it.grant),
		Recipients: []envelope.Recipient{{Region: c.self.Region, IV: [hsm.IVSize]byte(op.Sealed[0].IV), Ciphertext: op.Sealed[0].Ciphertext}},
	}
	var err error
	if r.Envelope, err = sealed.Marshal(); err != nil {
		return fmt.Errorf("%w: the token's result does not fit an envelope: %w", hierarchy.ErrHSMUnavailable, err)
	}
	it.hash = envelope.Hash(r.Envelope)
	return nil
}
