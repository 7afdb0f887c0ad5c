// Package approvaltest makes operators' keys for tests: such as ssh-keygen makes, and such as a FIDO
// authenticator has. They are drawn from names, so that a test has the same ones each time.
package approvaltest

import (
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"io"
	"math/big"

	"golang.org/x/crypto/ssh"

	"github.com/kekd/kekd/hierarchy/approval"
)

func seed(name string) []byte {
	sum := sha256.Sum256([]byte("approvaltest " + name))
	return sum[:]
}

// Ed25519 is a key in a file.
func Ed25519(name string) ssh.Signer {
	s, err := ssh.NewSignerFromKey(ed25519.NewKeyFromSeed(seed(name)))
	if err != nil {
		panic(err)
	}
	return s
}

// Key is a signer's public key as an operator has it.
func Key(s ssh.Signer) approval.Key {
	k, err := approval.ParseKey(s.PublicKey().Marshal())
	if err != nil {
		panic(err)
	}
	return k
}

// Line is a signer's line in a file of operators.
func Line(s ssh.Signer, name string) string {
	return fmt.Sprintf("%s %s\n", Key(s), name)
}

// Sign signs a text as an operator does.
func Sign(s ssh.Signer, text []byte) []byte {
	sig, err := approval.Sign(rand.Reader, s, text)
	if err != nil {
		panic(err)
	}
	return sig
}

// Authenticator is a FIDO authenticator in software. It signs as those of openssh's PROTOCOL.u2f do.
type Authenticator struct {
	Flags   byte // of the next signature: 1 says that it was touched
	Counter uint32

	application string
	public      ssh.PublicKey
	format      string
	sign        func(data []byte) []byte
}

// Touched is the flag of a signature that somebody touched the authenticator for.
const Touched = 1

// SKEd25519 is an authenticator with an Ed25519 key.
func SKEd25519(name, application string) *Authenticator {
	private := ed25519.NewKeyFromSeed(seed(name))
	a := &Authenticator{Flags: Touched, application: application, format: ssh.KeyAlgoSKED25519}
	a.parse(ssh.Marshal(struct {
		Type        string
		Key         []byte
		Application string
	}{a.format, private.Public().(ed25519.PublicKey), application}))
	a.sign = func(data []byte) []byte { return ed25519.Sign(private, data) }
	return a
}

// SKECDSA is an authenticator with a P-256 key, drawn anew each time.
func SKECDSA(application string) *Authenticator {
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		panic(err)
	}
	point, err := private.PublicKey.Bytes()
	if err != nil {
		panic(err)
	}
	a := &Authenticator{Flags: Touched, application: application, format: ssh.KeyAlgoSKECDSA256}
	a.parse(ssh.Marshal(struct {
		Type, Curve string
		Key         []byte
		Application string
	}{a.format, "nistp256", point, application}))
	a.sign = func(data []byte) []byte {
		digest := sha256.Sum256(data)
		r, s, err := ecdsa.Sign(rand.Reader, private, digest[:])
		if err != nil {
			panic(err)
		}
		return ssh.Marshal(struct{ R, S *big.Int }{r, s})
	}
	return a
}

func (a *Authenticator) parse(wire []byte) {
	public, err := ssh.ParsePublicKey(wire)
	if err != nil {
		panic(err)
	}
	a.public = public
}

func (a *Authenticator) PublicKey() ssh.PublicKey { return a.public }

// Sign implements [ssh.Signer].
func (a *Authenticator) Sign(_ io.Reader, data []byte) (*ssh.Signature, error) {
	a.Counter++
	rest := binary.BigEndian.AppendUint32([]byte{a.Flags}, a.Counter)
	application, message := sha256.Sum256([]byte(a.application)), sha256.Sum256(data)
	signed := append(append(application[:], rest...), message[:]...)
	return &ssh.Signature{Format: a.format, Blob: a.sign(signed), Rest: rest}, nil
}
