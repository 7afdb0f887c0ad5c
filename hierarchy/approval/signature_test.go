package approval_test

import (
	"bytes"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"math/big"
	"testing"

	"golang.org/x/crypto/ssh"

	"github.com/kekd/kekd/hierarchy"
	"github.com/kekd/kekd/hierarchy/approval"
	"github.com/kekd/kekd/hierarchy/approval/approvaltest"
)

var text = []byte("kekd break-glass statement v1\noperation: tenant-enable\n")

func TestVerify(t *testing.T) {
	for kind, s := range everyKind() {
		wire := approvaltest.Sign(s, text)
		sig, err := approval.ParseSignature(wire)
		if err != nil {
			t.Errorf("%s: %v", kind, err)
			continue
		}
		if !sig.Key.Equal(approvaltest.Key(s)) {
			t.Errorf("%s: it says that it is by %s", kind, sig.Key)
		}
		if err := sig.Verify(text); err != nil {
			t.Errorf("%s: %v", kind, err)
		}
		for _, other := range [][]byte{nil, text[1:], append(bytes.Clone(text), '\n'), bytes.Replace(text, []byte(": "), []byte(":  "), 1), bytes.ToUpper(text)} {
			if err := sig.Verify(other); !errors.Is(err, hierarchy.ErrPermissionDenied) {
				t.Errorf("%s: over %q: got %v", kind, other, err)
			}
		}
		for n := range wire {
			if _, err := approval.ParseSignature(wire[:n]); !errors.Is(err, hierarchy.ErrInvalidArgument) {
				t.Fatalf("%s: its first %d bytes: got %v", kind, n, err)
			}
		}
		_, err = approval.ParseSignature(append(bytes.Clone(wire), 0))
		refused(t, err, "something follows its end")
		// Whatever bit is another, it is no signature of that key over the text.
		for i := 0; i < len(wire); i += 7 {
			bent := bytes.Clone(wire)
			bent[i] ^= 1 << (i % 8)
			if got, err := approval.ParseSignature(bent); err == nil && got.Key.Equal(sig.Key) && got.Verify(text) == nil {
				t.Errorf("%s: with another bit in byte %d it is still good", kind, i)
			}
		}
	}
}

// blob is an SSHSIG whose fields may be anything.
type blob struct {
	magic                      string
	version                    uint32
	key, ns, reserved, hash    string
	algorithm, signature, rest string
	after                      string
}

// parts takes a good signature apart.
func parts(t *testing.T, wire []byte) blob {
	t.Helper()
	var b blob
	str := func(from *[]byte) string {
		n := binary.BigEndian.Uint32(*from)
		s := string((*from)[4 : 4+n])
		*from = (*from)[4+n:]
		return s
	}
	b.magic, b.version, wire = string(wire[:6]), binary.BigEndian.Uint32(wire[6:]), wire[10:]
	b.key, b.ns, b.reserved, b.hash = str(&wire), str(&wire), str(&wire), str(&wire)
	inner := []byte(str(&wire))
	b.algorithm, b.signature = str(&inner), str(&inner)
	b.rest = string(inner)
	return b
}

func (b blob) bytes() []byte {
	str := func(to []byte, s string) []byte {
		return append(binary.BigEndian.AppendUint32(to, uint32(len(s))), s...)
	}
	out := binary.BigEndian.AppendUint32([]byte(b.magic), b.version)
	for _, s := range []string{b.key, b.ns, b.reserved, b.hash, string(append(str(str(nil, b.algorithm), b.signature), b.rest...))} {
		out = str(out, s)
	}
	return append(out, b.after...)
}

func TestParseSignatureRefuses(t *testing.T) {
	ed := approvaltest.Ed25519("alice")
	sk := approvaltest.SKEd25519("alice", "ssh:")
	p256 := newECDSA(elliptic.P256())
	for says, c := range map[string]struct {
		by     ssh.Signer
		change func(*blob)
	}{
		"is no SSHSIG":                            {ed, func(b *blob) { b.magic = "SSHSIX" }},
		"version: it is 2":                        {ed, func(b *blob) { b.version = 2 }},
		"version: it is 0":                        {ed, func(b *blob) { b.version = 0 }},
		`namespace: it is "file"`:                 {ed, func(b *blob) { b.ns = "file" }},
		`namespace: it is ""`:                     {ed, func(b *blob) { b.ns = "" }},
		`namespace: it is "kekd-break-glass\x00"`: {ed, func(b *blob) { b.ns += "\x00" }},
		"reserved: it is not empty":               {ed, func(b *blob) { b.reserved = "x" }},
		`hash_algorithm: it is "sha1"`:            {ed, func(b *blob) { b.hash = "sha1" }},
		`hash_algorithm: it is ""`:                {ed, func(b *blob) { b.hash = "" }},
		"signature: something follows":            {ed, func(b *blob) { b.after = "x" }},
		"signature_blob: something follows":       {ed, func(b *blob) { b.rest = "x" }},
		"it has 63 bytes":                         {ed, func(b *blob) { b.signature = b.signature[1:] }},
		`it is "ssh-rsa"`:                         {newRSA(), func(b *blob) { b.algorithm = "ssh-rsa" }},
		"one by this key has 384":                 {newRSA(), func(b *blob) { b.signature = b.signature[1:] }},
		`it is "rsa-sha2-512"`:                    {ed, func(b *blob) { b.algorithm = "rsa-sha2-512" }},
		`it is "ecdsa-sha2-nistp384"`:             {p256, func(b *blob) { b.algorithm = "ecdsa-sha2-nistp384" }},
		"without a touch":                         {sk, func(b *blob) { b.rest = "\x04" + b.rest[1:] }},
		"flags: they are missing":                 {sk, func(b *blob) { b.rest = "\x01\x00\x00\x00" }},
		"blob: something follows its end":         {sk, func(b *blob) { b.rest += "\x00" }},
		`it is "ssh-ed25519"`:                     {sk, func(b *blob) { b.algorithm = "ssh-ed25519" }},
		"public key: ssh-rsa: it has 1024":        {ed, func(b *blob) { b.key = string(rsaKey(65537, ofBits(1024))) }},
		"public key: the type":                    {ed, func(b *blob) { b.key = "\x00\x00\x00\x01x" }},
		"signature: it has":                       {ed, func(b *blob) { b.reserved = string(make([]byte, approval.MaxSignature)) }},
	} {
		b := parts(t, approvaltest.Sign(c.by, text))
		if _, err := approval.ParseSignature(b.bytes()); err != nil {
			t.Fatalf("taken apart and put together: %v", err)
		}
		c.change(&b)
		_, err := approval.ParseSignature(b.bytes())
		refused(t, err, says)
	}
}

// What an authenticator signed without a touch is refused, whatever its flags are made to say afterwards.
func TestATouchIsSigned(t *testing.T) {
	for _, a := range []*approvaltest.Authenticator{approvaltest.SKEd25519("alice", "ssh:"), approvaltest.SKECDSA("ssh:")} {
		a.Flags = 0
		wire := approvaltest.Sign(a, text)
		_, err := approval.ParseSignature(wire)
		refused(t, err, "without a touch")
		b := parts(t, wire)
		b.rest = string([]byte{approvaltest.Touched}) + b.rest[1:]
		sig, err := approval.ParseSignature(b.bytes())
		if err != nil {
			t.Fatal(err)
		}
		if err := sig.Verify(text); !errors.Is(err, hierarchy.ErrPermissionDenied) {
			t.Errorf("got %v", err)
		}
		a.Flags = approvaltest.Touched | 4 // and the user was verified
		if sig, err = approval.ParseSignature(approvaltest.Sign(a, text)); err != nil || sig.Verify(text) != nil {
			t.Errorf("a signature by PIN and touch is refused: %v", err)
		}
	}
}

// A signature says whose it is, and that alone is asked: it does not verify as anybody else's.
func TestASignatureIsOfItsKey(t *testing.T) {
	b := parts(t, approvaltest.Sign(approvaltest.Ed25519("alice"), text))
	b.key = string(approvaltest.Ed25519("bob").PublicKey().Marshal())
	sig, err := approval.ParseSignature(b.bytes())
	if err != nil {
		t.Fatal(err)
	}
	if err := sig.Verify(text); !errors.Is(err, hierarchy.ErrPermissionDenied) {
		t.Errorf("got %v", err)
	}
}

// The numbers of an ECDSA signature are read as numbers: none is negative or too long.
func TestECDSANumbers(t *testing.T) {
	b := parts(t, approvaltest.Sign(newECDSA(elliptic.P256()), text))
	for _, rs := range [][2]*big.Int{{new(big.Int), big.NewInt(1)}, {big.NewInt(-1), big.NewInt(-1)}, {elliptic.P256().Params().N, big.NewInt(1)}} {
		b.signature = string(ssh.Marshal(struct{ R, S *big.Int }{rs[0], rs[1]}))
		if sig, err := approval.ParseSignature(b.bytes()); err == nil && sig.Verify(text) == nil {
			t.Errorf("%v is a signature", rs)
		}
	}
}

func TestAnRSAKeyDoesNotSignWithSHA1(t *testing.T) {
	onlySHA1 := struct{ ssh.Signer }{newRSA()}
	if _, err := approval.Sign(rand.Reader, onlySHA1, text); err == nil {
		t.Error("it does")
	}
}

func TestArmor(t *testing.T) {
	for n := range 200 {
		b := bytes.Repeat([]byte{byte(n)}, n)
		got, err := approval.Unarmor(append([]byte("\r\n  "), approval.Armor(b)...))
		if err != nil || !bytes.Equal(got, b) {
			t.Fatalf("%d bytes: got %x, %v", n, got, err)
		}
	}
	for _, s := range []string{
		"", "-----BEGIN SSH SIGNATURE-----", "-----END SSH SIGNATURE-----",
		"x-----BEGIN SSH SIGNATURE-----\nAAAA\n-----END SSH SIGNATURE-----",
		"-----BEGIN SSH SIGNATURE-----\nAAA\n-----END SSH SIGNATURE-----",
		"-----BEGIN SSH SIGNATURE-----\nAA!A\n-----END SSH SIGNATURE-----",
		"-----BEGIN SSH SIGNATURE-----\nAAAA\n-----END SSH SIGNATURE-----\n-----BEGIN SSH SIGNATURE-----\nAAAA\n-----END SSH SIGNATURE-----",
		"-----BEGIN SSH SIGNATURE-----\n" + string(bytes.Repeat([]byte("AAAA"), approval.MaxSignature)) + "\n-----END SSH SIGNATURE-----",
	} {
		_, err := approval.Unarmor([]byte(s))
		refused(t, err, "ssh-keygen -Y sign")
	}
}

func FuzzParseSignature(f *testing.F) {
	for _, s := range everyKind() {
		f.Add(approvaltest.Sign(s, text))
	}
	f.Fuzz(func(t *testing.T, wire []byte) {
		sig, err := approval.ParseSignature(wire)
		if err != nil {
			if !errors.Is(err, hierarchy.ErrInvalidArgument) {
				t.Fatalf("%v is no invalid argument", err)
			}
			return
		}
		if err := sig.Verify([]byte("nobody has ever signed this")); !errors.Is(err, hierarchy.ErrPermissionDenied) {
			t.Fatalf("got %v", err)
		}
	})
}

func FuzzUnarmor(f *testing.F) {
	f.Add(approval.Armor(approvaltest.Sign(approvaltest.Ed25519("alice"), text)))
	f.Fuzz(func(t *testing.T, file []byte) {
		b, err := approval.Unarmor(file)
		if err != nil {
			return
		}
		if again, err := approval.Unarmor(approval.Armor(b)); err != nil || !bytes.Equal(again, b) {
			t.Fatalf("%x reads back as %x, %v", b, again, err)
		}
	})
}
