package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/kekd/kekd/hierarchy"
	"github.com/kekd/kekd/hierarchy/envelope"
)

const (
	maxDataKey = envelope.MaxPlaintext // bytes
	// maxEnvelopeInput is three times the longest envelope in its text form. What is longer is not read to
	// its end.
	maxEnvelopeInput = 64 << 10
)

var errTooLong = errors.New("too long")

// readBounded reads all of r, which may be max bytes. The bytes do not move in memory while they are
// read, so that clearing them clears all there is.
func readBounded(r io.Reader, max int) ([]byte, error) {
	buf := make([]byte, max+1)
	n, err := io.ReadFull(r, buf)
	switch {
	case err == nil:
		clear(buf)
		return nil, errTooLong
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return buf[:n], nil
	}
	clear(buf)
	return nil, fmt.Errorf("cannot read standard input: %w", err)
}

// readDataKey reads the data key to wrap, as it is: a newline at its end belongs to it.
func (a *app) readDataKey(cmd *cobra.Command) ([]byte, error) {
	if isTerminal(a.stdin) {
		return nil, &fault{exit: exitLocal, code: codeUsage, message: "standard input is a terminal, and would show the data key", hint: "give it by a pipe or from a file, or have one made with 'kekctl datakey'"}
	}
	b, err := readBounded(a.stdin, maxDataKey)
	if errors.Is(err, errTooLong) {
		return nil, &fault{exit: exitLocal, code: codeUsage, message: fmt.Sprintf("standard input is longer than a data key, which has at most %d bytes", maxDataKey), hint: "wrap a data key, and encrypt the data with it"}
	}
	if err == nil && len(b) == 0 {
		return nil, usagef(cmd, "standard input is empty, and should hold the data key")
	}
	return b, err
}

// readEnvelope reads an envelope in either form; the daemon tells them apart. Around the text form it
// allows the white space that editors and shells add. The binary form is passed on as it is.
func (a *app) readEnvelope() ([]byte, error) {
	if isTerminal(a.stdin) {
		fmt.Fprintln(a.stderr, "kekctl: reading the envelope from the terminal; end it with Enter and Ctrl-D")
	}
	b, err := readBounded(a.stdin, maxEnvelopeInput)
	if errors.Is(err, errTooLong) {
		return nil, fmt.Errorf("%w: standard input is longer than any envelope", hierarchy.ErrEnvelopeInvalid)
	}
	if err != nil {
		return nil, err
	}
	if text := bytes.TrimSpace(b); bytes.HasPrefix(text, []byte(envelopePrefix)) || len(text) == 0 {
		b = text
	}
	if len(b) == 0 {
		return nil, fmt.Errorf("%w: standard input is empty", hierarchy.ErrEnvelopeInvalid)
	}
	return b, nil
}

// isTerminal tells whether a stream is a terminal.
func isTerminal(stream any) bool {
	f, ok := stream.(interface{ Fd() uintptr })
	return ok && term.IsTerminal(int(f.Fd()))
}
