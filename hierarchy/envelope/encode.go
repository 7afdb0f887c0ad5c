package envelope

import "github.com/kekd/kekd/hierarchy"

// Upper bounds of what an envelope and a recipient take beside the ciphertexts, in bytes.
const (
	headerSize    = 1 + 2 + 3*(2+hierarchy.IDSize) + (1 + 5) + 2
	recipientSize = 1 + (2 + hierarchy.IDSize) + (2 + IVSize) + (1 + 3)
)

// Marshal returns the binary form. An envelope that [Parse] would refuse is refused here as well,
// unsorted recipients included, with the same errors.
func (e *Envelope) Marshal() ([]byte, error) {
	b, err := e.AppendBinary(make([]byte, 0, e.sizeBound()))
	if err != nil {
		return nil, err
	}
	return b, nil
}

// sizeBound is at least the size of the binary form, and a few bytes more at most.
func (e *Envelope) sizeBound() int {
	size := headerSize
	for i := range e.Recipients {
		size += recipientSize + len(e.Recipients[i].Ciphertext)
	}
	return size
}

// AppendBinary appends the binary form to b, which it returns as it was with an error.
func (e *Envelope) AppendBinary(b []byte) ([]byte, error) {
	if err := e.validate(); err != nil {
		return b, err
	}
	start := len(b)
	b = append(b, majorMap|envelopeKeys)
	b = append(b, keyFormat, Format)
	b = appendBytes(append(b, keyTenant), e.Tenant.ID[:])
	b = appendBytes(append(b, keyKey), e.Key.ID[:])
	b = appendHead(append(b, keyVersion), majorUint, e.Version)
	b = appendBytes(append(b, keySealedIn), e.SealedIn.ID[:])
	b = append(b, keyRecipients, majorArray|byte(len(e.Recipients)))
	for i := range e.Recipients {
		r := &e.Recipients[i]
		b = append(b, majorMap|recipientKeys)
		b = appendBytes(append(b, keyRegion), r.Region.ID[:])
		b = appendBytes(append(b, keyIV), r.IV[:])
		b = appendBytes(append(b, keyCiphertext), r.Ciphertext)
	}
	if n := len(b) - start; n > MaxSize {
		return b[:start], errTooLarge(n)
	}
	return b, nil
}
