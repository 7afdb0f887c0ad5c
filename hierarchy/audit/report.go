package audit

import (
	"fmt"

	"github.com/kekd/kekd/hierarchy"
)

// FaultKind is what is wrong with a journal.
type FaultKind string

const (
	FaultMalformed  FaultKind = "malformed"  // a line that is no record
	FaultTorn       FaultKind = "torn"       // the end is not whole: a crash that was not recovered from, or damage
	FaultEdited     FaultKind = "edited"     // a record is not the one that the next one names
	FaultMissing    FaultKind = "missing"    // records are not there
	FaultDuplicate  FaultKind = "duplicate"  // a record stands there twice
	FaultReordered  FaultKind = "reordered"  // a record stands later than it belongs
	FaultTenant     FaultKind = "tenant"     // a tenant's own chain does not hold
	FaultHeads      FaultKind = "heads"      // a segment's header does not name the tenants' last records
	FaultName       FaultKind = "name"       // a segment does not begin where its name says
	FaultStart      FaultKind = "start"      // the oldest records are not there, and nothing says that they may be missing
	FaultTruncated  FaultKind = "truncated"  // the journal ends before a record that was signed and anchored
	FaultForked     FaultKind = "forked"     // another record stands where one was signed
	FaultSignature  FaultKind = "signature"  // a signature does not verify
	FaultCheckpoint FaultKind = "checkpoint" // a checkpoint was anchored, and is not in the journal, or out of order
	FaultForeign    FaultKind = "foreign"    // a record, segment or checkpoint of another node, cluster, tenant or identity
)

// Fault is one thing that is wrong, and where.
type Fault struct {
	Kind     FaultKind
	File     string // empty: a checkpoint that was given
	Line     int    // from 1; 0: not one line
	Sequence uint64 // 0: not known
	Detail   string
}

func (f Fault) String() string {
	where := f.File
	if f.Line > 0 {
		where = fmt.Sprintf("%s:%d", f.File, f.Line)
	}
	if where == "" {
		where = "anchor"
	}
	return fmt.Sprintf("%s: %s: %s", where, f.Kind, f.Detail)
}

// Chain is the chain of a node, or of a tenant on a node.
type Chain struct {
	Node    hierarchy.NodeID
	Tenant  hierarchy.TenantID // zero: the node's own, which has all records
	Records uint64             // up to the head, those of segments that are no longer kept included
	Head    Hash
}

// Report is what [Verify] and [VerifyTenant] found.
type Report struct {
	Cluster hierarchy.ClusterID // zero in VerifyTenant
	Node    hierarchy.NodeID
	First   uint64 // sequence of the first record that is there
	Last    uint64 // and of the last
	// Sealed is the last record that a good signature covers. What comes after it may have been
	// cut off without a trace.
	Sealed uint64
	// Pinned tells that signatures were checked with the key that was given. Otherwise with the
	// one that the journal names, which proves only that the journal agrees with itself.
	Pinned bool
	Chains []Chain // the node's first, then tenants as they appear; in VerifyTenant the tenant's alone
	Faults []Fault // at most maxFaults; then the search ended
}

// OK tells whether nothing is wrong.
func (r *Report) OK() bool { return len(r.Faults) == 0 }

const maxFaults = 100
