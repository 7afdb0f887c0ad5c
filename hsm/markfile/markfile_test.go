package markfile_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kekd/kekd/hsm"
	"github.com/kekd/kekd/hsm/hsmtest"
	"github.com/kekd/kekd/hsm/markfile"
)

// asMarker names the environment variable that makes this test binary a process that raises marks
// until it is killed; its value is the directory.
const asMarker = "KEKD_TEST_MARKER"

func TestMain(m *testing.M) {
	if path := os.Getenv(asMarker); path != "" {
		d, err := markfile.Open(path)
		if err == nil {
			err = hsmtest.RaiseUntilKilled(d)
		}
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(m.Run())
}

var owner = hsmtest.MarkOwner

func newDir(t testing.TB) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "marks")
	for range 2 {
		if err := markfile.Create(path); err != nil {
			t.Fatal(err)
		}
	}
	return path
}

func open(t testing.TB, path string) *markfile.Dir {
	t.Helper()
	d, err := markfile.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := d.Close(); err != nil {
			t.Error(err)
		}
	})
	return d
}

func TestMarks(t *testing.T) {
	hsmtest.RunMarks(t, func(t *testing.T) func() hsm.Marks {
		path := newDir(t)
		var d *markfile.Dir
		return func() hsm.Marks {
			t.Helper()
			if d != nil {
				if err := d.Close(); err != nil {
					t.Fatal(err)
				}
			}
			d = open(t, path)
			return d
		}
	})
}

func TestKillMarks(t *testing.T) {
	path := newDir(t)
	hsmtest.KillMarks(t, func() *exec.Cmd {
		cmd := exec.Command("/proc/self/exe")
		cmd.Env = append(os.Environ(), asMarker+"="+path)
		return cmd
	})
}

// TestOneProcess: a directory that another has is not shared, and one that is not there is not made.
func TestOneProcess(t *testing.T) {
	path := newDir(t)
	d := open(t, path)
	if _, err := markfile.Open(path); !errors.Is(err, hsm.ErrBusy) || !strings.Contains(err.Error(), path) {
		t.Errorf("a directory that is open: %v, want ErrBusy", err)
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	if err := d.RaiseMark(t.Context(), owner, hsm.Mark{Term: 1}); !errors.Is(err, hsm.ErrUnavailable) {
		t.Errorf("raise after Close: %v, want ErrUnavailable", err)
	}
	open(t, path)

	empty := t.TempDir()
	for _, p := range []string{empty, filepath.Join(empty, "marks")} {
		if _, err := markfile.Open(p); !errors.Is(err, hsm.ErrUnavailable) {
			t.Errorf("a directory that nobody made: %v, want ErrUnavailable", err)
		}
	}
	if err := markfile.Create(filepath.Join(empty, "no", "marks")); !errors.Is(err, hsm.ErrUnavailable) {
		t.Errorf("make one without a parent: %v, want ErrUnavailable", err)
	}
}

// TestMarkUnreadable: a file that is no whole mark of the node is told by name and stays.
func TestMarkUnreadable(t *testing.T) {
	other := owner
	other.Cluster.ID[3] = 1
	good := string(hsm.AppendMark(nil, owner, hsm.Mark{Term: 3}))
	for name, content := range map[string]string{
		"empty": "", "cut off": good[:hsm.MarkSize-1], "longer": good + "x", "damaged": good[:40] + "x" + good[41:],
		"of another cluster": string(hsm.AppendMark(nil, other, hsm.Mark{Term: 3})),
	} {
		path := newDir(t)
		d := open(t, path)
		file := filepath.Join(path, fmt.Sprintf("%s-%s.mark", owner.Cluster, owner.Node))
		if err := os.WriteFile(file, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		_, _, err := d.Mark(t.Context(), owner)
		for what, err := range map[string]error{"read": err, "raise": d.RaiseMark(t.Context(), owner, hsm.Mark{Term: 9})} {
			if !errors.Is(err, hsm.ErrMarkUnreadable) || !strings.Contains(err.Error(), file) {
				t.Errorf("%s: %s: %v, want ErrMarkUnreadable and the file's name", name, what, err)
			}
		}
		if b, err := os.ReadFile(file); err != nil || string(b) != content {
			t.Errorf("%s: the file has %d bytes, %v", name, len(b), err)
		}
	}
}

// TestGone: a directory that was taken away, and another one in its place, have no word on marks.
func TestGone(t *testing.T) {
	path := newDir(t)
	d := open(t, path)
	if err := d.RaiseMark(t.Context(), owner, hsm.Mark{Term: 1}); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(path, path+".away"); err != nil {
		t.Fatal(err)
	}
	gone := func(when string) {
		t.Helper()
		_, found, err := d.Mark(t.Context(), owner)
		for what, err := range map[string]error{"read": err, "raise": d.RaiseMark(t.Context(), owner, hsm.Mark{Term: 2})} {
			if !errors.Is(err, hsm.ErrUnavailable) || found {
				t.Errorf("%s: %s: %v, want ErrUnavailable", when, what, err)
			}
		}
	}
	gone("nothing there")
	if err := markfile.Create(path); err != nil {
		t.Fatal(err)
	}
	gone("another there")
}

// TestUnwritable: a mark that cannot be written is not acknowledged, and raising again is the cure.
func TestUnwritable(t *testing.T) {
	path := newDir(t)
	d := open(t, path)
	if err := d.RaiseMark(t.Context(), owner, hsm.Mark{Term: 1}); err != nil {
		t.Fatal(err)
	}
	obstacle := filepath.Join(path, fmt.Sprintf("%s-%s.mark.tmp", owner.Cluster, owner.Node))
	if err := os.Mkdir(obstacle, 0o700); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := d.RaiseMark(t.Context(), owner, hsm.Mark{Term: 2}); !errors.Is(err, hsm.ErrUnavailable) {
			t.Errorf("raise: %v, want ErrUnavailable", err)
		}
	}
	if m, found, err := d.Mark(t.Context(), owner); err != nil || !found || m.Term != 1 {
		t.Errorf("read {%v}, %t, %v, want term 1", m, found, err)
	}
	if err := os.Remove(obstacle); err != nil {
		t.Fatal(err)
	}
	if err := d.RaiseMark(t.Context(), owner, hsm.Mark{Term: 2}); err != nil {
		t.Error(err)
	}
}

// TestHang: a disk that hangs keeps nobody beyond his deadline.
func TestHang(t *testing.T) {
	path := newDir(t)
	d := open(t, path)
	fifo := filepath.Join(path, fmt.Sprintf("%s-%s.mark.tmp", owner.Cluster, owner.Node))
	if err := unix.Mkfifo(fifo, 0o600); err != nil { // whose opening waits for a reader
		t.Fatal(err)
	}
	for range 2 { // the second waits for the first
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		from := time.Now()
		if err := d.RaiseMark(ctx, owner, hsm.Mark{Term: 1}); !errors.Is(err, hsm.ErrDeadline) {
			t.Errorf("raise: %v, want ErrDeadline", err)
		}
		if took := time.Since(from); took > time.Second {
			t.Errorf("the error came after %v", took)
		}
		cancel()
	}
	r, err := os.OpenFile(fifo, os.O_RDONLY|unix.O_NONBLOCK, 0) // which lets the first go on
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if err := os.Remove(fifo); err != nil {
		t.Fatal(err)
	}
	if err := d.RaiseMark(t.Context(), owner, hsm.Mark{Term: 3}); err != nil {
		t.Error(err)
	}
}

// TestOrderOfSystemCalls: the order is the promise, since what a disk holds after power is lost cannot be
// seen from here.
func TestOrderOfSystemCalls(t *testing.T) {
	path, out := newDir(t), filepath.Join(t.TempDir(), "trace")
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("strace", "-f", "-y", "-o", out, "-e", "trace=write,fsync,rename,renameat,renameat2", self)
	cmd.Env = append(os.Environ(), asMarker+"="+path)
	said, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	for lines := bufio.NewScanner(said); lines.Scan() && !strings.HasPrefix(lines.Text(), "ok"); {
	}
	_ = said.Close() // which ends it at its next word
	_ = cmd.Wait()
	trace, err := os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	rest := string(trace)
	for _, call := range []string{
		`write\(1<[^>]*>, "begin`, `write\(\d+<TMP>`, `fsync\(\d+<TMP>`, `rename\w*\(.*"TMP".*"FILE"`, `fsync\(\d+<DIR>`, `write\(1<[^>]*>, "ok`,
	} {
		file := filepath.Join(path, fmt.Sprintf("%s-%s.mark", owner.Cluster, owner.Node))
		call = strings.NewReplacer("TMP", file+".tmp", "FILE", file, "DIR", path).Replace(call)
		at := regexp.MustCompile(call).FindStringIndex(rest)
		if at == nil {
			t.Fatalf("the next call is not %s:\n%.2000s", call, rest)
		}
		rest = rest[at[1]:]
	}
}

func BenchmarkRaiseMark(b *testing.B) {
	d := open(b, newDir(b))
	for i := 0; b.Loop(); i++ {
		if err := d.RaiseMark(context.Background(), owner, hsm.Mark{Term: uint64(i) + 1}); err != nil {
			b.Fatal(err)
		}
	}
}
