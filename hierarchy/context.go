package hierarchy

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"unicode/utf8"
)

// Limits of an encryption context. It is bound to every seal and kept by the caller, so it
// has to stay small enough to be written down beside each envelope.
const (
	MaxContextEntries  = 16
	MaxContextKeyLen   = 128  // bytes
	MaxContextValueLen = 1024 // bytes
)

// ContextEntry is one key-value pair of an encryption context. It is not secret.
type ContextEntry struct {
	Key   string
	Value string
}

// Context is an encryption context: sorted by key, without duplicates. Use [NewContext];
// the zero value is the empty context.
type Context []ContextEntry

// NewContext sorts and checks the entries. Order carries no meaning.
// A duplicate key, an empty key, text that is not UTF-8 and anything over the limits
// is [ErrInvalidArgument].
func NewContext(entries ...ContextEntry) (Context, error) {
	if len(entries) == 0 {
		return nil, nil
	}
	if len(entries) > MaxContextEntries {
		return nil, fmt.Errorf("%w: encryption context has %d entries, at most %d are allowed", ErrInvalidArgument, len(entries), MaxContextEntries)
	}
	c := slices.Clone(entries)
	slices.SortFunc(c, func(a, b ContextEntry) int { return cmp.Compare(a.Key, b.Key) })
	for i, e := range c {
		switch {
		case e.Key == "":
			return nil, fmt.Errorf("%w: encryption context has an empty key", ErrInvalidArgument)
		case len(e.Key) > MaxContextKeyLen:
			return nil, fmt.Errorf("%w: an encryption context key has %d bytes, at most %d are allowed", ErrInvalidArgument, len(e.Key), MaxContextKeyLen)
		case len(e.Value) > MaxContextValueLen:
			return nil, fmt.Errorf("%w: encryption context value of %q has %d bytes, at most %d are allowed", ErrInvalidArgument, e.Key, len(e.Value), MaxContextValueLen)
		case !utf8.ValidString(e.Key) || !utf8.ValidString(e.Value):
			return nil, fmt.Errorf("%w: encryption context is not UTF-8", ErrInvalidArgument)
		case i > 0 && c[i-1].Key == e.Key:
			return nil, fmt.Errorf("%w: encryption context has the key %q twice", ErrInvalidArgument, e.Key)
		}
	}
	return Context(c), nil
}

// Get finds a value by its key.
func (c Context) Get(key string) (string, bool) {
	for _, e := range c {
		if e.Key == key {
			return e.Value, true
		}
	}
	return "", false
}

// ParseContextEntry reads KEY=VALUE.
func ParseContextEntry(s string) (ContextEntry, error) {
	k, v, ok := strings.Cut(s, "=")
	if !ok || k == "" {
		return ContextEntry{}, fmt.Errorf("%w: %q: a context entry is written KEY=VALUE", ErrInvalidArgument, s)
	}
	return ContextEntry{k, v}, nil
}
