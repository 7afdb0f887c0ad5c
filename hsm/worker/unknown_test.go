package worker_test

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/kekd/kekd/hierarchy"
	"github.com/kekd/kekd/hsm"
	"github.com/kekd/kekd/hsm/worker"
)

// TestUnknownKeysHoldUpNobody: the token is searched for a key that is not there, at most every
// 50 ms, and who asks for one waits that long. Others do not.
func TestUnknownKeysHoldUpNobody(t *testing.T) {
	for _, workers := range []int{1, 2} {
		t.Run(fmt.Sprintf("workers=%d", workers), func(t *testing.T) { testUnknownKeys(t, workers) })
	}
}

func testUnknownKeys(t *testing.T, workers int) {
	c := kept(t)
	p := openPool(t, worker.Config{Command: commandOf(t, c), Workers: workers})
	s := mint(t, p, acme, 1)
	s.do(t, p, 256)

	stop, ended := make(chan struct{}), make(chan error, 4)
	for i := range cap(ended) {
		go func() {
			var err error
			for n := uint32(0); err == nil; n++ {
				select {
				case <-stop:
					ended <- nil
					return
				default:
				}
				key := hsm.KeyRef{ID: hierarchy.ObjectID{0xff, byte(i), byte(n >> 8), byte(n)}}
				ops := []hsm.Operation{{Lane: globex, Plaintext: s.dek, To: []hsm.Target{{Key: key, AAD: aad}}}}
				p.Do(soon(t), ops)
				if !errors.Is(ops[0].Err, hsm.ErrKeyNotFound) {
					err = errors.Join(errors.New("an unknown key"), ops[0].Err)
				}
			}
			ended <- err
		}()
	}
	served := 0
	for from := time.Now(); time.Since(from) < time.Second; served++ {
		s.do(t, p, 1)
	}
	close(stop)
	for range cap(ended) {
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}
	// One at a time behind searches would be 20.
	if served < 200 {
		t.Errorf("%d operations in a second beside searches", served)
	}
	t.Logf("%d operations in a second beside searches", served)
}
