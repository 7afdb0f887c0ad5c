package hsm

import "context"

// Verdict is how a check went.
type Verdict string

const (
	OK       Verdict = "ok"
	Degraded Verdict = "degraded" // the daemon does without
	Missing  Verdict = "missing"  // the daemon cannot do without
)

// Check is one thing that was tried, in the words of whoever reads it: the same before there is a
// daemon and by one that runs.
type Check struct {
	Name    string  `json:"name"` // stable
	Verdict Verdict `json:"status"`
	Meaning string  `json:"meaning"` // for the user, in one sentence
	Action  string  `json:"action"`  // what to do; empty: nothing
}

// Passed, Lacking and Failed make checks of the three verdicts.

func Passed(name, meaning string) Check          { return Check{name, OK, meaning, ""} }
func Lacking(name, meaning, action string) Check { return Check{name, Degraded, meaning, action} }
func Failed(name, meaning, action string) Check  { return Check{name, Missing, meaning, action} }

// Examiner tries what a token can do.
type Examiner interface {
	// Examine tries what the daemon needs of the token, with keys of its own that are gone when
	// it returns. What the token cannot do is a check that says so; an error means that it could
	// not be asked.
	Examine(ctx context.Context) ([]Check, error)
}
