package main

import (
	"bytes"
	"fmt"
	"io"
	"testing"
)

// keeper keeps what it was given, and not a copy.
type keeper struct{ got []byte }

func (k *keeper) Write(b []byte) (int, error) {
	k.got = b
	return len(b), nil
}

func TestResultIsWipedOnceWritten(t *testing.T) {
	for _, format := range []string{"json", "table"} {
		k := &keeper{}
		a := &app{output: format, stdout: k}
		if err := a.print(dataKeyOut{Plaintext: []byte("secret")}, func(w io.Writer) { fmt.Fprintln(w, "secret") }); err != nil {
			t.Fatal(err)
		}
		if len(k.got) == 0 || !bytes.Equal(k.got, make([]byte, len(k.got))) {
			t.Errorf("%s: of what was written is left: %q", format, k.got)
		}
	}
}

// source gives what it has, and keeps where it was put.
type source struct {
	data []byte
	err  error
	into []byte
}

func (s *source) Read(b []byte) (int, error) {
	n := copy(b, s.data)
	s.into, s.data = b[:n], s.data[n:]
	if n == 0 {
		return 0, s.err
	}
	return n, nil
}

func TestInputIsWipedUnlessTaken(t *testing.T) {
	for name, test := range map[string]struct {
		source source
		taken  bool
	}{
		"too long":  {source{data: []byte("12345"), err: io.EOF}, false},
		"breaks":    {source{data: []byte("1234"), err: io.ErrClosedPipe}, false},
		"as it may": {source{data: []byte("1234"), err: io.EOF}, true},
	} {
		s := test.source
		want := bytes.Clone(s.data)
		got, err := readBounded(&s, 4)
		if (err == nil) != test.taken {
			t.Errorf("%s: %v", name, err)
		}
		if test.taken && !bytes.Equal(got, want) {
			t.Errorf("%s: read %q, want %q", name, got, want)
		}
		if !test.taken && !bytes.Equal(s.into, make([]byte, len(s.into))) {
			t.Errorf("%s: of what was read is left: %q", name, s.into)
		}
	}
}
