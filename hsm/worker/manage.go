package worker

import (
	"context"
	"crypto"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/kekd/kekd/hierarchy"
	"github.com/kekd/kekd/hsm"
)

// manage asks the manager, and the next one if it ends: a request finds what an earlier try of it
// has made. It returns the worker that was asked last; nil: none was.
func (p *Pool) manage(ctx context.Context, r *request) ([]byte, *worker, error) {
	for tries := 0; ; {
		w, err := p.manager(ctx)
		if err != nil {
			return nil, nil, err
		}
		body, err := w.ask(ctx, r)
		if !errors.Is(err, errGone) {
			return body, w, err
		}
		if !w.blameless() {
			tries++
		}
		if tries == triesLimit {
			return nil, nil, fmt.Errorf("%w: %d managers have ended while they ran it", hsm.ErrUnavailable, triesLimit)
		}
	}
}

// manager waits for the manager.
func (p *Pool) manager(ctx context.Context) (*worker, error) {
	for {
		p.mu.Lock()
		s := p.seats[0]
		w, err, changed := s.w, s.fault, p.changed
		if p.closed {
			w, err = nil, errClosed()
		}
		p.mu.Unlock()
		switch {
		case w != nil:
			return w, nil
		case err != nil:
			return nil, err
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil, late(ctx)
		}
	}
}

// change asks the manager for a change of an object, and tells the others, who may remember the
// object as it was, before it reports.
func (p *Pool) change(ctx context.Context, r request) ([]byte, error) {
	body, w, err := p.manage(ctx, &r)
	if err != nil {
		return nil, err
	}
	return body, p.forget(ctx, []hierarchy.ObjectID{r.object}, w)
}

func (p *Pool) changeObject(ctx context.Context, r request) (hsm.Object, error) {
	body, err := p.change(ctx, r)
	if err != nil {
		return hsm.Object{}, err
	}
	return parseObject(body)
}

func parseObject(body []byte) (hsm.Object, error) {
	d := decoder{b: body}
	o := d.keyObject()
	if err := d.done(); err != nil {
		return hsm.Object{}, fmt.Errorf("%w: %w", hsm.ErrUnavailable, err)
	}
	return o, nil
}

// checkLabel refuses what would be cut on its way.
func checkLabel(label string) error {
	if len(label) > textLimit {
		return fmt.Errorf("%w: a label has at most %d bytes, got %d", hsm.ErrInvalidInput, textLimit, len(label))
	}
	return nil
}

// List is [hsm.Manager]'s. Labels and foreign IDs are cut at 4096 bytes.
func (p *Pool) List(ctx context.Context) ([]hsm.Object, error) {
	body, _, err := p.manage(ctx, &request{verb: verbList})
	if err != nil {
		return nil, err
	}
	d := decoder{b: body}
	objects := []hsm.Object{}
	for d.more() {
		objects = append(objects, d.keyObject())
	}
	if err := d.done(); err != nil {
		return nil, fmt.Errorf("%w: %w", hsm.ErrUnavailable, err)
	}
	return objects, nil
}

// Info is [hsm.Manager]'s.
func (p *Pool) Info(ctx context.Context) (hsm.Info, error) {
	body, _, err := p.manage(ctx, &request{verb: verbInfo})
	if err != nil {
		return hsm.Info{}, err
	}
	d := decoder{b: body}
	i := d.info()
	if err := d.done(); err != nil {
		return hsm.Info{}, fmt.Errorf("%w: %w", hsm.ErrUnavailable, err)
	}
	return i, nil
}

// Examine is [hsm.Examiner]'s. It says what the manager's process can do with the token.
func (p *Pool) Examine(ctx context.Context) ([]hsm.Check, error) {
	body, _, err := p.manage(ctx, &request{verb: verbExamine})
	if err != nil {
		return nil, err
	}
	d := decoder{b: body}
	checks := d.checks()
	if err := d.done(); err != nil {
		return nil, fmt.Errorf("%w: %w", hsm.ErrUnavailable, err)
	}
	return checks, nil
}

// Size is how many workers there are to be. Fewer serve while one is replaced.
func (p *Pool) Size() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.seats)
}

// Generate is [hsm.Manager]'s.
func (p *Pool) Generate(ctx context.Context, id hierarchy.ObjectID, label string) (hsm.Object, error) {
	if err := checkLabel(label); err != nil {
		return hsm.Object{}, err
	}
	return p.changeObject(ctx, request{verb: verbGenerate, object: id, label: label})
}

// SetUsable is [hsm.Manager]'s.
func (p *Pool) SetUsable(ctx context.Context, id hierarchy.ObjectID, usable bool) error {
	_, err := p.change(ctx, request{verb: verbSetUsable, object: id, usable: usable})
	return err
}

// Destroy is [hsm.Manager]'s.
func (p *Pool) Destroy(ctx context.Context, id hierarchy.ObjectID) error {
	_, err := p.change(ctx, request{verb: verbDestroy, object: id})
	return err
}

// Mark is [hsm.Marks]'s.
func (p *Pool) Mark(ctx context.Context, owner hsm.MarkOwner) (hsm.Mark, bool, error) {
	body, _, err := p.manage(ctx, &request{verb: verbMark, owner: owner})
	if err != nil {
		return hsm.Mark{}, false, err
	}
	d := decoder{b: body}
	found, m := d.flag(), d.mark()
	if err := d.done(); err != nil {
		return hsm.Mark{}, false, fmt.Errorf("%w: %w", hsm.ErrUnavailable, err)
	}
	return m, found, nil
}

// RaiseMark is [hsm.Marks]'s.
func (p *Pool) RaiseMark(ctx context.Context, owner hsm.MarkOwner, m hsm.Mark) error {
	_, _, err := p.manage(ctx, &request{verb: verbRaiseMark, owner: owner, mark: m})
	return err
}

// An agreement is a pair in one manager's session. It ends with that process.
type agreement struct {
	p      *Pool
	w      *worker
	id     uint32
	public []byte
}

// BeginAgreement is [hsm.Agreer]'s.
func (p *Pool) BeginAgreement(ctx context.Context) (hsm.Agreement, error) {
	r := request{verb: verbBegin}
	public, w, err := p.manage(ctx, &r)
	if err == nil {
		return &agreement{p, w, r.id, public}, nil
	}
	if w != nil && r.id != 0 && errors.Is(err, hsm.ErrDeadline) {
		// It may be begun all the same, and nobody would end it. This comes after it.
		_ = w.post(&request{verb: verbEnd, pair: r.id}, make(chan answer, 1))
	}
	return nil, err
}

// Public is [hsm.Agreement]'s.
func (a *agreement) Public() []byte { return append([]byte(nil), a.public...) }

// Derive is [hsm.Agreement]'s. After the manager was replaced the pair is gone:
// [hsm.ErrKeyNotFound].
func (a *agreement) Derive(ctx context.Context, peer []byte, kdf hsm.KDF, info []byte, id hierarchy.ObjectID, label string) (hsm.Object, error) {
	if err := checkLabel(label); err != nil {
		return hsm.Object{}, err
	}
	if len(peer) > infoLimit || len(info) > infoLimit || len(kdf) > textLimit {
		return hsm.Object{}, fmt.Errorf("%w: more than %d bytes to derive from", hsm.ErrInvalidInput, infoLimit)
	}
	body, err := a.w.ask(ctx, &request{verb: verbDerive, pair: a.id, peer: peer, kdf: kdf, info: info, object: id, label: label})
	if errors.Is(err, errGone) {
		return hsm.Object{}, fmt.Errorf("%w: the pair is gone with its worker; begin again", hsm.ErrKeyNotFound)
	}
	if err != nil {
		return hsm.Object{}, err
	}
	if err := a.p.forget(ctx, []hierarchy.ObjectID{id}, a.w); err != nil {
		return hsm.Object{}, err
	}
	return parseObject(body)
}

// End is [hsm.Agreement]'s.
func (a *agreement) End(ctx context.Context) error {
	if _, err := a.w.ask(ctx, &request{verb: verbEnd, pair: a.id}); !errors.Is(err, errGone) {
		return err
	}
	return nil // gone with its worker
}

// signTimeout bounds a signature, since a crypto.Signer has no context.
const signTimeout = 10 * time.Second

// Signer is the token's signing identity, or nil if the workers opened none. It may be used by
// several goroutines.
func (p *Pool) Signer() crypto.Signer {
	if p.public == nil {
		return nil
	}
	return signer{p}
}

type signer struct{ p *Pool }

// Public is the identity's public key, as the first manager told it; a manager that has another
// one is not let in.
func (s signer) Public() crypto.PublicKey { return s.p.public }

// Sign signs a digest with the identity in the token. The randomness is the token's. Only the
// hash of opts counts.
func (s signer) Sign(_ io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	if opts == nil || opts.HashFunc() == 0 || len(digest) != opts.HashFunc().Size() {
		return nil, fmt.Errorf("%w: what is signed is not a digest of the hash named", hsm.ErrInvalidInput)
	}
	ctx, cancel := context.WithTimeout(context.Background(), signTimeout)
	defer cancel()
	signature, _, err := s.p.manage(ctx, &request{verb: verbSign, hash: opts.HashFunc(), digest: digest})
	return signature, err
}
