package envelope

import (
	"fmt"

	"github.com/kekd/kekd/hierarchy"
)

// field names a part of an envelope in errors.
type field string

const (
	fieldWhole      field = "the whole"
	fieldFormat     field = "format"
	fieldTenant     field = "tenant ID"
	fieldKey        field = "key ID"
	fieldVersion    field = "key version"
	fieldSealedIn   field = "sealing region"
	fieldRecipients field = "recipients"
	fieldRegion     field = "region"
	fieldIV         field = "IV"
	fieldCiphertext field = "ciphertext"
	fieldText       field = "text form"
)

func invalid(f field, format string, args ...any) error {
	return because(f, fmt.Errorf(format, args...))
}

func because(f field, why error) error {
	return fmt.Errorf("%w: %s: %w", hierarchy.ErrEnvelopeInvalid, f, why)
}

func inRecipient(i int, err error) error { return fmt.Errorf("%w (recipient %d)", err, i+1) }

func errRecipients(n uint64) error {
	return invalid(fieldRecipients, "there are %d, and 1 to %d are allowed", n, MaxRecipients)
}

func errTooLarge(size int) error {
	return invalid(fieldWhole, "it has %d bytes, and at most %d are allowed", size, MaxSize)
}

func errTooOld(format string) error {
	return invalid(fieldFormat, "this version of kekd knows format %d, and is too old for format %s", Format, format)
}
