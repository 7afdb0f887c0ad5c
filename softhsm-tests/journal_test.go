package softhsmtests

import (
	"bytes"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/kekd/kekd/hierarchy/audit"
)

// journalOf reads a node's journal from its files, up to where the prepared zeros begin. The last
// record may be one that is being written just now: it is left out.
func journalOf(t *testing.T, n *node) []*audit.Entry {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(n.DataDir, "audit", "*.jsonl"))
	if err != nil || len(files) == 0 {
		t.Fatalf("no journal: %v", err)
	}
	slices.Sort(files)
	var all []*audit.Entry
	for _, file := range files {
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		b, _, _ = bytes.Cut(b, []byte{0})
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
		}
	}
	return all
}
