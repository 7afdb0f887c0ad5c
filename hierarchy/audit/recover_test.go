package audit_test

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/kekd/kekd/hierarchy/audit"
)

// edit changes the last segment as it lies on the disk.
func (r *rig) edit(change func(b []byte) []byte) {
	r.t.Helper()
	paths := r.segments()
	path := paths[len(paths)-1]
	b, err := os.ReadFile(path)
	if err != nil {
		r.t.Fatal(err)
	}
	if err := os.WriteFile(path, change(b), 0o600); err != nil {
		r.t.Fatal(err)
	}
}

// end is where the last record ends.
func end(b []byte) int { return len(bytes.TrimRight(b, "\x00")) }

// TestPowerCut leaves of the last write what a power cut may leave of it: some sectors are
// written and some are not, and what is not reads as zeros.
func TestPowerCut(t *testing.T) {
	r := newRig(t)
	r.write(manyRecords(20)...)
	r.close()
	acked := r.lines()
	read := func() []byte {
		b, err := os.ReadFile(r.segments()[0])
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	from := end(read())
	r.open()
	r.write(manyRecords(30)...)
	whole := read() // one write more than acked
	r.close()

	rapid.Check(t, func(rt *rapid.T) {
		torn := bytes.Clone(whole)
		const sector = 512
		for at := from / sector * sector; at < end(whole); at += sector {
			if !rapid.Bool().Draw(rt, "sector is written") {
				clear(torn[max(at, from) : at+sector])
			}
		}
		r.edit(func([]byte) []byte { return bytes.Clone(torn) })

		// What is whole before the first zero stays, and what comes after is told of.
		first, _, _ := bytes.Cut(torn, []byte{0})
		kept := strings.Split(strings.TrimSuffix(string(first[:bytes.LastIndexByte(first, '\n')+1]), "\n"), "\n")
		var want []string
		if end(torn) > len(strings.Join(kept, "\n"))+1 {
			want = append(want, audit.KindRecovered)
		}
		want = append(want, "unwrap")

		j, err := audit.Open(r.dir, r.opts)
		if err != nil {
			rt.Fatal(err)
		}
		if _, err := j.Write(r.ctx(), []audit.Record{unwrap(1)}); err != nil {
			rt.Fatal(err)
		}
		if err := j.Close(r.ctx()); err != nil {
			rt.Fatal(err)
		}
		if rep := r.verify(); !rep.OK() {
			rt.Fatalf("faults %v", rep.Faults)
		}
		lines := r.lines()
		if len(kept) < len(acked) || !slices.Equal(lines[:len(kept)], kept) {
			rt.Fatal("what was whole is not there any more")
		}
		var got []string
		for _, l := range lines[len(kept):] {
			// How many checkpoints there are depends on when the sealer came to look.
			if kind := parse(t, l).Kind; kind != audit.KindCheckpoint {
				got = append(got, kind)
			}
		}
		if !slices.Equal(got, want) {
			rt.Fatalf("after what was whole stand %v, want %v", got, want)
		}
	})
}

// TestNotACrash is what no crash leaves behind. Each is refused: going on would bury it.
func TestNotACrash(t *testing.T) {
	for name, change := range map[string]func(b []byte) []byte{
		"last record edited":   func(b []byte) []byte { return bytes.Replace(b, []byte("tenant-19"), []byte("tenant-18"), 1) },
		"middle record edited": func(b []byte) []byte { return bytes.Replace(b, []byte("tenant-5"), []byte("tenant-6"), 1) },
		"record removed": func(b []byte) []byte {
			lines := bytes.SplitAfter(b, []byte("\n"))
			return append(bytes.Join(slices.Delete(lines, 5, 6), nil), make([]byte, 1000)...)
		},
		"garbage line": func(b []byte) []byte { return append(b[:end(b)], "garbage\n"...) },
		"a hole before a checkpoint": func(b []byte) []byte {
			clear(b[1024:1536])
			return b
		},
		"empty genesis":    func(b []byte) []byte { clear(b); return b },
		"no file contents": func([]byte) []byte { return nil },
		"signature edited": func(b []byte) []byte {
			i := bytes.LastIndex(b, []byte(`"signature":"`)) + 40
			if b[i] = b[i] ^ 1; b[i] < '0' || b[i] > 'z' {
				b[i] = 'A'
			}
			return b
		},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t)
			r.write(manyRecords(20)...)
			r.close()
			r.leave("next", "")
			r.edit(change)
			before := readAll(t, r.dir)
			if _, err := audit.Open(r.dir, r.opts); !errors.Is(err, audit.ErrCorrupt) && !errors.Is(err, audit.ErrSignature) {
				t.Errorf("got %v", err)
			}
			before.mustBe(readAll(t, r.dir))
		})
	}
}

// TestTornFarFromTheEnd is a hole with more after it than one write can have.
func TestTornFarFromTheEnd(t *testing.T) {
	r := newRig(t, func(o *audit.Options) { o.SegmentSize = 32 << 20 })
	for range 20 {
		r.write(manyRecords(1024)...)
	}
	// No clean end: the checkpoint would tell too.
	b, err := os.ReadFile(r.segments()[0])
	if err != nil {
		t.Fatal(err)
	}
	r.close()
	clear(b[100_000:100_512])
	r.edit(func([]byte) []byte { return b })
	if _, err := audit.Open(r.dir, r.opts); !errors.Is(err, audit.ErrCorrupt) {
		t.Errorf("got %v", err)
	}
}

// TestCrashWhileRotating leaves a segment that has its name and no header, or half of one.
func TestCrashWhileRotating(t *testing.T) {
	for name, contents := range map[string]string{
		"nothing": "", "zeros": strings.Repeat("\x00", 70_000), "half a header": `{"kind":"segment","at":"20` + strings.Repeat("\x00", 70_000),
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t)
			r.write(manyRecords(20)...)
			r.close()
			last := r.mustVerify().Last
			path := filepath.Join(r.dir, segmentName(last+1))
			if err := os.WriteFile(path, []byte(contents), 0o600); err != nil {
				t.Fatal(err)
			}
			r.open()
			r.write(manyRecords(300)[:100]...)
			r.write(manyRecords(100)...)
			r.close()
			rep := r.mustVerify()
			if rep.Last < last+200 {
				t.Errorf("%d records", rep.Last)
			}
			told := slices.ContainsFunc(r.lines(), func(l string) bool { return parse(t, l).Kind == audit.KindRecovered })
			if want := strings.Contains(contents, "{"); told != want {
				t.Errorf("told of a cut: %v, want %v", told, want)
			}
		})
	}
}

func TestSegmentBeforeIsChecked(t *testing.T) {
	r := newRig(t)
	for range 3 {
		r.write(manyRecords(100)...)
	}
	r.close()
	paths := r.segments()
	if len(paths) < 2 {
		t.Fatalf("%d segments", len(paths))
	}
	path := paths[len(paths)-2]
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	lines := bytes.SplitAfter(b, []byte("\n"))
	if err := os.WriteFile(path, bytes.Join(lines[:len(lines)-2], nil), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := audit.Open(r.dir, r.opts); !errors.Is(err, audit.ErrCorrupt) {
		t.Errorf("got %v", err)
	}
	// Zeros at its end do no harm: the crash came before they were cut off.
	if err := os.WriteFile(path, append(b, make([]byte, 5000)...), 0o600); err != nil {
		t.Fatal(err)
	}
	r.open()
	r.close()
	r.mustVerify()
}
