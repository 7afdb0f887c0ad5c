package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
)

// A node without a token signs its audit journal with a key in a file. It is P-256, as a token's identity
// is. What that is worth: whoever can read the file, root at least, can sign a journal of his own making.
// A token's key takes the token as well.

func fileKeyPath(dir string) string { return filepath.Join(dir, "identity.key") }

// makeFileKey makes the key of a node without a token, unless it is there.
func makeFileKey(dir string) (*ecdsa.PrivateKey, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	path := fileKeyPath(dir)
	if _, err := os.Lstat(path); errors.Is(err, fs.ErrNotExist) {
		return newKeyFile(path)
	}
	return readKeyFile(path)
}

// openFileKey opens the key of a node that has one. None is ever made anew: its journal would have two.
func openFileKey(dir string) (*ecdsa.PrivateKey, error) {
	key, err := readKeyFile(fileKeyPath(dir))
	if errors.Is(err, fs.ErrNotExist) {
		err = fmt.Errorf("the key that signs this node's audit journal is missing: put it back; if it is lost, remove the node from the cluster and have it join again: %w", err)
	}
	return key, err
}

// newKeyFile makes a P-256 key in a file, in place of what is there.
func newKeyFile(path string) (*ecdsa.PrivateKey, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	defer clear(der)
	text := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})
	defer clear(text)
	return key, writeFileAtomic(path, text, 0o600)
}

// maxKeyFile is far more than a key has, in bytes.
const maxKeyFile = 16 << 10

// readKeyFile reads a P-256 key that nobody but its owner has access to.
func readKeyFile(path string) (*ecdsa.PrivateKey, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() || info.Size() > maxKeyFile {
		return nil, fmt.Errorf("%s is not a key's file", path)
	}
	if mode := info.Mode().Perm(); mode&0o077 != 0 {
		return nil, fmt.Errorf("others may read or change %s (mode %04o): run chmod 0600 on it", path, mode)
	}
	if uid := info.Sys().(*syscall.Stat_t).Uid; uid != 0 && uid != uint32(os.Geteuid()) {
		return nil, fmt.Errorf("%s belongs to uid %d, who may read and change it: it has to be root's or uid %d's", path, uid, os.Geteuid())
	}
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	defer clear(text)
	block, rest := pem.Decode(text)
	if block == nil || block.Type != "PRIVATE KEY" || len(rest) > 0 {
		return nil, fmt.Errorf("%s is not one private key in PEM (PKCS #8): put it back from where it is kept", path)
	}
	defer clear(block.Bytes)
	parsed, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	key, ok := parsed.(*ecdsa.PrivateKey)
	if !ok || key.Curve != elliptic.P256() {
		return nil, fmt.Errorf("%s has a %T, it has to be of the curve P-256", path, parsed)
	}
	return key, nil
}
