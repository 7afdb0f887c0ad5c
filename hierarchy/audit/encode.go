package audit

import (
	"encoding/base64"
	"encoding/hex"
	"strconv"
	"strings"
	"time"
	"unicode/utf16"
	"unicode/utf8"
)

// A line is written by hand: it is the hot path, and there must be one way only to write a
// record, which encoding/json does not promise. It is printable ASCII; everything else is
// escaped, so that no text of a caller can pretend to be a line, move a terminal's cursor or
// turn the direction of writing.
//
// What does not depend on the chain comes first (appendBody): it is encoded before the lock is
// taken. The place in the chain comes last (appendPlace).

// maxPlace bounds what appendPlace adds, the newline included.
const maxPlace = len(`,"seq":,"prev":"","tseq":,"tprev":""}`) + 2*20 + 2*64 + 1

// AppendLine appends the entry's line, without a newline.
func (e *Entry) AppendLine(b []byte) []byte {
	b = e.appendBody(b)
	return appendPlace(b, e.Sequence, &e.Prev, e.TenantSequence, &e.TenantPrev)
}

func (e *Entry) appendBody(b []byte) []byte {
	b = appendBody(b, &e.Record, e.Node.String())
	if c := e.Checkpoint; c != nil {
		b = append(b, `,"signed":`...)
		b = strconv.AppendUint(b, c.Sequence, 10)
		b = appendHex(b, `,"head":"`, c.Head[:])
		b = append(b, `,"signature":"`...)
		b = base64.StdEncoding.AppendEncode(b, c.Signature)
		b = append(b, '"')
	}
	if s := e.Segment; s != nil {
		b = append(b, `,"format":`...)
		b = strconv.AppendUint(b, uint64(s.Format), 10)
		b = appendHex(b, `,"cluster":"`, s.Cluster.ID[:])
		b = append(b, `,"public_key":"`...)
		b = base64.StdEncoding.AppendEncode(b, s.PublicKey)
		b = append(b, `","heads":[`...)
		for i, h := range s.Heads {
			if i > 0 {
				b = append(b, ',')
			}
			b = appendHex(b, `{"tenant":"`, h.Tenant.ID[:])
			b = append(b, `,"tseq":`...)
			b = strconv.AppendUint(b, h.TenantSequence, 10)
			b = append(b, `,"seq":`...)
			b = strconv.AppendUint(b, h.Sequence, 10)
			b = appendHex(b, `,"hash":"`, h.Hash[:])
			b = append(b, '}')
		}
		b = append(b, ']')
	}
	return b
}

func appendBody(b []byte, r *Record, node string) []byte {
	b = append(b, `{"kind":"`...)
	b = append(b, r.Kind...) // validated: needs no escape
	if !r.At.IsZero() {
		b = append(b, `","at":"`...)
		b = appendTime(b, r.At)
	}
	b = append(b, `","node":"`...)
	b = append(b, node...)
	b = append(b, '"')
	b = appendUint(b, `,"epoch":`, r.Epoch)
	if !r.Tenant.IsZero() {
		b = appendHex(b, `,"tenant":"`, r.Tenant.ID[:])
	}
	b = appendText(b, `,"tenant_name":"`, r.TenantName, MaxName)
	b = appendText(b, `,"key":"`, r.Key, MaxName)
	b = appendUint(b, `,"version":`, uint64(r.Version))
	if c := r.Caller; c != nil {
		b = append(b, `,"uid":`...)
		b = strconv.AppendUint(b, uint64(c.UID), 10)
		b = append(b, `,"gid":`...)
		b = strconv.AppendUint(b, uint64(c.GID), 10)
		b = append(b, `,"pid":`...)
		b = strconv.AppendInt(b, int64(c.PID), 10)
	}
	b = appendText(b, `,"service":"`, r.Service, MaxName)
	b = appendText(b, `,"outcome":"`, string(r.Outcome), MaxKind)
	b = appendText(b, `,"code":"`, r.Code, MaxCode)
	b = appendText(b, `,"reason":"`, r.Reason, MaxReason)
	if r.Envelope != (Hash{}) {
		b = appendHex(b, `,"envelope":"`, r.Envelope[:])
	}
	b = appendUint(b, `,"of":`, r.Of)
	return appendText(b, `,"detail":"`, r.Detail, MaxDetail)
}

func appendPlace(b []byte, seq uint64, prev *Hash, tseq uint64, tprev *Hash) []byte {
	b = append(b, `,"seq":`...)
	b = strconv.AppendUint(b, seq, 10)
	b = appendHex(b, `,"prev":"`, prev[:])
	if tseq != 0 {
		b = append(b, `,"tseq":`...)
		b = strconv.AppendUint(b, tseq, 10)
		b = appendHex(b, `,"tprev":"`, tprev[:])
	}
	return append(b, '}')
}

func appendUint(b []byte, name string, v uint64) []byte {
	if v == 0 {
		return b
	}
	b = append(b, name...)
	return strconv.AppendUint(b, v, 10)
}

func appendHex(b []byte, name string, v []byte) []byte {
	b = append(b, name...)
	b = hex.AppendEncode(b, v)
	return append(b, '"')
}

// appendTime writes RFC 3339 in UTC with nine digits of a second, always: 30 characters.
func appendTime(b []byte, t time.Time) []byte {
	t = t.UTC()
	year, month, day := t.Date()
	hour, minute, second := t.Clock()
	b = appendDigits(b, year, 4)
	b = append(b, '-')
	b = appendDigits(b, int(month), 2)
	b = append(b, '-')
	b = appendDigits(b, day, 2)
	b = append(b, 'T')
	b = appendDigits(b, hour, 2)
	b = append(b, ':')
	b = appendDigits(b, minute, 2)
	b = append(b, ':')
	b = appendDigits(b, second, 2)
	b = append(b, '.')
	b = appendDigits(b, t.Nanosecond(), 9)
	return append(b, 'Z')
}

func appendDigits(b []byte, v, n int) []byte {
	const zeros = "000000000"
	b = append(b, zeros[:n]...)
	for i := len(b) - 1; v > 0; i-- {
		b[i] = byte('0' + v%10)
		v /= 10
	}
	return b
}

func appendText(b []byte, name, s string, limit int) []byte {
	if s == "" {
		return b
	}
	b = append(b, name...)
	s = cut(s, limit)
	if !utf8.ValidString(s) {
		s = cut(strings.ToValidUTF8(s, "\ufffd"), limit)
	}
	for i := 0; i < len(s); {
		c := s[i]
		switch {
		case c == '"' || c == '\\':
			b = append(b, '\\', c)
			i++
		case c >= 0x20 && c < 0x7f:
			b = append(b, c)
			i++
		default:
			r, size := utf8.DecodeRuneInString(s[i:])
			if r > 0xffff {
				hi, lo := utf16.EncodeRune(r)
				b = appendEscape(appendEscape(b, hi), lo)
			} else {
				b = appendEscape(b, r)
			}
			i += size
		}
	}
	return append(b, '"')
}

func appendEscape(b []byte, r rune) []byte {
	const digits = "0123456789abcdef"
	return append(b, '\\', 'u', digits[r>>12&15], digits[r>>8&15], digits[r>>4&15], digits[r&15])
}
