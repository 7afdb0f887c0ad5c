package audit

import (
	"crypto/sha256"
	"errors"
	"io"
	"slices"
)

// VerifyTenant checks one tenant's records of one node alone: lines as they stand in the
// journal, in their order and with nothing between them. What is missing at the end is found
// only with an anchor of the tenant's last record, as [Journal.Seal] makes it. Anchors of
// records that are not the tenant's say nothing here. The options' Cluster and Until are not
// used, and without a public key no signature can be checked. The report's sequences are the
// node's; its one chain counts the tenant's records.
func VerifyTenant(r io.Reader, opts VerifyOptions) (*Report, error) {
	v := newVerifier(opts)
	v.file = "records"
	lines := newLineReader(r)
	var last *Entry // nil: none yet
	var hash Hash   // of last
	for !v.over() {
		line, err := lines.next()
		v.line = lines.line
		if err == io.EOF {
			break
		}
		if err == errTorn || errors.Is(err, ErrMalformed) {
			v.line++
			v.fault(FaultTorn, 0, "%v", err)
			break
		}
		if err != nil {
			return nil, err
		}
		e, err := ParseLine(line)
		if err == nil && e.Tenant.IsZero() {
			err = ErrMalformed
		}
		if err != nil {
			v.fault(FaultMalformed, 0, "not a tenant's record: %v", err)
			continue
		}
		if last == nil {
			v.tenantBegin(e)
		} else if !v.tenantNext(e, last, hash) {
			continue
		}
		last, hash = e, sha256.Sum256(line)
		v.tenantAnchor(e, hash)
	}
	if last == nil {
		v.fault(FaultMissing, 0, "there is no record")
		return &v.report, nil
	}
	v.report.Last = last.Sequence
	v.report.Chains = []Chain{{Node: last.Node, Tenant: last.Tenant, Records: last.TenantSequence, Head: hash}}
	return &v.report, nil
}

func (v *verifier) tenantBegin(e *Entry) {
	v.report.Node, v.report.First = e.Node, e.Sequence
	if !v.opts.Node.IsZero() && e.Node != v.opts.Node {
		v.fault(FaultForeign, e.Sequence, "the records are of node %s, and not of %s", e.Node, v.opts.Node)
	}
	switch {
	case e.TenantSequence == 1 && e.TenantPrev != (Hash{}):
		v.fault(FaultMalformed, e.Sequence, "something comes before the tenant's first record")
	case e.TenantSequence != 1 && e.TenantSequence != v.opts.Start:
		v.fault(FaultStart, e.Sequence, "the records start at the tenant's record %d, and nothing given says that they may", e.TenantSequence)
	}
}

// tenantNext tells whether to go on from e.
func (v *verifier) tenantNext(e, last *Entry, hash Hash) bool {
	if e.Node != last.Node || e.Tenant != last.Tenant {
		v.fault(FaultForeign, e.Sequence, "record %d is of tenant %s on node %s", e.Sequence, e.Tenant, e.Node)
		return false
	}
	next := last.TenantSequence + 1
	switch {
	case e.TenantSequence > next:
		v.fault(FaultMissing, 0, "the tenant's records %d to %d are missing", next, e.TenantSequence-1)
	case e.TenantSequence < next:
		v.fault(FaultReordered, e.Sequence, "the tenant's record %d stands where record %d belongs", e.TenantSequence, next)
		return false
	case e.TenantPrev != hash:
		v.faultAt(v.file, v.line-1, FaultEdited, last.Sequence, "record %d is not the one that record %d names: one of the two was edited", last.Sequence, e.Sequence)
	case e.Sequence <= last.Sequence:
		v.fault(FaultMalformed, e.Sequence, "record %d follows record %d", e.Sequence, last.Sequence)
	}
	return true
}

func (v *verifier) tenantAnchor(e *Entry, hash Hash) {
	for _, a := range v.anchors {
		if a.Sequence != e.Sequence || a.Node != e.Node || !v.verifySignature(a, "", 0) {
			continue
		}
		if a.Head != hash {
			v.fault(FaultForked, e.Sequence, "record %d is not the one that was signed", e.Sequence)
		} else {
			v.report.Sealed = e.Sequence
		}
	}
	v.anchors = slices.DeleteFunc(v.anchors, func(a Checkpoint) bool { return a.Sequence <= e.Sequence })
}
