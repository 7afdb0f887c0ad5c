package state

import (
	"hash/maphash"
	"iter"
	"math/bits"
)

// trie is a persistent map: set and delete return a new one that shares what did not change. It
// is a hash array mapped trie with 64 ways, so 10,000 entries are two or three steps from the
// root. The sorted trees beside it take twice the time for a random ID, and on the path of every
// request that is what counts.
//
// It has no order and cannot be iterated: its layout follows from a hash that each process seeds
// anew, and must not be seen by a state machine. What has changed between two can be, by who is none.
type trie[K comparable, V any] struct {
	root *trieNode[K, V]
	size int
}

type trieNode[K comparable, V any] struct {
	used  uint64 // bit i: way i has a slot
	slots []trieSlot[K, V]
}

// trieSlot holds a leaf or, where several hashes begin alike, a node.
type trieSlot[K comparable, V any] struct {
	leaf *trieLeaf[K, V]
	node *trieNode[K, V]
}

type trieLeaf[K comparable, V any] struct {
	hash  uint64
	key   K
	value V
	next  *trieLeaf[K, V] // of the same hash in all its 64 bits
}

const trieBits = 6

var trieSeed = maphash.MakeSeed()

func (n *trieNode[K, V]) find(hash uint64, shift uint) (bit uint64, at int, ok bool) {
	bit = 1 << (hash >> shift & (1<<trieBits - 1))
	return bit, bits.OnesCount64(n.used & (bit - 1)), n.used&bit != 0
}

func (t trie[K, V]) get(key K) (value V, ok bool) {
	hash := maphash.Comparable(trieSeed, key)
	for n, shift := t.root, uint(0); n != nil; shift += trieBits {
		_, at, used := n.find(hash, shift)
		if !used {
			return value, false
		}
		if n.slots[at].node != nil {
			n = n.slots[at].node
			continue
		}
		for l := n.slots[at].leaf; l != nil; l = l.next {
			if l.key == key {
				return l.value, true
			}
		}
		return value, false
	}
	return value, false
}

func (t trie[K, V]) set(key K, value V) trie[K, V] {
	leaf := &trieLeaf[K, V]{hash: maphash.Comparable(trieSeed, key), key: key, value: value}
	root := t.root
	if root == nil {
		root = &trieNode[K, V]{}
	}
	root, added := root.insert(leaf, 0)
	if added {
		t.size++
	}
	return trie[K, V]{root, t.size}
}

// fill is set on a map that nobody else has, in place. It must not be called again once the map was copied.
func (t *trie[K, V]) fill(key K, value V) {
	if t.root == nil {
		t.root = &trieNode[K, V]{}
	}
	if t.root.fill(&trieLeaf[K, V]{hash: maphash.Comparable(trieSeed, key), key: key, value: value}, 0) {
		t.size++
	}
}

func (n *trieNode[K, V]) fill(leaf *trieLeaf[K, V], shift uint) (added bool) {
	bit, at, used := n.find(leaf.hash, shift)
	if !used {
		n.used, n.slots = n.used|bit, n.slotsWith(at, leaf)
		return true
	}
	slot := &n.slots[at]
	if slot.node != nil {
		return slot.node.fill(leaf, shift+trieBits)
	}
	*slot, added = slot.with(leaf, shift)
	return added
}

func (n *trieNode[K, V]) insert(leaf *trieLeaf[K, V], shift uint) (*trieNode[K, V], bool) {
	bit, at, used := n.find(leaf.hash, shift)
	if !used {
		return &trieNode[K, V]{n.used | bit, n.slotsWith(at, leaf)}, true
	}
	added := true
	c := n.copy()
	slot := &c.slots[at]
	if slot.node != nil {
		slot.node, added = slot.node.insert(leaf, shift+trieBits)
	} else {
		*slot, added = slot.with(leaf, shift)
	}
	return c, added
}

// slotsWith are a node's slots and one more.
func (n *trieNode[K, V]) slotsWith(at int, leaf *trieLeaf[K, V]) []trieSlot[K, V] {
	slots := make([]trieSlot[K, V], len(n.slots)+1)
	copy(slots, n.slots[:at])
	slots[at].leaf = leaf
	copy(slots[at+1:], n.slots[at:])
	return slots
}

// with is what a slot with leaves becomes by one more, whose place there may be taken.
func (s trieSlot[K, V]) with(leaf *trieLeaf[K, V], shift uint) (_ trieSlot[K, V], added bool) {
	if s.leaf.hash == leaf.hash {
		leaf.next = s.leaf.without(leaf.key)
		return trieSlot[K, V]{leaf: leaf}, leaf.next.length() == s.leaf.length()
	}
	// Two hashes part ways at some bit, so this ends.
	child := &trieNode[K, V]{}
	child, _ = child.insert(s.leaf, shift+trieBits)
	child, _ = child.insert(leaf, shift+trieBits)
	return trieSlot[K, V]{node: child}, true
}

func (t trie[K, V]) delete(key K) trie[K, V] {
	if _, ok := t.get(key); !ok {
		return t
	}
	return trie[K, V]{t.root.remove(maphash.Comparable(trieSeed, key), key, 0), t.size - 1}
}

// remove takes out a key that is there. A node that has become empty is nil.
func (n *trieNode[K, V]) remove(hash uint64, key K, shift uint) *trieNode[K, V] {
	bit, at, _ := n.find(hash, shift)
	slot := n.slots[at]
	if slot.node != nil {
		slot.node = slot.node.remove(hash, key, shift+trieBits)
	} else {
		slot.leaf = slot.leaf.without(key)
	}
	if slot.node != nil || slot.leaf != nil {
		c := n.copy()
		c.slots[at] = slot
		return c
	}
	if len(n.slots) == 1 {
		return nil
	}
	slots := make([]trieSlot[K, V], len(n.slots)-1)
	copy(slots, n.slots[:at])
	copy(slots[at:], n.slots[at+1:])
	return &trieNode[K, V]{n.used &^ bit, slots}
}

// changedSince gives the values that were set since an earlier map, and perhaps more: all that the two do not share.
func (t trie[K, V]) changedSince(earlier trie[K, V]) iter.Seq[V] {
	return func(yield func(V) bool) {
		if t.root != nil && t.root != earlier.root {
			t.root.changedSince(earlier.root, yield)
		}
	}
}

// changedSince is that of a node. earlier is nil where there was none.
func (n *trieNode[K, V]) changedSince(earlier *trieNode[K, V], yield func(V) bool) bool {
	at := 0
	for used := n.used; used != 0; used &= used - 1 {
		slot, was := n.slots[at], trieSlot[K, V]{}
		at++
		if bit := used & -used; earlier != nil && earlier.used&bit != 0 {
			was = earlier.slots[bits.OnesCount64(earlier.used&(bit-1))]
		}
		if slot == was {
			continue
		}
		if slot.node != nil && !slot.node.changedSince(was.node, yield) {
			return false
		}
		for l := slot.leaf; l != nil; l = l.next {
			if !yield(l.value) {
				return false
			}
		}
	}
	return true
}

func (n *trieNode[K, V]) copy() *trieNode[K, V] {
	slots := make([]trieSlot[K, V], len(n.slots))
	copy(slots, n.slots)
	return &trieNode[K, V]{n.used, slots}
}

// without returns the chain without the key, sharing nothing that it changes.
func (l *trieLeaf[K, V]) without(key K) *trieLeaf[K, V] {
	if l == nil {
		return nil
	}
	if l.key == key {
		return l.next
	}
	c := *l
	c.next = l.next.without(key)
	return &c
}

func (l *trieLeaf[K, V]) length() (n int) {
	for ; l != nil; l = l.next {
		n++
	}
	return n
}
