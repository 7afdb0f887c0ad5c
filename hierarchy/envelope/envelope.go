// Package envelope is the wrapped form of one data key: which key version sealed it, and for
// each region of the tenant's placement an entry that this region's token opens.
//
// [Parse] reads the binary or the text form, [Envelope.Marshal] and [Envelope.Text] write
// them, and [AAD] is what each entry's seal is bound to. The format is frozen: an envelope of
// today opens as long as its key version lives. docs/FORMATS.md describes it for other
// implementations, and testdata holds vectors.
//
// The binary form is deterministic CBOR (RFC 8949 section 4.2.1), and the only one of its
// envelope: the bytes that Parse accepts are those that Marshal gives back. So an envelope's [Hash] names
// it, and nobody can make a second name for it.
//
// The codec is written by hand, because every request passes through it: the general library
// (fxamacker/cbor), held to the same strictness, takes some ten times as long and allocates at
// every field. The tests hold the two equal, on fuzzed input as well.
//
// The package seals and opens nothing. An entry is bound to its envelope's header, to its
// region and to the encryption context, not to the other entries: who can write where an
// envelope is kept can take an entry away, or put in one of another envelope with the same
// header and context, as he could put in that whole envelope.
package envelope

import (
	"bytes"
	"crypto/sha256"

	"github.com/kekd/kekd/hierarchy"
)

// Limits of an envelope.
const (
	// Format is the only one there is.
	Format = 1

	// MaxSize is that of the binary form, in bytes. It has room for a data key of 4096 bytes
	// in three regions, and for one of 64 bytes in sixteen.
	MaxSize       = 16 << 10
	MaxRecipients = 16

	// IVSize and TagSize are those of AES-GCM as NIST SP 800-38D recommends them, in bytes.
	IVSize  = 12
	TagSize = 16

	// MaxPlaintext is the longest data key, in bytes; the shortest has one.
	MaxPlaintext = 4096
)

// Header says what sealed an envelope. Every recipient's AAD contains it.
type Header struct {
	Tenant   hierarchy.TenantID
	Key      hierarchy.KeyID
	Version  uint32             // from 1
	SealedIn hierarchy.RegionID // the region whose token sealed
}

// Recipient is the data key as one region's token opens it.
type Recipient struct {
	Region     hierarchy.RegionID
	IV         [IVSize]byte
	Ciphertext []byte // with the tag appended: 1 to MaxPlaintext bytes, + TagSize
}

// Envelope is one wrapped data key.
type Envelope struct {
	Header
	Recipients []Recipient // 1 to MaxRecipients, sorted by region ID, each region once
}

// Recipient finds the entry of a region.
func (e *Envelope) Recipient(region hierarchy.RegionID) (*Recipient, bool) {
	for i := range e.Recipients {
		if e.Recipients[i].Region == region {
			return &e.Recipients[i], true
		}
	}
	return nil, false
}

// Hash is how the audit names an envelope: SHA-256 of its binary form. The text form has other
// hashes, with and without its newline: who has that, parses it and marshals it first.
func Hash(binary []byte) [sha256.Size]byte { return sha256.Sum256(binary) }

// validate checks all that the types leave open, except the size of the whole.
func (e *Envelope) validate() error {
	switch {
	case e.Tenant.IsZero():
		return invalid(fieldTenant, "it is zero")
	case e.Key.IsZero():
		return invalid(fieldKey, "it is zero")
	case e.Version == 0:
		return invalid(fieldVersion, "it is 0, and versions count from 1")
	case e.SealedIn.IsZero():
		return invalid(fieldSealedIn, "it is zero")
	case len(e.Recipients) < 1 || len(e.Recipients) > MaxRecipients:
		return errRecipients(uint64(len(e.Recipients)))
	}
	// No region's ID is zero, so zero stands before the first.
	var previous hierarchy.RegionID
	for i := range e.Recipients {
		r := &e.Recipients[i]
		if err := r.validate(previous); err != nil {
			return inRecipient(i, err)
		}
		previous = r.Region
	}
	return nil
}

func (r *Recipient) validate(previous hierarchy.RegionID) error {
	if r.Region.IsZero() {
		return invalid(fieldRegion, "it is zero")
	}
	if r.Region == previous {
		return invalid(fieldRegion, "it is there twice")
	}
	if bytes.Compare(previous.ID[:], r.Region.ID[:]) > 0 {
		return invalid(fieldRegion, "recipients are not sorted by region ID")
	}
	if n := len(r.Ciphertext); n < 1+TagSize || n > MaxPlaintext+TagSize {
		return invalid(fieldCiphertext, "it has %d bytes, and %d to %d are allowed", n, 1+TagSize, MaxPlaintext+TagSize)
	}
	return nil
}
