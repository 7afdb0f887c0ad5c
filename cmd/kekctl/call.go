package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/kekd/kekd/hierarchy"
	"github.com/kekd/kekd/unix-socket-api/kekdv1"
)

// useKeys calls the daemon for data keys. Nothing there changes the hierarchy, so that a lost answer is
// a local fault: ask again.
func useKeys[T any](a *app, cmd *cobra.Command, call func(context.Context, kekdv1.KeyServiceClient) (T, error)) (T, error) {
	return exchange(a, cmd, a.connectKeys, call)
}

// read asks the daemon about the hierarchy.
func read[T any](a *app, cmd *cobra.Command, call func(context.Context, kekdv1.AdminServiceClient) (T, error)) (T, error) {
	return exchange(a, cmd, a.connectAdmin, call)
}

// exchange makes one call on a connection of its own. What the daemon or the connection is to blame for
// is a *fault.
func exchange[C, T any](a *app, cmd *cobra.Command, connect func(context.Context) (C, io.Closer, error), call func(context.Context, C) (T, error)) (T, error) {
	var zero T
	ctx, cancel := context.WithTimeout(cmd.Context(), a.timeout)
	defer cancel()
	c, conn, err := connect(ctx)
	if err != nil {
		return zero, err
	}
	defer conn.Close()
	v, err := call(ctx, c)
	if err != nil {
		return zero, a.callFault(err)
	}
	return v, nil
}

const idempotencyFlag = "idempotency-id"

// changing marks a command that changes the hierarchy.
func changing(cmd *cobra.Command) *cobra.Command {
	cmd.Flags().String(idempotencyFlag, "", "the `HEX` ID of an earlier try, so that nothing is done twice (default: a new one)")
	return cmd
}

// change makes a change under an idempotency ID. If its outcome is not known, or it is not complete, the
// error says with which command to ask again.
func change[T any](a *app, cmd *cobra.Command, call func(ctx context.Context, c kekdv1.AdminServiceClient, id []byte) (T, error)) (T, error) {
	id := hierarchy.NewID()
	again := func() string { return a.commandLine("--" + idempotencyFlag + "=" + id.String()) }
	if text, _ := cmd.Flags().GetString(idempotencyFlag); text != "" {
		var err error
		if id, err = hierarchy.ParseID(text); err != nil {
			var zero T
			return zero, usagef(cmd, "--%s: %v", idempotencyFlag, err)
		}
		again = func() string { return a.commandLine() }
	}
	v, err := exchange(a, cmd, a.connectAdmin, func(ctx context.Context, c kekdv1.AdminServiceClient) (T, error) { return call(ctx, c, id[:]) })
	f, ok := errors.AsType[*fault](err)
	if !ok {
		return v, err
	}
	if f.uncertain {
		f = &fault{exit: exitPending, code: codeOutcomeUnknown, message: fmt.Sprintf("%s: the change may have taken effect (idempotency ID %s)", f.message, id)}
	}
	if f.exit == exitPending {
		f.id = id.String()
		f.hint = strings.TrimPrefix(f.hint+"; ", "; ") + "ask again with: " + again()
	}
	return v, f
}

// commandLine is what was typed, with more flags, for a shell.
func (a *app) commandLine(flags ...string) string {
	// What comes after a lone -- is no flag any more.
	end := slices.Index(a.args, "--")
	if end < 0 {
		end = len(a.args)
	}
	words := []string{"kekctl"}
	for _, word := range slices.Insert(slices.Clone(a.args), end, flags...) {
		words = append(words, shellQuote(word))
	}
	return strings.Join(words, " ")
}

// shellQuote is for POSIX shells.
func shellQuote(s string) string {
	plain := func(r rune) bool {
		return r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("-_./=:@,+%", r)
	}
	if s != "" && strings.IndexFunc(s, func(r rune) bool { return !plain(r) }) < 0 {
		return s
	}
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}
