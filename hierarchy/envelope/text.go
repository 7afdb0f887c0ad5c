package envelope

import (
	"bytes"
	"encoding/base64"
	"regexp"
)

// The text form is the prefix and the binary form in base64url without padding (RFC 4648
// section 5). The scheme tells it from the binary form, which is a CBOR map and
// does not begin with a letter.
const (
	textScheme = "kekd:"
	textPrefix = "kekd:v1:"
)

// Strict, so that the unused bits of the last digit are zero: else there were several texts of
// one envelope. Go skips newlines all the same, so those are refused before.
var textEncoding = base64.RawURLEncoding.Strict()

// Text returns the text form, without a newline. It fails where [Envelope.Marshal] does.
func (e *Envelope) Text() (string, error) {
	binary, err := e.Marshal()
	if err != nil {
		return "", err
	}
	b := append(make([]byte, 0, len(textPrefix)+textEncoding.EncodedLen(len(binary))), textPrefix...)
	return string(textEncoding.AppendEncode(b, binary)), nil
}

// IsText tells a text form from a binary one, valid or not.
func IsText(b []byte) bool { return bytes.HasPrefix(b, []byte(textScheme)) }

// laterFormat is how a text begins whose format is known to be another than 1.
var laterFormat = regexp.MustCompile(`^kekd:v([2-9]|[1-9][0-9]{1,9}):`)

func decodeText(b []byte) ([]byte, error) {
	b = bytes.TrimSuffix(b, []byte("\n"))
	digits, ok := bytes.CutPrefix(b, []byte(textPrefix))
	if !ok {
		if m := laterFormat.FindSubmatch(b); m != nil {
			return nil, errTooOld(string(m[1]))
		}
		return nil, invalid(fieldText, "it does not begin with %s", textPrefix)
	}
	if n := textEncoding.DecodedLen(len(digits)); n > MaxSize {
		return nil, errTooLarge(n)
	}
	if bytes.ContainsAny(digits, "\r\n") {
		return nil, invalid(fieldText, "it is broken over lines")
	}
	binary, err := textEncoding.AppendDecode(nil, digits)
	if err != nil {
		return nil, invalid(fieldText, "it is not base64url without padding: %w", err)
	}
	return binary, nil
}
