package main

import (
	"bytes"
	"fmt"
	"io"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"
	"unicode"
)

// print writes the result: as JSON, or as what table writes, whose columns are separated by tabs.
// Nothing is written before all of it is known, and what was written is wiped, since it may hold a data
// key. Copies that other packages make for themselves live until the process ends, which is at once.
func (a *app) print(v any, table func(w io.Writer)) error {
	if a.output == "json" {
		line, err := encodeLine(v)
		if err != nil {
			return err
		}
		defer clear(line)
		return a.write(line)
	}
	var b bytes.Buffer
	w := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	table(w)
	w.Flush() // a bytes.Buffer takes everything
	defer clear(b.Bytes())
	return a.write(b.Bytes())
}

func (a *app) write(b []byte) error {
	if _, err := a.stdout.Write(b); err != nil {
		return &fault{exit: exitLocal, code: codeLocal, message: fmt.Sprintf("cannot write the result: %v", err), hint: "what was asked for has been done; only its result is lost"}
	}
	return nil
}

// row writes one line of a table.
func row(w io.Writer, cells ...any) {
	for i, c := range cells {
		if i > 0 {
			io.WriteString(w, "\t")
		}
		text := printable(fmt.Sprint(c))
		if text == "" {
			text = "-"
		}
		io.WriteString(w, text)
	}
	io.WriteString(w, "\n")
}

// printable makes text harmless for a terminal: reasons and names may come from anyone.
func printable(s string) string {
	if strings.IndexFunc(s, func(r rune) bool { return !unicode.IsPrint(r) }) < 0 {
		return s
	}
	var b strings.Builder
	for _, r := range s {
		if unicode.IsPrint(r) {
			b.WriteRune(r)
		} else {
			b.WriteString(strings.Trim(strconv.QuoteRune(r), "'"))
		}
	}
	return b.String()
}

// timestamp is RFC 3339 in UTC; a time that is not set is empty.
func timestamp(unixNano int64) string {
	if unixNano == 0 {
		return ""
	}
	return time.Unix(0, unixNano).UTC().Format(time.RFC3339Nano)
}

// shortTime is for tables.
func shortTime(unixNano int64) string {
	if unixNano == 0 {
		return ""
	}
	return time.Unix(0, unixNano).UTC().Format(time.RFC3339)
}

func yesNo(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}
