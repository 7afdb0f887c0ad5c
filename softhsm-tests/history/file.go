package history

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"time"
)

// format is the first line's mark.
const format = "kekd-history-1"

// Rules are what a history is judged by besides what always holds.
type Rules struct {
	// Staleness is how old the copy may be that a use is decided by, clocks' and scheduling's share
	// included; 0: as old as it likes.
	Staleness time.Duration `json:"staleness"`
	// Fenced: what closes counts for uses everywhere once it has returned.
	Fenced bool `json:"fenced"`
	// LastCheck: a use's return is the moment of its last check, so that what closes counts for it from then on,
	// whenever it was called.
	LastCheck bool `json:"last_check,omitempty"`
}

// History is a file: JSON lines, the first one this, and then one operation in each.
type History struct {
	Format string `json:"format"`
	Name   string `json:"name"` // of the test
	Seed   uint64 `json:"seed"`
	Rules  Rules  `json:"rules"`

	Operations []Operation `json:"-"`
}

// Write writes it to w.
func (h *History) Write(w io.Writer) error {
	b := bufio.NewWriter(w)
	e := json.NewEncoder(b)
	h.Format = format
	if err := e.Encode(h); err != nil {
		return err
	}
	for _, o := range h.Operations {
		if err := e.Encode(o); err != nil {
			return err
		}
	}
	return b.Flush()
}

// Save writes it to a new file in dir and returns its path.
func (h *History) Save(dir string) (string, error) {
	f, err := os.CreateTemp(dir, "history-*.jsonl")
	if err != nil {
		return "", err
	}
	return f.Name(), errors.Join(h.Write(f), f.Close())
}

// maxLine is far above what a line has, in bytes.
const maxLine = 1 << 20

// Load reads a history and refuses what is none.
func Load(r io.Reader) (*History, error) {
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, maxLine)
	h := &History{}
	for n := 1; lines.Scan(); n++ {
		if n == 1 {
			err := strict(lines.Bytes(), h)
			if err == nil && h.Format != format {
				err = fmt.Errorf("its format is %q", h.Format)
			}
			if err != nil {
				return nil, fmt.Errorf("line 1: it is no %s: %w", format, err)
			}
			continue
		}
		var o Operation
		err := strict(lines.Bytes(), &o)
		if err == nil {
			err = o.check()
		}
		if err != nil {
			return nil, fmt.Errorf("line %d: %w", n, err)
		}
		h.Operations = append(h.Operations, o)
	}
	if err := lines.Err(); err != nil {
		return nil, err
	}
	if h.Format == "" {
		return nil, errors.New("it is empty")
	}
	return h, nil
}

func strict(line []byte, into any) error {
	d := json.NewDecoder(bytes.NewReader(line))
	d.DisallowUnknownFields()
	if err := d.Decode(into); err != nil {
		return err
	}
	if _, err := d.Token(); err != io.EOF {
		return errors.New("something follows the object")
	}
	return nil
}
