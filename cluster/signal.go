package cluster

import (
	"errors"
	"fmt"
	"runtime"
	"sync"
	"sync/atomic"
	"time"
)

// signal wakes all who wait for the next of something. The channel is made when somebody asks for
// it, since most events have nobody waiting.
type signal struct {
	mu sync.Mutex
	ch chan struct{}
}

// next is closed at the next fire. Who waits for a condition takes it first and looks second.
func (s *signal) next() <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ch == nil {
		s.ch = make(chan struct{})
	}
	return s.ch
}

func (s *signal) fire() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ch != nil {
		close(s.ch)
		s.ch = nil
	}
}

// ErrFailed means that this node's part in the cluster has ended. The error that wraps it says why.
var ErrFailed = errors.New("this node has failed")

// failure is the end of a node's part in the cluster, once.
type failure struct {
	once     sync.Once
	done     chan struct{}
	err      error // set when done is closed
	report   chan error
	patience time.Duration // with an operation of a store
	release  <-chan struct{}

	slow     atomic.Int32 // operations of stores that have not answered for a while
	answered signal       // one of them has
}

func newFailure(patience time.Duration) *failure {
	return &failure{done: make(chan struct{}), report: make(chan error, 1), patience: patience}
}

// fail reports. Only the first failure is told: the others follow from it.
func (f *failure) fail(err error) {
	f.once.Do(func() {
		f.err = fmt.Errorf("%w: %w", ErrFailed, err)
		close(f.done) // first, so that who hears the report finds nobody serving
		f.report <- f.err
	})
}

func (f *failure) fault() error {
	select {
	case <-f.done:
		return f.err
	default:
		return nil
	}
}

// failForGood reports and never returns: what raft asked for was not done, and it must not go on as
// if it had an answer.
func (f *failure) failForGood(err error) {
	f.fail(err)
	f.stay()
}

// stay never returns. In a process that goes on, as that of a simulation does, the goroutine can be let go.
func (f *failure) stay() {
	<-f.release
	runtime.Goexit()
}
