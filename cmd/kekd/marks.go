package main

import (
	"context"
	"path/filepath"
	"time"

	"github.com/kekd/kekd/cluster"
	"github.com/kekd/kekd/hsm"
	"github.com/kekd/kekd/hsm/markfile"
)

// marks is this node's mark in its token, or in a file of a witness's second path.
type marks struct {
	kept  hsm.Marks
	owner hsm.MarkOwner
}

var _ cluster.Marks = marks{}

func marksOf(n nodeFile, kept hsm.Marks) marks {
	return marks{kept, hsm.MarkOwner{Cluster: n.ClusterID, Node: n.NodeID}}
}

func (m marks) Mark(ctx context.Context) (cluster.Mark, bool, error) {
	mark, marked, err := m.kept.Mark(ctx, m.owner)
	return cluster.Mark(mark), marked, err
}

func (m marks) SetMark(ctx context.Context, to cluster.Mark) error {
	return m.kept.RaiseMark(ctx, m.owner, hsm.Mark(to))
}

// lateMarks are marks that are being opened, by what has a deadline of its own. Who asks for his mark meanwhile gives it
// as much time from then on as he gave it to begin with.
type lateMarks struct {
	opened <-chan struct{}
	get    func() (hsm.Marks, error) // once opened is closed
}

var _ hsm.Marks = lateMarks{}

func (l lateMarks) Mark(ctx context.Context, o hsm.MarkOwner) (hsm.Mark, bool, error) {
	m, ctx, cancel, err := l.await(ctx)
	defer cancel()
	if err != nil {
		return hsm.Mark{}, false, err
	}
	return m.Mark(ctx, o)
}

func (l lateMarks) RaiseMark(ctx context.Context, o hsm.MarkOwner, to hsm.Mark) error {
	m, ctx, cancel, err := l.await(ctx)
	defer cancel()
	if err != nil {
		return err
	}
	return m.RaiseMark(ctx, o, to)
}

func (l lateMarks) await(ctx context.Context) (hsm.Marks, context.Context, func(), error) {
	cancel := func() {}
	select {
	case <-l.opened:
	default:
		began := time.Now()
		<-l.opened
		if deadline, ok := ctx.Deadline(); ok {
			ctx, cancel = context.WithDeadline(context.WithoutCancel(ctx), deadline.Add(time.Since(began)))
		}
	}
	m, err := l.get()
	return m, ctx, cancel, err
}

// marksDir is where a node without a token has its mark: beside the key that stands in for a token's.
func marksDir(c *witnessConfig) string { return filepath.Join(c.Dir, "marks") }

// makeMarks makes the directory of a node without a token, unless it is there, and opens it.
func makeMarks(c *witnessConfig) (*markfile.Dir, error) {
	if err := markfile.Create(marksDir(c)); err != nil {
		return nil, err
	}
	return markfile.Open(marksDir(c))
}
