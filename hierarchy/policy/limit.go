package policy

import (
	"cmp"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/kekd/kekd/hierarchy"
)

// MaxLimit is the largest count of a [Limit]: what is allowed more often needs no limit, and a
// count of uses fits into 32 bits.
const MaxLimit = 1_000_000_000

// Lengths of the windows that a limit may have. The short ones are counted by each node for
// itself, the long ones over all nodes together.
const (
	Second = time.Second
	Minute = time.Minute
	Hour   = time.Hour
	Day    = 24 * time.Hour
)

// Limit allows so many operations in each window of a length. Windows are fixed: they begin at
// multiples of their length since 1970 in cluster time, so that a day is one of UTC.
//
// The zero value is no limit.
type Limit struct {
	Count uint64        // 1 to MaxLimit
	Per   time.Duration // Second, Minute, Hour or Day
}

// Limits are at most one limit of each kind. They count each tenant for itself.
type Limits struct {
	Short Limit // per Second or Minute, on each node
	Long  Limit // per Hour or Day, over all nodes
}

// units are the letters that lengths are written with.
var units = []struct {
	letter string
	per    time.Duration
}{{"s", Second}, {"m", Minute}, {"h", Hour}, {"d", Day}}

// ParseLimit reads COUNT/UNIT, as in 100/s, 5000/m, 2000/h or 10000/d.
func ParseLimit(s string) (Limit, error) {
	count, unit, _ := strings.Cut(s, "/")
	for _, u := range units {
		if u.letter != unit {
			continue
		}
		n, err := strconv.ParseUint(count, 10, 64)
		if err != nil || strconv.FormatUint(n, 10) != count {
			break
		}
		l := Limit{n, u.per}
		return l, l.validate()
	}
	return Limit{}, fmt.Errorf("%w: limit %q: write COUNT/UNIT, as in 100/s, 5000/m, 2000/h or 10000/d", hierarchy.ErrInvalidArgument, s)
}

// String is the text that [ParseLimit] reads; empty for no limit.
func (l Limit) String() string {
	if l == (Limit{}) {
		return ""
	}
	for _, u := range units {
		if u.per == l.Per {
			return strconv.FormatUint(l.Count, 10) + "/" + u.letter
		}
	}
	return fmt.Sprintf("%d/%v", l.Count, l.Per)
}

// Short tells whether each node counts for itself.
func (l Limit) Short() bool { return l.Per <= Minute }

// Window is the beginning of the window that a time is in.
func (l Limit) Window(t time.Time) time.Time { return WindowOf(t, l.Per) }

// WindowOf is the beginning of the window of a length that a time is in.
func WindowOf(t time.Time, per time.Duration) time.Time {
	n := t.UnixNano()
	into := n % int64(per)
	if into < 0 {
		into += int64(per)
	}
	return time.Unix(0, n-into).UTC()
}

func (l Limit) validate() error {
	switch l.Per {
	case Second, Minute, Hour, Day:
	default:
		return fmt.Errorf("%w: a limit per %v: it is per second, minute, hour or day", hierarchy.ErrInvalidArgument, l.Per)
	}
	if l.Count == 0 {
		return fmt.Errorf("%w: limit %s: it would allow nothing; take the rule back, or disable the tenant", hierarchy.ErrInvalidArgument, l)
	}
	if l.Count > MaxLimit {
		return fmt.Errorf("%w: limit %s: at most %d are counted", hierarchy.ErrInvalidArgument, l, MaxLimit)
	}
	return nil
}

// NewLimits takes limits in any order: at most one with a short window, and one with a long one.
func NewLimits(list ...Limit) (Limits, error) {
	var ls Limits
	for _, l := range list {
		if err := l.validate(); err != nil {
			return Limits{}, err
		}
		slot, kind := &ls.Long, "long window, h or d"
		if l.Short() {
			slot, kind = &ls.Short, "short window, s or m"
		}
		if *slot != (Limit{}) {
			return Limits{}, fmt.Errorf("%w: limits %s and %s: give at most one with a %s", hierarchy.ErrInvalidArgument, *slot, l, kind)
		}
		*slot = l
	}
	return ls, nil
}

// ParseLimits reads each of them with [ParseLimit].
func ParseLimits(texts []string) (Limits, error) {
	var list []Limit
	for _, s := range texts {
		l, err := ParseLimit(s)
		if err != nil {
			return Limits{}, err
		}
		list = append(list, l)
	}
	return NewLimits(list...)
}

// None tells that nothing is limited.
func (ls Limits) None() bool { return ls == Limits{} }

// List is the limits that there are, the short one first.
func (ls Limits) List() []Limit {
	var list []Limit
	for _, l := range [...]Limit{ls.Short, ls.Long} {
		if l != (Limit{}) {
			list = append(list, l)
		}
	}
	return list
}

// String has spaces between them, and is "none" if there are none.
func (ls Limits) String() string {
	var texts []string
	for _, l := range ls.List() {
		texts = append(texts, l.String())
	}
	return cmp.Or(strings.Join(texts, " "), "none")
}

func (ls Limits) validate() error {
	for _, l := range [...]struct {
		Limit
		short bool
	}{{ls.Short, true}, {ls.Long, false}} {
		if l.Limit == (Limit{}) {
			continue
		}
		if err := l.validate(); err != nil {
			return err
		}
		if l.Limit.Short() != l.short {
			return fmt.Errorf("%w: limit %s stands where one of the other kind has to", hierarchy.ErrInvalidArgument, l.Limit)
		}
	}
	return nil
}
