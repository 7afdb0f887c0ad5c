package policy

// Set is the rules of one service, indexed. It is immutable and may be used by many at once.
// A nil Set has no rules.
type Set struct {
	size      int
	byPattern map[Pattern][]compiled
}

type compiled struct {
	rule *Rule
	why  string // the reason of a decision that allows, made once
}

// Compile indexes rules. The set keeps a copy of the slice, but not of what the rules point
// to: that is not to be changed any more.
func Compile(rules []Rule) *Set {
	s := &Set{size: len(rules), byPattern: make(map[Pattern][]compiled, len(rules))}
	for _, r := range rules {
		s.byPattern[r.Pattern] = append(s.byPattern[r.Pattern], compiled{&r, allowance(&r)})
	}
	return s
}

// Decide answers as the function [Decide] does for the rules of the set. It looks at the four
// patterns that can name the key, however many rules there are, and allocates only to deny.
func (s *Set) Decide(req Request) Decision {
	if s == nil {
		s = &Set{}
	}
	look := search{req: req}
	for breadth := range breadths {
		for _, c := range s.byPattern[covering(breadth, req.Key)] {
			if look.try(c.rule) {
				return Decision{Allowed: true, Rule: c.rule, Reason: c.why}
			}
		}
	}
	return look.denial(s.size)
}
