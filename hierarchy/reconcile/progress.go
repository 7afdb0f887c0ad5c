package reconcile

import (
	"context"
	"fmt"
	"sync"

	"github.com/kekd/kekd/hierarchy"
	"github.com/kekd/kekd/hierarchy/capacity"
)

// Inventory is what is known of the token.
type Inventory struct {
	Objects uint64 // key objects
	// Missing are key versions whose object the token does not have, or has in a state in
	// which it may not be used, with the reason.
	Missing []string
	// Refused are key versions that cannot be minted, because the token's keys are not what they
	// must be, time after time.
	Refused []string
	// Orphans are labels of key objects of ours that the hierarchy does not know, as of the last
	// listing.
	Orphans []string
	// Token is how much the token holds, as of the last listing or minting.
	Token capacity.Token
}

// lack is what keeps a version from being as the hierarchy says.
type lack struct {
	err   error // nil: nothing, it is just not done yet
	final bool  // it will not be done soon
}

// progress is what others may know of the reconciler's work.
type progress struct {
	mu      sync.Mutex
	index   uint64             // log index of the state that the pass works on
	lacks   map[VersionID]lack // what no step of that pass mends
	pending map[VersionID]lack // what its steps have left to do
	fault   error              // why nothing can be done at all
	found   Inventory
	changed chan struct{} // closed at the next change
}

func newProgress() progress { return progress{changed: make(chan struct{})} }

func (p *progress) update(f func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	f()
	close(p.changed)
	p.changed = make(chan struct{})
}

// begin is a new pass, with all that it has found to do.
func (p *progress) begin(index uint64, lacks, pending map[VersionID]lack, i Inventory) {
	p.update(func() {
		p.index, p.lacks, p.pending, p.fault = index, lacks, pending, nil
		p.found.Objects, p.found.Missing, p.found.Refused = i.Objects, i.Missing, i.Refused
	})
}

func (p *progress) settled(v VersionID)        { p.update(func() { delete(p.pending, v) }) }
func (p *progress) failed(v VersionID, l lack) { p.update(func() { p.pending[v] = l }) }
func (p *progress) stuck(err error)            { p.update(func() { p.fault = err }) }
func (p *progress) limit(objects uint64)       { p.update(func() { p.found.Token.Max = objects }) }
func (p *progress) full(full bool)             { p.update(func() { p.found.Token.Full = full }) }
func (p *progress) listed(orphans []string, t capacity.Token) {
	p.update(func() { p.found.Orphans, p.found.Token = orphans, t })
}

// Inventory returns what is known of the token now.
func (r *Reconciler) Inventory() Inventory {
	r.progress.mu.Lock()
	defer r.progress.mu.Unlock()
	return r.progress.found
}

// Settled waits until the token has all that the hierarchy says of a version at a log index or
// later, so that this node can serve it if the hierarchy lets it. It is [hierarchy.ErrHSMUnavailable]
// as soon as it is known that this will not be soon: the object is lost, which is a
// [hierarchy.KeyLost], or the token makes none that is fit. When ctx ends first, the error says what is still lacking.
func (r *Reconciler) Settled(ctx context.Context, index uint64, v VersionID) error {
	p := &r.progress
	for {
		p.mu.Lock()
		l, open := p.lacks[v]
		if !open {
			l, open = p.pending[v]
		}
		seen, fault, changed := p.index >= index, p.fault, p.changed
		p.mu.Unlock()
		switch {
		case seen && !open:
			return nil
		case seen && l.final:
			return fmt.Errorf("%w: %w", hierarchy.ErrHSMUnavailable, l.err)
		}
		select {
		case <-changed:
		case <-ctx.Done():
			switch {
			case fault != nil:
				return fmt.Errorf("%w: %w", ctx.Err(), fault)
			case l.err != nil:
				return fmt.Errorf("%w: %w", ctx.Err(), l.err)
			default:
				return fmt.Errorf("%w: the token does not have it yet", ctx.Err())
			}
		}
	}
}
