package main

import (
	"context"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/kekd/kekd/hierarchy"
	"github.com/kekd/kekd/unix-socket-api/kekdv1"
)

// sealedOut is what wrap and rewrap print.
type sealedOut struct {
	Envelope   string `json:"envelope"`
	Key        string `json:"key"`
	KeyVersion uint32 `json:"key_version"`
	// NeedsRewrap is false here by what these operations are: they seal under the active version. It
	// is said so that a script reads the same field of every envelope's answer.
	NeedsRewrap bool `json:"needs_rewrap"`
}

// openedOut is what unwrap prints.
type openedOut struct {
	Plaintext   []byte `json:"plaintext"`
	Key         string `json:"key"`
	KeyVersion  uint32 `json:"key_version"`
	NeedsRewrap bool   `json:"needs_rewrap"`
}

func (a *app) wrapCommand() *cobra.Command {
	var reason string
	var ec contextFlag
	cmd := &cobra.Command{
		Use:               "wrap TENANT/KEY",
		Short:             "Seal the data key on standard input",
		Example:           "  kekctl wrap acme/orders --context app=billing < data.key > data.envelope",
		Args:              arguments("TENANT/KEY"),
		ValidArgsFunction: a.completeKey,
	}
	reasonFlag(cmd, &reason)
	ec.add(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if _, err := hierarchy.ParseKeyName(args[0]); err != nil {
			return err
		}
		entries, err := ec.parse()
		if err != nil {
			return err
		}
		plaintext, err := a.readDataKey(cmd)
		if err != nil {
			return err
		}
		defer clear(plaintext)
		r, err := useKeys(a, cmd, func(ctx context.Context, c kekdv1.KeyServiceClient) (*kekdv1.WrapResponse, error) {
			return c.Wrap(ctx, &kekdv1.WrapRequest{Key: args[0], Plaintext: plaintext, Context: entries, Reason: reason})
		})
		if err != nil {
			return err
		}
		return a.printSealed(r.Envelope, r.Key, r.KeyVersion)
	}
	return cmd
}

func (a *app) unwrapCommand() *cobra.Command {
	var (
		reason     string
		toTerminal bool
		ec         contextFlag
	)
	cmd := &cobra.Command{
		Use:     "unwrap",
		Short:   "Open the envelope on standard input and write its data key to standard output",
		Example: "  kekctl unwrap --context app=billing < data.envelope > data.key",
		Args:    arguments(),
	}
	cmd.Flags().BoolVar(&toTerminal, "to-terminal", false, "write the data key even to a terminal")
	reasonFlag(cmd, &reason)
	ec.add(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if a.output != "json" && !toTerminal && isTerminal(a.stdout) {
			// Before the call: what nobody gets to see should not stand in the audit as unwrapped.
			return &fault{exit: exitLocal, code: codeUsage, message: "standard output is a terminal, and would show the data key", hint: "send it into a pipe or a file, use -o json, or insist with --to-terminal"}
		}
		entries, err := ec.parse()
		if err != nil {
			return err
		}
		sealed, err := a.readEnvelope()
		if err != nil {
			return err
		}
		r, err := useKeys(a, cmd, func(ctx context.Context, c kekdv1.KeyServiceClient) (*kekdv1.UnwrapResponse, error) {
			return c.Unwrap(ctx, &kekdv1.UnwrapRequest{Envelope: sealed, Context: entries, Reason: reason})
		})
		if err != nil {
			return err
		}
		defer clear(r.Plaintext)
		if len(r.Plaintext) == 0 {
			return badAnswer("the data key is empty")
		}
		if a.output != "json" {
			return a.write(r.Plaintext)
		}
		return a.print(openedOut{r.Plaintext, r.Key, r.KeyVersion, r.NeedsRewrap}, nil)
	}
	return cmd
}

func (a *app) rewrapCommand() *cobra.Command {
	var reason string
	var ec contextFlag
	cmd := &cobra.Command{
		Use:     "rewrap",
		Short:   "Seal the envelope on standard input again, under the key's active version",
		Example: "  kekctl rewrap --context app=billing < old.envelope > new.envelope",
		Args:    arguments(),
	}
	reasonFlag(cmd, &reason)
	ec.add(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		entries, err := ec.parse()
		if err != nil {
			return err
		}
		sealed, err := a.readEnvelope()
		if err != nil {
			return err
		}
		r, err := useKeys(a, cmd, func(ctx context.Context, c kekdv1.KeyServiceClient) (*kekdv1.RewrapResponse, error) {
			return c.Rewrap(ctx, &kekdv1.RewrapRequest{Envelope: sealed, Context: entries, Reason: reason})
		})
		if err != nil {
			return err
		}
		return a.printSealed(r.Envelope, r.Key, r.KeyVersion)
	}
	return cmd
}

func (a *app) printSealed(sealed []byte, key string, version uint32) error {
	text, err := envelopeText(sealed)
	if err != nil {
		return err
	}
	return a.print(sealedOut{Envelope: text, Key: key, KeyVersion: version}, func(w io.Writer) { fmt.Fprintln(w, text) })
}
