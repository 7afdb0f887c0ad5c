package worker_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"os"
	"sync"
	"syscall"
	"time"

	"github.com/kekd/kekd/hierarchy"
	"github.com/kekd/kekd/hsm"
	"github.com/kekd/kekd/hsm/worker"
)

// fakeToken is no token: it shows what the pool does with a backend whose every step is known.
// What it seals is the plaintext and a hash.
type fakeToken struct {
	each     time.Duration // that an operation takes
	parallel int

	mu sync.Mutex // held while an operation runs, if one runs at a time
}

// Plaintexts that end the process of a fake token: poison as a crash does, murder as a kernel does
// that is out of memory. One never ends.
var (
	poison = []byte("poison")
	murder = []byte("murder")
	hang   = []byte("hang")
)

func (f *fakeToken) Do(_ context.Context, ops []hsm.Operation) {
	if f.parallel <= 1 {
		f.mu.Lock()
		defer f.mu.Unlock()
	}
	for i := range ops {
		op := &ops[i]
		if bytes.Equal(op.Plaintext, poison) {
			os.Exit(7)
		}
		if bytes.Equal(op.Plaintext, murder) {
			_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
			select {}
		}
		if bytes.Equal(op.Plaintext, hang) {
			select {}
		}
		if f.each > 0 {
			for from := time.Now(); time.Since(from) < f.each; { // a sleep is not so exact
			}
		}
		f.run(op)
	}
}

func (f *fakeToken) run(op *hsm.Operation) {
	if op.Err = op.Validate(); op.Err != nil {
		return
	}
	data := op.Plaintext
	if op.Open != nil {
		data = bytes.Clone(op.Open.Ciphertext[:len(op.Open.Ciphertext)-hsm.TagSize])
	}
	if op.Random > 0 {
		data = make([]byte, op.Random)
	}
	for _, to := range op.To {
		sum := sha256.Sum256(append(bytes.Clone(data), to.AAD...))
		op.Sealed = append(op.Sealed, hsm.Sealed{IV: sum[:hsm.IVSize], Ciphertext: append(bytes.Clone(data), sum[:hsm.TagSize]...)})
	}
	if op.Reveal {
		op.Revealed = data
	}
}

func (f *fakeToken) Forget(context.Context, []hierarchy.ObjectID) error { return nil }
func (f *fakeToken) Healthy(context.Context) error                      { return nil }

func serveFake(each time.Duration, parallel int) error {
	return worker.Serve(context.Background(), func(context.Context, worker.Role, []byte, func(string)) (worker.Backend, error) {
		return worker.Backend{Token: &fakeToken{each: each, parallel: parallel}, Parallel: parallel}, nil
	})
}

// fakeSeal makes an operation of the fake token.
func fakeSeal(lane hsm.Lane, plaintext []byte) hsm.Operation {
	return hsm.Operation{Lane: lane, Plaintext: plaintext, To: []hsm.Target{{AAD: []byte("a")}}}
}

// checkFake tells what is wrong with the result of a fakeSeal.
func checkFake(op *hsm.Operation) error {
	if op.Err != nil {
		return op.Err
	}
	if len(op.Sealed) != 1 || !bytes.HasPrefix(op.Sealed[0].Ciphertext, op.Plaintext) {
		return fmt.Errorf("the result is of another operation")
	}
	return nil
}
