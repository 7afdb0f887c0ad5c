package faultmodule

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io/fs"
	"os"
	"sync/atomic"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The layout of the file, as struct shared in module/shared.c has it: all words are of 8 bytes, in
// the machine's order.
const (
	wordMagic     = 0
	wordFunctions = 8
	wordCountsAt  = 16
	wordClaimed   = 24
	namesAt       = 32
	nameSize      = 32
)

// Counters tells what processes asked of the token. A call that only asks for the length of its
// output is not counted.
type Counters struct {
	path string
	t    testing.TB

	file      []byte // mapped; nil until a process has made it
	functions map[string]int
}

// Process is the counts of one process that loaded the module.
type Process struct {
	PID int

	counters *Counters
	at       int // offset of its counts
}

// Loaded tells whether any process has loaded the module.
func (c *Counters) Loaded() bool {
	c.t.Helper()
	return c.open()
}

// Calls is how often the function was called, by all processes. Asking before any has loaded the
// module fails the test: that nothing was called would prove nothing.
func (c *Counters) Calls(function string) int {
	c.t.Helper()
	n := 0
	for _, p := range c.Processes() {
		n += p.Calls(function)
	}
	return n
}

// Inside is how many calls of the function have not returned. Those in which a process died stay.
func (c *Counters) Inside(function string) int {
	c.t.Helper()
	n := 0
	for _, p := range c.Processes() {
		n += p.Inside(function)
	}
	return n
}

// AwaitInside waits until at least n calls of the function have not returned, and fails the test if
// it has to wait longer than 10 s. The module need not have been loaded yet.
func (c *Counters) AwaitInside(function string, n int) {
	c.t.Helper()
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		if c.open() && c.Inside(function) >= n {
			return
		}
		if time.Now().After(deadline) {
			c.t.Fatalf("no %d calls inside of %s within 10 s", n, function)
		}
	}
}

// Processes returns one entry for each process that loaded the module, in the order in which they did.
func (c *Counters) Processes() []Process {
	c.t.Helper()
	if !c.open() {
		c.t.Fatal("no process has loaded the fault module with these counters")
	}
	var all []Process
	countsAt := int(c.word(wordCountsAt))
	size := 8 + 16*len(c.functions)
	for i := range int(c.word(wordClaimed)) {
		at := countsAt + i*size
		if at+size > len(c.file) {
			break
		}
		// Claimed, but not yet taken, is 0.
		if pid := c.word(at); pid != 0 {
			all = append(all, Process{PID: int(pid), counters: c, at: at})
		}
	}
	return all
}

// Calls is how often this process called the function.
func (p Process) Calls(function string) int {
	p.counters.t.Helper()
	return int(p.counters.word(p.of(function)))
}

// Inside is how many of its calls have not returned.
func (p Process) Inside(function string) int {
	p.counters.t.Helper()
	at := p.of(function)
	// In this order: a call that returns in between is inside still, and no difference is negative.
	returned := p.counters.word(at + 8)
	return int(p.counters.word(at) - returned)
}

func (p Process) of(function string) int {
	p.counters.t.Helper()
	i, ok := p.counters.functions[function]
	if !ok {
		p.counters.t.Fatalf("no PKCS#11 function %q", function)
	}
	return p.at + 8 + 16*i
}

// open maps the file, and says whether a process has made it.
func (c *Counters) open() bool {
	c.t.Helper()
	if c.functions != nil {
		return true
	}
	if c.file == nil {
		file, err := os.Open(c.path)
		if errors.Is(err, fs.ErrNotExist) {
			return false
		} else if err != nil {
			c.t.Fatal(err)
		}
		defer file.Close()
		info, err := file.Stat()
		if err != nil {
			c.t.Fatal(err)
		}
		if info.Size() == 0 {
			return false
		}
		c.file, err = unix.Mmap(int(file.Fd()), 0, int(info.Size()), unix.PROT_READ, unix.MAP_SHARED)
		if err != nil {
			c.t.Fatal(err)
		}
		c.t.Cleanup(func() {
			if err := unix.Munmap(c.file); err != nil {
				c.t.Error(err)
			}
			c.file, c.functions = nil, nil
		})
	}
	// The magic number is written last, and a count only after a process has claimed its place.
	if c.word(wordMagic) != binary.LittleEndian.Uint64([]byte("KFcount1")) || c.word(wordClaimed) == 0 {
		return false
	}
	c.functions = make(map[string]int)
	for i := range int(c.word(wordFunctions)) {
		at := namesAt + nameSize*i
		name, _, _ := bytes.Cut(c.file[at:at+nameSize], []byte{0})
		c.functions[string(name)] = i
	}
	return true
}

func (c *Counters) word(at int) uint64 {
	return atomic.LoadUint64((*uint64)(unsafe.Pointer(&c.file[at])))
}
