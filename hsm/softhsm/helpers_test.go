package softhsm_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/kekd/kekd/hsm/softhsm"
)

var buildDir string

func TestMain(m *testing.M) {
	dir, err := os.MkdirTemp("", "softhsm-driver-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	buildDir = dir
	code := m.Run()
	os.RemoveAll(dir)
	os.Exit(code)
}

// driverBinary and mutantBinary build testdata/driver, the latter so that SOFTHSM_MUTANT names a
// step to leave out.
var (
	driverBinary = sync.OnceValues(func() (string, error) { return build("driver") })
	mutantBinary = sync.OnceValues(func() (string, error) { return build("mutant", "-tags", "softhsm_mutant") })
)

func build(name string, flags ...string) (string, error) {
	binary := filepath.Join(buildDir, name)
	args := append([]string{"build", "-o", binary}, flags...)
	out, err := exec.Command("go", append(args, "./testdata/driver")...).CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("build %s: %w: %s", name, err, out)
	}
	return binary, nil
}

// process is a running driver.
type process struct {
	t      *testing.T
	cmd    *exec.Cmd
	in     io.WriteCloser
	lines  chan string
	stderr bytes.Buffer
}

// start runs the driver on dir, by way of wrap if there is any.
func start(t *testing.T, binary func() (string, error), dir string, env []string, wrap ...string) *process {
	t.Helper()
	path, err := binary()
	if err != nil {
		t.Fatal(err)
	}
	args := append(wrap, path, dir)
	p := &process{t: t, cmd: exec.Command(args[0], args[1:]...), lines: make(chan string, 10000)}
	p.cmd.Env = append(os.Environ(), env...)
	p.cmd.Stderr = &p.stderr
	if p.in, err = p.cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	out, err := p.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.cmd.Process.Kill() })
	go func() {
		defer close(p.lines)
		all, _ := io.ReadAll(io.TeeReader(out, &lineWriter{to: p.lines}))
		_ = all
	}()
	return p
}

// lineWriter sends each complete line.
type lineWriter struct {
	to   chan<- string
	rest []byte
}

func (w *lineWriter) Write(b []byte) (int, error) {
	w.rest = append(w.rest, b...)
	for {
		line, rest, ok := bytes.Cut(w.rest, []byte("\n"))
		if !ok {
			return len(b), nil
		}
		w.to <- string(line)
		w.rest = rest
	}
}

func (p *process) send(commands ...string) {
	// A process that was killed does not read; what it did is seen in its answers.
	_, _ = io.WriteString(p.in, strings.Join(commands, "\n")+"\n")
}

// until collects answers up to the first that begins with prefix, or to the end.
func (p *process) until(prefix string) []string {
	p.t.Helper()
	var lines []string
	for {
		select {
		case l, ok := <-p.lines:
			if !ok {
				return lines
			}
			lines = append(lines, l)
			if strings.HasPrefix(l, prefix) {
				return lines
			}
		case <-time.After(30 * time.Second):
			p.t.Fatalf("no answer %q after 30 s; the last were %q", prefix, lines[max(0, len(lines)-10):])
		}
	}
}

func (p *process) finish() []string {
	p.t.Helper()
	p.in.Close()
	lines := p.until("\x00")
	if err := p.cmd.Wait(); err != nil {
		p.t.Fatalf("driver: %v; %q; stderr: %s", err, lines, &p.stderr)
	}
	return lines
}

func (p *process) kill() []string {
	p.cmd.Process.Kill()
	lines := p.until("\x00")
	p.cmd.Wait()
	return lines
}

// drive runs commands in a process of their own; each must succeed. It returns the last answer.
func drive(t *testing.T, dir string, commands ...string) string {
	t.Helper()
	p := start(t, driverBinary, dir, nil)
	p.send(append([]string{"open"}, commands...)...)
	lines := p.finish()
	for _, l := range lines {
		if strings.HasPrefix(l, "error") {
			t.Fatalf("driver: %s", l)
		}
	}
	return lines[len(lines)-1]
}

var use = []string{"attach", "load", "login"}

func with(commands ...string) []string { return append(use[:len(use):len(use)], commands...) }

// newToken makes a directory with a token of SoftHSM's own making, and what commands add to it.
func newToken(t *testing.T, commands ...string) (*softhsm.Dir, string) {
	t.Helper()
	d, path := newDir(t)
	initToken(t, path, commands...)
	return d, path
}

func initToken(t *testing.T, path string, commands ...string) {
	t.Helper()
	drive(t, path, "attach", "init t")
	if len(commands) > 0 {
		drive(t, path, with(commands...)...)
	}
}

// scratch is a directory in memory where there is one: an fsync costs nothing there.
func scratch(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "softhsm-test-")
	if err != nil {
		return t.TempDir()
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

func newDir(t *testing.T) (*softhsm.Dir, string) {
	t.Helper()
	return newDirIn(t, scratch(t))
}

func newDirIn(t *testing.T, parent string) (*softhsm.Dir, string) {
	t.Helper()
	path := filepath.Join(parent, "softhsm")
	d, err := softhsm.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	return d, path
}

func repair(t *testing.T, d *softhsm.Dir) softhsm.Report {
	t.Helper()
	r, err := d.Repair(soon(t))
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func attach(t *testing.T, d *softhsm.Dir) *softhsm.Guard {
	t.Helper()
	g, err := d.Attach(soon(t), nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { g.Close() })
	return g
}

func soon(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	t.Cleanup(cancel)
	return ctx
}

// Files of SoftHSM's format, written here independently of what reads them.

type attr struct {
	typ, kind uint64
	value     any // bool, uint64, []byte, or nil for an empty map or set
}

func encode(attrs ...attr) []byte {
	b := binary.BigEndian.AppendUint64(nil, 7) // generation
	for _, a := range attrs {
		b = binary.BigEndian.AppendUint64(b, a.typ)
		b = binary.BigEndian.AppendUint64(b, a.kind)
		switch v := a.value.(type) {
		case bool:
			b = append(b, map[bool]byte{false: 0, true: 0xff}[v])
		case uint64:
			b = binary.BigEndian.AppendUint64(b, v)
		case []byte:
			b = append(binary.BigEndian.AppendUint64(b, uint64(len(v))), v...)
		case nil:
			b = binary.BigEndian.AppendUint64(b, 0)
		}
	}
	return b
}

// secretKey is a whole file; value tells one from another.
func secretKey(value string) []byte {
	return encode(
		attr{0x0, 2, uint64(4)}, attr{0x1, 1, true}, attr{0x2, 1, true}, attr{0x3, 3, []byte("label")},
		attr{0x11, 3, []byte(value)}, attr{0x90, 3, []byte("kcv")}, attr{0x100, 2, uint64(0x1f)},
		attr{0x102, 3, []byte("id")}, attr{0x163, 1, true}, attr{0x170, 1, true}, attr{0x171, 1, true},
		attr{0x172, 1, true}, attr{0x40000211, 4, nil}, attr{0x40000600, 5, nil})
}

func token(value string) []byte {
	return encode(attr{0x80005349, 3, []byte(value)}, attr{0x8000534a, 3, []byte("serial")},
		attr{0x8000534b, 2, uint64(0x42d)}, attr{0x8000534c, 3, []byte("so")}, attr{0x8000534d, 3, []byte("user")})
}

const tokenName = "955a9fe5-3132-ddd9-11ad-54cca2cc2205"

// write puts a file into a directory, or removes it if content is nil.
func write(t interface{ Fatal(...any) }, content []byte, path ...string) {
	p := filepath.Join(path...)
	if content == nil {
		if err := os.Remove(p); err != nil && !os.IsNotExist(err) {
			t.Fatal(err)
		}
		return
	}
	if err := os.MkdirAll(filepath.Dir(p), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(p, content, 0o600); err != nil {
		t.Fatal(err)
	}
}

// inner is a file without its generation, which a restored one has anew.
func inner(file string) string {
	if len(file) < 8 {
		return file
	}
	return file[8:]
}

// tree returns the content of every file, and with times their modification times.
func tree(t interface{ Fatal(...any) }, dir string, times bool) map[string]string {
	found := map[string]string{}
	err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		b, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		name, err := filepath.Rel(dir, path)
		found[name] = string(b)
		if info, err := e.Info(); err == nil && times {
			found[name] += info.ModTime().String()
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return found
}
