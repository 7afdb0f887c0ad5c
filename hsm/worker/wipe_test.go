package worker_test

import (
	"bufio"
	"bytes"
	"crypto/rand"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"github.com/kekd/kekd/hsm"
	"github.com/kekd/kekd/hsm/worker"
)

// masked is a secret that is not in memory as it is.
type masked [32]byte

const mask = 0xa5

func newMasked() (m masked) {
	rand.Read(m[:])
	return m
}

// put writes the secret itself.
func (m *masked) put(b []byte) {
	for i := range m {
		b[i] = m[i] ^ mask
	}
}

// findIn counts how often the secret is in the writable memory of a process.
func (m *masked) findIn(t *testing.T, pid int) (n int) {
	t.Helper()
	maps, err := os.Open(fmt.Sprintf("/proc/%d/maps", pid))
	must(t, err)
	defer maps.Close()
	mem, err := os.Open(fmt.Sprintf("/proc/%d/mem", pid))
	must(t, err)
	defer mem.Close()
	buf := make([]byte, 1<<20)
	read := 0
	for lines := bufio.NewScanner(maps); lines.Scan(); {
		var from, to uint64
		var mode string
		_, err := fmt.Sscanf(lines.Text(), "%x-%x %s", &from, &to, &mode)
		must(t, err)
		if !strings.HasPrefix(mode, "rw") {
			continue
		}
		for at := from; at < to; at += uint64(len(buf) - len(m)) {
			got, err := mem.ReadAt(buf[:min(uint64(len(buf)), to-at)], int64(at))
			if got == 0 && err != nil {
				break
			}
			read += got
			for b := buf[:got]; ; {
				i := bytes.IndexByte(b, m[0]^mask)
				if i < 0 || len(b)-i < len(m) {
					break
				}
				b = b[i:]
				same := 0
				for same < len(m) && b[same]^mask == m[same] {
					same++
				}
				if same == len(m) {
					n++
				}
				b = b[1:]
			}
		}
		clear(buf)
	}
	if read < 1<<20 {
		t.Fatalf("read only %d bytes of process %d", read, pid)
	}
	return n
}

// TestWiped: data keys are gone from both processes when they were handed over, also from buffers
// that had to grow.
//
// It runs without asynchronous preemption, which saves a goroutine's registers on its stack: now
// and then with a data key in them that was being copied. That is out of any Go program's reach.
func TestWiped(t *testing.T) {
	const off = "GODEBUG=asyncpreemptoff=1"
	if !slices.Contains(os.Environ(), off) {
		again := exec.Command("/proc/self/exe", "-test.run=^TestWiped$")
		again.Env = append(os.Environ(), off)
		if out, err := again.CombinedOutput(); err != nil {
			t.Errorf("%v\n%s", err, out)
		}
		return
	}
	p := openPool(t, worker.Config{Command: commandOf(t, workerConfig{Kind: "fake"}), Workers: 1})
	secret := newMasked()
	ops := make([]hsm.Operation, 256)
	aad := make([]byte, 3000)
	for i := range ops {
		ciphertext := make([]byte, len(secret)+hsm.TagSize)
		secret.put(ciphertext)
		ops[i] = hsm.Operation{Lane: acme, Reveal: true, Open: &hsm.Opening{AAD: aad, Sealed: hsm.Sealed{IV: make([]byte, hsm.IVSize), Ciphertext: ciphertext}}}
	}
	if n := secret.findIn(t, os.Getpid()); n < len(ops) {
		t.Fatalf("found %d of %d secrets: the search does not work", n, len(ops))
	}
	p.Do(soon(t), ops)
	for i := range ops {
		must(t, ops[i].Err)
		clear(ops[i].Revealed)
		clear(ops[i].Open.Ciphertext)
	}
	pid := p.Workers()[0].PID
	// Some buffers are wiped with the next frame, and the worker wipes after it has answered.
	must(t, p.Healthy(soon(t)))
	for name, pid := range map[string]int{"daemon": os.Getpid(), "worker": pid} {
		await(t, "no data key is left in the memory of the "+name, func() bool { return secret.findIn(t, pid) == 0 })
	}
}
