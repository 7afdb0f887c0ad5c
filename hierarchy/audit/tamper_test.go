package audit_test

import (
	"bytes"
	"context"
	"crypto"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"encoding/asn1"
	"fmt"
	"math/big"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/kekd/kekd/hierarchy"
	"github.com/kekd/kekd/hierarchy/audit"
)

// evidence is a journal of some hundred records in several segments, with checkpoints in it,
// closed cleanly, and the checkpoints that were handed out.
type evidence struct {
	*rig
	files   map[string][]string // segment: lines
	names   []string
	anchors []audit.Checkpoint
	records int
}

func newEvidence(t *testing.T) *evidence {
	t.Helper()
	e := &evidence{rig: newRig(t), files: make(map[string][]string)}
	for i := range 300 {
		e.write(unwrap(i % 7))
		if i%140 == 139 {
			c, err := e.j.Seal(e.ctx(), unwrap(i%7))
			if err != nil {
				t.Fatal(err)
			}
			e.anchors = append(e.anchors, c)
		}
	}
	e.write(unwrap(1))
	e.close()
	for c := range e.j.Checkpoints() { // the latest: that of the end
		e.anchors = append(e.anchors, c)
	}
	e.mustVerify(e.anchors...)
	for _, path := range e.segments() {
		name := filepath.Base(path)
		e.names = append(e.names, name)
		e.files[name] = linesOf(t, path)
		e.records += len(e.files[name])
	}
	if len(e.names) < 3 || e.records < 300 {
		t.Fatalf("%d records in %d segments: too few to show anything", e.records, len(e.names))
	}
	return e
}

// kinds are the faults of the journal after edit, held against anchors.
func (e *evidence) kinds(anchors []audit.Checkpoint, edit func(files map[string][]string)) []audit.FaultKind {
	e.t.Helper()
	files := make(map[string][]string)
	for name, lines := range e.files {
		files[name] = slices.Clone(lines)
	}
	edit(files)
	fsys := make(fstest.MapFS)
	for name, lines := range files {
		if lines != nil {
			fsys[name] = &fstest.MapFile{Data: []byte(strings.Join(lines, "\n") + "\n"), Mode: 0o600}
		}
	}
	rep, err := audit.Verify(e.ctx(), fsys, audit.VerifyOptions{PublicKey: &e.key.PublicKey, Anchors: anchors})
	if err != nil {
		e.t.Fatal(err)
	}
	var kinds []audit.FaultKind
	for _, f := range rep.Faults {
		kinds = append(kinds, f.Kind)
	}
	return kinds
}

// each calls f for each record, or for each stride-th and the last ones.
func (e *evidence) each(f func(file string, i int)) {
	n := 0
	for _, name := range e.names {
		for i := range e.files[name] {
			if n++; n%stride == 0 || n > e.records-3 {
				f(name, i)
			}
		}
	}
}

func (e *evidence) mustFind(what, file string, i int, edit func(files map[string][]string)) {
	e.t.Helper()
	if e.kinds(e.anchors, edit) == nil {
		e.t.Errorf("%s of %s:%d was not found: %s", what, file, i+1, e.files[file][i])
	}
}

// TestEveryChangeIsFound changes each record in each way and expects each to be found.
func TestEveryChangeIsFound(t *testing.T) {
	e := newEvidence(t)
	e.each(func(file string, i int) {
		line := e.files[file][i]
		entry := parse(t, line)

		// A bit, of each record another: what becomes of it is mostly no record any more.
		at := i * 61 % len(line)
		e.mustFind(fmt.Sprintf("a bit at %d", at), file, i, func(f map[string][]string) {
			b := []byte(line)
			b[at] ^= 1
			f[file][i] = string(b)
		})
		// Another record, as well made as the first.
		forged := *entry
		forged.Outcome = audit.OutcomeDenied
		if entry.Outcome == audit.OutcomeDenied {
			forged.Outcome = audit.OutcomeOK
		}
		e.mustFind("an edit", file, i, func(f map[string][]string) { f[file][i] = string(forged.AppendLine(nil)) })
		later := *entry
		later.At = later.At.Add(1)
		if !entry.At.IsZero() {
			e.mustFind("an edit of its time", file, i, func(f map[string][]string) { f[file][i] = string(later.AppendLine(nil)) })
		}

		e.mustFind("deletion", file, i, func(f map[string][]string) { f[file] = slices.Delete(f[file], i, i+1) })
		e.mustFind("duplication", file, i, func(f map[string][]string) { f[file] = slices.Insert(f[file], i, line) })
		if i > 0 {
			e.mustFind("a swap", file, i, func(f map[string][]string) { f[file][i-1], f[file][i] = f[file][i], f[file][i-1] })
		}
		// The journal ends here: what follows is gone, segments too.
		e.mustFind("truncation", file, i, func(f map[string][]string) {
			f[file] = f[file][:i]
			if i == 0 {
				f[file] = nil
			}
			for _, name := range e.names[slices.Index(e.names, file)+1:] {
				f[name] = nil
			}
		})
	})
}

// TestEveryForkIsFound forges from each record on: one record is another, and all that follow
// name it properly. Only what was signed can tell.
func TestEveryForkIsFound(t *testing.T) {
	e := newEvidence(t)
	e.each(func(file string, i int) {
		fork := func(f map[string][]string) { rechain(t, e.names, f, file, i) }
		if e.kinds(e.anchors, fork) == nil {
			t.Errorf("a fork at %s:%d was not found by the anchors", file, i+1)
		}
		// The signatures in the journal itself find all but what comes after the last of them.
		if i%4 == 0 && e.kinds(nil, fork) == nil {
			t.Errorf("a fork at %s:%d was not found by the checkpoints", file, i+1)
		}
	})
}

// rechain changes a record and puts every hash after it right.
func rechain(t *testing.T, names []string, files map[string][]string, file string, i int) {
	t.Helper()
	var (
		hash   audit.Hash
		heads  []audit.Head
		forged bool
	)
	for _, name := range names {
		for n, line := range files[name] {
			entry := parse(t, line)
			if name == file && n == i {
				forged = true
				entry.Detail = "forged"
			}
			if forged {
				entry.Prev = hash
				if entry.Segment != nil {
					entry.Segment.Heads = slices.Clone(heads)
				}
			}
			at := slices.IndexFunc(heads, func(h audit.Head) bool { return h.Tenant == entry.Tenant })
			if !entry.Tenant.IsZero() {
				if at < 0 {
					at = len(heads)
					heads = append(heads, audit.Head{Tenant: entry.Tenant})
				}
				if forged {
					entry.TenantPrev = heads[at].Hash
				}
			}
			b := entry.AppendLine(nil)
			files[name][n] = string(b)
			hash = sha256.Sum256(b)
			if at >= 0 {
				heads[at].TenantSequence, heads[at].Sequence, heads[at].Hash = entry.TenantSequence, entry.Sequence, hash
			}
		}
	}
}

// TestRechainIsFaithful keeps the test above honest: what it forges is found by signatures only.
func TestRechainIsFaithful(t *testing.T) {
	e := newEvidence(t)
	got := e.kinds(nil, func(f map[string][]string) { rechain(t, e.names, f, e.names[0], 20) })
	if slices.ContainsFunc(got, func(k audit.FaultKind) bool { return k != audit.FaultForked }) || len(got) == 0 {
		t.Errorf("found %v, want nothing but forks", got)
	}
	got = e.kinds(nil, func(f map[string][]string) {
		last := e.names[len(e.names)-1]
		f[last] = f[last][:len(f[last])-1]           // the last checkpoint
		rechain(t, e.names, f, last, len(f[last])-1) // and what only it signed
	})
	if got != nil {
		t.Errorf("found %v in a journal that nothing but an anchor can tell from a good one", got)
	}
}

func TestFaultsHaveTheirName(t *testing.T) {
	e := newEvidence(t)
	first, second, last := e.names[0], e.names[1], e.names[len(e.names)-1]
	foreign := audit.Checkpoint{Cluster: e.opts.Cluster, Node: hierarchy.NodeID{ID: hierarchy.NewID()}, Sequence: 5}
	for name, c := range map[string]struct {
		edit    func(f map[string][]string)
		anchors []audit.Checkpoint
		want    audit.FaultKind
	}{
		"malformed": {edit: func(f map[string][]string) { f[first][3] = "{}" }, want: audit.FaultMalformed},
		"too long":  {edit: func(f map[string][]string) { f[first][3] = strings.Repeat("a", audit.MaxLine+1) }, want: audit.FaultMalformed},
		"edited": {edit: func(f map[string][]string) {
			x := parse(t, f[first][3])
			x.Version++
			f[first][3] = string(x.AppendLine(nil))
		}, want: audit.FaultEdited},
		"missing":         {edit: func(f map[string][]string) { f[first] = slices.Delete(f[first], 3, 5) }, want: audit.FaultMissing},
		"segment missing": {edit: func(f map[string][]string) { f[second] = nil }, want: audit.FaultMissing},
		"all missing":     {edit: func(f map[string][]string) { clear(f) }, want: audit.FaultMissing},
		"duplicate":       {edit: func(f map[string][]string) { f[first] = slices.Insert(f[first], 3, f[first][3]) }, want: audit.FaultDuplicate},
		"reordered":       {edit: func(f map[string][]string) { f[first][3], f[first][4] = f[first][4], f[first][3] }, want: audit.FaultReordered},
		"start":           {edit: func(f map[string][]string) { f[first] = nil }, want: audit.FaultStart},
		"name":            {edit: func(f map[string][]string) { f["00000000000000099999.jsonl"], f[last] = f[last], nil }, want: audit.FaultName},
		"torn":            {edit: func(f map[string][]string) { f[last] = append(f[last], "\x00{") }, want: audit.FaultTorn},
		"truncated":       {edit: func(f map[string][]string) { f[last] = f[last][:len(f[last])-2] }, anchors: e.anchors, want: audit.FaultTruncated},
		"checkpoint gone": {edit: func(f map[string][]string) { f[last] = f[last][:len(f[last])-1] }, anchors: e.anchors, want: audit.FaultCheckpoint},
		"foreign anchor":  {edit: func(map[string][]string) {}, anchors: []audit.Checkpoint{foreign}, want: audit.FaultForeign},
		"forked anchor":   {edit: func(map[string][]string) {}, anchors: []audit.Checkpoint{e.sign(17, audit.Hash{1})}, want: audit.FaultForked},
		"unsigned anchor": {edit: func(map[string][]string) {}, anchors: []audit.Checkpoint{{Cluster: e.opts.Cluster, Node: e.opts.Node, Sequence: 5}}, want: audit.FaultSignature},
		"signature": {edit: func(f map[string][]string) {
			n := len(f[last]) - 1
			x := parse(t, f[last][n])
			x.Checkpoint.Signature[10] ^= 1
			f[last][n] = string(x.AppendLine(nil))
		}, want: audit.FaultSignature},
		"tenant": {edit: func(f map[string][]string) {
			// The node's chain is put right, the tenant's is not.
			x := parse(t, f[last][len(f[last])-2])
			x.TenantPrev[0] ^= 1
			f[last] = append(f[last][:len(f[last])-2], string(x.AppendLine(nil)))
		}, want: audit.FaultTenant},
		"heads": {edit: func(f map[string][]string) {
			x := parse(t, f[last][0])
			x.Segment.Heads[0].Hash[0] ^= 1
			f[last][0] = string(x.AppendLine(nil))
		}, want: audit.FaultHeads},
		"foreign": {edit: func(f map[string][]string) {
			x := parse(t, f[last][len(f[last])-2])
			x.Node.ID[0] ^= 1
			f[last] = append(f[last][:len(f[last])-2], string(x.AppendLine(nil)))
		}, want: audit.FaultForeign},
	} {
		t.Run(name, func(t *testing.T) {
			got := e.kinds(c.anchors, c.edit)
			if !slices.Contains(got, c.want) {
				t.Errorf("found %v, want %q", got, c.want)
			}
		})
	}
}

// TestFaultSaysWhere is what somebody reads who has to look into it.
func TestFaultSaysWhere(t *testing.T) {
	r := newRig(t)
	r.write(unwrap(1), unwrap(2), unwrap(3))
	r.close()
	path := r.segments()[0]
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, bytes.Replace(b, []byte("tenant-2"), []byte("tenant-9"), 1), 0o600); err != nil {
		t.Fatal(err)
	}
	rep := r.verify()
	if len(rep.Faults) != 1 {
		t.Fatalf("faults %v", rep.Faults)
	}
	if f := rep.Faults[0]; f.Kind != audit.FaultEdited || f.File != filepath.Base(path) || f.Line != 4 || f.Sequence != 4 {
		t.Errorf("fault %+v", f)
	}
	if _, err := audit.Open(r.dir, r.opts); err == nil {
		t.Error("opened")
	}
}

func TestVerifyHoldsToWhatIsPinned(t *testing.T) {
	e, other := newEvidence(t), newRig(t)
	for name, opts := range map[string]audit.VerifyOptions{
		"key":     {PublicKey: &other.key.PublicKey},
		"node":    {Node: other.opts.Node},
		"cluster": {Cluster: other.opts.Cluster},
	} {
		rep, err := audit.Verify(e.ctx(), os.DirFS(e.dir), opts)
		if err != nil {
			t.Fatal(err)
		}
		if !slices.ContainsFunc(rep.Faults, func(f audit.Fault) bool { return f.Kind == audit.FaultForeign }) {
			t.Errorf("%s: found %v", name, rep.Faults)
		}
	}
	rep, err := audit.Verify(e.ctx(), os.DirFS(e.dir), audit.VerifyOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if !rep.OK() || rep.Pinned || rep.Sealed != uint64(e.records)-1 {
		t.Errorf("with its own key: %+v", rep)
	}
}

// TestOldSegmentsMayBeRemoved is what retention will do.
func TestOldSegmentsMayBeRemoved(t *testing.T) {
	e := newEvidence(t)
	start := parse(t, e.files[e.names[1]][0]).Sequence
	var before audit.Hash
	gone := e.files[e.names[0]]
	before = sha256.Sum256([]byte(gone[len(gone)-1]))
	if err := os.Remove(filepath.Join(e.dir, e.names[0])); err != nil {
		t.Fatal(err)
	}
	signed := e.sign(start-1, before)
	wrong := e.sign(start-1, audit.Hash{1})
	for name, c := range map[string]struct {
		opts audit.VerifyOptions
		ok   bool
	}{
		"nothing said":      {audit.VerifyOptions{}, false},
		"start given":       {audit.VerifyOptions{Start: start}, true},
		"another start":     {audit.VerifyOptions{Start: start - 1}, false},
		"anchored":          {audit.VerifyOptions{Anchors: []audit.Checkpoint{signed}}, true},
		"anchored, another": {audit.VerifyOptions{Start: start, Anchors: []audit.Checkpoint{wrong}}, false},
		"later anchors":     {audit.VerifyOptions{Start: start, Anchors: e.anchors}, true},
	} {
		c.opts.PublicKey = &e.key.PublicKey
		rep, err := audit.Verify(e.ctx(), os.DirFS(e.dir), c.opts)
		if err != nil {
			t.Fatal(err)
		}
		if rep.OK() != c.ok || rep.First != start {
			t.Errorf("%s: starts at %d, found %v", name, rep.First, rep.Faults)
		}
	}
	e.open()
	if tail, err := e.tail(e.ctx(), hierarchy.TenantID{}, 1000); err != nil || len(tail) != e.records-len(gone) {
		t.Errorf("tail has %d lines, %v", len(tail), err)
	}
	e.write(unwrap(1))
	e.close()
}

func (r *rig) sign(seq uint64, head audit.Hash) audit.Checkpoint {
	r.t.Helper()
	c := audit.Checkpoint{Cluster: r.opts.Cluster, Node: r.opts.Node, Sequence: seq, Head: head}
	digest := sha256.Sum256(c.SignedText())
	sig, err := r.key.Sign(rand.Reader, digest[:], crypto.SHA256)
	if err != nil {
		r.t.Fatal(err)
	}
	c.Signature = sig
	return c
}

// TestSignatureTwin is about ECDSA: (r, s) and (r, -s) verify alike, so a signature can be
// changed without the key. The last checkpoint so changed is found by the anchor.
func TestSignatureTwin(t *testing.T) {
	e := newEvidence(t)
	last := e.names[len(e.names)-1]
	edit := func(f map[string][]string) {
		n := len(f[last]) - 1
		x := parse(t, f[last][n])
		var sig struct{ R, S *big.Int }
		if _, err := asn1.Unmarshal(x.Checkpoint.Signature, &sig); err != nil {
			t.Fatal(err)
		}
		sig.S.Sub(elliptic.P256().Params().N, sig.S)
		twin, err := asn1.Marshal(sig)
		if err != nil {
			t.Fatal(err)
		}
		x.Checkpoint.Signature = twin
		c := *x.Checkpoint
		c.Cluster = e.opts.Cluster
		if err := c.Verify(&e.key.PublicKey); err != nil {
			t.Fatal(err)
		}
		f[last][n] = string(x.AppendLine(nil))
	}
	if got := e.kinds(e.anchors, edit); !slices.Equal(got, []audit.FaultKind{audit.FaultCheckpoint}) {
		t.Errorf("found %v", got)
	}
}

// TestVerifyOpen holds a journal against its anchors while it is being written.
func TestVerifyOpen(t *testing.T) {
	r := newRig(t)
	ctx, stop := context.WithCancel(r.ctx())
	done := make(chan struct{})
	go func() {
		defer close(done)
		for i := 0; ctx.Err() == nil; i++ {
			if _, err := r.j.Write(r.ctx(), []audit.Record{unwrap(i % 5)}); err != nil {
				t.Error(err)
				return
			}
		}
	}()
	for range 10 {
		c, err := r.j.Seal(r.ctx(), unwrap(1))
		if err != nil {
			t.Fatal(err)
		}
		rep, err := r.j.Verify(r.ctx(), []audit.Checkpoint{c})
		if err != nil {
			t.Fatal(err)
		}
		if !rep.OK() || rep.Sealed < c.Sequence {
			t.Errorf("sealed to %d, anchored %d, found %v", rep.Sealed, c.Sequence, rep.Faults)
		}
	}
	stop()
	<-done
	ahead := r.sign(r.j.Status().Sequence+100, audit.Hash{})
	rep, err := r.j.Verify(r.ctx(), []audit.Checkpoint{ahead})
	if err != nil {
		t.Fatal(err)
	}
	if len(rep.Faults) != 1 || rep.Faults[0].Kind != audit.FaultTruncated {
		t.Errorf("rolled back: found %v", rep.Faults)
	}
}
