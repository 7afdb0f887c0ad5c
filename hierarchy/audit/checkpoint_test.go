package audit_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/kekd/kekd/hierarchy"
	"github.com/kekd/kekd/hierarchy/audit"
)

func sampleCheckpoint() audit.Checkpoint {
	c := audit.Checkpoint{Sequence: 1234, Head: sha256.Sum256(nil), Signature: []byte("not a signature")}
	for i := range hierarchy.IDSize {
		c.Cluster.ID[i], c.Node.ID[i] = byte(i), byte(0x10+i)
	}
	return c
}

const sampleText = `kekd audit checkpoint v1
cluster 000102030405060708090a0b0c0d0e0f
node 101112131415161718191a1b1c1d1e1f
sequence 1234
head e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855
`

func TestCheckpointText(t *testing.T) {
	c := sampleCheckpoint()
	if diff := cmp.Diff(sampleText, string(c.SignedText())); diff != "" {
		t.Errorf("signed text (-want +got):\n%s", diff)
	}
	text, err := c.MarshalText()
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(sampleText+"signature bm90IGEgc2lnbmF0dXJl\n", string(text)); diff != "" {
		t.Errorf("text (-want +got):\n%s", diff)
	}
	var back audit.Checkpoint
	if err := back.UnmarshalText(text); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(c, back); diff != "" {
		t.Errorf("read back (-wrote +read):\n%s", diff)
	}
}

func TestCheckpointRefuses(t *testing.T) {
	good := sampleText + "signature bm90IGEgc2lnbmF0dXJl\n"
	for name, bad := range map[string]string{
		"empty":          "",
		"domain":         strings.Replace(good, "v1", "v2", 1),
		"no newline":     strings.TrimSuffix(good, "\n"),
		"line more":      good + "\n",
		"carriage":       strings.ReplaceAll(good, "\n", "\r\n"),
		"spaces":         strings.Replace(good, "node ", "node  ", 1),
		"leading zero":   strings.Replace(good, " 1234", " 01234", 1),
		"plus":           strings.Replace(good, " 1234", " +1234", 1),
		"negative":       strings.Replace(good, " 1234", " -1234", 1),
		"upper case":     strings.Replace(good, "e3b0", "E3B0", 1),
		"short head":     strings.Replace(good, "e3b0", "", 1),
		"short node":     strings.Replace(good, "node 10", "node ", 1),
		"long cluster":   strings.Replace(good, "cluster 00", "cluster 0000", 1),
		"base64 padding": strings.Replace(good, "bm90IGEgc2lnbmF0dXJl", "bm90IGEgc2lnbmF0dXJ", 1),
		"order":          "kekd audit checkpoint v1\nnode 101112131415161718191a1b1c1d1e1f\ncluster 000102030405060708090a0b0c0d0e0f\n" + strings.SplitAfterN(good, "\n", 4)[3],
	} {
		if bad == good {
			t.Fatalf("%s: nothing was edited", name)
		}
		var c audit.Checkpoint
		if err := c.UnmarshalText([]byte(bad)); !errors.Is(err, audit.ErrCheckpoint) {
			t.Errorf("%s: got %v", name, err)
		}
	}
}

func TestCheckpointSignature(t *testing.T) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	c := sampleCheckpoint()
	digest := sha256.Sum256([]byte(sampleText))
	if c.Signature, err = ecdsa.SignASN1(rand.Reader, key, digest[:]); err != nil {
		t.Fatal(err)
	}
	if err := c.Verify(&key.PublicKey); err != nil {
		t.Fatal(err)
	}
	for name, edit := range map[string]func(*audit.Checkpoint){
		"cluster":   func(c *audit.Checkpoint) { c.Cluster.ID[0] ^= 1 },
		"node":      func(c *audit.Checkpoint) { c.Node.ID[15] ^= 1 },
		"sequence":  func(c *audit.Checkpoint) { c.Sequence++ },
		"head":      func(c *audit.Checkpoint) { c.Head[31] ^= 1 },
		"signature": func(c *audit.Checkpoint) { c.Signature = c.Signature[1:] },
	} {
		bad := c
		edit(&bad)
		if err := bad.Verify(&key.PublicKey); !errors.Is(err, audit.ErrSignature) {
			t.Errorf("%s: got %v", name, err)
		}
	}
}

func FuzzCheckpoint(f *testing.F) {
	f.Add(sampleText + "signature bm90IGEgc2lnbmF0dXJl\n")
	f.Fuzz(func(t *testing.T, text string) {
		var c audit.Checkpoint
		if err := c.UnmarshalText([]byte(text)); err != nil {
			if !errors.Is(err, audit.ErrCheckpoint) {
				t.Fatalf("error of another sort: %v", err)
			}
			return
		}
		if again, _ := c.MarshalText(); string(again) != text {
			t.Fatalf("written again:\n%s\nread:\n%s", again, text)
		}
	})
}
