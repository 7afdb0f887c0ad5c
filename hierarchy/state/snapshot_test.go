package state_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"flag"
	"io"
	"os"
	"testing"
	"testing/iotest"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/kekd/kekd/hierarchy/state"
)

var update = flag.Bool("update", false, "write the golden files anew: only before what they hold is released")

const (
	golden     = "testdata/v1.snapshot"
	goldenHash = "3fcd2a6f855f48fb764fb6396e7e0f4a26c713f842615bf87bc4a066b88db2fb"
)

// A snapshot of format 1 must stay readable, and its hash what it was: nodes compare it, and
// operators sign it.
func TestGoldenSnapshot(t *testing.T) {
	m := populated(t)
	if *update {
		if err := os.WriteFile(golden, snapshot(t, m.s), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	b, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	s, err := state.Read(bytes.NewReader(b))
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(dump(m.s), dump(s), cmpopts.EquateEmpty()); diff != "" {
		t.Errorf("contents (-want +got):\n%s", diff)
	}
	hash := s.Hash()
	if got, want := hex.EncodeToString(hash[:]), goldenHash; got != want {
		t.Errorf("hash %s, want %s", got, want)
	}
	if !bytes.Equal(b, snapshot(t, m.s)) {
		t.Error("the same state is written in other bytes today")
	}
	// It goes on from there.
	restored := &machine{s, m.stamp}
	restored.do(t, rotate("acme", "orders", 2))
	check(t, restored.s)
}

func TestEmptyStateReadsBack(t *testing.T) {
	check(t, state.New())
}

// Each byte counts: any one changed, and any end, is found. So are the words of a refusal, which the
// state's hash does not cover.
func TestDamagedSnapshot(t *testing.T) {
	t.Parallel()
	refused, _, _ := refusedFor(t, "hooli", id("acme"))
	good := snapshot(t, refused.s)
	for i := range good {
		bad := bytes.Clone(good)
		bad[i] ^= 0x10
		if _, err := state.Read(bytes.NewReader(bad)); !errors.Is(err, state.ErrSnapshot) {
			t.Fatalf("byte %d changed: got error %v", i, err)
		}
		if _, err := state.Read(bytes.NewReader(good[:i])); !errors.Is(err, state.ErrSnapshot) {
			t.Fatalf("cut at %d: got error %v", i, err)
		}
	}
	if _, err := state.Read(bytes.NewReader(append(bytes.Clone(good), 0))); !errors.Is(err, state.ErrSnapshot) {
		t.Errorf("a byte too many: got error %v", err)
	}
}

// Who writes the hash over the bytes anew still has to satisfy what a state is.
func TestForgedSnapshot(t *testing.T) {
	t.Parallel()
	good := snapshot(t, populated(t).s)
	for i := range len(good) - sha256.Size {
		bad := bytes.Clone(good[:len(good)-sha256.Size])
		bad[i] ^= []byte{1, 0x80, 0x08}[i%3]
		sum := sha256.Sum256(bad)
		if _, err := state.Read(bytes.NewReader(append(bad, sum[:]...))); !errors.Is(err, state.ErrSnapshot) {
			t.Fatalf("byte %d changed: got error %v", i, err)
		}
	}
}

func TestSnapshotIO(t *testing.T) {
	s := populated(t).s
	fault := errors.New("the disk is full")
	if err := state.Write(failingWriter{fault}, s); !errors.Is(err, fault) {
		t.Errorf("got error %v, want %v", err, fault)
	}
	if _, err := state.Read(iotest.OneByteReader(bytes.NewReader(snapshot(t, s)))); err != nil {
		t.Errorf("byte by byte: %v", err)
	}
	if _, err := state.Read(iotest.ErrReader(fault)); !errors.Is(err, fault) {
		t.Errorf("got error %v, want %v", err, fault)
	}
	if _, err := state.Read(bytes.NewReader(nil)); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("got error %v, want %v", err, io.ErrUnexpectedEOF)
	}
}

type failingWriter struct{ err error }

func (w failingWriter) Write([]byte) (int, error) { return 0, w.err }

// What is read is what is written: there is no second encoding of a state.
func FuzzRead(f *testing.F) {
	f.Add(snapshot(f, state.New()))
	f.Add(snapshot(f, populated(f).s))
	f.Add(snapshot(f, limited(f).s))
	f.Fuzz(func(t *testing.T, data []byte) {
		// Without the right hash at the end, nothing behind it would ever be reached.
		if n := len(data) - sha256.Size; n > 0 {
			sum := sha256.Sum256(data[:n])
			copy(data[n:], sum[:])
		}
		s, err := state.Read(bytes.NewReader(data))
		if err != nil {
			if !errors.Is(err, state.ErrSnapshot) {
				t.Errorf("error %v is not %v", err, state.ErrSnapshot)
			}
			return
		}
		if !bytes.Equal(snapshot(t, s), data) {
			t.Error("it reads, and is written in other bytes")
		}
		check(t, s)
	})
}
