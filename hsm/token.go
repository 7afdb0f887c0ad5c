package hsm

import (
	"context"

	"github.com/kekd/kekd/hierarchy"
)

// Limits of one operation.
const (
	// MaxPlaintext is the largest data key that is wrapped, in bytes. Data keys are 16 to 64
	// bytes; RSA-4096 private keys in PKCS#8 have 2,400.
	MaxPlaintext = 4096
	// IVSize and TagSize are those of AES-GCM as NIST SP 800-38D recommends them, in bytes.
	IVSize  = 12
	TagSize = 16
)

// KeyRef names a key object and what it must be: a token that answers with a key of another
// check value is refused with [ErrKeyRefused].
type KeyRef struct {
	ID    hierarchy.ObjectID
	Check hierarchy.CheckValue
	// Bridge is set for a key that was agreed between two tokens (CKA_LOCAL 0). Without it
	// the key must have been generated in the token (CKA_LOCAL 1): who has the PIN can derive
	// a key that he knows, and can generate none.
	Bridge bool
}

// Lane is what queues are fair between: the tenant.
type Lane = hierarchy.TenantID

// Sealed is a data key sealed under one key object.
type Sealed struct {
	IV         []byte // IVSize bytes, chosen by the token side
	Ciphertext []byte // with the tag appended: plaintext length + TagSize bytes
}

// Opening is a sealed data key and what opens it.
type Opening struct {
	Key KeyRef
	AAD []byte // never empty
	Sealed
}

// Target is a key to seal under.
type Target struct {
	Key KeyRef
	AAD []byte // never empty
}

// Operation moves one data key: from where it comes, to the keys that seal it, and whether
// the plaintext leaves the token's side. Exactly one source is set.
//
//	wrap:     Plaintext -> To
//	unwrap:   Open      -> revealed
//	data key: Random    -> To, revealed or not
//	rewrap:   Open      -> To; the data key never reaches the caller
//
// The caller fills in the request and does not touch it until [Token.Do] returns; the token
// side fills in the result.
type Operation struct {
	Lane Lane

	Plaintext []byte   // source: the caller's data key, 1 to MaxPlaintext bytes
	Random    int      // source: this many bytes of the token's generator, 16 to MaxPlaintext
	Open      *Opening // source: open this first

	To     []Target
	Reveal bool

	Revealed []byte   // result: the data key, if Reveal. Whoever takes it wipes it
	Sealed   []Sealed // result: one for each of To
	Err      error    // result: nil, or wraps one of this package's errors
}

// Token is the serving side of a token.
type Token interface {
	// Do runs the operations and returns when each has its result. It never blocks longer
	// than ctx: what has not run by then ends with ErrDeadline. An operation that failed
	// leaves no partial result.
	Do(ctx context.Context, ops []Operation)

	// Forget drops what is cached of these keys, session copies above all, because they may
	// not be used any more. When it returns, no later Do uses an old copy.
	Forget(ctx context.Context, keys []hierarchy.ObjectID) error

	// Healthy asks the token itself (a canary on a token object, not the session): nil, or an
	// error that wraps ErrUnavailable.
	Healthy(ctx context.Context) error
}

// Manager is the side that changes objects. One process of a region uses it at a time.
type Manager interface {
	// List returns every secret key object on the token that a KEK or bridge could be,
	// ours and foreign, broken ones included. The first listing after a token was opened may tell
	// what was read then of those that were there.
	List(ctx context.Context) ([]Object, error)

	// Generate makes an AES-256 KEK, or finds the one that an earlier try made, reads its
	// attributes back and tests it. On return the object is durable.
	// More than one object under the ID is ErrAmbiguous; one that is not what it must be
	// is ErrKeyRefused.
	Generate(ctx context.Context, id hierarchy.ObjectID, label string) (Object, error)

	// SetUsable sets or takes away CKA_ENCRYPT and CKA_DECRYPT: the latch. Session copies
	// are destroyed first. Setting what is set already does nothing. ErrUnsupported where
	// the token cannot.
	SetUsable(ctx context.Context, id hierarchy.ObjectID, usable bool) error

	// Destroy removes every object under the ID, copies first, and verifies that a search
	// finds none. Destroying what is not there is no error.
	Destroy(ctx context.Context, id hierarchy.ObjectID) error

	// Info describes the token.
	Info(ctx context.Context) (Info, error)
}

// Agreer agrees bridges between two tokens, inside of both. See package pkcs11 for the steps.
type Agreer interface {
	// BeginAgreement makes an EC P-256 pair that lives as long as the session and can do
	// nothing but derive, and returns its public half as an uncompressed point (65 bytes).
	// The handle is this process's own.
	BeginAgreement(ctx context.Context) (Agreement, error)
}

// Agreement is one ephemeral pair.
type Agreement interface {
	// Public is the uncompressed point of the pair's public half, 65 bytes.
	Public() []byte
	// Derive makes the bridge with the holder of the peer's pair as a token object under id.
	// A peer point that is not on P-256 is ErrInvalidInput.
	Derive(ctx context.Context, peer []byte, kdf KDF, info []byte, id hierarchy.ObjectID, label string) (Object, error)
	// End destroys the pair.
	End(ctx context.Context) error
}

// KDF names how a bridge is derived from the agreed secret. It is part of a key version's record.
type KDF string

const (
	// KDFX963SHA256 is ECDH with CKD_SHA256_KDF (ANSI X9.63), info as shared data.
	KDFX963SHA256 KDF = "x963-sha256"
	// KDFECDHAESCBC is for tokens without one (SoftHSM 2.6.1): CKD_NULL gives an AES key that
	// can only derive, then CKM_AES_CBC_ENCRYPT_DATA over SHA-256 of info gives the bridge.
	KDFECDHAESCBC KDF = "ecdh-aes-cbc-data"
)

// Object is a secret key object as the token describes it.
type Object struct {
	ID     hierarchy.ObjectID
	RawID  []byte // CKA_ID as it is; not of the length of an ObjectID for foreign objects
	Label  string
	Check  hierarchy.CheckValue
	Usable bool  // CKA_ENCRYPT and CKA_DECRYPT
	Bridge bool  // derived, not generated: CKA_LOCAL 0
	Fault  error // why the object is not fit for use, wrapping ErrKeyRefused or ErrAmbiguous; nil if it is
}

// Info describes a token.
type Info struct {
	Label, Manufacturer, Model, Serial, Firmware string

	KDFs      []KDF  // ways to agree a bridge, best first; none if it cannot
	CanCopy   bool   // C_CopyObject: hot keys may be copied into the session
	CanLatch  bool   // C_SetAttributeValue on CKA_ENCRYPT
	FreeBytes uint64 // private memory left; ^uint64(0) if the token does not say

	// FreeObjects is how many more keys fit into that memory; ^uint64(0) if the token does not say.
	FreeObjects uint64
	// MaxObjects is how many objects a token of this model is to hold, where nobody knows better.
	MaxObjects uint64
	// Others is how many objects the token had, when it was opened, that List leaves out: the
	// canary, the identity's pair, nodes' marks, and what somebody else keeps there.
	Others uint64
}
