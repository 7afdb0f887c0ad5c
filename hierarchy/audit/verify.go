package audit

import (
	"bytes"
	"cmp"
	"context"
	"crypto/ecdsa"
	"crypto/sha256"
	"crypto/x509"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"

	"github.com/kekd/kekd/hierarchy"
)

// VerifyOptions say what a journal is held against. The zero value holds it against itself.
type VerifyOptions struct {
	// PublicKey of the node's identity, as it was pinned. Nil: the one that the journal names.
	PublicKey *ecdsa.PublicKey
	// Anchors are checkpoints that were kept elsewhere. Without them, what was cut off at the
	// end is not found, nor is a journal that was written anew by who has the signing key.
	Anchors []Checkpoint
	// Node and Cluster that the journal must be of. Zero: any.
	Node    hierarchy.NodeID
	Cluster hierarchy.ClusterID
	// Start is the sequence that the journal may begin with, if older segments were removed
	// with right; in VerifyTenant, the tenant's sequence. 0: it begins with 1. An anchor of the
	// record just before will do as well.
	Start uint64
	// Until is where the search ends, for a journal that is being written: what was durable
	// after the anchors were taken. 0: the end.
	Until uint64
}

// Verify reads a whole journal and checks every line, both chains, the headers of the segments
// and every signature, and holds it against the anchors. fsys is the journal's directory. Its
// error says that the journal could not be read; what is wrong with it is in the report.
func Verify(ctx context.Context, fsys fs.FS, opts VerifyOptions) (*Report, error) {
	v := newVerifier(opts)
	firsts, err := listSegments(fsys)
	if err != nil {
		return nil, err
	}
	if len(firsts) == 0 {
		v.fault(FaultMissing, 0, "there is no segment")
	}
	for _, first := range firsts {
		if v.over() || opts.Until > 0 && first > opts.Until {
			break
		}
		if err := v.segment(ctx, fsys, first); err != nil {
			return nil, err
		}
	}
	v.finish()
	return &v.report, nil
}

// Verify checks the journal that is open, as far as it is durable, against anchors that were
// taken before.
func (j *Journal) Verify(ctx context.Context, anchors []Checkpoint) (*Report, error) {
	return Verify(ctx, os.DirFS(j.dir.path), VerifyOptions{
		PublicKey: j.key,
		Anchors:   anchors,
		Node:      j.opts.Node,
		Cluster:   j.opts.Cluster,
		Until:     j.Status().Durable,
	})
}

// verifier goes through the records in order, and goes on after a fault as well as it can.
type verifier struct {
	opts   VerifyOptions
	report Report
	chain  *chain
	key    *ecdsa.PublicKey

	anchors   []Checkpoint // not yet reached, by sequence
	unfound   []Checkpoint // reached, and their checkpoint's record not yet seen
	firstHash uint64       // sequence of hashes[0]
	hashes    []Hash       // since the record that the last checkpoint signed

	file     string
	line     int
	prevFile string // where the record before stands
	prevLine int
	end      bool
}

func newVerifier(opts VerifyOptions) *verifier {
	v := &verifier{opts: opts, chain: newChain(), key: opts.PublicKey}
	v.report.Pinned = opts.PublicKey != nil
	v.anchors = slices.SortedFunc(slices.Values(opts.Anchors), func(a, b Checkpoint) int { return cmp.Compare(a.Sequence, b.Sequence) })
	return v
}

func (v *verifier) over() bool { return v.end || len(v.report.Faults) >= maxFaults }

func (v *verifier) fault(kind FaultKind, seq uint64, format string, args ...any) {
	v.faultAt(v.file, v.line, kind, seq, format, args...)
}

func (v *verifier) faultAt(file string, line int, kind FaultKind, seq uint64, format string, args ...any) {
	if len(v.report.Faults) < maxFaults {
		v.report.Faults = append(v.report.Faults, Fault{Kind: kind, File: file, Line: line, Sequence: seq, Detail: fmt.Sprintf(format, args...)})
	}
}

func (v *verifier) segment(ctx context.Context, fsys fs.FS, first uint64) error {
	v.file, v.line = segmentName(first), 0
	f, err := fsys.Open(v.file)
	if err != nil {
		return fmt.Errorf("audit journal: %w", err)
	}
	defer f.Close()
	lines := newLineReader(f)
	for !v.over() {
		if err := ctx.Err(); err != nil {
			return context.Cause(ctx)
		}
		line, err := lines.next()
		v.line = lines.line
		switch {
		case err == io.EOF:
			if lines.line == 0 {
				v.fault(FaultTorn, first, "the segment is empty")
			}
			return nil
		case err == errTorn:
			v.fault(FaultTorn, v.chain.seq+1, "%d bytes after record %d are not whole records", lines.end-lines.off, v.chain.seq)
			return nil
		case err != nil:
			v.line++
			v.fault(FaultMalformed, v.chain.seq+1, "%v", err)
			return nil
		}
		e, err := ParseLine(line)
		if err != nil {
			v.fault(FaultMalformed, v.chain.seq+1, "%v", err)
			continue
		}
		if lines.line == 1 && e.Sequence != first {
			v.fault(FaultName, e.Sequence, "the segment begins with record %d", e.Sequence)
		}
		if (lines.line == 1) != (e.Segment != nil) {
			v.fault(FaultMalformed, e.Sequence, "a segment has a header at its beginning, and nowhere else")
			continue
		}
		v.record(e, Hash(sha256.Sum256(line)))
		v.end = v.opts.Until > 0 && v.chain.seq >= v.opts.Until
	}
	return nil
}

// record checks one record's place in the chain.
func (v *verifier) record(e *Entry, hash Hash) {
	if v.report.First == 0 && !v.begin(e) {
		return
	}
	next := v.chain.seq + 1
	switch {
	case e.Sequence > next:
		v.fault(FaultMissing, next, "records %d to %d are missing", next, e.Sequence-1)
		v.chain.seq = e.Sequence - 1
		v.forget()
	case e.Sequence < next:
		if hash == v.chain.hash {
			v.fault(FaultDuplicate, e.Sequence, "record %d stands there twice", e.Sequence)
		} else {
			v.fault(FaultReordered, e.Sequence, "record %d stands where record %d belongs", e.Sequence, next)
		}
		return
	case e.Prev != v.chain.hash:
		v.faultAt(v.prevFile, v.prevLine, FaultEdited, e.Sequence-1, "record %d is not the one that record %d names: one of the two was edited", e.Sequence-1, e.Sequence)
	}
	if e.Node != v.report.Node {
		v.fault(FaultForeign, e.Sequence, "record %d is of node %s", e.Sequence, e.Node)
	}
	if s := e.Segment; s != nil {
		v.header(e)
	}
	if err := v.chain.checkTenant(e); err != nil {
		v.fault(FaultTenant, e.Sequence, "%v", err)
		v.chain.place(e.Tenant).TenantSequence = e.TenantSequence - 1 // goes on from here
	}
	v.chain.add(e.Tenant, hash)
	v.hashes = append(v.hashes, hash)
	v.prevFile, v.prevLine = v.file, v.line
	v.anchored(e.Sequence, hash)
	if e.Checkpoint != nil {
		v.checkpoint(e)
	}
}

// forget drops the hashes of records, after some were missing.
func (v *verifier) forget() { v.firstHash, v.hashes = v.chain.seq+1, v.hashes[:0] }

// begin takes the journal's first record that is there.
func (v *verifier) begin(e *Entry) bool {
	if e.Segment == nil {
		return false
	}
	v.chain.startAt(e)
	v.forget()
	r := &v.report
	r.Cluster, r.Node, r.First = e.Segment.Cluster, e.Node, e.Sequence
	if !v.opts.Node.IsZero() && e.Node != v.opts.Node {
		v.fault(FaultForeign, e.Sequence, "the journal is of node %s, and not of %s", e.Node, v.opts.Node)
	}
	if !v.opts.Cluster.IsZero() && r.Cluster != v.opts.Cluster {
		v.fault(FaultForeign, e.Sequence, "the journal is of cluster %s, and not of %s", r.Cluster, v.opts.Cluster)
	}
	if v.key == nil {
		key, err := ParsePublicKey(e.Segment.PublicKey)
		if err != nil {
			v.fault(FaultMalformed, e.Sequence, "%v", err)
		}
		v.key = key
	}
	if e.Sequence == 1 {
		if e.Prev != (Hash{}) || len(e.Segment.Heads) > 0 {
			v.fault(FaultMalformed, 1, "something comes before the first record")
		}
		return true
	}
	vouched := e.Sequence == v.opts.Start
	for len(v.anchors) > 0 && v.anchors[0].Sequence < e.Sequence {
		a := v.anchors[0]
		v.anchors = v.anchors[1:]
		if a.Sequence == e.Sequence-1 && v.verifyAnchor(a) {
			if a.Head == e.Prev {
				vouched = true
			} else {
				v.faultAt("", 0, FaultForked, a.Sequence, "record %d is not the one that was signed and anchored", a.Sequence)
			}
		}
	}
	if !vouched {
		v.fault(FaultStart, e.Sequence, "the journal starts at record %d, and nothing given says that it may", e.Sequence)
	}
	return true
}

// header checks what a segment says of the journal.
func (v *verifier) header(e *Entry) {
	s := e.Segment
	if s.Cluster != v.report.Cluster {
		v.fault(FaultForeign, e.Sequence, "the segment is of cluster %s", s.Cluster)
	}
	if v.key != nil {
		if der, err := x509.MarshalPKIXPublicKey(v.key); err != nil || !bytes.Equal(der, s.PublicKey) {
			v.fault(FaultForeign, e.Sequence, "the segment names another identity key")
		}
	}
	if !slices.Equal(s.Heads, v.chain.heads) {
		v.fault(FaultHeads, e.Sequence, "the header does not name the tenants' last records")
	}
}

// anchored holds a record against the anchors.
func (v *verifier) anchored(seq uint64, hash Hash) {
	for len(v.anchors) > 0 && v.anchors[0].Sequence <= seq {
		a := v.anchors[0]
		v.anchors = v.anchors[1:]
		if !v.verifyAnchor(a) {
			continue
		}
		switch {
		case a.Sequence < seq:
			v.faultAt("", 0, FaultForked, a.Sequence, "record %d was signed and anchored, and is missing", a.Sequence)
		case a.Head != hash:
			v.fault(FaultForked, seq, "record %d is not the one that was signed and anchored", seq)
		default:
			v.report.Sealed = max(v.report.Sealed, seq)
			v.unfound = append(v.unfound, a)
		}
	}
}

func (v *verifier) verifyAnchor(a Checkpoint) bool {
	if a.Node != v.report.Node || a.Cluster != v.report.Cluster {
		v.faultAt("", 0, FaultForeign, a.Sequence, "the anchor is of node %s in cluster %s", a.Node, a.Cluster)
		return false
	}
	return v.verifySignature(a, "", 0)
}

func (v *verifier) verifySignature(c Checkpoint, file string, line int) bool {
	if v.key == nil {
		v.faultAt(file, line, FaultSignature, c.Sequence, "there is no public key to check the signature of record %d with", c.Sequence)
		return false
	}
	if err := c.Verify(v.key); err != nil {
		v.faultAt(file, line, FaultSignature, c.Sequence, "%v", err)
		return false
	}
	return true
}

// checkpoint checks a signed head against the record that it speaks of.
func (v *verifier) checkpoint(e *Entry) {
	c := *e.Checkpoint
	c.Cluster = v.report.Cluster
	same := func(a Checkpoint) bool {
		return a.Sequence == c.Sequence && a.Head == c.Head && bytes.Equal(a.Signature, c.Signature)
	}
	// An anchor that was found good need not be checked again.
	good := slices.ContainsFunc(v.unfound, same) || v.verifySignature(c, v.file, v.line)
	v.unfound = slices.DeleteFunc(v.unfound, same)
	// A journal that started late, or has lost records, may have checkpoints of what is not there.
	if c.Sequence < v.firstHash {
		if v.firstHash == v.report.First && c.Sequence < v.report.First {
			return
		}
		v.fault(FaultCheckpoint, e.Sequence, "the checkpoint of record %d stands after a later one, or its record is missing", c.Sequence)
		return
	}
	if c.Sequence >= e.Sequence {
		v.fault(FaultCheckpoint, e.Sequence, "a checkpoint of a record to come, %d", c.Sequence)
		return
	}
	n := c.Sequence - v.firstHash
	if v.hashes[n] != c.Head {
		v.fault(FaultForked, c.Sequence, "record %d is not the one that was signed", c.Sequence)
		return
	}
	v.hashes = append(v.hashes[:0], v.hashes[n+1:]...)
	v.firstHash = c.Sequence + 1
	if good {
		v.report.Sealed = max(v.report.Sealed, c.Sequence)
	}
}

// finish looks at what should have come, and did not.
func (v *verifier) finish() {
	r := &v.report
	r.Last = v.chain.seq
	r.Chains = append(r.Chains, Chain{Node: r.Node, Records: v.chain.seq, Head: v.chain.hash})
	for _, h := range v.chain.heads {
		r.Chains = append(r.Chains, Chain{Node: r.Node, Tenant: h.Tenant, Records: h.TenantSequence, Head: h.Hash})
	}
	if r.First == 0 {
		return
	}
	for _, a := range v.anchors {
		if v.verifyAnchor(a) {
			v.faultAt(v.file, v.line, FaultTruncated, a.Sequence, "the journal ends with record %d, and record %d was signed and anchored", r.Last, a.Sequence)
		}
	}
	// A checkpoint is handed out once it is in the journal.
	for _, a := range v.unfound {
		v.faultAt(v.file, v.line, FaultCheckpoint, a.Sequence, "the checkpoint of record %d was anchored, and is not in the journal", a.Sequence)
	}
}
