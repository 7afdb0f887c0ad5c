package approval

import (
	"encoding/base64"
	"fmt"
	"slices"
	"strings"

	"github.com/kekd/kekd/hierarchy"
)

// Bounds of a roster.
const (
	MaxOperators       = 64
	MaxKeysPerOperator = 8
)

// maxFile bounds a file of operators, in bytes: all of them with all their keys have less.
const maxFile = 2 << 20

// Operator is a person who signs. Two keys are of one operator if they have one name.
type Operator struct {
	Name string
	Keys []Key // sorted by their bytes; one or more
}

// ParseOperators reads a file in the format of authorized_keys: on each line the type of a key, the key in base64
// and the name of the operator whose key it is. Empty lines and those that begin with # are skipped. Options,
// certificates, weak keys, a key that stands there twice and names that are none are
// [hierarchy.ErrInvalidArgument], with the line and the field.
//
// The operators are sorted by name.
func ParseOperators(file []byte) ([]Operator, error) {
	if len(file) > maxFile {
		return nil, fmt.Errorf("%w: a file of operators has %d bytes, at most %d are allowed", hierarchy.ErrInvalidArgument, len(file), maxFile)
	}
	var operators []Operator
	whose := make(map[string]int) // the line that has a key
	n := 0
	for line := range strings.Lines(string(file)) {
		n++
		fields := strings.FieldsFunc(line, func(r rune) bool { return strings.ContainsRune(" \t\r\n", r) })
		if len(fields) == 0 || line[0] == '#' {
			continue
		}
		name, key, err := parseLine(fields)
		if err != nil {
			return nil, fmt.Errorf("line %d: %w", n, err)
		}
		if first, ok := whose[key.wire]; ok {
			return nil, fmt.Errorf("line %d: %w: public key: it stands in line %d already", n, hierarchy.ErrInvalidArgument, first)
		}
		whose[key.wire] = n
		i := slices.IndexFunc(operators, func(o Operator) bool { return o.Name == name })
		if i < 0 {
			i = len(operators)
			operators = append(operators, Operator{Name: name})
		}
		operators[i].Keys = append(operators[i].Keys, key)
	}
	for i := range operators {
		slices.SortFunc(operators[i].Keys, func(a, b Key) int { return strings.Compare(a.wire, b.wire) })
	}
	slices.SortFunc(operators, func(a, b Operator) int { return strings.Compare(a.Name, b.Name) })
	return operators, CheckOperators(operators)
}

// CheckOperators tells whether operators can be a roster: sorted by name, each with a name and with sorted keys
// that nobody else has, and no more than there may be.
func CheckOperators(operators []Operator) error {
	bad := func(format string, args ...any) error {
		return fmt.Errorf("%w: operators: %s", hierarchy.ErrInvalidArgument, fmt.Sprintf(format, args...))
	}
	if len(operators) == 0 || len(operators) > MaxOperators {
		return bad("there are %d, it must be 1 to %d", len(operators), MaxOperators)
	}
	whose := make(map[string]string)
	for i, o := range operators {
		if err := hierarchy.ValidateName(o.Name); err != nil {
			return fmt.Errorf("operator: %w", err)
		}
		if i > 0 && operators[i-1].Name >= o.Name {
			return bad("%s does not stand before %s by name", operators[i-1].Name, o.Name)
		}
		if len(o.Keys) == 0 || len(o.Keys) > MaxKeysPerOperator {
			return bad("%s has %d keys, it must be 1 to %d", o.Name, len(o.Keys), MaxKeysPerOperator)
		}
		for j, k := range o.Keys {
			if other, ok := whose[k.wire]; ok {
				return bad("%s and %s have the key %s", other, o.Name, k.Fingerprint())
			}
			whose[k.wire] = o.Name
			if j > 0 && o.Keys[j-1].wire >= k.wire {
				return bad("the keys of %s are not sorted", o.Name)
			}
		}
	}
	return nil
}

// parseLine reads a line that is neither empty nor a comment.
func parseLine(fields []string) (string, Key, error) {
	kind := fields[0]
	if _, known := types[kind]; !known {
		// Options come first, and may have spaces in quotes: only a key's type tells that there are none.
		if slices.ContainsFunc(fields[1:], func(f string) bool { return checkType(f) == nil || strings.Contains(f, "-cert-") }) {
			return "", Key{}, fmt.Errorf("%w: options: %q: an operator's key has none", hierarchy.ErrInvalidArgument, kind)
		}
		return "", Key{}, checkType(kind)
	}
	if len(fields) < 2 {
		return "", Key{}, fmt.Errorf("%w: public key: it is missing after %s", hierarchy.ErrInvalidArgument, kind)
	}
	wire, err := base64.StdEncoding.Strict().DecodeString(fields[1])
	if err != nil {
		return "", Key{}, fmt.Errorf("%w: public key: it is not base64", hierarchy.ErrInvalidArgument)
	}
	key, err := ParseKey(wire)
	if err != nil {
		return "", Key{}, err
	}
	if key.Type() != kind {
		return "", Key{}, fmt.Errorf("%w: type: it says %s, the key is of type %s", hierarchy.ErrInvalidArgument, kind, key.Type())
	}
	if len(fields) != 3 {
		return "", Key{}, fmt.Errorf("%w: comment: it is the operator's name, one word: it has %d", hierarchy.ErrInvalidArgument, len(fields)-2)
	}
	if err := hierarchy.ValidateName(fields[2]); err != nil {
		return "", Key{}, fmt.Errorf("comment: it is the operator's name: %w", err)
	}
	return fields[2], key, nil
}
