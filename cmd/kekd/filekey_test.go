package main

import (
	"crypto/ecdsa"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
)

// The key of a node without a token is made once, is nobody else's to read, and is never made anew.
func TestFileKey(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "witness")
	if _, err := openFileKey(dir); !errors.Is(err, fs.ErrNotExist) {
		t.Fatalf("before it is made: %v", err)
	}
	made, err := makeFileKey(dir)
	if err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(fileKeyPath(dir))
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Fatalf("its file has mode %v: %v", info.Mode(), err)
	}
	for what, f := range map[string]func(string) (*ecdsa.PrivateKey, error){
		"opened":          func(d string) (*ecdsa.PrivateKey, error) { return openFileKey(d) },
		"made once again": func(d string) (*ecdsa.PrivateKey, error) { return makeFileKey(d) },
	} {
		if k, err := f(dir); err != nil || !made.Equal(k) {
			t.Errorf("%s: another key, %v", what, err)
		}
	}
	good, err := os.ReadFile(fileKeyPath(dir))
	if err != nil {
		t.Fatal(err)
	}
	for what, spoil := range map[string]func() error{
		"open to others": func() error { return os.Chmod(fileKeyPath(dir), 0o640) },
		"somebody's":     func() error { return os.Chown(fileKeyPath(dir), nobody, nobody) },
		"cut off":        func() error { return os.WriteFile(fileKeyPath(dir), good[:len(good)/2], 0o600) },
		"empty":          func() error { return os.WriteFile(fileKeyPath(dir), nil, 0o600) },
		"twice":          func() error { return os.WriteFile(fileKeyPath(dir), append(good, good...), 0o600) },
	} {
		if err := spoil(); err != nil {
			t.Fatal(err)
		}
		if _, err := makeFileKey(dir); err == nil {
			t.Errorf("%s: it is taken", what)
		}
		if err := errors.Join(os.WriteFile(fileKeyPath(dir), good, 0o600), os.Chmod(fileKeyPath(dir), 0o600), os.Chown(fileKeyPath(dir), os.Geteuid(), os.Getegid())); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := makeFileKey(dir); err != nil {
		t.Errorf("put back: %v", err)
	}
}
