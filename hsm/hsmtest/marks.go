package hsmtest

import (
	"errors"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/kekd/kekd/hierarchy"
	"github.com/kekd/kekd/hsm"
)

// MarksFactory makes a fresh place for marks. Each call of open lets go of the place, and opens it
// as the next process would.
type MarksFactory func(t *testing.T) (open func() hsm.Marks)

// RunMarks is what every place for marks must pass.
func RunMarks(t *testing.T, factory MarksFactory) {
	for name, test := range map[string]func(*testing.T, func() hsm.Marks){
		"Grow": testMarksGrow, "Owners": testMarksOwners, "Many": testMarksMany, "Together": testMarksTogether, "Context": testMarksContext,
	} {
		t.Run(name, func(t *testing.T) { test(t, factory(t)) })
	}
}

// MarkOwner is whose marks the suite raises.
var MarkOwner = hsm.MarkOwner{Cluster: cluster, Node: hierarchy.NodeID{ID: hierarchy.ID{0x0d}}}

func raise(t *testing.T, marks hsm.Marks, owner hsm.MarkOwner, m hsm.Mark) {
	t.Helper()
	if err := marks.RaiseMark(deadline(t), owner, m); err != nil {
		t.Fatalf("raise the mark of %s to %v: %v", owner, m, err)
	}
}

// marked compares a mark. The zero one: there is none.
func marked(t *testing.T, marks hsm.Marks, owner hsm.MarkOwner, want hsm.Mark) {
	t.Helper()
	got, found, err := marks.Mark(deadline(t), owner)
	if err != nil {
		t.Fatalf("mark of %s: %v", owner, err)
	}
	if diff := cmp.Diff(want, got); diff != "" || found != (want != hsm.Mark{}) {
		t.Errorf("mark of %s, found: %t (-want +got):\n%s", owner, found, diff)
	}
}

func testMarksGrow(t *testing.T, open func() hsm.Marks) {
	marks := open()
	marked(t, marks, MarkOwner, hsm.Mark{})
	for _, step := range []struct{ raise, want hsm.Mark }{
		{hsm.Mark{Term: 3}, hsm.Mark{Term: 3}},
		{hsm.Mark{Term: 3}, hsm.Mark{Term: 3}},
		{hsm.Mark{Term: 2, LastTerm: 2, LastIndex: 40}, hsm.Mark{Term: 3, LastTerm: 2, LastIndex: 40}},
		{hsm.Mark{Term: 3, LastTerm: 2, LastIndex: 39}, hsm.Mark{Term: 3, LastTerm: 2, LastIndex: 40}},
		{hsm.Mark{Term: 4, LastTerm: 1, LastIndex: 99}, hsm.Mark{Term: 4, LastTerm: 2, LastIndex: 40}},
		{hsm.Mark{LastTerm: 3, LastIndex: 7}, hsm.Mark{Term: 4, LastTerm: 3, LastIndex: 7}},
		{hsm.Mark{}, hsm.Mark{Term: 4, LastTerm: 3, LastIndex: 7}},
		{hsm.Mark{Term: ^uint64(0), LastTerm: ^uint64(0), LastIndex: ^uint64(0)}, hsm.Mark{Term: ^uint64(0), LastTerm: ^uint64(0), LastIndex: ^uint64(0)}},
	} {
		raise(t, marks, MarkOwner, step.raise)
		marked(t, marks, MarkOwner, step.want)
		marks = open()
		marked(t, marks, MarkOwner, step.want)
	}
	// The first raise of a process knows what an earlier one left.
	marks = open()
	raise(t, marks, MarkOwner, hsm.Mark{Term: 5})
	marked(t, marks, MarkOwner, hsm.Mark{Term: ^uint64(0), LastTerm: ^uint64(0), LastIndex: ^uint64(0)})
}

func testMarksOwners(t *testing.T, open func() hsm.Marks) {
	node, elsewhere := MarkOwner, MarkOwner
	node.Node.ID[15]++
	elsewhere.Cluster.ID[15]++
	marks := open()
	want := map[hsm.MarkOwner]hsm.Mark{}
	for i := range uint64(3) {
		for j, owner := range []hsm.MarkOwner{MarkOwner, node, elsewhere} {
			marked(t, marks, owner, want[owner])
			m := hsm.Mark{Term: 10*uint64(j) + i + 1, LastTerm: i + 1, LastIndex: uint64(j) + 1}
			raise(t, marks, owner, m)
			want[owner] = m
		}
		marks = open()
	}
	for owner, m := range want {
		marked(t, marks, owner, m)
	}
}

func testMarksMany(t *testing.T, open func() hsm.Marks) {
	marks := open()
	for i := range uint64(20) {
		raise(t, marks, MarkOwner, hsm.Mark{Term: 1, LastTerm: 1, LastIndex: i + 1})
	}
	marked(t, open(), MarkOwner, hsm.Mark{Term: 1, LastTerm: 1, LastIndex: 20})
}

// testMarksTogether raises from several goroutines, each its own half now and then.
func testMarksTogether(t *testing.T, open func() hsm.Marks) {
	marks := open()
	var wg sync.WaitGroup
	const n = 6
	for i := range uint64(4) {
		wg.Go(func() {
			for j := range uint64(n) {
				m := hsm.Mark{Term: j + 1}
				if i%2 == 0 {
					m = hsm.Mark{LastTerm: 1, LastIndex: j + 1}
				}
				if err := marks.RaiseMark(deadline(t), MarkOwner, m); err != nil {
					t.Error(err)
					return
				}
				if got, _, err := marks.Mark(deadline(t), MarkOwner); err != nil || !got.Covers(m) {
					t.Errorf("raised to {%v}, read {%v}, %v", m, got, err)
				}
			}
		})
	}
	wg.Wait()
	marked(t, open(), MarkOwner, hsm.Mark{Term: n, LastTerm: 1, LastIndex: n})
}

func testMarksContext(t *testing.T, open func() hsm.Marks) {
	marks := open()
	if err := marks.RaiseMark(over(), MarkOwner, hsm.Mark{Term: 1}); !errors.Is(err, hsm.ErrDeadline) {
		t.Errorf("raise after the deadline: %v, want ErrDeadline", err)
	}
	if _, _, err := marks.Mark(over(), MarkOwner); !errors.Is(err, hsm.ErrDeadline) {
		t.Errorf("read after the deadline: %v, want ErrDeadline", err)
	}
	raise(t, marks, MarkOwner, hsm.Mark{Term: 2})
	marked(t, marks, MarkOwner, hsm.Mark{Term: 2})
}
