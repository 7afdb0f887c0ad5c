package softhsm_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/kekd/kekd/hsm/softhsm"
)

// What SoftHSM wrote is whole, and no beginning of it is.
func TestTornShows(t *testing.T) {
	_, path := newToken(t, "mint a", "latch a false 0", "pair p")
	objects, err := filepath.Glob(filepath.Join(path, "tokens", "*", "*.object"))
	if err != nil || len(objects) != 4 {
		t.Fatalf("%d objects, %v", len(objects), err)
	}
	for _, name := range objects {
		file, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		check := softhsm.CheckObject
		if strings.HasSuffix(name, "token.object") {
			check = softhsm.CheckToken
		}
		if err := check(file); err != nil {
			t.Errorf("%s: %v", filepath.Base(name), err)
		}
		for n := range file {
			if check(file[:n]) == nil {
				t.Errorf("%s: the first %d of %d bytes pass for whole", filepath.Base(name), n, len(file))
			}
		}
		// What a lost write leaves of a file whose length was already on disk, by sectors.
		for n := 0; n < len(file); n += 512 {
			zeroed := append(append([]byte{}, file[:n]...), make([]byte, len(file)-n)...)
			if check(zeroed) == nil {
				t.Errorf("%s: %d bytes and then zeros pass for whole", filepath.Base(name), n)
			}
		}
	}
}

func TestHalfMadeShows(t *testing.T) {
	const (
		flag = iota + 1
		number
		text
		attributeMap
		mechanisms
	)
	key := func(class uint64, more ...attr) []byte {
		return encode(append([]attr{
			{0x0, number, class}, {0x1, flag, true}, {0x2, flag, true}, {0x3, text, []byte("label")},
			{0x100, number, uint64(0x1f)}, {0x102, text, []byte{}}, {0x163, flag, false},
			{0x170, flag, true}, {0x171, flag, true}, {0x172, flag, true}, {0x40000600, mechanisms, nil},
		}, more...)...)
	}
	for _, c := range []struct {
		name  string
		file  []byte
		whole bool
	}{
		{"nothing", nil, false},
		{"generation only", encode(), false},
		{"without a class", encode(attr{0x1, flag, true}), false},
		{"class only", encode(attr{0x0, number, uint64(4)}), false},
		{"secret key", secretKey("v"), true},
		{"secret key without value", key(4, attr{0x11, text, []byte{}}, attr{0x90, text, []byte("kcv")}), false},
		{"secret key without check value", key(4, attr{0x11, text, []byte("v")}, attr{0x90, text, []byte{}}), false},
		{"private key", key(3, attr{0x11, text, []byte("v")}), true},
		{"RSA private key", key(3, attr{0x123, text, []byte("v")}), true},
		{"private key without value", key(3), false},
		{"public key", key(2, attr{0x181, text, []byte("point")}), true},
		{"public key without point", key(2), false},
		{"attribute twice", append(secretKey("v"), encode(attr{0x0, number, uint64(4)})[8:]...), false},
		{"unknown kind", append(secretKey("v"), encode(attr{0x7fffffff, 6, nil})[8:]...), false},
		{"map in a map", append(secretKey("v"), encode(attr{0x7fffffff, attributeMap, encode(attr{1, attributeMap, nil})[8:]})[8:]...), false},
		{"map", append(secretKey("v"), encode(attr{0x7fffffff, attributeMap, encode(attr{1, flag, true})[8:]})[8:]...), true},
	} {
		if err := softhsm.CheckObject(c.file); (err == nil) != c.whole {
			t.Errorf("%s: %v", c.name, err)
		}
	}
	if softhsm.CheckToken(secretKey("v")) == nil {
		t.Error("a key passes for a token")
	}
	if softhsm.CheckToken(encode(attr{0x80005349, text, []byte("l")}, attr{0x8000534a, text, []byte("s")},
		attr{0x8000534b, number, uint64(0x42d)}, attr{0x8000534c, text, []byte("so")})) == nil {
		t.Error("a token without its user PIN passes for whole")
	}
}

func FuzzObject(f *testing.F) {
	f.Add(secretKey("v"))
	f.Add(token("t"))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, file []byte) {
		for _, check := range []func([]byte) error{softhsm.CheckObject, softhsm.CheckToken} {
			if check(file) != nil {
				continue
			}
			// A whole file loses that with its last byte, and with one more.
			if check(file[:len(file)-1]) == nil || check(append(file[:len(file):len(file)], 0)) == nil {
				t.Errorf("whole with another end: %x", file)
			}
		}
	})
}
