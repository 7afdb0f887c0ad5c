package softhsmtests

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/kekd/kekd/hierarchy"
	"github.com/kekd/kekd/softhsm-tests/faultmodule"
	"github.com/kekd/kekd/unix-socket-api/client"
	"github.com/kekd/kekd/unix-socket-api/kekdv1"
)

// behindFaults puts the fault module between a node and its token.
func (n *node) behindFaults() *faultmodule.Module {
	n.t.Helper()
	m := faultmodule.New(n.t)
	n.Module, n.Env = m.Path, append(slices.Clone(n.Env), m.Env()...)
	return m
}

// statusOfPIN is the exit status for a PIN that a service manager must not try again: EX_CONFIG of
// sysexits.h, as docs/OPERATIONS.md says.
const statusOfPIN = 78

func TestPINFileMissing(t *testing.T) {
	t.Parallel()
	n := initialised(t)
	m := n.behindFaults()
	if err := os.Remove(n.PINFile); err != nil {
		t.Fatal(err)
	}
	n.refused(statusOfPIN, []string{"no PIN", n.PINFile, "put the file back, or say with pin-source where it is"}, "serve")
	neverLoggedIn(t, m)
}

func TestPINFileOpenToEverybody(t *testing.T) {
	t.Parallel()
	n := initialised(t)
	m := n.behindFaults()
	if err := os.Chmod(n.PINFile, 0o644); err != nil {
		t.Fatal(err)
	}
	n.refused(statusOfPIN, []string{"no PIN", "everybody", n.PINFile, "chmod"}, "serve")
	neverLoggedIn(t, m)
}

// neverLoggedIn also holds where no process came so far as to load the module.
func neverLoggedIn(t *testing.T, m *faultmodule.Module) {
	t.Helper()
	if m.Counters.Loaded() && m.Counters.Calls("C_Login") != 0 {
		t.Fatalf("%d logins", m.Counters.Calls("C_Login"))
	}
}

// A wrong PIN is tried once: a token may lock itself after three.
func TestPINWrong(t *testing.T) {
	t.Parallel()
	n := initialised(t)
	m := n.behindFaults()
	wrong := "wrong-" + string(canary())
	if err := os.WriteFile(n.PINFile, []byte(wrong+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	begun := time.Now()
	out, status := n.run("serve")
	if status != statusOfPIN || !strings.Contains(out, "the token refuses the PIN") {
		t.Errorf("status %d:\n%s", status, out)
	}
	if logins := m.Counters.Calls("C_Login"); logins != 1 {
		t.Errorf("%d logins with a wrong PIN", logins)
	}
	if strings.Contains(out, wrong) {
		t.Error("the PIN is in the log")
	}
	if took := time.Since(begun); took > 10*time.Second {
		t.Errorf("it took %v", took)
	}
}

func TestPINOneTryLeft(t *testing.T) {
	t.Parallel()
	n := initialised(t)
	m := n.behindFaults()
	m.Control.Set("token flags=CKF_USER_PIN_FINAL_TRY")
	n.refused(statusOfPIN, []string{"one PIN try left"}, "serve")
	if logins := m.Counters.Calls("C_Login"); logins != 0 {
		t.Fatalf("%d logins", logins)
	}
}

// The PIN is on no command line, in no environment and in no log, of any process at any moment.
func TestPINIsSeenNowhere(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	ctx, stop := context.WithCancel(t.Context())
	seen := make(chan string, 1)
	go func() {
		defer close(seen)
		for ctx.Err() == nil {
			if where := inProc(n.PINFile); where != "" {
				seen <- where
				return
			}
			time.Sleep(time.Millisecond)
		}
	}()
	n.Extra = `lock_memory = false`
	n.init()
	d := n.serve()
	setUp(t, n.Node, "acme")
	sealAndOpen(t, n, "acme/orders")
	stop()
	// What does not find it where it is would prove nothing.
	decoy, secret := filepath.Join(n.Dir, "decoy"), canary()
	if err := os.WriteFile(decoy, secret, 0o600); err != nil {
		t.Fatal(err)
	}
	sleeper := exec.Command("sleep", "60")
	sleeper.Env = []string{"PIN=" + string(secret)}
	if err := sleeper.Start(); err != nil {
		t.Fatal(err)
	}
	where := inProc(decoy)
	_ = sleeper.Process.Kill()
	_ = sleeper.Wait()
	if where == "" {
		t.Error("a PIN in an environment is not found")
	}
	if where, found := <-seen; found {
		t.Fatalf("the PIN is in %s", where)
	}
	pin, err := os.ReadFile(n.PINFile)
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(d.says(), string(bytes.TrimSpace(pin))) {
		t.Fatal("the PIN is in the log")
	}
	d.stop()
}

// inProc looks once for what a file says in every process's command line and environment.
func inProc(file string) string {
	pin, err := os.ReadFile(file)
	if err != nil {
		return "" // not made yet
	}
	pin = bytes.TrimSpace(pin)
	for _, what := range []string{"cmdline", "environ"} {
		paths, _ := filepath.Glob("/proc/[0-9]*/" + what)
		for _, path := range paths {
			if b, err := os.ReadFile(path); err == nil && bytes.Contains(b, pin) {
				return path
			}
		}
	}
	return ""
}

func TestModuleIsNotThere(t *testing.T) {
	t.Parallel()
	n := initialised(t)
	n.Module = "/nonexistent/libpkcs11.so"
	n.refused(1, []string{"the PKCS#11 module cannot be loaded", n.Module}, "serve")
}

func TestModuleIsNone(t *testing.T) {
	t.Parallel()
	n := initialised(t)
	n.Module = n.configPath()
	n.refused(1, []string{"the PKCS#11 module cannot be loaded", n.Module}, "serve")
}

func TestNoToken(t *testing.T) {
	t.Parallel()
	n := initialised(t)
	n.Token = "pkcs11:token=other?pin-source=file:" + n.PINFile
	n.refused(1, []string{"no token fits the URI", "kekd"}, "serve")
}

func TestTwoTokensWithTheLabel(t *testing.T) {
	t.Parallel()
	n := initialised(t)
	serials := n.serials()
	n.softHSM("softhsm2-util", "--init-token", "--free", "--label", "kekd", "--so-pin", "12345678", "--pin", "87654321")
	if len(n.serials()) != len(serials)+1 {
		t.Fatalf("tokens before: %q, after: %q", serials, n.serials())
	}
	n.refused(1, []string{"more than one token fits the URI", "serial"}, "serve")
	n.Token = "pkcs11:token=kekd;serial=" + serials[0] + "?pin-source=file:" + n.PINFile
	d := n.serve()
	setUp(t, n.Node, "acme")
	sealAndOpen(t, n, "acme/orders")
	d.stop()
}

// softHSM runs a tool on the node's token directory, and returns its standard output.
func (n *node) softHSM(name string, args ...string) string {
	n.t.Helper()
	cmd := exec.Command(name, args...)
	pin, err := os.ReadFile(n.PINFile)
	if err != nil {
		n.t.Fatal(err)
	}
	cmd.Env = append(os.Environ(), "SOFTHSM2_CONF="+n.SoftHSM2Conf, "PIN="+string(bytes.TrimSpace(pin)))
	var says bytes.Buffer
	cmd.Stderr = &says
	out, err := cmd.Output()
	if err != nil {
		n.t.Fatalf("%s: %v\n%s%s", name, err, out, says.String())
	}
	return string(out)
}

// serials are those of the tokens with a label.
func (n *node) serials() []string {
	n.t.Helper()
	var all []string
	for line := range strings.Lines(n.softHSM("pkcs11-tool", "--module", softHSMModule, "--list-token-slots")) {
		if name, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(name) == "serial num" {
			all = append(all, strings.TrimSpace(value))
		}
	}
	return all
}

// A token that has lost a key loses that key alone: the daemon says which, and serves the others on.
func TestTokenLostAKey(t *testing.T) {
	t.Parallel()
	n := initialised(t)
	d := n.serve()
	setUp(t, n.Node, "acme", "globex")
	lost, err := keys(t, n.Node).GenerateDataKey(within(t, 10*time.Second), "acme/orders", 32, client.Options{})
	if err != nil {
		t.Fatal(err)
	}
	key, err := admin(t, n.Node).GetKey(within(t, 10*time.Second), &kekdv1.GetKeyRequest{Key: "acme/orders"})
	if err != nil {
		t.Fatal(err)
	}
	d.stop()

	n.loseObject(key.Versions[0].Regions[0].CkaId)
	d = n.serve()
	sealAndOpen(t, n, "globex/orders")
	c := keys(t, n.Node)
	for op, call := range map[string]func() error{
		"unwrap": func() error {
			_, err := c.Unwrap(within(t, 10*time.Second), lost.Envelope, client.Options{})
			return err
		},
		"data key": func() error {
			_, err := c.GenerateDataKey(within(t, 10*time.Second), "acme/orders", 32, client.Options{})
			return err
		},
		"rewrap": func() error {
			_, err := c.Rewrap(within(t, 10*time.Second), lost.Envelope, client.Options{})
			return err
		},
	} {
		err := call()
		if !errors.Is(err, hierarchy.ErrHSMUnavailable) || !strings.Contains(fmt.Sprint(err), "no such key object in the token") {
			t.Errorf("%s with a lost key: %v", op, err)
		}
	}
	if s := statusOf(t, n); !slices.ContainsFunc(s.Warnings, func(w string) bool {
		return strings.Contains(w, "acme/orders@1") && strings.Contains(w, "not in the token")
	}) {
		t.Errorf("status does not tell of the lost key: %q", s.Warnings)
	} else if !s.Hsm.Healthy {
		t.Errorf("the token is called sick because of one key: %s", s.Hsm.Fault)
	}
	// A new version is a new key.
	if _, err := admin(t, n.Node).RotateKey(within(t, 10*time.Second), &kekdv1.RotateKeyRequest{Key: "acme/orders"}); err != nil {
		t.Errorf("rotation: %v", err)
	}
	sealAndOpen(t, n, "acme/orders")
	d.stop()
}

// TestTokenLosesAKeyMeanwhile: a key that somebody deletes while the node serves is found missing when it
// is asked for, and a restart puts it back from its copy.
func TestTokenLosesAKeyMeanwhile(t *testing.T) {
	t.Parallel()
	n := initialised(t)
	d := n.serve()
	setUp(t, n.Node, "acme", "globex")
	c := keys(t, n.Node)
	made, err := c.GenerateDataKey(within(t, 10*time.Second), "acme/orders", 32, client.Options{})
	if err != nil {
		t.Fatal(err)
	}
	key, err := admin(t, n.Node).GetKey(within(t, 10*time.Second), &kekdv1.GetKeyRequest{Key: "acme/orders"})
	if err != nil {
		t.Fatal(err)
	}
	n.softHSM("pkcs11-tool", "--module", softHSMModule, "--token-label", "kekd", "--login", "--pin", "env:PIN", "--delete-object", "--type", "secrkey", "--id", key.Versions[0].Regions[0].CkaId)
	unwrap := func() error {
		_, err := c.Unwrap(within(t, 10*time.Second), made.Envelope, client.Options{})
		return err
	}
	if err := unwrap(); !errors.Is(err, hierarchy.ErrHSMUnavailable) || !strings.Contains(fmt.Sprint(err), "no such key object in the token") {
		t.Errorf("unwrap with a deleted key: %v", err)
	}
	eventually(t, 20*time.Second, "status tells of the lost key", func() bool {
		return slices.ContainsFunc(statusOf(t, n).Warnings, func(w string) bool {
			return strings.Contains(w, "acme/orders@1") && strings.Contains(w, "not in the token")
		})
	})
	if log := d.says(); !strings.Contains(log, "the token lacks a key") || !strings.Contains(log, "acme/orders@1") {
		t.Error("the log does not tell of the lost key")
	}
	sealAndOpen(t, n, "globex/orders")
	d.stop()

	d = n.serve()
	c = keys(t, n.Node)
	if err := unwrap(); err != nil {
		t.Errorf("unwrap after a restart: %v", err)
	}
	d.stop()
}

// loseObject destroys a key behind the back of a daemon that is stopped, its shadow included.
func (n *node) loseObject(id string) {
	n.t.Helper()
	tokens := filepath.Join(n.SoftHSM, "tokens")
	before := objectFiles(n.t, tokens)
	n.softHSM("pkcs11-tool", "--module", softHSMModule, "--token-label", "kekd", "--login", "--pin", "env:PIN", "--delete-object", "--type", "secrkey", "--id", id)
	after := objectFiles(n.t, tokens)
	lost := slices.DeleteFunc(before, func(path string) bool { return slices.Contains(after, path) })
	if len(lost) != 1 {
		n.t.Fatalf("deleted: %q", lost)
	}
	rel, err := filepath.Rel(tokens, lost[0])
	if err == nil {
		err = os.Remove(filepath.Join(n.SoftHSM, "shadow", rel))
	}
	if err != nil {
		n.t.Fatal(err)
	}
}

func objectFiles(t *testing.T, dir string) []string {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(dir, "*", "*.object"))
	if err != nil {
		t.Fatal(err)
	}
	return files
}
