package worker

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"

	"github.com/kekd/kekd/hsm"
)

// read takes frames until the daemon hangs up. For a token that runs one operation at a time it
// runs them as well, on this very thread, and looks for frames between slices. A token that hangs
// hangs the reader too: the daemon, who waits no longer than he wants, kills the process then.
func (s *server) read(frames *frameReader, open <-chan struct{}) {
	defer frames.wipe()
	for {
		k, frame, err := frames.next()
		if err == io.EOF {
			s.end(nil)
			return
		}
		if err == nil {
			select {
			case <-open:
				err = s.take(k, frame)
			case <-s.ended:
				return
			}
		}
		for err == nil && !s.waiting.empty() && !frames.another() {
			s.runSlice()
			if !s.waiting.empty() {
				err = frames.poll(s.socket.tryRead)
			}
		}
		if err != nil {
			s.end(err)
			return
		}
	}
}

func (s *server) take(k kind, frame []byte) error {
	switch k {
	case kindOperations:
		j := s.jobs.Get().(*job)
		if err := j.parse(frame); err != nil {
			return err
		}
		if s.inFlight.Add(int64(len(j.ops))) > inFlightLimit {
			return fmt.Errorf("%w: more than %d operations in flight", errGarbage, inFlightLimit)
		}
		if s.backend.Parallel <= 1 {
			s.waiting.add(j)
		} else {
			go s.runAll(j)
		}
		return nil
	case kindRequest:
		r, err := parseRequest(frame)
		if err != nil {
			return err
		}
		if !r.verb.managers() {
			go s.ask(r)
			return nil
		}
		select {
		case s.changes <- r:
			return nil
		default:
			return fmt.Errorf("%w: more than %d requests are waiting", errGarbage, cap(s.changes))
		}
	}
	return errGarbage
}

// beginner is a token that tells when it only waits, so that others are served meanwhile.
type beginner interface {
	Begin(ops []hsm.Operation) (wait func(context.Context))
}

// runSlice runs the next slice of a frame. A slice that has to wait, for a key that is searched
// for one, holds nobody up but its frame.
func (s *server) runSlice() {
	j, from, to := s.waiting.take()
	b, ok := s.backend.Token.(beginner)
	if !ok {
		s.run(j.ops[from:to])
		s.ran(j, to-from)
		return
	}
	if wait := b.Begin(j.ops[from:to]); wait != nil {
		go func() {
			wait(context.WithoutCancel(s.ctx))
			s.ran(j, to-from)
		}()
		return
	}
	s.ran(j, to-from)
}

// ran counts operations of a frame that have their results, and answers after the last.
func (s *server) ran(j *job, n int) {
	all := int32(len(j.ops)) // before it is counted: after that it may be another frame's already
	if j.done.Add(int32(n)) == all {
		s.answer(j.ids, j.ops)
		s.finish(j)
	}
}

// run runs operations in the token. They have no deadline here, where nobody could do anything
// about it: the daemon's is the one that counts.
func (s *server) run(ops []hsm.Operation) {
	s.backend.Token.Do(context.WithoutCancel(s.ctx), ops)
}

// runAll runs and answers each operation of a frame by itself, all at once.
func (s *server) runAll(j *job) {
	var wg sync.WaitGroup
	for i := range j.ops {
		wg.Go(func() {
			s.run(j.ops[i : i+1])
			s.answer(j.ids[i:i+1], j.ops[i:i+1])
		})
	}
	wg.Wait()
	s.finish(j)
}

func (s *server) finish(j *job) {
	s.inFlight.Add(-int64(len(j.ops)))
	j.wipe()
	s.jobs.Put(j)
}

// answer sends results. When the token was lost it sends none: the daemon runs the operations
// again elsewhere.
func (s *server) answer(ids []uint32, ops []hsm.Operation) {
	for i := range ops {
		if errors.Is(ops[i].Err, hsm.ErrUnavailable) && s.failing() {
			return
		}
	}
	b := s.out.begin()
	b, at := beginFrame(room(b, frameHead+1), kindResults)
	for i := range ops {
		if len(b)-at > frameFull {
			b = endFrame(b, at)
			b, at = beginFrame(room(b, frameHead+1), kindResults)
		}
		b = appendResult(room(b, resultSize(&ops[i])), ids[i], &ops[i])
	}
	s.out.end(endFrame(b, at))
}
