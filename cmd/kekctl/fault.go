package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/kekd/kekd/hierarchy"
)

// Exit statuses.
const (
	exitDone    = 0
	exitLocal   = 1 // used wrongly, or a fault on this side, or no daemon to talk to
	exitRefused = 2 // by the daemon
	exitPending = 3 // committed or unknown, and not complete
)

// Codes that kekctl gives itself; the others are the daemon's.
const (
	codeUsage          = "INVALID_ARGUMENT"
	codeLocal          = "LOCAL"
	codeBadAnswer      = "BAD_ANSWER"
	codeEnvelope       = "ENVELOPE_INVALID"
	codeAuditFault     = "AUDIT_FAULT"
	codeCheckMissing   = "CHECK_MISSING"
	codeOutcomeUnknown = "OUTCOME_UNKNOWN"
)

// fault is an error with all that is said about it.
type fault struct {
	exit    int
	code    string
	message string
	hint    string // what to do next; may be empty
	// retryAfter is how long to wait before it can succeed; 0: not known.
	retryAfter time.Duration

	// id is the idempotency ID of a change that is not known to be complete; empty: none.
	id string
	// uncertain tells that the daemon may have done what was asked for all the same.
	uncertain bool
}

func (f *fault) Error() string { return f.message }

// usagef is for a command line that was understood and makes no sense.
func usagef(cmd *cobra.Command, format string, args ...any) *fault {
	return &fault{exit: exitLocal, code: codeUsage, message: fmt.Sprintf(format, args...), hint: helpHint(cmd)}
}

func helpHint(cmd *cobra.Command) string {
	return fmt.Sprintf("see '%s --help'", cmd.CommandPath())
}

// badAnswer is for an answer that the daemon should never give. It is not passed on.
func badAnswer(format string, args ...any) *fault {
	return &fault{exit: exitLocal, code: codeBadAnswer, message: "the daemon's answer makes no sense: " + fmt.Sprintf(format, args...),
		hint: "kekctl and kekd may be of different versions: compare 'kekctl version' and 'kekctl status'"}
}

// fault says of any error which one it is.
func (a *app) fault(cmd *cobra.Command, err error) *fault {
	if f, ok := errors.AsType[*fault](err); ok {
		return f
	}
	f := &fault{exit: exitLocal, code: codeLocal, message: err.Error()}
	switch {
	case !a.started, errors.Is(err, hierarchy.ErrInvalidArgument):
		f.code, f.hint = codeUsage, helpHint(cmd)
	case errors.Is(err, hierarchy.ErrEnvelopeInvalid):
		f.code, f.hint = codeEnvelope, "give the envelope as kekd gave it, in binary or in its text form"
	}
	return f
}

// render writes the fault for people, or as one line of JSON.
func (f *fault) render(w io.Writer, asJSON bool) {
	if asJSON {
		retryAfter := ""
		if f.retryAfter > 0 {
			retryAfter = formatDuration(f.retryAfter)
		}
		line, err := encodeLine(struct {
			Code       string `json:"code"`
			Message    string `json:"message"`
			Hint       string `json:"hint"`
			RetryAfter string `json:"retry_after,omitempty"`
			ID         string `json:"idempotency_id,omitempty"`
		}{f.code, f.message, f.hint, retryAfter, f.id})
		if err == nil {
			w.Write(line)
		}
		return
	}
	text := printable(f.message)
	// The codes of one's own mistakes tell nothing that the text does not.
	if f.exit != exitLocal {
		text += " (" + printable(f.code) + ")"
	}
	fmt.Fprintf(w, "kekctl: %s\n", text)
	if f.hint != "" {
		fmt.Fprintf(w, "kekctl: hint: %s\n", printable(f.hint))
	}
}

// encodeLine is v as one line of JSON.
func encodeLine(v any) ([]byte, error) {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	err := enc.Encode(v)
	return b.Bytes(), err
}

// wantsJSON looks for -o json in a command line that may not have been understood as a whole, since that
// is an error too, and a script wants to read it.
func wantsJSON(args []string) bool {
	format := ""
	for i := 0; i < len(args) && args[i] != "--"; i++ {
		value, found := strings.CutPrefix(args[i], "--output=")
		switch {
		case found:
			format = value
		case args[i] == "-o" || args[i] == "--output":
			if i+1 < len(args) {
				i++
				format = args[i]
			}
		case strings.HasPrefix(args[i], "-o"):
			format = strings.TrimPrefix(args[i][2:], "=")
		}
	}
	return format == "json"
}
