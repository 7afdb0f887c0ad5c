package main

import (
	"bytes"
	"math/rand/v2"
	"testing"
)

func sealed(t *testing.T, plain []byte, key []byte) []byte {
	t.Helper()
	var out bytes.Buffer
	if err := sealStream(&out, bytes.NewReader(plain), []byte("envelope"), key); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func opened(file, key []byte) ([]byte, error) {
	in := bytes.NewReader(file)
	if _, err := readEnvelope(in); err != nil {
		return nil, err
	}
	var out bytes.Buffer
	err := openStream(&out, in, key)
	return out.Bytes(), err
}

func TestStream(t *testing.T) {
	key := bytes.Repeat([]byte{7}, 32)
	for _, size := range []int{0, 1, chunkSize - 1, chunkSize, chunkSize + 1, 3 * chunkSize} {
		plain := make([]byte, size)
		for i := range plain {
			plain[i] = byte(i * 31)
		}
		file := sealed(t, plain, key)
		got, err := opened(file, key)
		if err != nil || !bytes.Equal(got, plain) {
			t.Fatalf("%d bytes come back as %d: %v", size, len(got), err)
		}
		if _, err := opened(file, bytes.Repeat([]byte{8}, 32)); err == nil {
			t.Fatalf("%d bytes open under another key", size)
		}
		for range 20 { // whatever is altered or cut off is noticed
			bad := bytes.Clone(file)
			at := 4 + len("envelope") + rand.IntN(len(bad)-4-len("envelope"))
			if rand.IntN(2) == 0 {
				bad = bad[:at]
			} else {
				bad[at] ^= 1
			}
			if _, err := opened(bad, key); err == nil {
				t.Fatalf("%d bytes, altered at %d, open", size, at)
			}
		}
	}
}

func TestChunksKeepTheirOrder(t *testing.T) {
	key := bytes.Repeat([]byte{7}, 32)
	file := sealed(t, make([]byte, 3*chunkSize), key)
	head, size := 4+len("envelope"), chunkSize+16
	swapped := bytes.Clone(file)
	copy(swapped[head:], file[head+size:head+2*size])
	copy(swapped[head+size:], file[head:head+size])
	if _, err := opened(swapped, key); err == nil {
		t.Fatal("two chunks that changed places open")
	}
	if _, err := opened(file[:head+2*size], key); err == nil {
		t.Fatal("a file without its last chunk opens")
	}
}

func TestNoSealedFile(t *testing.T) {
	for _, junk := range [][]byte{nil, {1, 2}, {0, 0, 0, 0}, {0xff, 0, 0, 0, 1}, {0, 0, 0, 9, 1}} {
		if _, err := readEnvelope(bytes.NewReader(junk)); err == nil {
			t.Fatalf("%x is taken for a sealed file", junk)
		}
	}
}
