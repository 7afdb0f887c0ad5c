package approval

import "encoding/binary"

// reader reads SSH's wire format (RFC 4251 section 5). After a failure it reads nothing more.
type reader struct {
	rest   []byte
	failed bool
}

func (r *reader) bytes(n uint64) []byte {
	if r.failed || n > uint64(len(r.rest)) {
		r.failed = true
		return nil
	}
	b := r.rest[:n:n]
	r.rest = r.rest[n:]
	return b
}

func (r *reader) uint32() uint32 {
	b := r.bytes(4)
	if r.failed {
		return 0
	}
	return binary.BigEndian.Uint32(b)
}

func (r *reader) string() []byte { return r.bytes(uint64(r.uint32())) }

// ended tells whether all was read, and nothing is left.
func (r *reader) ended() bool { return !r.failed && len(r.rest) == 0 }

func appendString[S ~string | ~[]byte](b []byte, s S) []byte {
	return append(binary.BigEndian.AppendUint32(b, uint32(len(s))), s...)
}
