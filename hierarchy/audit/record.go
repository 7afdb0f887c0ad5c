package audit

import (
	"encoding/hex"
	"fmt"
	"time"
	"unicode/utf8"

	"github.com/kekd/kekd/hierarchy"
)

// Outcome is what became of what was asked.
type Outcome string

const (
	OutcomeOK         Outcome = "ok"
	OutcomeDenied     Outcome = "denied"     // the caller may not
	OutcomeFailed     Outcome = "failed"     // it was allowed, and did not work
	OutcomeWithheld   Outcome = "withheld"   // it worked, and the result was not handed out
	OutcomeAuthorised Outcome = "authorised" // allowed, and under way: a failure gets a record of its own
	OutcomeRequested  Outcome = "requested"  // asked of others: of the cluster, of operators
)

func (o Outcome) valid() bool {
	switch o {
	case "", OutcomeOK, OutcomeDenied, OutcomeFailed, OutcomeWithheld, OutcomeAuthorised, OutcomeRequested:
		return true
	}
	return false
}

// Kinds that the journal writes itself, and that nobody else may append.
const (
	KindSegment    = "segment"    // the first record of each segment; that of the first one is the journal's first
	KindCheckpoint = "checkpoint" // a signed head
	KindRecovered  = "recovered"  // what was cut off when the journal was opened after a crash
)

// Limits of a record's text, in bytes of UTF-8. What is longer is cut, and ends in an ellipsis;
// what is not UTF-8 becomes U+FFFD.
const (
	MaxKind   = 64
	MaxCode   = 64
	MaxName   = 128 // names may come from a caller unchecked
	MaxReason = 256
	MaxDetail = 256
)

// MaxLine is the longest line in bytes, but for those of [KindSegment], which grow with the
// number of tenants. A byte of text takes at most six, as \u001b.
const MaxLine = 8 << 10

// Hash is a SHA-256: of a record's line, or of an envelope. Its text form is lower-case hex.
type Hash [32]byte

func (h Hash) String() string { return hex.EncodeToString(h[:]) }

// Record is what happened. Fields that are zero are left out.
type Record struct {
	Kind  string    // what was asked or happened: "unwrap", "tenant-disable"; [a-z0-9-], at most MaxKind bytes
	At    time.Time // years 1 to 9999, to the nanosecond; zero: when it is appended
	Epoch uint64

	Tenant     hierarchy.TenantID // zero: the record concerns the node alone, or a tenant that does not exist
	TenantName string
	Key        string // the key's name within its tenant
	Version    uint32

	Caller  *hierarchy.Principal // nil: the node itself
	Service string

	Outcome  Outcome
	Code     string // the stable code of the error
	Reason   string // the caller's words
	Envelope Hash   // of the envelope's bytes
	Of       uint64 // the sequence of the record that this one completes
	Detail   string // the daemon's words
}

// Entry is a record as it stands in the journal.
type Entry struct {
	Record
	Node hierarchy.NodeID

	Sequence uint64 // within the node's journal, from 1
	Prev     Hash   // of the line before; zero for the first

	TenantSequence uint64 // within the tenant's records on this node, from 1; zero without a tenant
	TenantPrev     Hash   // of the tenant's line before; zero for its first

	Checkpoint *Checkpoint    // of a KindCheckpoint
	Segment    *SegmentHeader // of a KindSegment
}

// SegmentHeader is what the first record of a segment says, so that a journal can be read,
// continued and verified from any segment on.
type SegmentHeader struct {
	Format    uint32 // FormatVersion
	Cluster   hierarchy.ClusterID
	PublicKey []byte // of the identity that signs checkpoints: SubjectPublicKeyInfo, DER
	Heads     []Head // of the tenants so far, in the order in which they first appeared
}

// FormatVersion is the format that this package reads and writes.
const FormatVersion = 1

// Head is the last record of a tenant on a node.
type Head struct {
	Tenant         hierarchy.TenantID
	TenantSequence uint64 // which is also how many records the tenant has
	Sequence       uint64
	Hash           Hash
}

// validate checks what a caller may put into a record.
func (r *Record) validate() error {
	if len(r.Kind) == 0 || len(r.Kind) > MaxKind {
		return fmt.Errorf("%w: audit record of kind %.80q: a kind has 1 to %d characters", hierarchy.ErrInvalidArgument, r.Kind, MaxKind)
	}
	for i := range len(r.Kind) {
		if c := r.Kind[i]; (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '-' {
			return fmt.Errorf("%w: audit record of kind %.80q: use a-z, 0-9 and '-'", hierarchy.ErrInvalidArgument, r.Kind)
		}
	}
	if !r.Outcome.valid() {
		return fmt.Errorf("%w: audit record with outcome %.80q", hierarchy.ErrInvalidArgument, string(r.Outcome))
	}
	if y := r.At.UTC().Year(); y < 1 || y > 9999 {
		return fmt.Errorf("%w: audit record of the year %d", hierarchy.ErrInvalidArgument, y)
	}
	return nil
}

func reserved(kind string) bool {
	return kind == KindSegment || kind == KindCheckpoint || kind == KindRecovered
}

// cut shortens text to at most limit bytes, between characters.
func cut(s string, limit int) string {
	if len(s) <= limit {
		return s
	}
	const ellipsis = "…"
	end := limit - len(ellipsis)
	for end > 0 && !utf8.RuneStart(s[end]) {
		end--
	}
	return s[:end] + ellipsis
}
