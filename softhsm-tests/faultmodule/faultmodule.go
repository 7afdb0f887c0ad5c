// Package faultmodule gives tests a PKCS#11 token that misbehaves on command: a module in C that
// forwards to a real one, SoftHSM2 by default, and adds latency, hangs, crashes, wrong answers and
// missing features. README.md has the grammar of its rules.
//
// A test takes a [Module], hands its environment to the process that loads it (or calls
// [Module.Setenv] for its own), and then changes the rules while that process runs. What the
// process did is in the [Counters]: they show what was asked of the token, and also what was not.
//
// A mistake in a rule, in the name of a function or in the environment fails the test: no test
// passes because its fault was misspelt.
package faultmodule

import (
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
)

//go:embed Makefile module testdata/drive.c
var sources embed.FS

// Module is the module with a control file and counters of its own.
type Module struct {
	Path     string // what to load
	Control  *Control
	Counters *Counters

	t testing.TB
}

// New builds the module and gives it an empty control file and counters that live as long as the test.
func New(t testing.TB) *Module {
	t.Helper()
	dir := t.TempDir()
	return &Module{
		Path:     Build(t),
		Control:  &Control{path: filepath.Join(dir, "control"), t: t},
		Counters: &Counters{path: filepath.Join(dir, "counters"), t: t},
		t:        t,
	}
}

// Env is what a process that loads the module has to find in its environment.
func (m *Module) Env() []string {
	return []string{
		"KEKD_FAULT_CONTROL=" + m.Control.path,
		"KEKD_FAULT_COUNTERS=" + m.Counters.path,
	}
}

// Setenv puts [Module.Env] into this process's environment until the test ends. The module reads
// it at C_GetFunctionList and C_Initialize.
func (m *Module) Setenv() {
	m.t.Helper()
	for _, v := range m.Env() {
		name, value, _ := strings.Cut(v, "=")
		m.t.Setenv(name, value)
	}
}

// Build compiles the module, once per version of its sources, and returns the path of the shared object.
// It needs gcc, make and the go command.
func Build(t testing.TB) string {
	t.Helper()
	path, err := build()
	if err != nil {
		t.Fatal(err)
	}
	return path
}

var build = sync.OnceValues(func() (string, error) {
	return compile("faultmodule.so")
})

// compile makes the artefact by the Makefile and keeps it in the user's cache under a hash of all
// that goes into it, the make arguments included.
func compile(name string, makeArgs ...string) (string, error) {
	header, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", "github.com/miekg/pkcs11").Output()
	if err != nil {
		return "", fmt.Errorf("where the PKCS#11 header is: %w", err)
	}
	makeArgs = append(makeArgs, "PKCS11="+strings.TrimSpace(string(header)))
	cache, err := os.UserCacheDir()
	if err != nil {
		return "", err
	}
	cache = filepath.Join(cache, "kekd-faultmodule")
	if err := os.MkdirAll(cache, 0o700); err != nil {
		return "", err
	}
	hash, err := hashSources(makeArgs)
	if err != nil {
		return "", err
	}
	artefact := filepath.Join(cache, hash+"-"+name)
	if _, err := os.Stat(artefact); !errors.Is(err, fs.ErrNotExist) {
		return artefact, err
	}

	// Other test processes may build it at the same time: what is complete is renamed.
	dir, err := os.MkdirTemp(cache, "build-")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(dir)
	if err := os.CopyFS(dir, sources); err != nil {
		return "", err
	}
	built := filepath.Join(dir, name)
	cmd := exec.Command("make", append([]string{"-s", "-C", dir, "OUT=" + built}, makeArgs...)...)
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build %s: %w\n%s", name, err, out)
	}
	return artefact, os.Rename(built, artefact)
}

func hashSources(makeArgs []string) (string, error) {
	h := sha256.New()
	fmt.Fprintf(h, "%q\n", makeArgs)
	err := fs.WalkDir(sources, ".", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		text, err := sources.ReadFile(path)
		fmt.Fprintf(h, "%s %d\n%s", path, len(text), text)
		return err
	})
	return hex.EncodeToString(h.Sum(nil)[:12]), err
}
