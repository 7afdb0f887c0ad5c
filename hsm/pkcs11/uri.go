package pkcs11

import (
	"errors"
	"fmt"
	"net/url"
	"strings"
	"unicode/utf8"
)

// ErrURI is what is wrong with a PKCS#11 URI. Its text never repeats the URI, which a user
// may have given a PIN by mistake.
var ErrURI = errors.New("not a PKCS#11 URI that names one token")

const maxURI = 4096 // bytes

// URI names a token, as RFC 7512 writes it: pkcs11:token=kekd?pin-source=file:/etc/kekd/pin
//
// A token is named by its label or its serial number, or both, and never by its slot: slot
// numbers change when tokens are added.
type URI struct {
	Token        string // label; empty: any
	Serial       string // empty: any
	Manufacturer string // empty: any
	Model        string // empty: any

	ModulePath string // empty: the configuration says
	PINSource  string // see ReadPIN; empty: the configuration says
}

// The attributes of a token and how long the token's fields are, in bytes (PKCS#11 v2.40,
// CK_TOKEN_INFO).
var pathAttributes = []struct {
	name  string
	limit int
	field func(*URI) *string
}{
	{"token", 32, func(u *URI) *string { return &u.Token }},
	{"serial", 16, func(u *URI) *string { return &u.Serial }},
	{"manufacturer", 32, func(u *URI) *string { return &u.Manufacturer }},
	{"model", 16, func(u *URI) *string { return &u.Model }},
}

var queryAttributes = []struct {
	name  string
	field func(*URI) *string
}{
	{"module-path", func(u *URI) *string { return &u.ModulePath }},
	{"pin-source", func(u *URI) *string { return &u.PINSource }},
}

// ParseURI reads a PKCS#11 URI strictly. Path attributes narrow the choice, so one that is not
// understood is an error; query attributes that are not understood are ignored, except that
// pin-value and module-name are refused, with what to write instead.
func ParseURI(s string) (URI, error) {
	var u URI
	if len(s) > maxURI {
		return URI{}, uriError("it is longer than %d bytes", maxURI)
	}
	rest, ok := strings.CutPrefix(s, "pkcs11:")
	if !ok {
		return URI{}, uriError("it does not begin with pkcs11:")
	}
	path, query, hasQuery := strings.Cut(rest, "?")
	if path != "" {
		for part := range strings.SplitSeq(path, ";") {
			if err := u.addPath(part); err != nil {
				return URI{}, err
			}
		}
	}
	if hasQuery {
		for part := range strings.SplitSeq(query, "&") {
			if err := u.addQuery(part); err != nil {
				return URI{}, err
			}
		}
	}
	if u.Token == "" && u.Serial == "" {
		return URI{}, uriError("give token= (the label) or serial=")
	}
	return u, nil
}

func (u *URI) addPath(part string) error {
	name, value, err := attribute(part, pathChars)
	if err != nil {
		return err
	}
	for _, a := range pathAttributes {
		if a.name != name {
			continue
		}
		field := a.field(u)
		switch {
		case *field != "":
			return uriError("%s is given twice", name)
		case len(value) > a.limit:
			return uriError("%s has %d bytes, a token has room for %d", name, len(value), a.limit)
		}
		*field = value
		return nil
	}
	switch name {
	case "slot-id", "slot-description", "slot-manufacturer":
		return uriError("%s: a token is named by token= or serial=, never by its slot", name)
	case "object", "type", "id":
		return uriError("%s names an object, not a token", name)
	}
	return uriError("the attribute %s is not understood", name)
}

func (u *URI) addQuery(part string) error {
	name, value, err := attribute(part, queryChars)
	if err != nil {
		return err
	}
	for _, a := range queryAttributes {
		if a.name != name {
			continue
		}
		field := a.field(u)
		if *field != "" {
			return uriError("%s is given twice", name)
		}
		if name == "module-path" && !strings.HasPrefix(value, "/") {
			return uriError("module-path is not an absolute path")
		}
		*field = value
		return nil
	}
	switch name {
	case "pin-value":
		return uriError("pin-value: a PIN does not belong into a URI; put it into a file and write pin-source=file:/path")
	case "module-name":
		return uriError("module-name: write module-path=/path/to/module.so")
	}
	return nil
}

// Characters that stand for themselves in a value, besides letters, digits and "-._~"
// (RFC 7512 section 2.3).
const (
	pathChars  = ":[]@!$'()*+,=&"
	queryChars = ":[]@!$'()*+,=/?|"
)

func isAlnum(c byte) bool {
	return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9'
}

// attribute splits name=value and takes the percent-encoding away.
func attribute(part, chars string) (name, value string, err error) {
	name, raw, ok := strings.Cut(part, "=")
	if !ok || name == "" {
		return "", "", uriError("an attribute is written name=value")
	}
	for i := range len(name) {
		if c := name[i]; !isAlnum(c) && c != '-' && c != '_' {
			return "", "", uriError("an attribute's name has a character that it cannot have")
		}
	}
	if raw == "" {
		return "", "", uriError("%s is empty", name)
	}
	for i := range len(raw) {
		if c := raw[i]; !isAlnum(c) && c != '%' && strings.IndexByte("-._~", c) < 0 && strings.IndexByte(chars, c) < 0 {
			return "", "", uriError("%s has a character that must be percent-encoded", name)
		}
	}
	value, err = url.PathUnescape(raw)
	if err != nil || !utf8.ValidString(value) || strings.IndexByte(value, 0) >= 0 {
		return "", "", uriError("%s is not percent-encoded UTF-8", name)
	}
	return name, value, nil
}

// String writes the URI so that ParseURI reads the same.
func (u URI) String() string {
	var b strings.Builder
	b.WriteString("pkcs11:")
	sep := ""
	for _, a := range pathAttributes {
		if v := *a.field(&u); v != "" {
			b.WriteString(sep + a.name + "=" + escape(v, pathChars))
			sep = ";"
		}
	}
	sep = "?"
	for _, a := range queryAttributes {
		if v := *a.field(&u); v != "" {
			b.WriteString(sep + a.name + "=" + escape(v, queryChars))
			sep = "&"
		}
	}
	return b.String()
}

func escape(s, chars string) string {
	var b strings.Builder
	for i := range len(s) {
		if c := s[i]; isAlnum(c) || strings.IndexByte("-._~", c) >= 0 || strings.IndexByte(chars, c) >= 0 {
			b.WriteByte(c)
		} else {
			fmt.Fprintf(&b, "%%%02X", c)
		}
	}
	return b.String()
}

func uriError(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrURI, fmt.Sprintf(format, args...))
}
