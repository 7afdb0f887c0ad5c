package history

import (
	"math"
	"slices"
)

// placed is an answer, with the time in which it must have had its effect and with what the search needs
// to know of the others.
type placed struct {
	Operation
	from, to int64
	previous uint64 // the largest index that must stand before this one
	older    int    // of an unknown outcome: how many of its kind and outcome were called before
	end      bool   // no answer: after it what is unknown has not taken effect
}

func (p placed) String() string {
	if p.end {
		return "the end of what was answered"
	}
	return p.Operation.String()
}

// place gives each answer of one tenant its time. The operations stand in the order of their calls.
//
// What is left out has nothing to say here: uses name no index, what was refused otherwise than by the
// state had no effect, and a value that nobody has seen may as well not have been set. Reads of one index are
// of one moment, and stand for each other: [oneState] has compared them.
func place(ops []Operation) []placed {
	var end int64
	var indexes []uint64
	seen := map[uint64]bool{}
	for _, o := range ops {
		end = max(end, o.Call, o.Return)
		if o.Outcome == OK && o.Index != 0 {
			indexes = append(indexes, o.Index)
		}
		if o.Seen != nil {
			seen[o.Seen.Value] = true
		}
	}
	slices.Sort(indexes)
	unknown := map[Kind]int{}
	reads := map[uint64]int{} // where the one of an index is
	all := []placed{{end: true, from: end + 1, to: end + 1}}
	for _, o := range ops {
		p := placed{Operation: o, from: o.Call, to: o.Return}
		switch {
		case o.class() == use || o.class() == read && o.Outcome != OK || o.Outcome == Refused && !o.byState():
			continue
		case o.Outcome == Unknown:
			if o.Kind == Set && !seen[o.Value] {
				continue
			}
			p.to, p.older = end+2, unknown[o.Kind]
			unknown[o.Kind]++
		case o.class() == read:
			p.from, p.to = whileNewest(ops, o)
			if o.Fresh {
				break
			}
			if i, others := reads[o.Index]; others {
				first := &all[i]
				first.from, first.to = min(first.from, p.from), min(first.to, p.to)
				if first.Seen.Allowed == nil {
					first.Seen = o.Seen
				}
				continue
			}
			reads[o.Index] = len(all)
		}
		if i, _ := slices.BinarySearch(indexes, o.Index); i > 0 {
			p.previous = indexes[i-1]
		}
		all = append(all, p)
	}
	return all
}

// whileNewest is when a read would have been made if its copy had been the newest: before the first
// return of anything of a later index. An answer of no known index that may be later gives it more room,
// unless the read is fresh, and has all that returned before.
func whileNewest(ops []Operation, r Operation) (from, to int64) {
	var began int64 // the last of what the read has
	before := int64(math.MaxInt64)
	for _, o := range ops {
		switch {
		case o.Outcome != OK || o.Index == 0:
		case o.Index > r.Index:
			before = min(before, o.Return)
		case o.class() == command:
			began = max(began, o.Call)
		}
	}
	from, to = min(r.Call, before), min(r.Return, before)
	for _, o := range ops {
		if !r.Fresh && o.class() == command && (o.Outcome == OK || o.byState()) && o.Index == 0 && o.Return >= began {
			from = min(from, o.Return)
		}
	}
	return from, to
}
