package audit_test

import (
	"crypto"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/kekd/kekd/hierarchy"
	"github.com/kekd/kekd/hierarchy/audit"
)

// contents are a directory's files: name, mode, time of the last change, and bytes.
type contents struct {
	t     *testing.T
	files map[string]content
}

type content struct {
	Mode    string
	Changed time.Time
	Bytes   string
}

func readAll(t *testing.T, dir string) contents {
	t.Helper()
	c := contents{t, map[string]content{}}
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		info, err := e.Info()
		if err != nil {
			t.Fatal(err)
		}
		b, err := os.ReadFile(filepath.Join(dir, e.Name()))
		if err != nil {
			t.Fatal(err)
		}
		c.files[e.Name()] = content{info.Mode().String(), info.ModTime(), string(b)}
	}
	return c
}

// mustBe does not print what is in the files, which is long.
func (c contents) mustBe(after contents) {
	c.t.Helper()
	long := cmp.Transformer("bytes", func(s string) audit.Hash { return hashOf(s) })
	if diff := cmp.Diff(c.files, after.files, cmp.FilterPath(func(p cmp.Path) bool { return p.Last().String() == ".Bytes" }, long)); diff != "" {
		c.t.Errorf("the journal was changed (-before +after):\n%s", diff)
	}
}

// leave puts a file beside the segments.
func (r *rig) leave(name, bytes string) {
	r.t.Helper()
	if err := os.WriteFile(filepath.Join(r.dir, name), []byte(bytes), 0o600); err != nil {
		r.t.Fatal(err)
	}
}

// copied is a copy of the journal as it lies on the disk, whose signer must not be asked.
func (r *rig) copied(t *testing.T) *rig {
	t.Helper()
	c := *r
	c.t, c.dir = t, filepath.Join(t.TempDir(), "audit")
	if err := os.Mkdir(c.dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.CopyFS(c.dir, os.DirFS(r.dir)); err != nil {
		t.Fatal(err)
	}
	c.opts.Signer = noSigner{r.key, t}
	return &c
}

// noSigner has a key and may not use it.
type noSigner struct {
	crypto.Signer
	t *testing.T
}

func (s noSigner) Sign(io.Reader, []byte, crypto.SignerOpts) ([]byte, error) {
	s.t.Error("a head of a journal that is refused was signed")
	return nil, errors.New("no")
}

func (r *rig) refuse(anchor audit.Checkpoint, want error) {
	r.t.Helper()
	opts := r.opts
	opts.Anchor = &anchor
	for range 2 { // the first leaves nothing behind that writes, nor a lock
		if _, err := audit.Open(r.dir, opts); !errors.Is(err, want) {
			r.t.Fatalf("got %v, want %v", err, want)
		}
	}
}

func TestAnchor(t *testing.T) {
	e := newEvidence(t)
	for _, a := range e.anchors {
		e.opts.Anchor = &a
		e.open()
		e.close()
	}
	e.opts.Anchor = nil
	unsigned := e.anchors[0]
	unsigned.Signature = nil
	other := e.anchors[0]
	other.Node.ID[0] ^= 1
	for name, c := range map[string]struct {
		anchor audit.Checkpoint
		want   error
	}{
		"rolled back":        {e.sign(uint64(e.records)+1, audit.Hash{}), audit.ErrCorrupt},
		"forked":             {e.sign(17, audit.Hash{1}), audit.ErrCorrupt},
		"forked at its end":  {e.sign(uint64(e.records), audit.Hash{1}), audit.ErrCorrupt},
		"unsigned":           {unsigned, audit.ErrSignature},
		"of another":         {other, hierarchy.ErrInvalidArgument},
		"of a record of old": {e.sign(0, audit.Hash{1}), nil},
	} {
		t.Run(name, func(t *testing.T) {
			r := e.copied(t)
			if c.want == nil {
				r.opts.Signer, r.opts.Anchor = r.key, &c.anchor
				r.open()
				r.close()
				return
			}
			before := readAll(t, r.dir)
			r.refuse(c.anchor, c.want)
			before.mustBe(readAll(t, r.dir))
		})
	}
}

// TestRefusedIsLeftAsItWas is a disk that was rolled back to a moment at which much was to be put
// right. The journal does not fit its anchor, so it is evidence: nothing of that is done.
func TestRefusedIsLeftAsItWas(t *testing.T) {
	r := newRig(t)
	for range 3 { // segments
		r.write(manyRecords(100)...)
	}
	old := r.copied(t) // its head is not signed
	last := r.j.Status().Sequence
	early := r.sign(1, hashOf(r.lines()[0]))
	r.write(unwrap(1))
	anchor, err := r.j.Seal(r.ctx(), unwrap(1))
	if err != nil {
		t.Fatal(err)
	}
	for name, spoil := range map[string]func(r *rig){
		"an unsigned head": func(*rig) {},
		"a torn write": func(r *rig) {
			r.edit(func(b []byte) []byte { copy(b[end(b):], `{"kind":"unwr`); return b })
		},
		"a segment made ready":       func(r *rig) { r.leave("next", strings.Repeat("\x00", 5000)) },
		"a segment without a header": func(r *rig) { r.leave(segmentName(last+1), "") },
		"half a header":              func(r *rig) { r.leave(segmentName(last+1), `{"kind":"segment","at":"20`) },
		"a full segment with zeros": func(r *rig) {
			f := r.segments()[0]
			if err := os.Truncate(f, 1<<20); err != nil {
				r.t.Fatal(err)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			r := old.copied(t)
			spoil(r)
			before := readAll(t, r.dir)
			r.refuse(anchor, audit.ErrCorrupt)
			before.mustBe(readAll(t, r.dir))

			// And it is the anchor that it was refused for.
			r.opts.Signer, r.opts.Anchor = r.key, &early
			r.open()
			r.close()
			r.mustVerify()
		})
	}
}
