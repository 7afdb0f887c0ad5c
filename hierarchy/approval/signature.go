package approval

import (
	"crypto/rsa"
	"crypto/sha256"
	"crypto/sha512"
	"errors"
	"fmt"
	"io"
	"slices"

	"golang.org/x/crypto/ssh"

	"github.com/kekd/kekd/hierarchy"
)

// Namespace is what operators sign in, so that what they sign elsewhere, such as commits or mail, is no approval.
const Namespace = "kekd-break-glass"

// MaxSignature is the length of the longest signature, in bytes: one by RSA-8192 has some 2,200.
const MaxSignature = 4096

// The format of openssh's PROTOCOL.sshsig.
const (
	magic   = "SSHSIG"
	version = 1
)

// Signature is an operator's over some text.
type Signature struct {
	Key  Key // which it says that it is by
	hash string
	sig  *ssh.Signature
}

// ParseSignature reads an SSHSIG without its armor, and refuses whatever could not be an approval, with the field in
// [hierarchy.ErrInvalidArgument]: another namespace, a hash that is not SHA-256 or SHA-512, a signature by RSA with
// SHA-1, one that was made without a touch, and anything that the format does not have.
func ParseSignature(b []byte) (*Signature, error) {
	bad := func(format string, args ...any) (*Signature, error) {
		return nil, fmt.Errorf("%w: signature: %s", hierarchy.ErrInvalidArgument, fmt.Sprintf(format, args...))
	}
	if len(b) > MaxSignature {
		return bad("it has %d bytes, at most %d are allowed", len(b), MaxSignature)
	}
	r := reader{rest: b}
	if string(r.bytes(uint64(len(magic)))) != magic {
		return bad("it is no SSHSIG")
	}
	if v := r.uint32(); v != version {
		return bad("version: it is %d, this is about %d", v, version)
	}
	wire, namespace, reserved, hash, inner := r.string(), r.string(), r.string(), r.string(), r.string()
	switch {
	case r.failed:
		return bad("it ends too early")
	case !r.ended():
		return bad("something follows its end")
	case string(namespace) != Namespace:
		return bad("namespace: it is %q, not %q: sign with `ssh-keygen -Y sign -n %s`", namespace, Namespace, Namespace)
	case len(reserved) > 0:
		return bad("reserved: it is not empty")
	case string(hash) != "sha256" && string(hash) != "sha512":
		return bad("hash_algorithm: it is %q, sha256 and sha512 are allowed", hash)
	}
	key, err := ParseKey(wire)
	if err != nil {
		return nil, fmt.Errorf("signature: %w", err)
	}
	s := &Signature{Key: key, hash: string(hash)}
	if s.sig, err = parseInner(key, inner); err != nil {
		return nil, fmt.Errorf("%w: signature: %w", hierarchy.ErrInvalidArgument, err)
	}
	return s, nil
}

// userPresent is the flag of a FIDO signature that says that somebody touched the authenticator.
const userPresent = 1

// parseInner reads what stands in the last field: the algorithm and its bytes, and for an authenticator its flags
// and counter besides (openssh's PROTOCOL.u2f).
func parseInner(key Key, b []byte) (*ssh.Signature, error) {
	r := reader{rest: b}
	algorithm, blob := string(r.string()), r.string()
	if r.failed {
		return nil, errors.New("signature_blob: it ends too early")
	}
	allowed := []string{key.Type()}
	if key.Type() == ssh.KeyAlgoRSA {
		allowed = []string{ssh.KeyAlgoRSASHA256, ssh.KeyAlgoRSASHA512}
	}
	if !slices.Contains(allowed, algorithm) {
		return nil, fmt.Errorf("signature_algorithm: it is %q, for this key it must be one of %q", algorithm, allowed)
	}
	if want := blobSize(key); want > 0 && len(blob) != want {
		return nil, fmt.Errorf("signature_blob: it has %d bytes, one by this key has %d", len(blob), want)
	}
	rest := r.rest
	if key.authenticator() {
		flags := r.bytes(1)
		r.uint32() // the counter: a signature is used once, whatever it says
		if r.failed {
			return nil, errors.New("flags: they are missing")
		}
		if flags[0]&userPresent == 0 {
			return nil, errors.New("flags: it was made without a touch of the authenticator")
		}
	}
	if !r.ended() {
		return nil, errors.New("signature_blob: something follows its end")
	}
	return &ssh.Signature{Format: algorithm, Blob: blob, Rest: rest}, nil
}

// blobSize is how many bytes every signature by a key has; 0: that differs.
func blobSize(key Key) int {
	switch key.Type() {
	case ssh.KeyAlgoED25519, ssh.KeyAlgoSKED25519:
		return 64
	case ssh.KeyAlgoRSA:
		return key.public.(ssh.CryptoPublicKey).CryptoPublicKey().(*rsa.PublicKey).Size()
	}
	return 0
}

// Verify tells whether the signature is over these very bytes, by the key that it names. If not, that is
// [hierarchy.ErrPermissionDenied].
func (s *Signature) Verify(text []byte) error {
	if err := s.Key.public.Verify(signed(text, s.hash), s.sig); err != nil {
		return fmt.Errorf("%w: the signature by %s is not over this statement, to the byte", hierarchy.ErrPermissionDenied, s.Key.Fingerprint())
	}
	return nil
}

// signed is what the key itself signs.
func signed(text []byte, hash string) []byte {
	var digest []byte
	switch hash {
	case "sha256":
		sum := sha256.Sum256(text)
		digest = sum[:]
	case "sha512":
		sum := sha512.Sum512(text)
		digest = sum[:]
	}
	b := appendString([]byte(magic), Namespace)
	b = appendString(b, "") // reserved
	b = appendString(b, hash)
	return appendString(b, digest)
}

// Sign makes the signature that [ParseSignature] reads, by a key in memory or in an agent.
func Sign(random io.Reader, signer ssh.Signer, text []byte) ([]byte, error) {
	const hash = "sha512"
	var sig *ssh.Signature
	var err error
	data := signed(text, hash)
	if signer.PublicKey().Type() == ssh.KeyAlgoRSA {
		with, ok := signer.(ssh.AlgorithmSigner)
		if !ok {
			return nil, errors.New("this RSA key can only sign with SHA-1")
		}
		sig, err = with.SignWithAlgorithm(random, data, ssh.KeyAlgoRSASHA512)
	} else {
		sig, err = signer.Sign(random, data)
	}
	if err != nil {
		return nil, err
	}
	b := append([]byte(magic), 0, 0, 0, version)
	b = appendString(b, signer.PublicKey().Marshal())
	b = appendString(b, Namespace)
	b = appendString(b, "") // reserved
	b = appendString(b, hash)
	inner := appendString(appendString(nil, sig.Format), sig.Blob)
	return appendString(b, append(inner, sig.Rest...)), nil
}
