package envelope

import (
	"bytes"
	"math"
	"strconv"

	"github.com/kekd/kekd/hierarchy"
)

// Parse reads an envelope in binary or text form; the two begin differently. A newline at the
// end of the text form is tolerated, since files have one. The envelope keeps nothing of b.
//
// Every error wraps [hierarchy.ErrEnvelopeInvalid] and names the field.
func Parse(b []byte) (*Envelope, error) {
	if IsText(b) {
		decoded, err := decodeText(b)
		if err != nil {
			return nil, err
		}
		return parseBinary(decoded)
	}
	if len(b) > MaxSize {
		return nil, errTooLarge(len(b))
	}
	return parseBinary(bytes.Clone(b))
}

// parseBinary makes an envelope whose ciphertexts are parts of b.
func parseBinary(b []byte) (*Envelope, error) {
	if len(b) > MaxSize {
		return nil, errTooLarge(len(b))
	}
	d := reader{decoder{b}}
	fields, err := d.head(majorMap)
	if err != nil {
		return nil, because(fieldWhole, err)
	}
	// The format comes before all else, so that a later one is told from garbage.
	format, err := d.number(fieldFormat, keyFormat)
	if err != nil {
		return nil, err
	}
	if format == 0 {
		return nil, invalid(fieldFormat, "it is 0, and formats count from 1")
	}
	if format != Format {
		return nil, errTooOld(strconv.FormatUint(format, 10))
	}
	if fields != envelopeKeys {
		return nil, invalid(fieldWhole, "it has %d fields, and format 1 has %d", fields, envelopeKeys)
	}

	e := new(Envelope)
	if e.Tenant.ID, err = d.id(fieldTenant, keyTenant); err != nil {
		return nil, err
	}
	if e.Key.ID, err = d.id(fieldKey, keyKey); err != nil {
		return nil, err
	}
	version, err := d.number(fieldVersion, keyVersion)
	if err != nil {
		return nil, err
	}
	if version > math.MaxUint32 {
		return nil, invalid(fieldVersion, "it is %d, over 32 bits", version)
	}
	e.Version = uint32(version)
	if e.SealedIn.ID, err = d.id(fieldSealedIn, keySealedIn); err != nil {
		return nil, err
	}
	if e.Recipients, err = d.recipients(); err != nil {
		return nil, err
	}
	if len(d.rest) > 0 {
		return nil, invalid(fieldWhole, "%d bytes follow its end", len(d.rest))
	}
	if err := e.validate(); err != nil {
		return nil, err
	}
	return e, nil
}

// reader reads the fields of an envelope. Its errors name them.
type reader struct{ decoder }

func (d *reader) recipients() ([]Recipient, error) {
	if err := d.key(keyRecipients); err != nil {
		return nil, because(fieldRecipients, err)
	}
	n, err := d.head(majorArray)
	if err != nil {
		return nil, because(fieldRecipients, err)
	}
	if n > MaxRecipients { // before room is made for them
		return nil, errRecipients(n)
	}
	rs := make([]Recipient, n)
	for i := range rs {
		if err := d.recipient(&rs[i]); err != nil {
			return nil, inRecipient(i, err)
		}
	}
	return rs, nil
}

func (d *reader) recipient(r *Recipient) error {
	fields, err := d.head(majorMap)
	if err != nil {
		return because(fieldRecipients, err)
	}
	if fields != recipientKeys {
		return invalid(fieldRecipients, "it has %d fields, and format 1 has %d", fields, recipientKeys)
	}
	if r.Region.ID, err = d.id(fieldRegion, keyRegion); err != nil {
		return err
	}
	iv, err := d.fixed(fieldIV, keyIV, IVSize)
	if err != nil {
		return err
	}
	r.IV = [IVSize]byte(iv)
	r.Ciphertext, err = d.bytes(fieldCiphertext, keyCiphertext)
	return err
}

func (d *reader) number(f field, key uint64) (uint64, error) {
	if err := d.key(key); err != nil {
		return 0, because(f, err)
	}
	n, err := d.head(majorUint)
	if err != nil {
		return 0, because(f, err)
	}
	return n, nil
}

func (d *reader) bytes(f field, key uint64) ([]byte, error) {
	if err := d.key(key); err != nil {
		return nil, because(f, err)
	}
	b, err := d.decoder.bytes()
	if err != nil {
		return nil, because(f, err)
	}
	return b, nil
}

func (d *reader) fixed(f field, key uint64, size int) ([]byte, error) {
	b, err := d.bytes(f, key)
	if err == nil && len(b) != size {
		err = invalid(f, "it has %d bytes, and %d are expected", len(b), size)
	}
	return b, err
}

func (d *reader) id(f field, key uint64) (hierarchy.ID, error) {
	b, err := d.fixed(f, key, hierarchy.IDSize)
	if err != nil {
		return hierarchy.ID{}, err
	}
	return hierarchy.ID(b), nil
}
