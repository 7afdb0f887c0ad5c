package pkcs11_test

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/kekd/kekd/hsm"
	"github.com/kekd/kekd/hsm/pkcs11"
)

func TestReadPIN(t *testing.T) {
	dir := t.TempDir()
	write := func(name, content string, mode os.FileMode) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
		return path
	}
	plain := write("plain", "p1n", 0o600)
	line := write("line", "p1n\n", 0o640)
	dos := write("dos", "p1n\r\n", 0o400)
	blanks := write("with blank", " p1n \n", 0o600)
	t.Setenv("CREDENTIALS_DIRECTORY", dir)
	for source, want := range map[string]string{
		plain:                           "p1n",
		line:                            "p1n",
		"file:" + line:                  "p1n",
		"file://" + dos:                 "p1n",
		"file:" + dir + "/with%20blank": " p1n ",
		blanks:                          " p1n ",
		"line":                          "p1n",
		write("long", strings.Repeat("x", 255)+"\n", 0o600): strings.Repeat("x", 255),
	} {
		pin, err := pkcs11.ReadPIN(source)
		if err != nil {
			t.Errorf("%s: %v", source, err)
			continue
		}
		if string(pin.Bytes()) != want {
			t.Errorf("%s: read %d bytes, want %d", source, len(pin.Bytes()), len(want))
		}
	}
	for source, hint := range map[string]string{
		"":                                "pin-source",
		"|/bin/cat pin":                   "program",
		"file:pin":                        "absolute",
		"file://host/pin":                 "absolute",
		"file:%zz":                        "absolute",
		"dir/pin":                         "relative",
		"..":                              "relative",
		"missing":                         "no such file",
		dir:                               "not a file",
		write("world", "p1n", 0o644):      "chmod",
		write("worldw", "p1n", 0o602):     "chmod",
		write("groupw", "p1n", 0o660):     "chmod",
		write("empty", "\n", 0o600):       "empty",
		write("two", "p1n\np1n\n", 0o600): "line break",
		write("nul", "p1\x00n", 0o600):    "NUL",
		write("huge", strings.Repeat("x", 256), 0o600):   "longer",
		write("huger", strings.Repeat("x", 9999), 0o600): "longer",
	} {
		_, err := pkcs11.ReadPIN(source)
		if !errors.Is(err, hsm.ErrPINMissing) {
			t.Errorf("%s: %v, want ErrPINMissing", source, err)
			continue
		}
		if !strings.Contains(err.Error(), hint) {
			t.Errorf("%s: the error does not say %q: %v", source, hint, err)
		}
		if strings.Contains(err.Error(), "p1n") {
			t.Errorf("%s: the error repeats the PIN", source)
		}
	}
	t.Setenv("CREDENTIALS_DIRECTORY", "")
	if _, err := pkcs11.ReadPIN("line"); !errors.Is(err, hsm.ErrPINMissing) || !strings.Contains(err.Error(), "LoadCredential") {
		t.Errorf("a credential without systemd: %v", err)
	}
}

// TestPINOfSomebodyElse: whoever owns the file can give the daemon another PIN, and wear out the tries.
func TestPINOfSomebodyElse(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Fatal("run it as root: a file has to be given away")
	}
	path := filepath.Join(t.TempDir(), "pin")
	if err := os.WriteFile(path, []byte("p1n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chown(path, 65534, 0); err != nil {
		t.Fatal(err)
	}
	if _, err := pkcs11.ReadPIN(path); !errors.Is(err, hsm.ErrPINMissing) || !strings.Contains(err.Error(), "uid 65534") {
		t.Errorf("%v, want ErrPINMissing that names the owner", err)
	}
}

// TestPINIsNoFile: one that waits for somebody to write into it would hold the start up for ever.
func TestPINIsNoFile(t *testing.T) {
	dir := t.TempDir()
	fifo, socket := filepath.Join(dir, "fifo"), filepath.Join(dir, "socket")
	if err := syscall.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	for _, path := range []string{fifo, socket} {
		read := make(chan error, 1)
		go func() {
			_, err := pkcs11.ReadPIN(path)
			read <- err
		}()
		select {
		case err := <-read:
			if !errors.Is(err, hsm.ErrPINMissing) || !strings.Contains(err.Error(), "not a file") {
				t.Errorf("%s: %v", path, err)
			}
		case <-time.After(10 * time.Second):
			t.Fatalf("%s: it waits", path)
		}
	}
}

func TestPINIsHidden(t *testing.T) {
	pin, err := pkcs11.NewPIN([]byte("s3cret"))
	if err != nil {
		t.Fatal(err)
	}
	cfg := pkcs11.Config{PIN: pin}
	for _, s := range []string{fmt.Sprint(pin), fmt.Sprintf("%v %+v %#v %s", pin, pin, pin, pin), fmt.Sprintf("%v %+v %#v", cfg, cfg, cfg)} {
		if strings.Contains(s, "s3cret") || strings.Contains(s, "115, 51") || strings.Contains(s, "115 51") || strings.Contains(s, "0x73") {
			t.Errorf("it prints: %s", s)
		}
	}
	pin.Wipe()
	if string(pin.Bytes()) != "\x00\x00\x00\x00\x00\x00" {
		t.Error("it was not wiped")
	}
}

func FuzzPINSource(f *testing.F) {
	f.Add("file:/etc/kekd/pin")
	f.Add("pin")
	f.Add("file://%2e%2e/pin")
	f.Fuzz(func(t *testing.T, source string) {
		t.Setenv("CREDENTIALS_DIRECTORY", "/run/credentials/kekd")
		path, err := pkcs11.PINPath(source)
		if err != nil {
			if !errors.Is(err, hsm.ErrPINMissing) {
				t.Fatal(err)
			}
			return
		}
		if !filepath.IsAbs(path) {
			t.Fatalf("%q became the relative path %q", source, path)
		}
		if !strings.HasPrefix(source, "/") && !strings.HasPrefix(source, "file:") && filepath.Dir(path) != "/run/credentials/kekd" {
			t.Fatalf("the credential %q became %q", source, path)
		}
	})
}
