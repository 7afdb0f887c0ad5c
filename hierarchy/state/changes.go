package state

import "iter"

// ChangedSince gives the keys that an earlier state has not, or has otherwise, and all keys of such tenants; some may
// come twice, and some that did not change. What the states share is not looked at, so it costs what was changed and
// not what there is. A key that the earlier state alone has is not among them: the hierarchy forgets none.
func (s *State) ChangedSince(earlier *State) iter.Seq[*Key] {
	return func(yield func(*Key) bool) {
		for k := range s.keyByID.changedSince(earlier.keyByID) {
			if !yield(k) {
				return
			}
		}
		for t := range s.tenantByID.changedSince(earlier.tenantByID) {
			for k := range s.Keys(t.ID) {
				if !yield(k) {
					return
				}
			}
		}
	}
}
