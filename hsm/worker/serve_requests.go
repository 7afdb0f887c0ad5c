package worker

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"

	"github.com/kekd/kekd/hsm"
)

// manage runs the manager's requests, one after the other.
func (s *server) manage() {
	for {
		select {
		case r := <-s.changes:
			s.ask(r)
		case <-s.ended:
			return
		}
	}
}

// ask does what is asked, and answers.
func (s *server) ask(r *request) {
	ctx, cancel := s.ctx, func() {}
	if r.timeout > 0 {
		ctx, cancel = context.WithTimeout(ctx, r.timeout)
	}
	defer cancel()
	body, err := s.perform(ctx, r)
	if errors.Is(err, hsm.ErrUnavailable) && s.failing() {
		return // the daemon asks again elsewhere
	}
	s.say(&answer{id: r.id, err: err, body: body})
}

func (s *server) say(a *answer) {
	b := s.out.begin()
	b, at := beginFrame(b, kindAnswer)
	s.out.end(endFrame(appendAnswer(b, a), at))
}

func (s *server) perform(ctx context.Context, r *request) ([]byte, error) {
	if r.verb.managers() && s.backend.Manager == nil || r.verb == verbSign && s.backend.Signer == nil ||
		r.verb.marks() && s.backend.Marks == nil || r.verb >= verbBegin && s.backend.Agreer == nil {
		return nil, fmt.Errorf("%w: this worker only serves", hsm.ErrUnsupported)
	}
	switch r.verb {
	case verbHealthy:
		return nil, s.backend.Token.Healthy(ctx)
	case verbForget:
		return nil, s.backend.Token.Forget(ctx, r.keys)
	case verbSign:
		return s.backend.Signer.Sign(rand.Reader, r.digest, r.hash)
	case verbList:
		return s.list(ctx, r)
	case verbInfo:
		i, err := s.backend.Manager.Info(ctx)
		return appendInfo(nil, &i), err
	case verbGenerate:
		o, err := s.backend.Manager.Generate(ctx, r.object, r.label)
		return appendObject(nil, &o), err
	case verbSetUsable:
		return nil, s.backend.Manager.SetUsable(ctx, r.object, r.usable)
	case verbDestroy:
		return nil, s.backend.Manager.Destroy(ctx, r.object)
	case verbExamine:
		if s.backend.Examiner == nil {
			return nil, fmt.Errorf("%w: this worker cannot examine its token", hsm.ErrUnsupported)
		}
		checks, err := s.backend.Examiner.Examine(ctx)
		return appendChecks(nil, checks), err
	case verbMark:
		m, found, err := s.backend.Marks.Mark(ctx, r.owner)
		return appendMark(appendFlag(nil, found), m), err
	case verbRaiseMark:
		return nil, s.backend.Marks.RaiseMark(ctx, r.owner, r.mark)
	case verbBegin:
		return s.begin(ctx, r)
	case verbDerive:
		return s.derive(ctx, r)
	case verbEnd:
		return nil, s.endPair(ctx, r)
	}
	return nil, fmt.Errorf("%w: verb %d", hsm.ErrUnsupported, r.verb)
}

// list sends all but the last part of a listing, and returns that.
func (s *server) list(ctx context.Context, r *request) ([]byte, error) {
	objects, err := s.backend.Manager.List(ctx)
	var body []byte
	for i := range objects {
		if len(body) > frameFull {
			s.say(&answer{id: r.id, more: true, body: body})
			body = body[:0]
		}
		body = appendObject(body, &objects[i])
	}
	return body, err
}

// begin opens an agreement under the number of the request: who has lost the answer can end it
// all the same.
func (s *server) begin(ctx context.Context, r *request) ([]byte, error) {
	if len(s.pairs) >= pairLimit {
		return nil, fmt.Errorf("%w: %d agreements are under way", hsm.ErrBusy, pairLimit)
	}
	pair, err := s.backend.Agreer.BeginAgreement(ctx)
	if err != nil {
		return nil, err
	}
	s.pairs[r.id] = pair
	return pair.Public(), nil
}

func (s *server) derive(ctx context.Context, r *request) ([]byte, error) {
	pair, ok := s.pairs[r.pair]
	if !ok {
		return nil, fmt.Errorf("%w: the pair is gone; begin again", hsm.ErrKeyNotFound)
	}
	o, err := pair.Derive(ctx, r.peer, r.kdf, r.info, r.object, r.label)
	return appendObject(nil, &o), err
}

func (s *server) endPair(ctx context.Context, r *request) error {
	pair, ok := s.pairs[r.pair]
	if !ok {
		return nil
	}
	err := pair.End(ctx)
	if err == nil {
		delete(s.pairs, r.pair)
	}
	return err
}
