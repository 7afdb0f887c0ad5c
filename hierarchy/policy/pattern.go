package policy

import (
	"fmt"
	"strings"

	"github.com/kekd/kekd/hierarchy"
)

// Any stands in a pattern for every name of a segment. No name can contain it.
const Any = "*"

// Pattern names keys: acme/orders is one key, acme/* all keys of a tenant, */orders the key of
// that name of every tenant, */* every key. A segment is a whole name or [Any]; there are no
// prefixes, so that acme* cannot come to mean a tenant that is created later.
//
// The zero value names no key.
type Pattern struct {
	Tenant string
	Key    string
}

// ParsePattern reads TENANT/KEY, either of which may be *.
func ParsePattern(s string) (Pattern, error) {
	tenant, key, ok := strings.Cut(s, "/")
	if !ok {
		return Pattern{}, fmt.Errorf("%w: pattern %q: write TENANT/KEY, either of which may be *", hierarchy.ErrInvalidArgument, s)
	}
	p := Pattern{tenant, key}
	if err := p.validate(); err != nil {
		return Pattern{}, err
	}
	return p, nil
}

// String is the text that [ParsePattern] reads.
func (p Pattern) String() string { return p.Tenant + "/" + p.Key }

// Matches tells whether the pattern names the key.
func (p Pattern) Matches(key hierarchy.KeyName) bool {
	return (p.Tenant == Any || p.Tenant == key.Tenant) && (p.Key == Any || p.Key == key.Key) && p != Pattern{}
}

func (p Pattern) validate() error {
	for _, segment := range [...]struct{ what, name string }{{"tenant", p.Tenant}, {"key", p.Key}} {
		if segment.name == Any {
			continue
		}
		if strings.Contains(segment.name, Any) {
			return fmt.Errorf("%w: pattern %q: * stands for a whole name, not for a part of one", hierarchy.ErrInvalidArgument, p)
		}
		if err := hierarchy.ValidateName(segment.name); err != nil {
			return fmt.Errorf("%s in pattern %q: %w", segment.what, p, err)
		}
	}
	return nil
}

// breadth orders patterns from the most specific to the least.
func (p Pattern) breadth() int {
	switch {
	case p.Tenant != Any && p.Key != Any:
		return 0
	case p.Tenant != Any:
		return 1
	case p.Key != Any:
		return 2
	}
	return 3
}

// breadths is the number of values of [Pattern.breadth].
const breadths = 4

// covering returns the only pattern of a breadth that can match the key.
func covering(breadth int, key hierarchy.KeyName) Pattern {
	switch breadth {
	case 0:
		return Pattern{key.Tenant, key.Key}
	case 1:
		return Pattern{key.Tenant, Any}
	case 2:
		return Pattern{Any, key.Key}
	}
	return Pattern{Any, Any}
}
