package history

import (
	"errors"
	"fmt"

	"github.com/kekd/kekd/hierarchy"
)

// tenant is what the commands up to some point make of one. Its zero value is the beginning.
type tenant struct {
	Exists  bool
	Enabled bool
	Value   uint64
	Allowed bool

	// Index is the last that was told.
	Index uint64
	// used counts, by kind, the commands of unknown outcome that took effect.
	used [len(unknownKinds)]int
	// ended: all that was answered has had its effect.
	ended bool
}

// unknownKinds are the commands of which one is as good as another while their outcomes are unknown. Those
// that set a value are told apart by it.
var unknownKinds = [...]Kind{Create, Disable, Enable, Allow, Revoke}

func (t tenant) String() string {
	if !t.Exists {
		return fmt.Sprintf("no tenant, %s, index %d", allowedWord(t.Allowed), t.Index)
	}
	return fmt.Sprintf("%s, value %d, %s, index %d", t.state(), t.Value, allowedWord(t.Allowed), t.Index)
}

func (t tenant) state() string {
	if t.Enabled {
		return hierarchy.TenantEnabled.String()
	}
	return hierarchy.TenantDisabled.String()
}

// step is the sequential rule: what an answer makes of the state, or why it cannot be the next one.
func (t tenant) step(p placed) (tenant, error) {
	switch {
	case p.end:
		t.ended = true
		return t, nil
	case p.Outcome == Unknown:
		return t.perhaps(p)
	}
	if p.Index != 0 {
		switch {
		case p.Index < t.Index || p.Index == t.Index && p.class() == command:
			return t, fmt.Errorf("it is of index %d, and what stands before it of %d", p.Index, t.Index)
		case t.Index < p.previous:
			return t, fmt.Errorf("it is of index %d, and %d has to stand before it", p.Index, p.previous)
		}
	}
	next, err := t, error(nil)
	if p.class() == read {
		err = t.shows(p.Operation)
	} else if next, err = t.apply(p.Operation); p.Outcome == Refused {
		if hierarchy.Code(err) != p.Code {
			return t, fmt.Errorf("it was refused with %s, and the state is: %v", p.Code, t)
		}
		return t, nil
	} else if err != nil {
		return t, fmt.Errorf("it was acknowledged, and could not be: %w", err)
	}
	if p.Index != 0 {
		next.Index = p.Index
	}
	return next, err
}

// perhaps is a command of unknown outcome that takes effect. Where it would change nothing, that may be
// left to the end, where all of them go that never took effect; and of several of one kind the oldest goes
// first, as each may stand wherever a younger one may. So the search has no two ways to the same end.
func (t tenant) perhaps(p placed) (tenant, error) {
	if t.ended {
		return t, nil
	}
	next, err := t.apply(p.Operation)
	switch {
	case err != nil:
		return t, fmt.Errorf("its outcome is unknown, and now it could not take effect: %w", err)
	case next == t:
		return t, errors.New("its outcome is unknown, and now it would change nothing")
	case p.Kind == Set:
		return next, nil
	}
	for i, k := range unknownKinds {
		if k != p.Kind {
			continue
		}
		if t.used[i] != p.older {
			return t, errors.New("its outcome is unknown, and an older one of its kind may take its place")
		}
		next.used[i]++
	}
	return next, nil
}

// apply is a command that is carried out.
func (t tenant) apply(o Operation) (tenant, error) {
	if o.Kind != Create && o.Kind != Allow && o.Kind != Revoke && !t.Exists {
		return t, hierarchy.ErrNotFound
	}
	switch o.Kind {
	case Create:
		if t.Exists {
			return t, hierarchy.ErrAlreadyExists
		}
		t.Exists, t.Enabled = true, true
	case Disable:
		t.Enabled = false
	case Enable:
		t.Enabled = true
	case Set:
		t.Value = o.Value
	case Allow:
		t.Allowed = true
	case Revoke:
		if !t.Allowed {
			return t, hierarchy.ErrNotFound
		}
		t.Allowed = false
	}
	return t, nil
}

func (t tenant) shows(o Operation) error {
	switch {
	case !t.Exists:
		return errors.New("it shows a tenant that is not there")
	case o.Seen.State != t.state() || o.Seen.Value != t.Value:
		return fmt.Errorf("it shows %s, value %d, and the state is: %v", o.Seen.State, o.Seen.Value, t)
	case o.Seen.Allowed != nil && *o.Seen.Allowed != t.Allowed:
		return fmt.Errorf("it shows %s, and the state is: %v", allowedWord(*o.Seen.Allowed), t)
	}
	return nil
}
