package audit

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"strconv"
	"sync"
	"time"
	"unicode/utf16"
	"unicode/utf8"

	"github.com/kekd/kekd/hierarchy"
)

// ErrMalformed is a line that the encoder does not write.
var ErrMalformed = errors.New("not an audit record")

// ParseLine reads one line, without its newline. It takes what [Entry.AppendLine] writes and
// nothing else: fields in their order, one way to write each value. A checkpoint's cluster is
// not in its line: it is in the header of the segment.
func ParseLine(line []byte) (*Entry, error) {
	p := parser{rest: line}
	e := p.entry()
	if p.err != nil {
		return nil, fmt.Errorf("%w: %w", ErrMalformed, p.err)
	}
	// One way to write each record is had by writing it again.
	again := linePool.Get().(*[]byte)
	defer linePool.Put(again)
	if *again = e.AppendLine((*again)[:0]); !bytes.Equal(*again, line) {
		return nil, fmt.Errorf("%w: it is not written in the canonical way", ErrMalformed)
	}
	return e, nil
}

var linePool = sync.Pool{New: func() any { return new([]byte) }}

// parser is a cursor over a line. After the first error it reads zeros.
type parser struct {
	rest []byte
	err  error
}

func (p *parser) entry() *Entry {
	e := new(Entry)
	p.lit(`{"kind":"`)
	e.Kind = p.text()
	if p.opt(`,"at":"`) {
		e.At = p.time()
	}
	p.lit(`,"node":"`)
	p.hex(e.Node.ID[:])
	if p.opt(`,"epoch":`) {
		e.Epoch = p.uint(64)
	}
	if p.opt(`,"tenant":"`) {
		p.hex(e.Tenant.ID[:])
	}
	e.TenantName = p.optText(`,"tenant_name":"`)
	e.Key = p.optText(`,"key":"`)
	if p.opt(`,"version":`) {
		e.Version = uint32(p.uint(32))
	}
	if p.opt(`,"uid":`) {
		c := hierarchy.Principal{UID: uint32(p.uint(32))}
		p.lit(`,"gid":`)
		c.GID = uint32(p.uint(32))
		p.lit(`,"pid":`)
		c.PID = p.int32()
		e.Caller = &c
	}
	e.Service = p.optText(`,"service":"`)
	e.Outcome = Outcome(p.optText(`,"outcome":"`))
	e.Code = p.optText(`,"code":"`)
	e.Reason = p.optText(`,"reason":"`)
	if p.opt(`,"envelope":"`) {
		p.hex(e.Envelope[:])
	}
	if p.opt(`,"of":`) {
		e.Of = p.uint(64)
	}
	e.Detail = p.optText(`,"detail":"`)

	switch e.Kind {
	case KindCheckpoint:
		// It may say nothing that is not signed: what is last in a journal has no other seal.
		if e.Record != (Record{Kind: KindCheckpoint}) {
			p.fail("a checkpoint says more than a checkpoint does")
		}
		e.Checkpoint = p.checkpoint(e.Node)
	case KindSegment:
		e.Segment = p.segment()
	}

	p.lit(`,"seq":`)
	e.Sequence = p.uint(64)
	p.lit(`,"prev":"`)
	p.hex(e.Prev[:])
	if p.opt(`,"tseq":`) {
		e.TenantSequence = p.uint(64)
		p.lit(`,"tprev":"`)
		p.hex(e.TenantPrev[:])
	}
	p.lit(`}`)

	if p.err == nil && len(p.rest) > 0 {
		p.fail("something follows the record")
	}
	if p.err == nil {
		p.err = e.Record.validate()
	}
	if p.err == nil && (e.TenantSequence == 0) != e.Tenant.IsZero() {
		p.fail("a record has a place in its tenant's chain if it has a tenant")
	}
	return e
}

func (p *parser) checkpoint(node hierarchy.NodeID) *Checkpoint {
	c := &Checkpoint{Node: node}
	p.lit(`,"signed":`)
	c.Sequence = p.uint(64)
	p.lit(`,"head":"`)
	p.hex(c.Head[:])
	p.lit(`,"signature":"`)
	c.Signature = p.base64()
	return c
}

func (p *parser) segment() *SegmentHeader {
	s := new(SegmentHeader)
	p.lit(`,"format":`)
	s.Format = uint32(p.uint(32))
	if p.err == nil && s.Format != FormatVersion {
		p.fail("it is of format %d, and this program reads %d", s.Format, FormatVersion)
	}
	p.lit(`,"cluster":"`)
	p.hex(s.Cluster.ID[:])
	p.lit(`,"public_key":"`)
	s.PublicKey = p.base64()
	p.lit(`,"heads":[`)
	for p.err == nil && !p.opt(`]`) {
		var h Head
		if len(s.Heads) > 0 {
			p.lit(`,`)
		}
		p.lit(`{"tenant":"`)
		p.hex(h.Tenant.ID[:])
		p.lit(`,"tseq":`)
		h.TenantSequence = p.uint(64)
		p.lit(`,"seq":`)
		h.Sequence = p.uint(64)
		p.lit(`,"hash":"`)
		p.hex(h.Hash[:])
		p.lit(`}`)
		s.Heads = append(s.Heads, h)
	}
	return s
}

func (p *parser) fail(format string, args ...any) {
	if p.err == nil {
		p.err = fmt.Errorf(format, args...)
	}
}

func (p *parser) lit(s string) {
	if p.err == nil && !p.opt(s) {
		p.fail("expected %s, got %.20q", s, p.rest)
	}
}

func (p *parser) opt(s string) bool {
	if p.err != nil || len(p.rest) < len(s) || string(p.rest[:len(s)]) != s {
		return false
	}
	p.rest = p.rest[len(s):]
	return true
}

// until takes what stands before c, and c itself.
func (p *parser) until(c byte) []byte {
	if p.err != nil {
		return nil
	}
	i := bytes.IndexByte(p.rest, c)
	if i < 0 {
		p.fail("a value does not end")
		return nil
	}
	v := p.rest[:i]
	p.rest = p.rest[i+1:]
	return v
}

func (p *parser) digits() string {
	n := 0
	for n < len(p.rest) && (p.rest[n] == '-' || p.rest[n] >= '0' && p.rest[n] <= '9') {
		n++
	}
	s := string(p.rest[:n])
	p.rest = p.rest[n:]
	return s
}

func (p *parser) uint(bits int) uint64 {
	if p.err != nil {
		return 0
	}
	s := p.digits()
	v, err := strconv.ParseUint(s, 10, bits)
	if err != nil {
		p.fail("%.24q is not a number of %d bits", s, bits)
	}
	return v
}

func (p *parser) int32() int32 {
	if p.err != nil {
		return 0
	}
	s := p.digits()
	v, err := strconv.ParseInt(s, 10, 32)
	if err != nil {
		p.fail("%.24q is not a number of 32 bits", s)
	}
	return int32(v)
}

func (p *parser) hex(dst []byte) {
	v := p.until('"')
	if p.err != nil {
		return
	}
	if len(v) != hex.EncodedLen(len(dst)) {
		p.fail("expected %d hex digits, got %d characters", hex.EncodedLen(len(dst)), len(v))
		return
	}
	if _, err := hex.Decode(dst, v); err != nil {
		p.fail("%w", err)
	}
}

func (p *parser) base64() []byte {
	v := p.until('"')
	if p.err != nil {
		return nil
	}
	dst, err := base64.StdEncoding.Strict().AppendDecode(nil, v)
	if err != nil {
		p.fail("%w", err)
	}
	return dst
}

func (p *parser) time() time.Time {
	v := p.until('"')
	if p.err != nil {
		return time.Time{}
	}
	t, err := time.Parse(time.RFC3339Nano, string(v))
	if err != nil {
		p.fail("%w", err)
	}
	return t.UTC()
}

func (p *parser) optText(name string) string {
	if !p.opt(name) {
		return ""
	}
	return p.text()
}

// text reads what appendText wrote, the closing quote included.
func (p *parser) text() string {
	if p.err != nil {
		return ""
	}
	// Most text has no escape.
	if i := bytes.IndexAny(p.rest, `"\`); i >= 0 && p.rest[i] == '"' {
		s := string(p.rest[:i])
		p.rest = p.rest[i+1:]
		return s
	}
	var s []byte
	for i := 0; i < len(p.rest); {
		switch c := p.rest[i]; {
		case c == '"':
			p.rest = p.rest[i+1:]
			return string(s)
		case c != '\\':
			s = append(s, c)
			i++
		case i+1 < len(p.rest) && (p.rest[i+1] == '"' || p.rest[i+1] == '\\'):
			s = append(s, p.rest[i+1])
			i += 2
		default:
			r, size := unescape(p.rest[i:])
			if size == 0 {
				p.fail("an escape is not \\uXXXX")
				return ""
			}
			s = utf8.AppendRune(s, r)
			i += size
		}
	}
	p.fail("a text does not end")
	return ""
}

// unescape reads \uXXXX, or two of them for what lies beyond 16 bits; size 0: it is neither.
func unescape(b []byte) (r rune, size int) {
	unit := func(b []byte) (rune, bool) {
		if len(b) < 6 || b[0] != '\\' || b[1] != 'u' {
			return 0, false
		}
		v, err := strconv.ParseUint(string(b[2:6]), 16, 16)
		return rune(v), err == nil
	}
	r, ok := unit(b)
	if !ok {
		return 0, 0
	}
	if !utf16.IsSurrogate(r) {
		return r, 6
	}
	low, _ := unit(b[6:])
	return utf16.DecodeRune(r, low), 12 // a half pair reads as U+FFFD, which is written otherwise
}
