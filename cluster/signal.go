package cluster

import "sync"

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

// failure is the end of a node's part in the cluster, once.
type failure struct {
	once   sync.Once
	done   chan struct{}
	report chan error
}

func newFailure() *failure {
	return &failure{done: make(chan struct{}), report: make(chan error, 1)}
}

// fail reports. Only the first failure is told: the others follow from it.
func (f *failure) fail(err error) {
	f.once.Do(func() {
		f.report <- err
		close(f.done)
	})
}

// failForGood reports and never returns: what raft asked for was not done, and it must not go on as
// if it had an answer.
func (f *failure) failForGood(err error) {
	f.fail(err)
	select {}
}
