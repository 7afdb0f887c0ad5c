package main

import (
	"github.com/spf13/cobra"

	"github.com/kekd/kekd/hierarchy"
	"github.com/kekd/kekd/unix-socket-api/kekdv1"
)

// contextFlag is the encryption context of a command, given entry by entry.
type contextFlag struct{ entries []string }

func (c *contextFlag) add(cmd *cobra.Command) {
	// An array and not a slice: a value may have commas.
	cmd.Flags().StringArrayVar(&c.entries, "context", nil, "entry `KEY=VALUE` of the encryption context; may be repeated")
}

// parse checks the whole, so that a key given twice is found before anything is sent.
func (c *contextFlag) parse() ([]*kekdv1.ContextEntry, error) {
	entries := make([]hierarchy.ContextEntry, 0, len(c.entries))
	for _, text := range c.entries {
		e, err := hierarchy.ParseContextEntry(text)
		if err != nil {
			return nil, err
		}
		entries = append(entries, e)
	}
	checked, err := hierarchy.NewContext(entries...)
	if err != nil {
		return nil, err
	}
	out := make([]*kekdv1.ContextEntry, 0, len(checked))
	for _, e := range checked {
		out = append(out, &kekdv1.ContextEntry{Key: e.Key, Value: e.Value})
	}
	return out, nil
}
