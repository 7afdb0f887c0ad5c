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
		if !r.verb.managers() || r.verb.marks() {
			// A vote waits for a mark: not behind changes that wait, but only behind the one that runs.
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

// beginner is a token that tells which operations only wait, so that others are served meanwhile.
type beginner interface {
	Begin(ops []hsm.Operation) (late []int, wait func(context.Context))
}

// runSlice runs the next slice of a frame. What has to wait, for a key that is searched for one, holds
// nobody up: it is answered by itself, and the frame after its last slice without it.
func (s *server) runSlice() {
	j, from, to := s.waiting.take()
	if b, ok := s.backend.Token.(beginner); !ok {
		s.run(j.ops[from:to])
	} else if late, wait := b.Begin(j.ops[from:to]); wait != nil {
		for i := range late {
			late[i] += from
		}
		j.late = append(j.late, late...)
		s.tell(j, late)
		go func() {
			wait(context.WithoutCancel(s.ctx))
			s.answerSome(j, late)
		}()
	}
	if to < len(j.ops) {
		return
	}
	if len(j.late) == 0 {
		s.answer(j.ids, j.ops)
		s.answered(j, len(j.ops)+1)
		return
	}
	var others []int
	for i, late := 0, j.late; i < len(j.ops); i++ {
		if len(late) > 0 && late[0] == i {
			late = late[1:]
			continue
		}
		others = append(others, i)
	}
	s.answerSome(j, others)
	s.answered(j, 1)
}

// tell tells the daemon that operations of a frame wait.
func (s *server) tell(j *job, late []int) {
	b := s.out.begin()
	b, at := beginFrame(room(b, frameHead+1+4*len(late)), kindWaits)
	for _, i := range late {
		b = le.AppendUint32(b, j.ids[i])
	}
	s.out.end(endFrame(b, at))
}

// answerSome answers those operations of a frame.
func (s *server) answerSome(j *job, which []int) {
	if len(which) == 0 {
		return
	}
	ids, ops := make([]uint32, len(which)), make([]hsm.Operation, len(which))
	for i, at := range which {
		ids[i], ops[i] = j.ids[at], j.ops[at]
	}
	s.answer(ids, ops)
	s.answered(j, len(which))
}

// answered counts operations of a frame that were answered, and that it was run; after the last of all
// these it lets go of the frame.
func (s *server) answered(j *job, n int) {
	all := int32(len(j.ops) + 1) // before it is counted: after that it may be another frame's already
	if j.answered.Add(int32(n)) == all {
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
