package softhsmtests

import (
	"bytes"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/kekd/kekd/hierarchy/audit"
)

// journalOf reads a node's whole journal from its files.
func journalOf(t *testing.T, n *node) []*audit.Entry {
	t.Helper()
	return new(journalReader).more(t, n)
}

// journalReader reads a journal that grows.
type journalReader struct {
	file   string // that it has come to
	offset int
}

// more returns what was added since the last time, up to where the prepared zeros begin. The last
// record may be one that is being written just now: it is left for the next time.
func (r *journalReader) more(t *testing.T, n *node) []*audit.Entry {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(n.DataDir, "audit", "*.jsonl"))
	if err != nil || len(files) == 0 {
		t.Fatalf("no journal: %v", err)
	}
	slices.Sort(files)
	var all []*audit.Entry
	for _, file := range files {
		if file < r.file {
			continue
		}
		if file > r.file {
			r.file, r.offset = file, 0
		}
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		b, _, _ = bytes.Cut(b[r.offset:], []byte{0})
		for {
			line, rest, whole := bytes.Cut(b, []byte("\n"))
			if !whole {
				break
			}
			e, err := audit.ParseLine(line)
			if err != nil {
				t.Fatalf("%s: %v", filepath.Base(file), err)
			}
			all, b = append(all, e), rest
			r.offset += len(line) + 1
		}
	}
	return all
}
