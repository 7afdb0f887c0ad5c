package hierarchy

import (
	"fmt"
	"strings"
)

// Op is what a service asks of a key.
type Op uint8

const (
	OpWrap    Op = 1 << iota // seal the caller's data key
	OpUnwrap                 // open an envelope and hand the data key out
	OpDataKey                // make a data key in the token and seal it
	OpRewrap                 // open and seal again under the active version; the data key stays inside
)

// AllOps in the order in which they are written.
var AllOps = []Op{OpWrap, OpUnwrap, OpDataKey, OpRewrap}

func (o Op) String() string {
	switch o {
	case OpWrap:
		return "wrap"
	case OpUnwrap:
		return "unwrap"
	case OpDataKey:
		return "datakey"
	case OpRewrap:
		return "rewrap"
	}
	return fmt.Sprintf("op(%d)", uint8(o))
}

// ParseOp reads one operation's name.
func ParseOp(s string) (Op, error) {
	for _, o := range AllOps {
		if o.String() == s {
			return o, nil
		}
	}
	return 0, fmt.Errorf("%w: operation %q: use wrap, unwrap, datakey or rewrap", ErrInvalidArgument, s)
}

// Ops is a set of operations.
type Ops uint8

// Has tells whether every operation of o is in the set.
func (s Ops) Has(o Op) bool { return s&Ops(o) == Ops(o) && o != 0 }

func (s Ops) String() string {
	var names []string
	for _, o := range AllOps {
		if s.Has(o) {
			names = append(names, o.String())
		}
	}
	return strings.Join(names, ",")
}

// ParseOps reads a list such as wrap,unwrap. An empty list is an error.
func ParseOps(list string) (Ops, error) {
	var set Ops
	for name := range strings.SplitSeq(list, ",") {
		o, err := ParseOp(name)
		if err != nil {
			return 0, err
		}
		set |= Ops(o)
	}
	return set, nil
}
