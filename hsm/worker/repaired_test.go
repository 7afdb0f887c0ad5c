package worker_test

import (
	"os"
	"path/filepath"
	"regexp"
	"sync"
	"testing"

	"github.com/kekd/kekd/hsm/worker"
)

// TestRepaired: what the next worker puts right of a change in whose middle the manager was killed
// is told to the daemon, which lives on.
func TestRepaired(t *testing.T) {
	c := kept(t)
	c.Dies = filepath.Join(t.TempDir(), "dies")
	var mu sync.Mutex
	var told []string
	p := openPool(t, worker.Config{Command: commandOf(t, c), Workers: 2, Repaired: func(text string) {
		mu.Lock()
		defer mu.Unlock()
		told = append(told, text)
	}})
	before := objectFiles(t, c)
	must(t, os.WriteFile(c.Dies, nil, 0o600))
	mint(t, p, acme, 1)
	if _, err := os.Stat(c.Dies); err == nil {
		t.Fatal("nobody was killed")
	}
	mu.Lock()
	defer mu.Unlock()
	if len(told) != 1 {
		t.Fatalf("told %q, want one file", told)
	}
	m := regexp.MustCompile(`^adopted ([^/ ]+/[^/ ]+\.object)$`).FindStringSubmatch(told[0])
	if m == nil || before[m[1]] || !objectFiles(t, c)[m[1]] {
		t.Errorf("told %q, want the file of the key that was made", told)
	}
}

// objectFiles names the files of a token's objects, as reports do.
func objectFiles(t *testing.T, c workerConfig) map[string]bool {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(c.Dir, "tokens", "*", "*.object"))
	must(t, err)
	names := map[string]bool{}
	for _, f := range files {
		names[filepath.Join(filepath.Base(filepath.Dir(f)), filepath.Base(f))] = true
	}
	return names
}
