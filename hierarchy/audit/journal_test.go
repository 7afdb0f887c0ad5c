package audit_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/kekd/kekd/hierarchy"
	"github.com/kekd/kekd/hierarchy/audit"
)

func TestJournalContinues(t *testing.T) {
	r := newRig(t)
	r.write(unwrap(1), unwrap(2))
	r.write(unwrap(1))
	r.close()
	r.open()
	r.write(unwrap(1), unwrap(3))
	r.close()
	rep := r.mustVerify()

	type chain struct {
		tenant  hierarchy.TenantID
		records uint64
	}
	var got []chain
	for _, c := range rep.Chains {
		got = append(got, chain{c.Tenant, c.Records})
	}
	// Five records, the genesis, its checkpoint, and those of the two ends.
	want := []chain{{hierarchy.TenantID{}, 9}, {tenant(1), 3}, {tenant(2), 1}, {tenant(3), 1}}
	if diff := cmp.Diff(want, got, cmp.AllowUnexported(chain{})); diff != "" {
		t.Errorf("chains (-want +got):\n%s", diff)
	}
	if rep.Sealed != 8 || rep.First != 1 || rep.Last != 9 || !rep.Pinned {
		t.Errorf("report %+v", rep)
	}
	if last := parse(t, r.lines()[8]); last.Kind != audit.KindCheckpoint || last.Checkpoint.Sequence != 8 {
		t.Errorf("the last record is %+v", last)
	}
}

func TestNothingNewIsNotSigned(t *testing.T) {
	r := newRig(t)
	r.write(unwrap(1))
	r.close()
	n := len(r.lines())
	r.open()
	r.close()
	if got := len(r.lines()); got != n {
		t.Errorf("%d records, and %d after nothing happened", n, got)
	}
}

func TestAppendKeepsOrder(t *testing.T) {
	r := newRig(t)
	const writers, each = 8, 50
	var wg sync.WaitGroup
	for w := range writers {
		wg.Go(func() {
			for i := range each {
				a, b := unwrap(w), unwrap(w)
				a.Reason, b.Reason = fmt.Sprintf("%d a", i), fmt.Sprintf("%d b", i)
				p, err := r.j.Write(r.ctx(), []audit.Record{a, b})
				if err != nil {
					t.Error(err)
					return
				}
				if got := r.j.Status().Durable; got < p.Sequence {
					t.Errorf("record %d was called durable at %d", p.Sequence, got)
				}
			}
		})
	}
	wg.Wait()
	r.close()
	rep := r.mustVerify()
	if got := rep.Chains[1].Records; got != 2*each || len(rep.Chains) != writers+1 {
		t.Errorf("%d records of a tenant, %d chains", got, len(rep.Chains))
	}
	next := make(map[hierarchy.TenantID]int)
	var prev *audit.Entry
	for _, l := range r.lines() {
		e := parse(t, l)
		if e.Kind == "unwrap" {
			i := next[e.Tenant]
			if want := fmt.Sprintf("%d %c", i/2, 'a'+i%2); e.Reason != want {
				t.Fatalf("tenant %s: %q stands where %q belongs", e.Tenant, e.Reason, want)
			}
			if i%2 == 1 && (prev.Tenant != e.Tenant || prev.Sequence+1 != e.Sequence) {
				t.Fatalf("something stands between the records of one append, before %d", e.Sequence)
			}
			next[e.Tenant]++
		}
		prev = e
	}
}

func TestPositionNamesTheLine(t *testing.T) {
	r := newRig(t)
	p := r.write(unwrap(1), unwrap(2))
	c, err := r.j.Seal(r.ctx(), unwrap(1))
	if err != nil {
		t.Fatal(err)
	}
	if e := parse(t, r.lines()[p.Sequence]); e.Prev != p.Hash || e.Sequence != p.Sequence+1 {
		t.Errorf("position %d %s, but the next record is %d and names %s", p.Sequence, p.Hash, e.Sequence, e.Prev)
	}
	if c.Sequence != p.Sequence+1 {
		t.Errorf("sealed %d", c.Sequence)
	}
}

func TestAppendRefuses(t *testing.T) {
	r := newRig(t)
	before := r.j.Status().Sequence
	for name, recs := range map[string][]audit.Record{
		"none":              {},
		"too many":          make([]audit.Record, audit.MaxAppend+1),
		"no kind":           {{}},
		"kind":              {{Kind: "A b"}},
		"kind too long":     {{Kind: strings.Repeat("a", audit.MaxKind+1)}},
		"outcome":           {{Kind: "a", Outcome: "maybe"}},
		"own kind":          {{Kind: audit.KindCheckpoint}},
		"year":              {{Kind: "a", At: time.Date(10000, 1, 1, 0, 0, 0, 0, time.UTC)}},
		"second of two":     {unwrap(1), {}},
		"over a segment":    manyRecords(400),
		"recovered is ours": {{Kind: audit.KindRecovered}},
	} {
		if _, err := r.j.Append(r.ctx(), recs); !errors.Is(err, hierarchy.ErrInvalidArgument) {
			t.Errorf("%s: got %v", name, err)
		}
	}
	if got := r.j.Status().Sequence; got != before {
		t.Errorf("%d records were appended", got-before)
	}
	if err := r.j.Wait(r.ctx(), audit.Position{Sequence: 1}); !errors.Is(err, hierarchy.ErrInvalidArgument) {
		t.Errorf("waiting for no position: %v", err)
	}
}

func manyRecords(n int) []audit.Record {
	recs := make([]audit.Record, n)
	for i := range recs {
		recs[i] = unwrap(i)
	}
	return recs
}

func TestTimeIsFilledIn(t *testing.T) {
	r := newRig(t)
	start := time.Now()
	rec := unwrap(1)
	rec.At = time.Time{}
	recs := []audit.Record{rec}
	r.write(recs...)
	if !recs[0].At.IsZero() {
		t.Error("the caller's record was changed")
	}
	if at := parse(t, r.lines()[2]).At; at.Before(start) || at.After(time.Now()) {
		t.Errorf("at %s", at)
	}
}

func TestCreateRefusesASecond(t *testing.T) {
	r := newRig(t)
	r.close()
	before := r.lines()
	if err := audit.Create(r.dir, r.opts); !errors.Is(err, hierarchy.ErrAlreadyExists) {
		t.Errorf("got %v", err)
	}
	if diff := cmp.Diff(before, r.lines()); diff != "" {
		t.Errorf("the journal was changed:\n%s", diff)
	}
}

func TestCreateAfterACrash(t *testing.T) {
	r := newRig(t)
	r.close()
	dir := filepath.Join(t.TempDir(), "half")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "next"), []byte("half"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := audit.Open(dir, r.opts); !errors.Is(err, hierarchy.ErrNotFound) {
		t.Errorf("open: got %v", err)
	}
	if err := audit.Create(dir, r.opts); err != nil {
		t.Fatal(err)
	}
	r.dir = dir
	r.open()
}

func TestOpenRefuses(t *testing.T) {
	other, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	p384, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		change func(*rig)
		want   error
	}{
		"no directory":       {func(r *rig) { r.dir += "-gone" }, hierarchy.ErrNotFound},
		"empty directory":    {func(r *rig) { r.dir = t.TempDir(); os.Chmod(r.dir, 0o700) }, hierarchy.ErrNotFound},
		"open to others":     {func(r *rig) { os.Chmod(r.dir, 0o750) }, hierarchy.ErrFailedPrecondition},
		"a link":             {func(r *rig) { os.Symlink(r.dir, r.dir+"-link"); r.dir += "-link" }, syscall.ENOTDIR},
		"segment is a link":  {func(r *rig) { s := r.segments()[0]; os.Rename(s, s+".moved"); os.Symlink(s+".moved", s) }, audit.ErrMalformed},
		"strange segment":    {func(r *rig) { os.WriteFile(filepath.Join(r.dir, "1.jsonl"), nil, 0o600) }, audit.ErrMalformed},
		"another node":       {func(r *rig) { r.opts.Node.ID[0] ^= 1 }, audit.ErrCorrupt},
		"another cluster":    {func(r *rig) { r.opts.Cluster.ID[0] ^= 1 }, audit.ErrCorrupt},
		"another identity":   {func(r *rig) { r.opts.Signer = other }, audit.ErrCorrupt},
		"unfit identity":     {func(r *rig) { r.opts.Signer = p384 }, hierarchy.ErrInvalidArgument},
		"no identity":        {func(r *rig) { r.opts.Signer = nil }, hierarchy.ErrInvalidArgument},
		"no node":            {func(r *rig) { r.opts.Node = hierarchy.NodeID{} }, hierarchy.ErrInvalidArgument},
		"segments too small": {func(r *rig) { r.opts.SegmentSize = 1 }, hierarchy.ErrInvalidArgument},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t)
			r.write(unwrap(1))
			r.close()
			c.change(r)
			_, err := audit.Open(r.dir, r.opts)
			if err == nil {
				t.Fatal("opened")
			}
			if !errors.Is(err, c.want) {
				t.Errorf("got %v, want %v", err, c.want)
			}
		})
	}
}

func TestSecondWriter(t *testing.T) {
	r := newRig(t)
	_, err := audit.Open(r.dir, r.opts)
	if !errors.Is(err, hierarchy.ErrFailedPrecondition) || !strings.Contains(err.Error(), "another process") {
		t.Errorf("got %v", err)
	}
	r.close()
	r.open()
}

func TestPermissions(t *testing.T) {
	r := newRig(t)
	err := filepath.WalkDir(r.dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		want := fs.FileMode(0o600)
		if d.IsDir() {
			want = 0o700
		}
		if got := info.Mode().Perm(); got != want {
			t.Errorf("%s has mode %04o, want %04o", path, got, want)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestClosed(t *testing.T) {
	r := newRig(t)
	p, err := r.j.Append(r.ctx(), []audit.Record{unwrap(1)})
	if err != nil {
		t.Fatal(err)
	}
	r.close()
	if err := r.j.Wait(r.ctx(), p); err != nil {
		t.Errorf("what was appended before: %v", err)
	}
	if _, err := r.j.Append(r.ctx(), []audit.Record{unwrap(1)}); !errors.Is(err, hierarchy.ErrAuditUnavailable) {
		t.Errorf("append: got %v", err)
	}
	if _, err := r.j.Seal(r.ctx(), unwrap(1)); !errors.Is(err, hierarchy.ErrAuditUnavailable) {
		t.Errorf("seal: got %v", err)
	}
	if _, open := <-r.j.Checkpoints(); !open {
		t.Error("the last checkpoint was not handed out")
	}
	if _, open := <-r.j.Checkpoints(); open {
		t.Error("checkpoints go on")
	}
	r.mustVerify()
}

func TestWaitEndsWithItsContext(t *testing.T) {
	g := newGate()
	r := newRig(t, func(o *audit.Options) { *o = o.WithFiles(g.wrap) })
	g.shut()
	defer g.open()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	_, err := r.j.Write(ctx, []audit.Record{unwrap(1)})
	if !errors.Is(err, hierarchy.ErrAuditUnavailable) || !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v", err)
	}
}
