package main

import (
	"context"
	"path/filepath"

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

// marksDir is where a node without a token has its mark: beside the key that stands in for a token's.
func marksDir(c *witnessConfig) string { return filepath.Join(c.Dir, "marks") }

// makeMarks makes the directory of a node without a token, unless it is there, and opens it.
func makeMarks(c *witnessConfig) (*markfile.Dir, error) {
	if err := markfile.Create(marksDir(c)); err != nil {
		return nil, err
	}
	return markfile.Open(marksDir(c))
}
