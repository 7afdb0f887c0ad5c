package quota

import (
	"sync"
	"time"
)

// reserveTimeout bounds one reservation. It goes on when the caller that caused it has left,
// since the next one needs it as well.
const reserveTimeout = 5 * time.Second

// retryAfter keeps what cannot be reserved from being asked for at every call.
const retryAfter = 100 * time.Millisecond

// flight lets one reservation be under way at a time, however many callers need it.
type flight struct {
	mu      sync.Mutex
	pending chan struct{} // closed when the reservation under way has ended; nil: none
	err     error         // how the last one ended
	retryAt time.Time     // after a failure: not tried again before
}

// start runs reserve unless one is under way, or has just failed, and returns a channel that is
// closed at its end.
func (f *flight) start(reserve func() error) <-chan struct{} {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.pending != nil {
		return f.pending
	}
	done := make(chan struct{})
	if time.Now().Before(f.retryAt) {
		close(done)
		return done
	}
	f.pending = done
	go func() {
		err := reserve()
		f.mu.Lock()
		defer f.mu.Unlock()
		if f.err = err; err != nil {
			f.retryAt = time.Now().Add(retryAfter)
		}
		f.pending = nil
		close(done)
	}()
	return done
}

// failure is how the last reservation ended.
func (f *flight) failure() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.err
}
