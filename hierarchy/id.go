package hierarchy

import (
	"crypto/rand"
	"encoding/hex"
	"fmt"
)

// IDSize is the length in bytes of every identifier: 128 random bits, so that two
// clusters can draw them without asking each other.
const IDSize = 16

// ID is a random, immutable identifier. Its text form is 32 lower-case hex digits.
type ID [IDSize]byte

// The identifiers of each kind of thing are types of their own, so that the compiler
// tells a tenant from a key.
type (
	ClusterID struct{ ID }
	TenantID  struct{ ID }
	KeyID     struct{ ID }
	RegionID  struct{ ID }
	NodeID    struct{ ID }
	// CommandID makes a command idempotent: the second one with the same ID answers
	// what the first did.
	CommandID struct{ ID }
)

// NewID draws an identifier from the operating system's generator. The state machine
// never calls it: it takes IDs from commands.
func NewID() ID {
	var id ID
	rand.Read(id[:]) // never fails: crypto/rand ends the process instead (Go 1.24)
	return id
}

// ParseID reads the text form of an identifier.
func ParseID(s string) (ID, error) {
	var id ID
	err := id.UnmarshalText([]byte(s))
	return id, err
}

// IDFromBytes takes exactly [IDSize] bytes.
func IDFromBytes(b []byte) (ID, error) {
	if len(b) != IDSize {
		return ID{}, fmt.Errorf("%w: an identifier has %d bytes, got %d", ErrInvalidArgument, IDSize, len(b))
	}
	return ID(b), nil
}

func (id ID) String() string { return hex.EncodeToString(id[:]) }

// IsZero tells whether the identifier was never set.
func (id ID) IsZero() bool { return id == ID{} }

func (id ID) MarshalText() ([]byte, error) { return []byte(id.String()), nil }

func (id *ID) UnmarshalText(b []byte) error {
	if len(b) != hex.EncodedLen(IDSize) {
		return fmt.Errorf("%w: an identifier is %d hex digits, got %d characters", ErrInvalidArgument, hex.EncodedLen(IDSize), len(b))
	}
	for _, c := range b {
		if c >= 'A' && c <= 'F' {
			return fmt.Errorf("%w: an identifier is written in lower case", ErrInvalidArgument)
		}
	}
	if _, err := hex.Decode(id[:], b); err != nil {
		return fmt.Errorf("%w: an identifier is %d hex digits", ErrInvalidArgument, hex.EncodedLen(IDSize))
	}
	return nil
}
