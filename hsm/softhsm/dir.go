package softhsm

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// Names in a token directory. SoftHSM takes every directory in tokens for a token, so all else
// stands beside it.
const (
	confName       = "softhsm2.conf"
	tokensName     = "tokens"     // SoftHSM's: UUID/{token.object, UUID.object, *.lock, generation}
	generationName = "generation" // a counter, of changes to a token's files
	shadowName     = "shadow"     // UUID/*.object, the last good copy of each
	quarantineName = "quarantine" // UUID/*.object, what was never acknowledged
	intentName     = "intent"     // there while a change that is kept whole or not at all runs
	dirLockName    = "lock"       // shared by whoever has the module loaded, alone for repair
	changeLockName = "change.lock"

	objectSuffix = ".object" // what SoftHSM takes for an object
	lockSuffix   = ".lock"
	tmpSuffix    = ".tmp"
	tokenObject  = "token" + objectSuffix
)

// Dir is a token directory. It holds no lock and no open file.
type Dir struct{ path string }

// Create makes an empty token directory, durable with its name in its parent, which must exist.
// It is made whole or not at all. ErrExists if anything is there.
func Create(path string) (*Dir, error) {
	path, err := filepath.Abs(path)
	if err != nil {
		return nil, fmt.Errorf("token directory: %w", err)
	}
	parent := filepath.Dir(path)
	if _, err := os.Lstat(path); err == nil {
		return nil, fmt.Errorf("%w: %s", ErrExists, path)
	}
	tmp, err := os.MkdirTemp(parent, filepath.Base(path)+".new-") // mode 0700
	if err != nil {
		return nil, fmt.Errorf("token directory: %w", err)
	}
	defer os.RemoveAll(tmp) // of no effect once it has its name

	if err := fill(tmp, path); err != nil {
		return nil, fmt.Errorf("token directory: %w", err)
	}
	err = unix.Renameat2(unix.AT_FDCWD, tmp, unix.AT_FDCWD, path, unix.RENAME_NOREPLACE)
	if errors.Is(err, fs.ErrExist) {
		return nil, fmt.Errorf("%w: %s", ErrExists, path)
	}
	if err != nil {
		return nil, fmt.Errorf("token directory: %w", err)
	}
	if err := syncDir(parent, syncRoot); err != nil {
		return nil, fmt.Errorf("token directory: %w", err)
	}
	return &Dir{path}, nil
}

// fill writes what a new directory holds to tmp, which will be called path.
func fill(tmp, path string) error {
	for _, name := range []string{tokensName, shadowName, quarantineName} {
		if err := os.Mkdir(filepath.Join(tmp, name), 0o700); err != nil {
			return err
		}
	}
	conf := "# The daemon owns this directory. What is changed here behind its back may be put back.\n" +
		"directories.tokendir = " + filepath.Join(path, tokensName) + "\n" +
		"objectstore.backend = file\n" +
		"log.level = ERROR\n" +
		"slots.removable = false\n"
	for name, content := range map[string]string{confName: conf, dirLockName: "", changeLockName: ""} {
		file := filepath.Join(tmp, name)
		if err := replace(file+tmpSuffix, file, []byte(content), noTime, syncRoot); err != nil {
			return err
		}
	}
	return syncDir(tmp, syncRoot)
}

// Open finds a token directory that was created before. ErrMissing if it was not; ErrForeign if
// its configuration leads SoftHSM elsewhere, as it does after the directory was moved.
func Open(path string) (*Dir, error) {
	path, err := filepath.Abs(path)
	if err != nil {
		return nil, fmt.Errorf("token directory: %w", err)
	}
	d := &Dir{path}
	for _, name := range []string{confName, tokensName, shadowName, quarantineName, dirLockName, changeLockName} {
		_, err := os.Stat(d.join(name))
		if errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("%w: there is no %s", ErrMissing, d.join(name))
		}
		if err != nil {
			return nil, fmt.Errorf("token directory: %w", err)
		}
	}
	return d, d.checkConf()
}

// checkConf fails unless SoftHSM, configured so, works on the files that are guarded here.
func (d *Dir) checkConf() error {
	text, err := os.ReadFile(d.Conf())
	if err != nil {
		return fmt.Errorf("token directory: %w", err)
	}
	want := map[string]string{
		"directories.tokendir": d.join(tokensName),
		"objectstore.backend":  "file",
	}
	for line := range strings.Lines(string(text)) {
		name, value, _ := strings.Cut(line, "=")
		name, value = strings.TrimSpace(name), strings.TrimSpace(value)
		if w, ok := want[name]; ok && filepath.Clean(value) == w {
			delete(want, name)
		}
	}
	for name, value := range want {
		return fmt.Errorf("%w: %s must say %s = %s", ErrForeign, d.Conf(), name, value)
	}
	return nil
}

// Conf is the path of the configuration, for SOFTHSM2_CONF of whoever loads the module.
func (d *Dir) Conf() string { return d.join(confName) }

func (d *Dir) join(names ...string) string {
	return filepath.Join(append([]string{d.path}, names...)...)
}

// ref names one file of one token.
type ref struct{ token, name string }

func (r ref) String() string { return r.token + "/" + r.name }

func (d *Dir) objectFile(r ref) string { return d.join(tokensName, r.token, r.name) }
func (d *Dir) shadowFile(r ref) string { return d.join(shadowName, r.token, r.name) }

// lockOf is the file that SoftHSM locks beside an object.
func (d *Dir) lockOf(r ref) string {
	return strings.TrimSuffix(d.objectFile(r), objectSuffix) + lockSuffix
}

// subdirs lists the directories in one, without their order.
func subdirs(path string) ([]string, error) {
	entries, err := os.ReadDir(path)
	if err != nil {
		return nil, err
	}
	var names []string
	for _, e := range entries {
		if e.IsDir() {
			names = append(names, e.Name())
		}
	}
	return names, nil
}

// files lists the names in a directory; none if there is no such directory.
func files(path string) ([]string, error) {
	d, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer d.Close()
	return d.Readdirnames(-1)
}

func isObject(name string) bool { return strings.HasSuffix(name, objectSuffix) }
