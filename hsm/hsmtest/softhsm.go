package hsmtest

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/kekd/kekd/hsm/pkcs11"
)

// Module is SoftHSM2's, where Debian has it.
const Module = "/usr/lib/softhsm/libsofthsm2.so"

// The PINs of every test token.
const (
	UserPIN = "test-user-pin"
	SOPIN   = "test-so-pin"
)

// SoftHSM is a directory with real SoftHSM2 tokens, for one test.
type SoftHSM struct {
	Dir      string // holds everything below
	Conf     string // softhsm2.conf, which SOFTHSM2_CONF names for the time of the test
	TokenDir string // one directory for each token
	PINFile  string // the user's PIN, mode 0600
	Tokens   []pkcs11.Selected
}

// NewSoftHSM makes a SoftHSM2 directory with a token for each label; without labels, one
// called "kekd-test". SoftHSM reads its configuration once, when it is initialised, and the
// module has one state for the whole process. So tokens that are to be open at the same time
// are made by one call, and tests that use this do not run in parallel.
func NewSoftHSM(t testing.TB, labels ...string) *SoftHSM {
	t.Helper()
	if _, err := os.Stat(Module); err != nil {
		t.Fatalf("SoftHSM2 is not installed (Debian: apt-get install softhsm2): %v", err)
	}
	if len(labels) == 0 {
		labels = []string{"kekd-test"}
	}
	dir := t.TempDir()
	h := &SoftHSM{
		Dir:      dir,
		Conf:     filepath.Join(dir, "softhsm2.conf"),
		TokenDir: filepath.Join(dir, "tokens"),
		PINFile:  filepath.Join(dir, "pin"),
	}
	must(t, os.Mkdir(h.TokenDir, 0o700))
	conf := fmt.Sprintf("directories.tokendir = %s\nobjectstore.backend = file\nlog.level = ERROR\nslots.removable = false\n", h.TokenDir)
	must(t, os.WriteFile(h.Conf, []byte(conf), 0o600))
	must(t, os.WriteFile(h.PINFile, []byte(UserPIN+"\n"), 0o600))
	t.Setenv("SOFTHSM2_CONF", h.Conf)
	for _, label := range labels {
		selected, err := pkcs11.InitToken(Module, label, pin(t, SOPIN), pin(t, UserPIN))
		if err != nil {
			t.Fatalf("initialise token %s: %v", label, err)
		}
		h.Tokens = append(h.Tokens, selected)
	}
	return h
}

// URI names the i-th token, with its PIN file.
func (h *SoftHSM) URI(i int) pkcs11.URI {
	return pkcs11.URI{Token: h.Tokens[i].Label, Serial: h.Tokens[i].Serial, ModulePath: Module, PINSource: "file:" + h.PINFile}
}

// Open opens the i-th token and closes it when the test ends.
func (h *SoftHSM) Open(t testing.TB, i int, cfg pkcs11.Config) *pkcs11.Token {
	t.Helper()
	cfg.PIN = pin(t, UserPIN)
	token, err := pkcs11.Open(t.Context(), h.Tokens[i], cfg)
	if err != nil {
		t.Fatalf("open token %s: %v", h.Tokens[i].Label, err)
	}
	t.Cleanup(func() {
		if err := token.Close(deadline(t)); err != nil {
			t.Errorf("close token %s: %v", h.Tokens[i].Label, err)
		}
	})
	return token
}

func pin(t testing.TB, s string) pkcs11.PIN {
	t.Helper()
	p, err := pkcs11.NewPIN([]byte(s))
	must(t, err)
	return p
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
