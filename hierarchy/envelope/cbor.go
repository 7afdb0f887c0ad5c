package envelope

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// Major types of CBOR (RFC 8949 section 3.1), as they stand in the initial byte.
const (
	majorUint  = 0 << 5
	majorBytes = 2 << 5
	majorText  = 3 << 5
	majorArray = 4 << 5
	majorMap   = 5 << 5

	majorMask = 0xe0
)

// Keys of the maps. They are below 24, so that each is one byte, and encoded in this order.
const (
	keyFormat     = 1
	keyTenant     = 2
	keyKey        = 3
	keyVersion    = 4
	keySealedIn   = 5
	keyRecipients = 6
	envelopeKeys  = 6

	keyRegion     = 1
	keyIV         = 2
	keyCiphertext = 3
	recipientKeys = 3
)

// appendHead appends an initial byte and its argument in the shortest form, which is the
// deterministic one. All lengths and numbers of this format fit in 32 bits.
func appendHead(b []byte, major byte, n uint32) []byte {
	switch {
	case n < 24:
		return append(b, major|byte(n))
	case n < 1<<8:
		return append(b, major|24, byte(n))
	case n < 1<<16:
		return binary.BigEndian.AppendUint16(append(b, major|25), uint16(n))
	default:
		return binary.BigEndian.AppendUint32(append(b, major|26), n)
	}
}

func appendBytes(b, s []byte) []byte {
	return append(appendHead(b, majorBytes, uint32(len(s))), s...)
}

func appendText(b []byte, s string) []byte {
	return append(appendHead(b, majorText, uint32(len(s))), s...)
}

var (
	errCut         = errors.New("it is cut off")
	errIndefinite  = errors.New("it has an indefinite length")
	errReserved    = errors.New("it has a reserved initial byte")
	errNotShortest = errors.New("its number or length is not in the shortest form")
)

// decoder reads deterministic CBOR from the front of a buffer, and knows nothing of fields.
type decoder struct{ rest []byte }

// head reads an initial byte and its argument, which has to be in the shortest form.
func (d *decoder) head(major byte) (uint64, error) {
	if len(d.rest) == 0 {
		return 0, errCut
	}
	initial := d.rest[0]
	if initial&majorMask != major {
		return 0, fmt.Errorf("it is of CBOR's major type %d, and %d is expected", initial>>5, major>>5)
	}
	info := initial &^ majorMask
	switch {
	case info < 24:
		d.rest = d.rest[1:]
		return uint64(info), nil
	case info == 31:
		return 0, errIndefinite
	case info > 27:
		return 0, errReserved
	}
	size := 1 << (info - 24)
	if len(d.rest) < 1+size {
		return 0, errCut
	}
	var n uint64
	for _, c := range d.rest[1 : 1+size] {
		n = n<<8 | uint64(c)
	}
	if n < 24 || size > 1 && n>>(4*size) == 0 {
		return 0, errNotShortest
	}
	d.rest = d.rest[1+size:]
	return n, nil
}

// key reads the key of a map's next pair.
func (d *decoder) key(want uint64) error {
	got, err := d.head(majorUint)
	if err == nil && got != want {
		err = fmt.Errorf("its key is %d, and %d is expected here", got, want)
	}
	return err
}

// bytes reads a byte string. What it returns is part of the buffer, without room to append.
func (d *decoder) bytes() ([]byte, error) {
	n, err := d.head(majorBytes)
	if err != nil {
		return nil, err
	}
	if uint64(len(d.rest)) < n {
		return nil, errCut
	}
	s := d.rest[:n:n]
	d.rest = d.rest[n:]
	return s, nil
}
