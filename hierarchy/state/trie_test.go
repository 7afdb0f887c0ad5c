package state

import (
	"fmt"
	"maps"
	"slices"
	"testing"

	"pgregory.net/rapid"
)

// The trie is not exported, and its worst case, keys of the same hash, cannot be brought about from
// outside.

func TestTrieIsAMap(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var tr trie[int, int]
		model := map[int]int{}
		type version struct {
			tr    trie[int, int]
			model map[int]int
		}
		var old []version
		for range rapid.IntRange(0, 200).Draw(t, "steps") {
			k := rapid.IntRange(0, 100).Draw(t, "key")
			if rapid.Bool().Draw(t, "delete") {
				tr = tr.delete(k)
				delete(model, k)
			} else {
				v := rapid.Int().Draw(t, "value")
				tr = tr.set(k, v)
				model[k] = v
			}
			old = append(old, version{tr, maps.Clone(model)})
		}
		// Also those that were changed since are what they were.
		for _, o := range old {
			if o.tr.size != len(o.model) {
				t.Fatalf("size %d, want %d", o.tr.size, len(o.model))
			}
			for k := range 101 {
				got, ok := o.tr.get(k)
				want, has := o.model[k]
				if got != want || ok != has {
					t.Fatalf("key %d: got %d, %v; want %d, %v", k, got, ok, want, has)
				}
			}
		}
	})
}

func TestTrieKnowsWhatChanged(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		set := func(tr trie[int, *int], steps []int) trie[int, *int] {
			for _, k := range steps {
				tr = tr.set(k, new(int))
			}
			return tr
		}
		keys := rapid.SliceOfN(rapid.IntRange(0, 2000), 0, 2000)
		before := set(trie[int, *int]{}, keys.Draw(t, "before"))
		steps := rapid.SliceOfN(rapid.IntRange(0, 2500), 0, 20).Draw(t, "steps")
		after := set(before, steps)
		told := map[*int]bool{}
		for v := range after.changedSince(before) {
			told[v] = true
		}
		for _, k := range steps {
			if v, _ := after.get(k); !told[v] {
				t.Errorf("key %d was set, and is not told", k)
			}
		}
		// A leaf that had to move to make room is told, too, and no more than that.
		if len(told) > 2*len(steps) {
			t.Errorf("%d values are told after %d steps", len(told), len(steps))
		}
		for range after.changedSince(after) {
			t.Error("what did not change is told")
		}
	})
}

func TestTrieIsFilledInPlace(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var filled trie[int, int]
		model := map[int]int{}
		for i, k := range rapid.SliceOfN(rapid.IntRange(0, 5000), 0, 1000).Draw(t, "keys") {
			filled.fill(k, i)
			model[k] = i
		}
		check := func(tr trie[int, int], model map[int]int) {
			t.Helper()
			if tr.size != len(model) {
				t.Fatalf("size %d, want %d", tr.size, len(model))
			}
			for k, want := range model {
				if got, ok := tr.get(k); !ok || got != want {
					t.Fatalf("key %d: got %d, %v; want %d", k, got, ok, want)
				}
			}
		}
		check(filled, model)
		// From then on it is a map like any other: what is made of it leaves it alone.
		next := filled.set(1, -1).delete(2)
		check(filled, model)
		after := maps.Clone(model)
		after[1] = -1
		delete(after, 2)
		check(next, after)
	})
}

func TestTrieChainsEqualHashes(t *testing.T) {
	insert := func(root *trieNode[string, int], hash uint64, key string, v int) *trieNode[string, int] {
		next, _ := root.insert(&trieLeaf[string, int]{hash: hash, key: key, value: v}, 0)
		return next
	}
	// Those of hash 7 are alike in all bits, the last differs in the uppermost only.
	a := insert(&trieNode[string, int]{}, 7, "a", 1)
	ab := insert(a, 7, "b", 2)
	abc := insert(ab, 7|1<<63, "c", 3)
	aBc := insert(abc, 7, "b", 20)
	noA := aBc.remove(7, "a", 0)
	filled := &trieNode[string, int]{}
	for i, l := range []struct {
		hash uint64
		key  string
	}{{7, "a"}, {7, "b"}, {7 | 1<<63, "c"}, {7, "b"}} {
		filled.fill(&trieLeaf[string, int]{hash: l.hash, key: l.key, value: i + 1}, 0)
	}
	for i, c := range []struct {
		root *trieNode[string, int]
		want []string
	}{
		{filled, []string{"a=1", "b=4", "c=3"}},
		{a, []string{"a=1"}},
		{ab, []string{"a=1", "b=2"}},
		{abc, []string{"a=1", "b=2", "c=3"}},
		{aBc, []string{"a=1", "b=20", "c=3"}},
		{noA, []string{"b=20", "c=3"}},
		{noA.remove(7, "b", 0), []string{"c=3"}},
	} {
		if got := leaves(c.root); !slices.Equal(got, c.want) {
			t.Errorf("step %d: got %v, want %v", i, got, c.want)
		}
	}
	if empty := a.remove(7, "a", 0); empty != nil {
		t.Errorf("got %v, want nothing left", leaves(empty))
	}
}

func leaves(n *trieNode[string, int]) (all []string) {
	for _, s := range n.slots {
		if s.node != nil {
			all = append(all, leaves(s.node)...)
		}
		for l := s.leaf; l != nil; l = l.next {
			all = append(all, fmt.Sprintf("%s=%d", l.key, l.value))
		}
	}
	slices.Sort(all)
	return all
}
