package policy

import (
	"fmt"
	"strings"
	"unicode/utf8"

	"github.com/kekd/kekd/hierarchy"
)

// tenantPlaceholder stands in a required value for the tenant's name. A service that serves
// every tenant is so held to say for which one it asks.
const tenantPlaceholder = "{tenant}"

// ParseRequirement reads KEY=VALUE, or KEY alone, which any value satisfies.
func ParseRequirement(s string) (Requirement, error) {
	key, value, hasValue := strings.Cut(s, "=")
	q := Requirement{Key: key, AnyValue: !hasValue, Value: value}
	if err := q.validate(); err != nil {
		return Requirement{}, err
	}
	return q, nil
}

// String is the text that [ParseRequirement] reads.
func (q Requirement) String() string {
	if q.AnyValue {
		return q.Key
	}
	return q.Key + "=" + q.Value
}

func (q Requirement) validate() error {
	switch {
	case q.Key == "":
		return fmt.Errorf("%w: a required context entry is written KEY=VALUE, or KEY for any value", hierarchy.ErrInvalidArgument)
	case len(q.Key) > hierarchy.MaxContextKeyLen:
		return fmt.Errorf("%w: a required context key has %d bytes, at most %d are allowed", hierarchy.ErrInvalidArgument, len(q.Key), hierarchy.MaxContextKeyLen)
	case len(q.Value) > hierarchy.MaxContextValueLen:
		return fmt.Errorf("%w: the required context value of %q has %d bytes, at most %d are allowed", hierarchy.ErrInvalidArgument, q.Key, len(q.Value), hierarchy.MaxContextValueLen)
	case !utf8.ValidString(q.Key) || !utf8.ValidString(q.Value):
		return fmt.Errorf("%w: a required context entry is not UTF-8", hierarchy.ErrInvalidArgument)
	case strings.Contains(q.Key, "="):
		// It would read back as another key.
		return fmt.Errorf("%w: required context key %q contains '='", hierarchy.ErrInvalidArgument, q.Key)
	case q.AnyValue && q.Value != "":
		return fmt.Errorf("%w: required context entry %q asks for any value and for %q", hierarchy.ErrInvalidArgument, q.Key, q.Value)
	case strings.ContainsAny(strings.ReplaceAll(q.Value, tenantPlaceholder, ""), "{}"):
		// A misspelt placeholder would deny for ever, and a later one could not be told from text.
		return fmt.Errorf("%w: required context entry %q: braces are for %s only", hierarchy.ErrInvalidArgument, q, tenantPlaceholder)
	}
	return nil
}

// accepts tells whether the value of a context entry satisfies the requirement. It compares
// piece by piece, because building the expected value would allocate on every request.
func (q Requirement) accepts(value, tenant string) bool {
	if q.AnyValue {
		return true
	}
	want := q.Value
	for {
		literal, rest, found := strings.Cut(want, tenantPlaceholder)
		if !found {
			return value == want
		}
		var ok bool
		if value, ok = strings.CutPrefix(value, literal); !ok {
			return false
		}
		if value, ok = strings.CutPrefix(value, tenant); !ok {
			return false
		}
		want = rest
	}
}
