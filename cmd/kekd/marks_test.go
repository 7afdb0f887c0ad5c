package main

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/kekd/kekd/hsm"
)

// patient are marks that note how much time they were given.
type patient struct{ left time.Duration }

func (p *patient) Mark(ctx context.Context, _ hsm.MarkOwner) (hsm.Mark, bool, error) {
	deadline, _ := ctx.Deadline()
	p.left = time.Until(deadline)
	return hsm.Mark{}, true, ctx.Err()
}

func (p *patient) RaiseMark(ctx context.Context, o hsm.MarkOwner, _ hsm.Mark) error {
	_, _, err := p.Mark(ctx, o)
	return err
}

// TestLateMarks: who asks for a mark while it is being opened waits for that, and loses none of his own time.
func TestLateMarks(t *testing.T) {
	opened, kept := make(chan struct{}), &patient{}
	failed := error(nil)
	late := lateMarks{opened, func() (hsm.Marks, error) { return kept, failed }}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	const waits = 50 * time.Millisecond
	time.AfterFunc(waits, func() { close(opened) })
	if _, marked, err := late.Mark(ctx, hsm.MarkOwner{}); !marked || err != nil {
		t.Fatalf("marked %t, %v", marked, err)
	}
	if deadline, _ := ctx.Deadline(); kept.left <= time.Until(deadline) {
		t.Errorf("%v were left for the mark itself, no more than there are now", kept.left)
	}
	// From then on nothing is added, and who gives up is heard.
	cancel()
	if err := late.RaiseMark(ctx, hsm.MarkOwner{}, hsm.Mark{}); !errors.Is(err, context.Canceled) {
		t.Errorf("%v, want Canceled", err)
	}
	failed = hsm.ErrNoToken
	if _, _, err := late.Mark(t.Context(), hsm.MarkOwner{}); !errors.Is(err, hsm.ErrNoToken) {
		t.Errorf("%v, want what kept the token from being opened", err)
	}
}
