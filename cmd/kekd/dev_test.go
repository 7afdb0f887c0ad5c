package main

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
)

// Who waits for cluster.json waits for the run that he has started: neither that of an earlier run
// nor a start that failed leaves one.
func TestDevListsOnlyWhatServed(t *testing.T) {
	dir := t.TempDir()
	node := filepath.Join(dir, "nodes", devRegion+"-1")
	if err := os.MkdirAll(node, 0o755); err != nil {
		t.Fatal(err)
	}
	for path, text := range map[string]string{
		clusterFile(dir):                 `{"nodes":[]}`,
		filepath.Join(node, "kekd.toml"): "no configuration",
	} {
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := runDev(t.Context(), dir, io.Discard, io.Discard); err == nil {
		t.Fatal("kekd dev ran on a configuration that it cannot read")
	}
	if _, err := os.Stat(clusterFile(dir)); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("there is a cluster.json, and nothing has served: %v", err)
	}
}
