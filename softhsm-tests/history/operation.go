package history

import (
	"fmt"
	"math"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kekd/kekd/hierarchy"
)

// Kind is what was asked for.
type Kind string

// Commands, then what reads, then uses.
const (
	Create  Kind = "create" // a tenant, which is enabled
	Disable Kind = "disable"
	Enable  Kind = "enable"
	Set     Kind = "set"    // the tenant's value
	Allow   Kind = "allow"  // a rule for its key
	Revoke  Kind = "revoke" // that rule
	Read    Kind = "read"
	Wrap    Kind = "wrap"
	Unwrap  Kind = "unwrap"
)

var kinds = map[Kind]class{
	Create: command, Disable: command, Enable: command, Set: command, Allow: command, Revoke: command,
	Read: read, Wrap: use, Unwrap: use,
}

type class int

const (
	command class = iota + 1
	read
	use
)

// Outcome is what the caller knows in the end.
type Outcome string

const (
	// OK: it took effect, or was answered.
	OK Outcome = "ok"
	// Refused: it did not, and will not, take effect.
	Refused Outcome = "refused"
	// Unknown: it may have taken effect, or may do so yet.
	Unknown Outcome = "unknown"
)

// Operation is one thing that one client asked for, all its retries under one idempotency ID included.
type Operation struct {
	Client  int     `json:"client"`
	Node    string  `json:"node,omitempty"` // the one that answered last
	Run     int     `json:"run,omitempty"`  // which run of the node's process that was
	Kind    Kind    `json:"kind"`
	Tenant  string  `json:"tenant"`
	Value   uint64  `json:"value,omitempty"` // of Set; each must be another, and none 0
	ID      string  `json:"id,omitempty"`    // the idempotency ID
	Tries   int     `json:"tries,omitempty"`
	Call    int64   `json:"call"`             // CLOCK_MONOTONIC, nanoseconds
	Return  int64   `json:"return,omitempty"` // 0: nothing was ever heard
	Outcome Outcome `json:"outcome"`
	Code    string  `json:"code,omitempty"`  // of the refusal, or of what left the outcome unknown
	Index   uint64  `json:"index,omitempty"` // of the command, or that a read is of; 0: not known
	Fresh   bool    `json:"fresh,omitempty"` // of a read: the node was known to have caught up
	Seen    *Seen   `json:"seen,omitempty"`  // what a read showed
}

// Seen is what a read showed of a tenant that exists.
type Seen struct {
	State   string `json:"state"`
	Value   uint64 `json:"value"`
	Allowed *bool  `json:"allowed,omitempty"` // absent: not looked at
}

// Now is the time that operations are recorded in, which is one for all processes of a machine and is
// never set.
func Now() int64 {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts); err != nil {
		panic(err) // there is no Linux without it
	}
	return ts.Nano()
}

// maxTime leaves room to count on from it: 146 years.
const maxTime = math.MaxInt64 / 2

func (o Operation) class() class { return kinds[o.Kind] }

// check refuses what no recorder writes.
func (o Operation) check() error {
	switch {
	case kinds[o.Kind] == 0:
		return fmt.Errorf("there is no kind %q", o.Kind)
	case hierarchy.ValidateName(o.Tenant) != nil:
		return fmt.Errorf("%q is no tenant's name", o.Tenant)
	case o.Outcome != OK && o.Outcome != Refused && o.Outcome != Unknown:
		return fmt.Errorf("there is no outcome %q", o.Outcome)
	case o.Outcome != Unknown && o.Return == 0:
		return fmt.Errorf("%s is %s and has no return", o.Kind, o.Outcome)
	case o.Call < 0 || o.Call > maxTime || o.Return > maxTime || o.Return != 0 && o.Return < o.Call:
		return fmt.Errorf("%s returns before it is called, or has a time that no clock shows", o.Kind)
	case o.Kind == Set && o.Value == 0:
		return fmt.Errorf("set of no value")
	case o.Kind == Read && o.Outcome == OK && (o.Seen == nil || o.Index == 0):
		return fmt.Errorf("a read without what it showed, or without its index")
	}
	return nil
}

// String is for people. Times are as in the file.
func (o Operation) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s %s", o.Kind, o.Tenant)
	if o.Kind == Set {
		fmt.Fprintf(&b, " to %d", o.Value)
	}
	fmt.Fprintf(&b, " by client %d", o.Client)
	if o.Node != "" {
		fmt.Fprintf(&b, " at %s (run %d)", o.Node, o.Run)
	}
	fmt.Fprintf(&b, ", called at %s", clock(o.Call))
	switch {
	case o.Return == 0:
		b.WriteString(", never answered")
	default:
		fmt.Fprintf(&b, ", returned at %s", clock(o.Return))
	}
	fmt.Fprintf(&b, ": %s", o.Outcome)
	if o.Code != "" {
		fmt.Fprintf(&b, " (%s)", o.Code)
	}
	if o.Index != 0 {
		fmt.Fprintf(&b, ", index %d", o.Index)
	}
	if o.Seen != nil {
		fmt.Fprintf(&b, ", showing %s, value %d", o.Seen.State, o.Seen.Value)
		if o.Seen.Allowed != nil {
			fmt.Fprintf(&b, ", %s", allowedWord(*o.Seen.Allowed))
		}
	}
	return b.String()
}

// byState tells whether the replicated state has refused a command, which holds for the time of the call.
func (o Operation) byState() bool {
	return o.Outcome == Refused && (o.Kind == Create && o.Code == codeExists || o.Kind == Revoke && o.Code == codeNotFound)
}

// byCopy tells whether an answer that there is no such tenant comes from the node's own copy: that of a
// read, and that of a command which was none yet.
func (o Operation) byCopy() bool {
	return o.Outcome == Refused && o.Code == codeNotFound && o.class() != use && !o.byState()
}

func clock(ns int64) string { return time.Duration(ns).String() }

func allowedWord(allowed bool) string {
	if allowed {
		return "allowed"
	}
	return "not allowed"
}
