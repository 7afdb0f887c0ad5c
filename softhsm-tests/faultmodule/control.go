package faultmodule

import (
	"os"
	"strings"
	"testing"
	"time"
)

// lookEvery is how long the module may go on by what it read before, and some more.
const lookEvery = 2 * time.Millisecond

// Control is the module's control file.
type Control struct {
	path string
	last time.Time
	t    testing.TB
}

// Set replaces the rules. Every call that begins after it has returned is under the new ones, in
// every process, and their counts start at zero. A malformed rule is found by the module: it says so
// on stderr and answers every call with CKR_ARGUMENTS_BAD.
//
// Set is for one goroutine at a time.
func (c *Control) Set(rules ...string) {
	c.t.Helper()
	if err := c.write(strings.Join(rules, "\n") + "\n"); err != nil {
		c.t.Fatal(err)
	}
}

// Clear takes every fault away, and lets go what hangs, but for what hangs for ever.
func (c *Control) Clear() {
	c.t.Helper()
	c.Set()
}

func (c *Control) write(text string) error {
	next := c.path + ".new"
	if err := os.WriteFile(next, []byte(text), 0o600); err != nil {
		return err
	}
	// File systems stamp by the tick, and may give an inode's number again at once: without a time of
	// its own a file could look like one before it.
	now := time.Now()
	if !now.After(c.last) {
		now = c.last.Add(time.Nanosecond)
	}
	c.last = now
	if err := os.Chtimes(next, now, now); err != nil {
		return err
	}
	if err := os.Rename(next, c.path); err != nil {
		return err
	}
	time.Sleep(lookEvery)
	return nil
}
