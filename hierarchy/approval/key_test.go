package approval_test

import (
	"bytes"
	"crypto/ed25519"
	"crypto/elliptic"
	"errors"
	"fmt"
	"math/big"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/crypto/ssh"

	"github.com/kekd/kekd/hierarchy"
	"github.com/kekd/kekd/hierarchy/approval"
	"github.com/kekd/kekd/hierarchy/approval/approvaltest"
)

// everyKind has a signer for each kind of key that an operator may have.
func everyKind() map[string]ssh.Signer {
	return map[string]ssh.Signer{
		"ssh-ed25519":                        approvaltest.Ed25519("alice"),
		"ecdsa-sha2-nistp256":                newECDSA(elliptic.P256()),
		"ecdsa-sha2-nistp384":                newECDSA(elliptic.P384()),
		"ecdsa-sha2-nistp521":                newECDSA(elliptic.P521()),
		"ssh-rsa":                            newRSA(),
		"sk-ssh-ed25519@openssh.com":         approvaltest.SKEd25519("alice", "ssh:"),
		"sk-ecdsa-sha2-nistp256@openssh.com": approvaltest.SKECDSA("ssh:kekd"),
	}
}

func TestParseKey(t *testing.T) {
	for kind, s := range everyKind() {
		wire := s.PublicKey().Marshal()
		k, err := approval.ParseKey(wire)
		if err != nil {
			t.Errorf("%s: %v", kind, err)
			continue
		}
		if k.Type() != kind || !bytes.Equal(k.Wire(), wire) || k.Fingerprint() != ssh.FingerprintSHA256(s.PublicKey()) {
			t.Errorf("%s: read as %s %s", kind, k.Type(), k.Fingerprint())
		}
		// No byte more, and none less.
		for n := range wire {
			if _, err := approval.ParseKey(wire[:n]); err == nil {
				t.Fatalf("%s: its first %d bytes are a key", kind, n)
			}
		}
		_, err = approval.ParseKey(append(wire, 0))
		refused(t, err, "public key")
	}
}

func rsaKey(e int64, n *big.Int) []byte {
	return ssh.Marshal(struct {
		Type string
		E, N *big.Int
	}{"ssh-rsa", big.NewInt(e), n})
}

func ed25519Key(point []byte) []byte {
	return ssh.Marshal(struct {
		Type string
		Key  []byte
	}{"ssh-ed25519", point})
}

// ofBits is an odd number of so many bits.
func ofBits(n uint) *big.Int {
	return new(big.Int).SetBit(new(big.Int).SetBit(new(big.Int), int(n-1), 1), 0, 1)
}

func TestWeakKeysAreRefused(t *testing.T) {
	even := new(big.Int).SetBit(ofBits(3072), 0, 0)
	padded := ssh.Marshal(struct {
		Type string
		E, N []byte
	}{"ssh-rsa", []byte{1, 0, 1}, append([]byte{0, 0}, ofBits(3072).Bytes()...)})
	point := append([]byte(nil), approvaltest.Ed25519("alice").PublicKey().Marshal()...)
	for says, wire := range map[string][]byte{
		"it has 3071 bits":      rsaKey(65537, ofBits(3071)),
		"it has 8193 bits":      rsaKey(65537, ofBits(8193)),
		"its exponent is 3":     rsaKey(3, ofBits(3072)),
		"modulus is even":       rsaKey(65537, even),
		"public key: ssh-rsa":   rsaKey(-65537, ofBits(3072)),
		"encoded as it is":      padded,
		"at most 2048 are":      rsaKey(65537, ofBits(20000)),
		"its application is":    approvaltest.SKEd25519("x", "https://example.org").PublicKey().Marshal(),
		"must begin with ssh:":  approvaltest.SKECDSA("webauthn").PublicKey().Marshal(),
		`"ssh-dss" is not`:      ssh.Marshal(struct{ Type string }{"ssh-dss"}),
		"is a certificate":      ssh.Marshal(struct{ Type string }{ssh.CertAlgoED25519v01}),
		"wire format":           []byte("ssh-ed25519 AAAA"),
		"public key":            nil,
		"ssh-ed25519":           point[:len(point)-1],
		"type \"\" is not":      {0, 0, 0, 0},
		"point of small order,": ed25519Key(make([]byte, 32)),
	} {
		_, err := approval.ParseKey(wire)
		refused(t, err, says)
	}
	if _, err := approval.ParseKey(rsaKey(65537, ofBits(3072))); err != nil {
		t.Errorf("the smallest RSA key: %v", err)
	}
	if _, err := approval.ParseKey(rsaKey(65537, ofBits(8192))); err != nil {
		t.Errorf("the largest RSA key: %v", err)
	}
}

// For a point A of an order that divides 8, R = identity and S = 0 is a signature of every message for which the
// challenge is a multiple of that order. So whoever finds none among many messages has no such point.
func anybodyCanSign(key []byte) bool {
	forged := make([]byte, ed25519.SignatureSize)
	forged[0] = 1
	for i := range 400 {
		if ed25519.Verify(key, fmt.Append(nil, i), forged) {
			return true
		}
	}
	return false
}

func TestKeysForWhichAnybodyCanSign(t *testing.T) {
	p := new(big.Int).Sub(new(big.Int).Lsh(big.NewInt(1), 255), big.NewInt(19))
	encode := func(y *big.Int, sign byte) []byte {
		b := y.FillBytes(make([]byte, 32))
		for i := range 16 {
			b[i], b[31-i] = b[31-i], b[i]
		}
		b[31] |= sign << 7
		return b
	}
	// y of a point of order 8; that of the others is -y.
	y8, _ := new(big.Int).SetString("7a03ac9277fdc74ec6cc392cfa53202a0f67100d760b3cba4fd84d3d706a17c7", 16)
	var ys []*big.Int
	for i := int64(-2); i < 19; i++ { // around 0, and around p up to 2^255-1
		ys = append(ys, new(big.Int).Mod(big.NewInt(i), p), new(big.Int).Add(p, big.NewInt(max(i, 0))))
	}
	ys = append(ys, y8, new(big.Int).Sub(p, y8))
	found := 0
	for _, y := range ys {
		for sign := range byte(2) {
			point := encode(y, sign)
			_, err := approval.ParseKey(ed25519Key(point))
			if anybodyCanSign(point) {
				found++
				if err == nil {
					t.Errorf("%x is taken", point)
				}
			}
			sk := ssh.Marshal(struct {
				Type        string
				Key         []byte
				Application string
			}{"sk-ssh-ed25519@openssh.com", point, "ssh:"})
			if _, skErr := approval.ParseKey(sk); (skErr == nil) != (err == nil) {
				t.Errorf("%x: as an authenticator's key got %v, else %v", point, skErr, err)
			}
		}
	}
	// y = 0, 1, -1, p, p+1 and two of order 8, each with both signs.
	if distinct := 14; found < distinct {
		t.Errorf("found %d such keys, there are %d", found, distinct)
	}
}

func TestParseOperators(t *testing.T) {
	a, b, sk := approvaltest.Ed25519("a"), approvaltest.Ed25519("b"), approvaltest.SKEd25519("c", "ssh:")
	file := "# operators\n\n" + approvaltest.Line(b, "bob") + approvaltest.Line(a, "alice") + " \t\r\n" +
		strings.Replace(approvaltest.Line(sk, "bob"), " ", "\t", 1)
	got, err := approval.ParseOperators([]byte(file))
	if err != nil {
		t.Fatal(err)
	}
	bobs := []approval.Key{approvaltest.Key(b), approvaltest.Key(sk)} // sk- has the longer type, and is so the larger
	want := []approval.Operator{{Name: "alice", Keys: []approval.Key{approvaltest.Key(a)}}, {Name: "bob", Keys: bobs}}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
}

func TestParseOperatorsRefuses(t *testing.T) {
	alice := approvaltest.Ed25519("alice")
	line := approvaltest.Line(alice, "alice")
	cert := strings.Replace(line, "ssh-ed25519", "ssh-ed25519-cert-v01@openssh.com", 1)
	var keys, people strings.Builder
	for i := range approval.MaxKeysPerOperator + 1 {
		keys.WriteString(approvaltest.Line(approvaltest.Ed25519(fmt.Sprint(i)), "alice"))
	}
	for i := range approval.MaxOperators + 1 {
		people.WriteString(approvaltest.Line(approvaltest.Ed25519(fmt.Sprint(i)), fmt.Sprint("o", i)))
	}
	for says, file := range map[string]string{
		"there are 0": "# nobody\n",
		"line 2: invalid argument: public key: it stands in line 1": line + approvaltest.Line(alice, "bob"),
		"line 1: invalid argument: options: \"no-touch-required\"":  "no-touch-required " + line,
		"options: \"command=\\\"a\"":                                `command="a b" ` + line,
		"line 1: comment: it is the operator's":                     approvaltest.Line(alice, "alice@laptop"),
		"one word: it has 2":                                        approvaltest.Line(alice, "alice cooper"),
		"one word: it has 0":                                        approvaltest.Key(alice).String() + "\n",
		"is a certificate":                                          cert,
		"options: \"cert-authority\"":                               "cert-authority " + cert,
		"line 3: invalid argument: public key":                      "\n#\nssh-ed25519 AAAA alice\n",
		"it is not base64":                                          "ssh-ed25519 AAA! alice\n",
		"it is missing after ssh-ed25519":                           "ssh-ed25519\n",
		"type: it says ssh-rsa":                                     strings.Replace(line, "ssh-ed25519", "ssh-rsa", 1),
		"the type \"alice\" is not known":                           "alice\n",
		"alice has 9 keys":                                          keys.String(),
		"there are 65, it must":                                     people.String(),
		"the type \"\\v\" is not known":                             "\v",
		"a file of operators has":                                   strings.Repeat("#", 2<<20+1),
	} {
		_, err := approval.ParseOperators([]byte(file))
		refused(t, err, says)
	}
}

func TestCheckOperators(t *testing.T) {
	a, b := approvaltest.Key(approvaltest.Ed25519("a")), approvaltest.Key(approvaltest.Ed25519("b"))
	if string(a.Wire()) > string(b.Wire()) {
		a, b = b, a
	}
	op := func(name string, keys ...approval.Key) approval.Operator {
		return approval.Operator{Name: name, Keys: keys}
	}
	for says, operators := range map[string][]approval.Operator{
		"bob does not stand before alice":  {op("bob", a), op("alice", b)},
		"alice does not stand before alic": {op("alice", a), op("alice", b)},
		"alice and bob have the key":       {op("alice", a), op("bob", a)},
		"the keys of alice are not sorted": {op("alice", b, a)},
		"alice and alice have the key":     {op("alice", a, a)},
		"alice has 0 keys":                 {op("alice")},
		"operator: invalid argument: name": {op("Alice", a)},
	} {
		refused(t, approval.CheckOperators(operators), says)
	}
	if err := approval.CheckOperators([]approval.Operator{op("alice", a, b)}); err != nil {
		t.Error(err)
	}
}

func FuzzParseKey(f *testing.F) {
	for _, s := range everyKind() {
		f.Add(s.PublicKey().Marshal())
	}
	f.Fuzz(func(t *testing.T, wire []byte) {
		k, err := approval.ParseKey(wire)
		if err != nil {
			if !errors.Is(err, hierarchy.ErrInvalidArgument) {
				t.Fatalf("%v is no invalid argument", err)
			}
			return
		}
		if !bytes.Equal(k.Wire(), wire) {
			t.Fatalf("%x reads back as %x", wire, k.Wire())
		}
		again, err := approval.ParseOperators([]byte(k.String() + " alice\n"))
		if err != nil || !again[0].Keys[0].Equal(k) {
			t.Fatalf("as a line it reads back as %v, %v", again, err)
		}
	})
}

func FuzzParseOperators(f *testing.F) {
	f.Add(approvaltest.Line(approvaltest.Ed25519("a"), "alice") + "# more\n" + approvaltest.Line(approvaltest.Ed25519("b"), "bob"))
	f.Add(`from="10.0.0.0/8",no-pty ` + approvaltest.Line(approvaltest.Ed25519("a"), "alice"))
	f.Fuzz(func(t *testing.T, file string) {
		operators, err := approval.ParseOperators([]byte(file))
		if err != nil {
			if !errors.Is(err, hierarchy.ErrInvalidArgument) {
				t.Fatalf("%v is no invalid argument", err)
			}
			return
		}
		var again strings.Builder
		for _, o := range operators {
			for _, k := range o.Keys {
				fmt.Fprintf(&again, "%s %s\n", k, o.Name)
			}
		}
		got, err := approval.ParseOperators([]byte(again.String()))
		if diff := cmp.Diff(operators, got); err != nil || diff != "" {
			t.Fatalf("%v (-first +again):\n%s", err, diff)
		}
	})
}
