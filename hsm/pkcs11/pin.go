package pkcs11

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/kekd/kekd/hsm"
)

// maxPIN is the longest PIN that is read, in bytes. SoftHSM takes 255.
const maxPIN = 255

// PIN is a token's user PIN. It prints as nothing.
type PIN struct{ b []byte }

// NewPIN takes a PIN that came another way than from a file. It keeps b.
func NewPIN(b []byte) (PIN, error) {
	switch {
	case len(b) == 0:
		return PIN{}, fmt.Errorf("%w: it is empty", hsm.ErrPINMissing)
	case len(b) > maxPIN:
		return PIN{}, fmt.Errorf("%w: longer than %d bytes", hsm.ErrPINMissing, maxPIN)
	case bytes.ContainsAny(b, "\x00\r\n"):
		return PIN{}, fmt.Errorf("%w: it has a line break or a NUL inside", hsm.ErrPINMissing)
	}
	return PIN{b}, nil
}

// Bytes is the PIN itself, to be handed to the token and nowhere else.
func (p PIN) Bytes() []byte { return p.b }

// Wipe forgets the PIN. Copies that the login made on its way to C are out of reach.
func (p PIN) Wipe() { clear(p.b) }

func (PIN) String() string   { return "PIN(hidden)" }
func (PIN) GoString() string { return "PIN(hidden)" }

// ReadPIN reads the PIN from where pin-source says: file:/path, an absolute path, or the bare
// name of a credential that systemd handed over (LoadCredential=). One line break at the end
// is not part of it. Nobody but the owner and the group may have access to the file.
func ReadPIN(source string) (PIN, error) {
	path, err := PINPath(source)
	if err != nil {
		return PIN{}, err
	}
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0) // a FIFO would wait for its writer
	switch {
	case errors.Is(err, syscall.ENXIO):
		return PIN{}, fmt.Errorf("%w: %s is not a file", hsm.ErrPINMissing, path)
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, fs.ErrPermission):
		return PIN{}, fmt.Errorf("%w: %w", hsm.ErrPINMissing, err)
	case err != nil: // no descriptors left, for one: that passes
		return PIN{}, fmt.Errorf("%w: the PIN: %w", hsm.ErrUnavailable, err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return PIN{}, fmt.Errorf("%w: %w", hsm.ErrPINMissing, err)
	}
	if !info.Mode().IsRegular() {
		return PIN{}, fmt.Errorf("%w: %s is not a file", hsm.ErrPINMissing, path)
	}
	if mode := info.Mode().Perm(); mode&0o007 != 0 {
		return PIN{}, fmt.Errorf("%w: everybody on this machine may access %s (mode %04o): run chmod 0640 or 0600 on it, and change the PIN", hsm.ErrPINMissing, path, mode)
	}
	if owner, ok := info.Sys().(*syscall.Stat_t); ok && owner.Uid != 0 && owner.Uid != uint32(os.Geteuid()) {
		return PIN{}, fmt.Errorf("%w: %s belongs to uid %d, who may read and change it: it has to be root's or uid %d's", hsm.ErrPINMissing, path, owner.Uid, os.Geteuid())
	}
	if mode := info.Mode().Perm(); mode&0o020 != 0 {
		return PIN{}, fmt.Errorf("%w: others can write to %s (mode %04o): run chmod 0640 or 0600 on it", hsm.ErrPINMissing, path, mode)
	}
	b := make([]byte, maxPIN+3) // room for a line break, and for one byte too many
	n, err := io.ReadFull(f, b)
	if err != nil && err != io.EOF && err != io.ErrUnexpectedEOF {
		return PIN{}, fmt.Errorf("%w: %w", hsm.ErrPINMissing, err)
	}
	b = bytes.TrimSuffix(b[:n], []byte("\n"))
	b = bytes.TrimSuffix(b, []byte("\r"))
	pin, err := NewPIN(b)
	if err != nil {
		clear(b)
		return PIN{}, fmt.Errorf("%s: %w", path, err)
	}
	return pin, nil
}

// PINPath is the file that pin-source names, an absolute path. [hsm.ErrPINMissing]: it names none.
func PINPath(source string) (string, error) {
	name, isFile := strings.CutPrefix(source, "file:")
	switch {
	case source == "":
		return "", fmt.Errorf("%w: give pin-source=file:/path in the token's URI", hsm.ErrPINMissing)
	case strings.HasPrefix(source, "|"):
		return "", fmt.Errorf("%w: pin-source names a program, and none is run for a PIN", hsm.ErrPINMissing)
	case isFile:
		if rest, ok := strings.CutPrefix(name, "//"); ok { // file://host/path (RFC 8089): no host
			name = rest
		}
		path, err := url.PathUnescape(name)
		if err != nil || !filepath.IsAbs(path) {
			return "", fmt.Errorf("%w: pin-source is written file:/absolute/path", hsm.ErrPINMissing)
		}
		return path, nil
	case filepath.IsAbs(source):
		return source, nil
	case strings.ContainsAny(source, "/") || source == "." || source == "..":
		return "", fmt.Errorf("%w: pin-source is a relative path; give an absolute one, or the bare name of a systemd credential", hsm.ErrPINMissing)
	}
	dir := os.Getenv("CREDENTIALS_DIRECTORY")
	if dir == "" {
		return "", fmt.Errorf("%w: pin-source names the credential %q, but systemd handed none over; give an absolute path, or LoadCredential= in the unit", hsm.ErrPINMissing, source)
	}
	return filepath.Join(dir, source), nil
}
