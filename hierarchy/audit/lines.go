package audit

import (
	"bytes"
	"errors"
	"fmt"
	"io"
)

// errTorn ends a segment whose last write is not whole: a line is cut short by zeros or by the
// end of the file. A file is filled with zeros before it is written, so what a crash left
// unwritten reads as zeros; a line that is whole and wrong was not made by a crash.
var errTorn = errors.New("the last write is not whole")

// maxHeaderLine bounds the line of a segment's header: 1.6 million tenants.
const maxHeaderLine = 256 << 20

// lineReader reads a segment: lines, and then zeros or nothing.
type lineReader struct {
	r    io.Reader
	buf  []byte // read, and not yet returned
	mem  []byte // what buf lies in
	done bool   // r is at its end

	line int   // number of the line returned last, from 1
	off  int64 // where the line to come begins; in the end, where the lines end
	end  int64 // errTorn: where the last byte that is not zero ends
}

func newLineReader(r io.Reader) *lineReader {
	return &lineReader{r: r, mem: make([]byte, 64<<10)}
}

// next returns a line without its newline, valid until the next call. It returns io.EOF where
// the lines end and nothing but zeros follows, errTorn where something else does, and
// [ErrMalformed] for a line that is too long.
func (l *lineReader) next() ([]byte, error) {
	limit := MaxLine
	if l.line == 0 {
		limit = maxHeaderLine
	}
	for seen := 0; ; {
		fresh := l.buf[seen:]
		n := bytes.IndexByte(fresh, '\n')
		if n >= 0 {
			fresh = fresh[:n]
		}
		switch {
		case bytes.IndexByte(fresh, 0) >= 0, n < 0 && l.done:
			return nil, l.tail()
		case seen+len(fresh) > limit:
			return nil, fmt.Errorf("%w: a line of more than %d bytes", ErrMalformed, limit)
		case n >= 0:
			line := l.buf[:seen+n]
			l.buf = l.buf[seen+n+1:]
			l.off += int64(len(line)) + 1
			l.line++
			return line, nil
		}
		seen = len(l.buf)
		if err := l.fill(); err != nil {
			return nil, err
		}
	}
}

func (l *lineReader) fill() error {
	if len(l.buf) > len(l.mem)/2 {
		l.mem = make([]byte, 2*len(l.mem))
	}
	n := copy(l.mem, l.buf)
	m, err := l.r.Read(l.mem[n:])
	l.buf = l.mem[:n+m]
	if err == io.EOF {
		l.done = true
		return nil
	}
	return err
}

// tail reads on to the end.
func (l *lineReader) tail() error {
	l.end = l.off
	for at := l.off; ; {
		if used := len(bytes.TrimRight(l.buf, "\x00")); used > 0 {
			l.end = at + int64(used)
		}
		at += int64(len(l.buf))
		l.buf = nil
		if l.done {
			break
		}
		if err := l.fill(); err != nil {
			return err
		}
	}
	if l.end > l.off {
		return errTorn
	}
	return io.EOF
}

// lastLine returns the last line of a file that may end in zeros, without its newline.
func lastLine(f file) ([]byte, error) {
	end, err := f.Size()
	if err != nil {
		return nil, err
	}
	var tail []byte // of the file from end on, but for zeros at its end
	for end > 0 {
		n := min(end, 64<<10)
		end -= n
		piece := make([]byte, n)
		if _, err := f.ReadAt(piece, end); err != nil {
			return nil, err
		}
		tail = bytes.TrimRight(append(piece, tail...), "\x00")
		line, whole := bytes.CutSuffix(tail, []byte("\n"))
		if i := bytes.LastIndexByte(line, '\n'); whole && i >= 0 {
			return line[i+1:], nil
		}
		if whole && end == 0 {
			return line, nil
		}
		if len(tail) > maxHeaderLine {
			break
		}
	}
	return nil, fmt.Errorf("%w: it does not end with a line", ErrMalformed)
}
