package custody

import "github.com/kekd/kekd/hierarchy"

// Counting is what is done for statistics with a batch of n unwraps.
func Counting(n int) func() {
	t, items := newTally(), make([]item, n)
	for i := range items {
		items[i].op = hierarchy.OpUnwrap
	}
	return func() { t.count(items) }
}
