package worker

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// A frame is its length in four bytes, little-endian as everything here, and that many bytes:
// the kind, then what the kind says.
const (
	frameHead = 4
	// frameLimit bounds what is read, in bytes after the length. The largest operation, 32
	// seals and an opening with 32 KiB of AAD each, takes 1.1 MB.
	frameLimit = 2 << 20
	// frameFull is where a sender begins another frame, in bytes.
	frameFull = 256 << 10
)

type kind byte

// What the daemon says.
const (
	kindHello      kind = 1 + iota // version, role
	kindOperations                 // operations until the end of the frame
	kindRequest                    // one request
)

// What a worker says.
const (
	kindReady    kind = 0x81 + iota // the token is open
	kindFailed                      // it could not be opened, or is lost. The last frame
	kindResults                     // results until the end of the frame
	kindAnswer                      // one request's answer, or a part of it
	kindWaits                       // operations that wait for something there, and keep nobody from the token
	kindRepaired                    // what was put right of the token's storage, in words; at any time, also before it is ready
)

// protocolVersion is raised when a frame changes. Daemon and worker are one binary, so it only
// tells a mistake.
const protocolVersion = 5

// errGarbage is what is read that no peer of ours writes.
var errGarbage = errors.New("a frame that makes no sense")

// beginFrame appends the head of a frame; endFrame fills in the length of what was appended
// since.
func beginFrame(b []byte, k kind) (_ []byte, at int) {
	at = len(b)
	return append(b, 0, 0, 0, 0, byte(k)), at
}

func endFrame(b []byte, at int) []byte {
	binary.LittleEndian.PutUint32(b[at:], uint32(len(b)-at-frameHead))
	return b
}

// room makes room for n more bytes. A buffer that has to move is wiped, as append would not.
func room(b []byte, n int) []byte {
	if cap(b)-len(b) >= n {
		return b
	}
	grown := make([]byte, len(b), max(len(b)+n, 2*cap(b), 64<<10))
	copy(grown, b)
	clear(b[:cap(b)])
	return grown
}

// A frameReader reads frames. What it returns is valid, and unwiped, until the next call.
type frameReader struct {
	r          io.Reader
	buf        []byte
	start, end int // what was read and not returned yet
	last       int // where what was returned begins
}

func newFrameReader(r io.Reader) *frameReader {
	return &frameReader{r: r, buf: make([]byte, 64<<10)}
}

// next reads one frame. io.EOF between two frames is the end.
func (f *frameReader) next() (kind, []byte, error) {
	clear(f.buf[f.last:f.start])
	f.last = f.start
	if err := f.need(frameHead); err != nil {
		return 0, nil, err
	}
	n := int(binary.LittleEndian.Uint32(f.buf[f.start:]))
	if n < 1 || n > frameLimit {
		return 0, nil, fmt.Errorf("%w: %d bytes long", errGarbage, n)
	}
	if err := f.need(frameHead + n); err != nil {
		if err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		return 0, nil, err
	}
	frame := f.buf[f.start+frameHead : f.start+frameHead+n]
	f.last = f.start
	f.start += frameHead + n
	return kind(frame[0]), frame[1:], nil
}

// another tells whether the next frame has been read already.
func (f *frameReader) another() bool {
	have := f.end - f.start
	return have >= frameHead && have-frameHead >= int(binary.LittleEndian.Uint32(f.buf[f.start:]))
}

// poll reads what is there.
func (f *frameReader) poll(try func([]byte) (int, error)) error {
	if f.end == len(f.buf) {
		f.move(f.end - f.start + 1)
	}
	n, err := try(f.buf[f.end:])
	f.end += n
	return err
}

// need reads until n bytes are there.
func (f *frameReader) need(n int) error {
	if f.start+n > len(f.buf) {
		f.move(n)
	}
	for f.end-f.start < n {
		got, err := f.r.Read(f.buf[f.end:])
		f.end += got
		if err != nil && f.end-f.start < n {
			if err == io.EOF && f.end > f.start {
				err = io.ErrUnexpectedEOF
			}
			return err
		}
	}
	return nil
}

// move brings what was not returned yet to the beginning of a buffer with room for n bytes.
func (f *frameReader) move(n int) {
	old := f.buf
	if n > len(f.buf) {
		f.buf = make([]byte, max(n, 2*len(f.buf)))
	}
	moved := copy(f.buf, old[f.start:f.end])
	if n > len(old) {
		clear(old)
	} else {
		clear(old[moved:f.end])
	}
	f.start, f.end, f.last = 0, moved, 0
}

// wipe forgets what was read.
func (f *frameReader) wipe() {
	clear(f.buf)
	f.start, f.end, f.last = 0, 0, 0
}

// A decoder takes a frame apart. After something that does not fit, all that it gives is zero
// and done fails.
type decoder struct {
	b   []byte
	bad bool
}

func (d *decoder) take(n int) []byte {
	if d.bad || n < 0 || n > len(d.b) {
		d.bad = true
		return nil
	}
	v := d.b[:n:n]
	d.b = d.b[n:]
	return v
}

func (d *decoder) u8() byte {
	if v := d.take(1); v != nil {
		return v[0]
	}
	return 0
}

func (d *decoder) u16() uint16 {
	if v := d.take(2); v != nil {
		return binary.LittleEndian.Uint16(v)
	}
	return 0
}

func (d *decoder) u32() uint32 {
	if v := d.take(4); v != nil {
		return binary.LittleEndian.Uint32(v)
	}
	return 0
}

func (d *decoder) u64() uint64 {
	if v := d.take(8); v != nil {
		return binary.LittleEndian.Uint64(v)
	}
	return 0
}

// flag takes a byte that is 0 or 1.
func (d *decoder) flag() bool {
	v := d.u8()
	d.bad = d.bad || v > 1
	return v == 1 && !d.bad
}

// short takes bytes after their length in two.
func (d *decoder) short() []byte { return d.take(int(d.u16())) }

// text takes a short string.
func (d *decoder) text() string { return string(d.short()) }

// more tells whether something is left to take.
func (d *decoder) more() bool { return !d.bad && len(d.b) > 0 }

// done fails unless all was taken and fitted.
func (d *decoder) done() error {
	if d.bad || len(d.b) > 0 {
		return errGarbage
	}
	return nil
}

var le = binary.LittleEndian

func appendShort(b, v []byte) []byte {
	return append(le.AppendUint16(b, uint16(len(v))), v...)
}

func appendFlag(b []byte, v bool) []byte {
	if v {
		return append(b, 1)
	}
	return append(b, 0)
}

// textLimit bounds the texts that are sent: messages and labels, in bytes. PKCS#11 sets no
// bound to a label, and this daemon's have less than 200.
const textLimit = 4096

func appendText(b []byte, s string) []byte {
	s = s[:min(len(s), textLimit)]
	return append(le.AppendUint16(b, uint16(len(s))), s...)
}
