package main

import (
	"context"
	"encoding/base64"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/kekd/kekd/hierarchy"
	"github.com/kekd/kekd/unix-socket-api/kekdv1"
)

type dataKeyOut struct {
	Envelope   string `json:"envelope"`
	Plaintext  []byte `json:"plaintext,omitempty"` // absent with --wrapped-only
	Key        string `json:"key"`
	KeyVersion uint32 `json:"key_version"`
}

const defaultDataKey = 32 // bytes: AES-256

func (a *app) dataKeyCommand() *cobra.Command {
	var (
		size        uint32
		wrappedOnly bool
		reason      string
		ec          contextFlag
	)
	cmd := &cobra.Command{
		Use:   "datakey TENANT/KEY",
		Short: "Make a data key in the HSM: its plaintext to encrypt with, its envelope to keep",
		Example: `  kekctl datakey acme/orders --context app=billing -o json
  kekctl datakey acme/orders --wrapped-only > later.envelope`,
		Args:              arguments("TENANT/KEY"),
		ValidArgsFunction: a.completeKey,
	}
	cmd.Flags().Uint32Var(&size, "bytes", defaultDataKey, "`LENGTH` of the data key, 16 to 4096")
	cmd.Flags().BoolVar(&wrappedOnly, "wrapped-only", false, "give the envelope only; nobody sees the data key yet")
	reasonFlag(cmd, &reason)
	ec.add(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if _, err := hierarchy.ParseKeyName(args[0]); err != nil {
			return err
		}
		if size == 0 {
			return usagef(cmd, "--bytes has to be 16 to 4096")
		}
		entries, err := ec.parse()
		if err != nil {
			return err
		}
		r, err := useKeys(a, cmd, func(ctx context.Context, c kekdv1.KeyServiceClient) (*kekdv1.GenerateDataKeyResponse, error) {
			return c.GenerateDataKey(ctx, &kekdv1.GenerateDataKeyRequest{Key: args[0], Bytes: size, WrappedOnly: wrappedOnly, Context: entries, Reason: reason})
		})
		if err != nil {
			return err
		}
		defer clear(r.Plaintext)
		// Whoever encrypts with a data key that is short, or that the envelope does not hold, has lost
		// what he encrypted.
		want := int(size)
		if wrappedOnly {
			want = 0
		}
		if len(r.Plaintext) != want {
			return badAnswer("a data key of %d bytes was asked for, and %d came", want, len(r.Plaintext))
		}
		text, err := envelopeText(r.Envelope)
		if err != nil {
			return err
		}
		return a.print(dataKeyOut{text, r.Plaintext, r.Key, r.KeyVersion}, func(w io.Writer) {
			if wrappedOnly {
				fmt.Fprintln(w, text)
				return
			}
			row(w, "key", fmt.Sprintf("%s@%d", r.Key, r.KeyVersion))
			row(w, "plaintext", base64.StdEncoding.EncodeToString(r.Plaintext))
			row(w, "envelope", text)
		})
	}
	return cmd
}

func reasonFlag(cmd *cobra.Command, reason *string) {
	cmd.Flags().StringVar(reason, "reason", "", "`TEXT` for the audit, at most 256 bytes; a policy may require it")
}
