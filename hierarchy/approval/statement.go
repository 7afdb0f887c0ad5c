package approval

import (
	"encoding/hex"
	"fmt"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/kekd/kekd/hierarchy"
)

// MaxStatement is the length of the longest statement, in bytes.
const MaxStatement = 64 << 10

// statementHeading is the first line of every statement.
const statementHeading = "kekd break-glass statement v1"

// Statement is one operation, once, in words. It names things by name for people and by ID for good.
type Statement struct {
	Operation Operation
	Arguments []Argument
	// Command is the SHA-256 of the command that is executed. It covers what the arguments leave out, and what
	// another version would put into other words.
	Command [32]byte
	Cluster hierarchy.ClusterID
	Epoch   uint64
	Nonce   hierarchy.ID // the proposal's: the same operation twice is two statements
	Expires time.Time    // cluster time, in whole seconds
	Roster  uint64       // its version when this was proposed
	Reason  string
}

// Argument is one of an operation's, as name and value.
type Argument struct{ Name, Value string }

// Text is what operators sign:
//
//	kekd break-glass statement v1
//	operation: tenant-enable
//	argument: tenant=acme
//	argument: tenant-id=000102030405060708090a0b0c0d0e0f
//	command: sha256:...
//	cluster: 101112131415161718191a1b1c1d1e1f
//	epoch: 0
//	nonce: 202122232425262728292a2b2c2d2e2f
//	expires: 2030-01-01T00:10:00Z
//	roster: 1
//	reason: the incident is over
//
// One line for each, in this order, each with a line feed. There is one text of a statement, and [ParseStatement]
// takes no other. What would look like another line, or would show as something else than it is, is refused.
func (s *Statement) Text() ([]byte, error) {
	if _, err := ParseOperation(string(s.Operation)); err != nil {
		return nil, err
	}
	var b strings.Builder
	b.WriteString(statementHeading + "\n")
	line := func(field, value string) { b.WriteString(field + ": " + value + "\n") }
	line("operation", string(s.Operation))
	for _, a := range s.Arguments {
		if err := hierarchy.ValidateName(a.Name); err != nil {
			return nil, fmt.Errorf("argument: %w", err)
		}
		if err := checkLine("argument "+a.Name, a.Value); err != nil {
			return nil, err
		}
		line("argument", a.Name+"="+a.Value)
	}
	if err := CheckReason(s.Reason); err != nil {
		return nil, err
	}
	if s.Expires.Nanosecond() != 0 || s.Expires.Year() < 1970 || s.Expires.Year() > 9999 {
		return nil, fmt.Errorf("%w: expires: %s is no whole second of a year from 1970 to 9999", hierarchy.ErrInvalidArgument, s.Expires)
	}
	line("command", fmt.Sprintf("sha256:%x", s.Command))
	line("cluster", s.Cluster.String())
	line("epoch", strconv.FormatUint(s.Epoch, 10))
	line("nonce", s.Nonce.String())
	line("expires", s.Expires.UTC().Format(expiresFormat))
	line("roster", strconv.FormatUint(s.Roster, 10))
	line("reason", s.Reason)
	if b.Len() > MaxStatement {
		return nil, fmt.Errorf("%w: the statement has %d bytes, at most %d are allowed", hierarchy.ErrInvalidArgument, b.Len(), MaxStatement)
	}
	return []byte(b.String()), nil
}

const expiresFormat = "2006-01-02T15:04:05Z"

// ParseStatement reads a statement's text. What is not the very text that [Statement.Text] writes is
// [hierarchy.ErrInvalidArgument], with the field.
func ParseStatement(text []byte) (*Statement, error) {
	if len(text) > MaxStatement {
		return nil, fmt.Errorf("%w: a statement has %d bytes, at most %d are allowed", hierarchy.ErrInvalidArgument, len(text), MaxStatement)
	}
	p := parser{rest: string(text)}
	if p.line() != statementHeading {
		p.refuse("heading", "it does not begin with %q", statementHeading)
	}
	s := &Statement{Operation: Operation(p.field("operation"))}
	for strings.HasPrefix(p.rest, "argument: ") {
		name, value, ok := strings.Cut(p.field("argument"), "=")
		if !ok {
			p.refuse("argument", "write NAME=VALUE")
		}
		s.Arguments = append(s.Arguments, Argument{name, value})
	}
	p.digest("command", &s.Command)
	p.id("cluster", &s.Cluster.ID)
	s.Epoch = p.number("epoch")
	p.id("nonce", &s.Nonce)
	s.Expires = p.time("expires")
	s.Roster = p.number("roster")
	s.Reason = p.field("reason")
	if p.rest != "" {
		p.refuse("end", "something follows it")
	}
	if p.err != nil {
		return nil, p.err
	}
	again, err := s.Text()
	if err != nil {
		return nil, fmt.Errorf("statement: %w", err)
	}
	if string(again) != string(text) {
		return nil, fmt.Errorf("%w: statement: it is not written as it is to be", hierarchy.ErrInvalidArgument)
	}
	return s, nil
}

// parser reads lines, and remembers the first that is not as it should be.
type parser struct {
	rest string
	err  error
}

func (p *parser) refuse(field, format string, args ...any) {
	if p.err == nil {
		p.err = fmt.Errorf("%w: statement: %s: %s", hierarchy.ErrInvalidArgument, field, fmt.Sprintf(format, args...))
	}
}

func (p *parser) line() string {
	line, rest, ok := strings.Cut(p.rest, "\n")
	if !ok {
		p.refuse("end", "its last line is cut off")
	}
	p.rest = rest
	return line
}

func (p *parser) field(name string) string {
	value, ok := strings.CutPrefix(p.line(), name+": ")
	if !ok {
		p.refuse(name, "it is missing, or not in its place")
	}
	return value
}

func (p *parser) number(name string) uint64 {
	n, err := strconv.ParseUint(p.field(name), 10, 64)
	if err != nil {
		p.refuse(name, "it is no number")
	}
	return n
}

func (p *parser) id(name string, to *hierarchy.ID) {
	id, err := hierarchy.ParseID(p.field(name))
	if err != nil {
		p.refuse(name, "%v", err)
	}
	*to = id
}

func (p *parser) digest(name string, to *[32]byte) {
	digits, ok := strings.CutPrefix(p.field(name), "sha256:")
	b, err := hex.DecodeString(digits)
	if !ok || err != nil || len(b) != len(to) {
		p.refuse(name, "write sha256: and %d hex digits", hex.EncodedLen(len(to)))
		return
	}
	*to = [32]byte(b)
}

func (p *parser) time(name string) time.Time {
	t, err := time.Parse(expiresFormat, p.field(name))
	if err != nil {
		p.refuse(name, "write YYYY-MM-DDThh:mm:ssZ")
	}
	return t
}

// CheckReason tells whether a reason can stand in a statement: there is one, on one line.
func CheckReason(reason string) error {
	if reason == "" {
		return fmt.Errorf("%w: reason: it is missing", hierarchy.ErrInvalidArgument)
	}
	return checkLine("reason", reason)
}

// checkLine refuses a value that is not what it looks like on a terminal: line breaks and other control characters,
// and what changes the direction of text or cannot be seen. The ranges stand here, since those of Go's
// library follow Unicode's versions.
func checkLine(what, value string) error {
	if !utf8.ValidString(value) {
		return fmt.Errorf("%w: %s: it is not UTF-8", hierarchy.ErrInvalidArgument, what)
	}
	for _, r := range value {
		switch {
		case r < 0x20, r >= 0x7f && r <= 0xa0, r == 0xad, // controls, no-break space, soft hyphen
			r == 0x034f, r == 0x061c, r >= 0x115f && r <= 0x1160, r >= 0x17b4 && r <= 0x17b5, r >= 0x180b && r <= 0x180f,
			r >= 0x2000 && r <= 0x200f, r >= 0x2028 && r <= 0x202f, r >= 0x205f && r <= 0x206f,
			r == 0x3000, r == 0x3164, r >= 0xfe00 && r <= 0xfe0f, r == 0xfeff, r == 0xffa0, r >= 0xfff0 && r <= 0xfffb,
			r >= 0xe0000 && r <= 0xe0fff:
			return fmt.Errorf("%w: %s: it has the character U+%04X, which cannot be seen or breaks the line", hierarchy.ErrInvalidArgument, what, r)
		}
	}
	if value != strings.Trim(value, " ") {
		return fmt.Errorf("%w: %s: it begins or ends with a space", hierarchy.ErrInvalidArgument, what)
	}
	return nil
}
