package hsm

import "fmt"

// Further limits of one operation, which a token that lives in another process relies on.
const (
	// MaxAAD is the longest AAD, in bytes. An encryption context has at most 18,432 bytes of
	// keys and values (package hierarchy); the rest of the AAD is IDs and framing.
	MaxAAD = 32 << 10
	// MaxTargets is how many keys one data key is sealed under at most: one for each region.
	MaxTargets = 32
)

// Validate checks an operation before a token sees it, because tokens do not: SoftHSM 2.6.1
// accepts an empty IV and an empty AAD, and answers a ciphertext of TagSize bytes or less as
// a dead token would. What is wrong wraps [ErrInvalidInput].
func (op *Operation) Validate() error {
	sources := 0
	if op.Plaintext != nil {
		sources++
		if n := len(op.Plaintext); n == 0 || n > MaxPlaintext {
			return fmt.Errorf("%w: a data key has 1 to %d bytes, got %d", ErrInvalidInput, MaxPlaintext, n)
		}
		if op.Reveal {
			return fmt.Errorf("%w: the caller has the data key already: nothing to reveal", ErrInvalidInput)
		}
	}
	if op.Random != 0 {
		sources++
		if op.Random < 16 || op.Random > MaxPlaintext {
			return fmt.Errorf("%w: a new data key has 16 to %d bytes, got %d", ErrInvalidInput, MaxPlaintext, op.Random)
		}
	}
	if op.Open != nil {
		sources++
		if err := op.Open.validate(); err != nil {
			return err
		}
	}
	if sources != 1 {
		return fmt.Errorf("%w: an operation has one source, got %d", ErrInvalidInput, sources)
	}
	if len(op.To) == 0 && !op.Reveal {
		return fmt.Errorf("%w: an operation that neither seals nor reveals", ErrInvalidInput)
	}
	if len(op.To) > MaxTargets {
		return fmt.Errorf("%w: %d keys to seal under, at most %d are allowed", ErrInvalidInput, len(op.To), MaxTargets)
	}
	for i := range op.To {
		if err := validateAAD(op.To[i].AAD); err != nil {
			return err
		}
	}
	return nil
}

func (o *Opening) validate() error {
	if len(o.IV) != IVSize {
		return fmt.Errorf("%w: an IV has %d bytes, got %d", ErrInvalidInput, IVSize, len(o.IV))
	}
	if n := len(o.Ciphertext); n <= TagSize || n > MaxPlaintext+TagSize {
		return fmt.Errorf("%w: a sealed data key has %d to %d bytes, got %d", ErrInvalidInput, TagSize+1, MaxPlaintext+TagSize, n)
	}
	return validateAAD(o.AAD)
}

func validateAAD(aad []byte) error {
	if len(aad) == 0 || len(aad) > MaxAAD {
		return fmt.Errorf("%w: AAD has 1 to %d bytes, got %d", ErrInvalidInput, MaxAAD, len(aad))
	}
	return nil
}
