package approval_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"errors"
	"strings"
	"sync"
	"testing"

	"golang.org/x/crypto/ssh"

	"github.com/kekd/kekd/hierarchy"
)

// refused wants an invalid argument that says something.
func refused(t *testing.T, err error, says string) {
	t.Helper()
	if !errors.Is(err, hierarchy.ErrInvalidArgument) || !strings.Contains(err.Error(), says) {
		t.Errorf("got %v, want an invalid argument that says %q", err, says)
	}
}

func signerOf(key any) ssh.Signer {
	s, err := ssh.NewSignerFromKey(key)
	if err != nil {
		panic(err)
	}
	return s
}

func newECDSA(c elliptic.Curve) ssh.Signer {
	k, err := ecdsa.GenerateKey(c, rand.Reader)
	if err != nil {
		panic(err)
	}
	return signerOf(k)
}

// newRSA takes some tenths of a second.
var newRSA = sync.OnceValue(func() ssh.Signer {
	k, err := rsa.GenerateKey(rand.Reader, 3072)
	if err != nil {
		panic(err)
	}
	return signerOf(k)
})
