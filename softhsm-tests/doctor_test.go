package softhsmtests

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/kekd/kekd/softhsm-tests/faultmodule"
)

// check is one line of a doctor's, as scripts read it.
type check struct {
	Name, Status, Meaning, Action string
}

// diagnosis is what a doctor has said.
type diagnosis struct {
	checks []check
	stderr string
	exit   int
}

func diagnose(t *testing.T, cmd *exec.Cmd) diagnosis {
	t.Helper()
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	if exit := (*exec.ExitError)(nil); err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	d := diagnosis{stderr: stderr.String(), exit: cmd.ProcessState.ExitCode()}
	var out struct{ Checks []check }
	if err := json.Unmarshal(stdout.Bytes(), &out); err != nil {
		t.Fatalf("%q: %v\n%s%s", cmd.Args, err, &stdout, &stderr)
	}
	d.checks = out.Checks
	return d
}

// find gives the last check of a name.
func (d diagnosis) find(t *testing.T, name string) check {
	t.Helper()
	var found check
	for _, c := range d.checks {
		if c.Name == name {
			found = c
		}
	}
	if found.Name == "" {
		t.Fatalf("nothing is said of %s: %+v", name, d.checks)
	}
	return found
}

// faults are the checks that are not ok, by name.
func (d diagnosis) faults() map[string]string {
	all := map[string]string{}
	for _, c := range d.checks {
		if c.Status != "ok" {
			all[c.Name] = c.Status
		}
	}
	return all
}

// kekdDoctor tries a module before there is a cluster.
func kekdDoctor(t *testing.T, env []string, flags ...string) diagnosis {
	t.Helper()
	cmd := exec.Command(kekd, append([]string{"doctor", "-o", "json"}, flags...)...)
	cmd.Env = append(os.Environ(), env...)
	return diagnose(t, cmd)
}

// kekctlDoctor asks a node.
func kekctlDoctor(t *testing.T, n *node) diagnosis {
	t.Helper()
	return diagnose(t, exec.Command(kekctl, "--admin-socket", n.AdminSocket, "doctor", "-o", "json"))
}

// softToken is a SoftHSM2 token that no kekd has seen.
type softToken struct{ dir, conf, pinFile, pin string }

func newSoftToken(t *testing.T) softToken {
	t.Helper()
	dir := tempDir(t)
	s := softToken{dir, filepath.Join(dir, "softhsm2.conf"), filepath.Join(dir, "pin"), "pin-" + string(canary())}
	err := os.Mkdir(filepath.Join(dir, "tokens"), 0o700)
	if err == nil {
		err = os.WriteFile(s.conf, fmt.Appendf(nil, "directories.tokendir = %s/tokens\nobjectstore.backend = file\nlog.level = ERROR\n", dir), 0o600)
	}
	if err == nil {
		err = os.WriteFile(s.pinFile, []byte(s.pin+"\n"), 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("softhsm2-util", "--init-token", "--free", "--label", "fresh", "--so-pin", "12345678", "--pin", s.pin)
	cmd.Env = append(os.Environ(), s.env()...)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return s
}

func (s softToken) env() []string { return []string{"SOFTHSM2_CONF=" + s.conf} }

func (s softToken) objects(t *testing.T) []string {
	t.Helper()
	return objectFiles(t, filepath.Join(s.dir, "tokens"))
}

// A token that nobody has used yet is fine, but for what SoftHSM does to its files, and is left as it
// was. No process shows the PIN.
func TestDoctorOfAFreshToken(t *testing.T) {
	t.Parallel()
	s := newSoftToken(t)
	before := s.objects(t)
	d := kekdDoctor(t, s.env(), "--module", softHSMModule, "--pin-file", s.pinFile)
	if diff := cmp.Diff(map[string]string{"durability": "degraded"}, d.faults()); diff != "" || d.exit != 0 {
		t.Errorf("exit status %d, faults (-want +got):\n%s%+v", d.exit, diff, d.checks)
	}
	if diff := cmp.Diff(before, s.objects(t)); diff != "" {
		t.Errorf("files of the token (-before +after):\n%s", diff)
	}
	for _, c := range d.checks {
		if strings.Contains(fmt.Sprint(c), s.pin) || strings.Contains(d.stderr, s.pin) {
			t.Errorf("the PIN is told: %+v %s", c, d.stderr)
		}
	}
	// For people, the same; and the URI may say where module and PIN are.
	uri := "pkcs11:token=fresh?module-path=" + softHSMModule + "&pin-source=file:" + s.pinFile
	cmd := exec.Command(kekd, "doctor", "--token-uri", uri)
	cmd.Env = append(os.Environ(), s.env()...)
	out, err := cmd.CombinedOutput()
	for _, line := range []string{"latch       ok", "durability  degraded", "-> let kekd look after the directory"} {
		if err != nil || !strings.Contains(string(out), line) {
			t.Errorf("%q is not there: %v\n%s", line, err, out)
		}
	}
}

func TestDoctorIsUsedWrongly(t *testing.T) {
	t.Parallel()
	s := newSoftToken(t)
	for name, c := range map[string]struct {
		flags []string
		exit  int
		words string
	}{
		"no module":    {nil, 1, "--module"},
		"no such file": {[]string{"--module", softHSMModule, "--pin-file", s.dir + "/nothing"}, statusOfPIN, "no PIN"},
		"no PKCS#11":   {[]string{"--module", softHSMModule, "--token-uri", "https://example.org"}, 1, "PKCS#11 URI"},
		"no format":    {[]string{"--module", softHSMModule, "-o", "yaml"}, 1, "table or json"},
		"not a module": {[]string{"--module", s.conf}, 2, "cannot do without: module"},
		"no such one":  {[]string{"--module", softHSMModule, "--token-uri", "pkcs11:token=other", "--pin-file", s.pinFile}, 2, "cannot do without: token"},
		"no PIN":       {[]string{"--module", softHSMModule}, 2, "cannot do without: login"},
	} {
		t.Run(name, func(t *testing.T) {
			cmd := exec.Command(kekd, append([]string{"doctor"}, c.flags...)...)
			cmd.Env = append(os.Environ(), s.env()...)
			var stderr bytes.Buffer
			cmd.Stderr = &stderr
			_ = cmd.Run()
			if cmd.ProcessState.ExitCode() != c.exit || !strings.Contains(stderr.String(), c.words) {
				t.Errorf("exit status %d, want %d; it says %s", cmd.ProcessState.ExitCode(), c.exit, &stderr)
			}
		})
	}
}

// What a kind of token lacks is told in the same words before there is a cluster and by a node that
// runs on it, and is no reason not to run.
func TestDoctorOfShapes(t *testing.T) {
	t.Parallel()
	degraded := map[string]map[string]string{
		"network": {}, "own-iv-init": {}, "own-iv-encrypt": {},
		"no-copy":          {"copies": "degraded"},
		"no-set-attribute": {"latch": "degraded"},
		"no-ecdh":          {"kdf": "degraded"},
		"restricted":       {"copies": "degraded", "latch": "degraded", "kdf": "degraded"},
	}
	n := initialised(t)
	m := n.behindFaults()
	env := append(m.Env(), "SOFTHSM2_CONF="+n.SoftHSM2Conf)
	for _, shape := range faultmodule.Shapes() {
		t.Run(shape.Name, func(t *testing.T) {
			want, known := degraded[shape.Name]
			if !known {
				t.Fatal("a shape that this test does not know")
			}
			m.Control.Set(shape.Rules...)
			before := kekdDoctor(t, env, "--module", m.Path, "--token-uri", "pkcs11:token=kekd", "--pin-file", n.PINFile)
			if diff := cmp.Diff(want, before.faults()); diff != "" || before.exit != 0 {
				t.Errorf("kekd doctor: exit status %d, faults (-want +got):\n%s%s", before.exit, diff, before.stderr)
			}
			n := n.in(t)
			d := n.serve()
			running := kekctlDoctor(t, n)
			d.stop()
			if running.exit != 0 {
				t.Errorf("kekctl doctor: exit status %d: %+v", running.exit, running.faults())
			}
			for _, name := range []string{"token", "mechanisms", "attributes", "limits", "latch", "copies", "kdf", "durability"} {
				if diff := cmp.Diff(before.find(t, name), running.find(t, name)); diff != "" {
					t.Errorf("before there is a cluster and by a node (-kekd +kekctl):\n%s", diff)
				}
			}
		})
	}
}

// What a token cannot do without is missing, whatever else it can do.
func TestDoctorOfATokenThatLacks(t *testing.T) {
	t.Parallel()
	s := newSoftToken(t)
	m := faultmodule.New(t)
	for name, c := range map[string]struct {
		rules   []string
		missing []string
		words   string
	}{
		"GCM":         {[]string{"token without=CKM_AES_GCM"}, []string{"mechanisms", "attributes", "limits", "latch"}, "CKM_AES_GCM data keys cannot be wrapped"},
		"key":         {[]string{"C_GenerateKey error=CKR_TEMPLATE_INCONSISTENT"}, []string{"attributes", "limits", "latch", "copies"}, "no key can be made"},
		"room":        {[]string{"token objects=0"}, []string{"attributes", "limits", "latch", "copies"}, "the token is full"},
		"memory":      {[]string{"token free_private=100"}, []string{"room"}, "its memory has room for about 0 more"},
		"sessions":    {[]string{"C_OpenSession error=CKR_SESSION_COUNT after=1"}, []string{"sessions", "latch"}, "no session can be opened to serve from"},
		"randomness":  {[]string{"C_GenerateRandom error=CKR_RANDOM_NO_RNG"}, []string{"mechanisms", "attributes", "limits", "latch"}, "no data key can be made"},
		"PIN tries":   {[]string{"token flags=CKF_USER_PIN_FINAL_TRY"}, []string{"login"}, "would lock at the next wrong PIN"},
		"a good lock": {[]string{"C_SetAttributeValue error=CKR_OK"}, nil, ""},
	} {
		m.Control.Set(c.rules...)
		logins := 0
		if m.Counters.Loaded() {
			logins = m.Counters.Calls("C_Login")
		}
		d := kekdDoctor(t, append(s.env(), m.Env()...), "--module", m.Path, "--pin-file", s.pinFile)
		var missing []string
		said := ""
		for _, check := range d.checks {
			if check.Status == "missing" {
				missing = append(missing, check.Name)
				said += check.Meaning + "\n"
			}
			if check.Status != "ok" && check.Action == "" {
				t.Errorf("%s: of %s it is not said what to do", name, check.Name)
			}
		}
		if diff := cmp.Diff(c.missing, missing); diff != "" || !strings.Contains(said, c.words) {
			t.Errorf("%s: missing (-want +got):\n%s%s", name, diff, said)
		}
		if want := min(len(c.missing), 1) * 2; d.exit != want {
			t.Errorf("%s: exit status %d, want %d", name, d.exit, want)
		}
		if c.missing == nil && d.find(t, "latch").Status != "degraded" {
			t.Errorf("%s: %+v", name, d.find(t, "latch"))
		}
		tries := 1
		if name == "PIN tries" {
			tries = 0
		}
		if got := m.Counters.Calls("C_Login") - logins; got != tries {
			t.Errorf("%s: %d logins, want %d", name, got, tries)
		}
	}
}

// A module that crashes or hangs takes its own process along and no other, what was fine before is
// told, and what it left in the token is gone after the next look.
func TestDoctorOfAModuleThatEnds(t *testing.T) {
	t.Parallel()
	s := newSoftToken(t)
	m := faultmodule.New(t)
	env := append(s.env(), m.Env()...)
	before := s.objects(t)
	for name, c := range map[string]struct{ rule, words string }{
		"crash":         {"C_CopyObject crash", `after "latch" had been tried (SIGSEGV`},
		"hang":          {"C_CopyObject hang=forever", `it hung after "latch" had been tried`},
		"crash at once": {"C_Initialize crash", "while it was loaded"},
	} {
		m.Control.Set(c.rule)
		begun := time.Now()
		d := kekdDoctor(t, env, "--module", m.Path, "--pin-file", s.pinFile, "--timeout", "3s")
		last := d.checks[len(d.checks)-1]
		if d.exit != 2 || last.Name != "module" || last.Status != "missing" || !strings.Contains(last.Meaning, c.words) {
			t.Errorf("%s: exit status %d, the last check is %+v", name, d.exit, last)
		}
		if name != "crash at once" && d.find(t, "latch").Status != "ok" {
			t.Errorf("%s: what was tried before is lost: %+v", name, d.checks)
		}
		if took := time.Since(begun); took > 10*time.Second {
			t.Errorf("%s: it took %v", name, took)
		}
	}
	if len(s.objects(t)) == len(before) {
		t.Fatal("the modules that ended have left nothing, so that nothing can be swept")
	}
	m.Control.Set("token objects=1") // which is taken, until it is swept
	if d := kekdDoctor(t, env, "--module", m.Path, "--pin-file", s.pinFile); d.exit != 0 {
		t.Errorf("the next look: %+v", d.faults())
	}
	if diff := cmp.Diff(before, s.objects(t)); diff != "" {
		t.Errorf("files of the token (-before +after):\n%s", diff)
	}
}

// A look at the token of a node that serves is in nobody's way, and is taken for no damage.
func TestDoctorBesideANode(t *testing.T) {
	t.Parallel()
	n := initialised(t)
	d := n.serve()
	setUp(t, n.Node, "acme")
	p := probe(t, n, "acme/orders")
	for range 5 {
		beside := kekdDoctor(t, []string{"SOFTHSM2_CONF=" + n.SoftHSM2Conf}, "--module", softHSMModule, "--token-uri", "pkcs11:token=kekd", "--pin-file", n.PINFile)
		within := kekctlDoctor(t, n)
		for who, said := range map[string]diagnosis{"kekd": beside, "kekctl": within} {
			if c := said.find(t, "durability"); said.exit != 0 || c.Status != "ok" {
				t.Errorf("%s doctor: exit status %d, %+v, %+v", who, said.exit, c, said.faults())
			}
		}
	}
	if _, err := admin(t, n.Node).RotateKey(within(t, 10*time.Second), rotation("acme/orders")); err != nil {
		t.Error(err)
	}
	p.stop()
	if w := statusOf(t, n).Warnings; len(w) > 0 {
		t.Errorf("warnings: %q", w)
	}
	if strings.Contains(d.says(), "put right") {
		t.Error("what the doctor did was repaired")
	}
	d.stop()
}

// What a node lacks besides its token is told, too.
func TestDoctorOfANode(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	n.Extra = "lock_memory = false"
	n.onTmpfs(160)
	n.Prefix = []string{"prlimit", "--nofile=512"}
	d := n.serve()
	said := kekctlDoctor(t, n)
	want := map[string]string{"memory_lock": "degraded", "descriptors": "degraded", "data_disk": "missing"}
	if diff := cmp.Diff(want, said.faults()); diff != "" || said.exit != 2 {
		t.Errorf("exit status %d, faults (-want +got):\n%s%+v", said.exit, diff, said.checks)
	}
	for name, words := range map[string]string{
		"memory_lock": "swapped out", "descriptors": "512 descriptors are allowed", "data_disk": "MiB are free for " + n.DataDir,
		"audit_journal": "records are durable", "raft_store": "made durable", "workers": "token workers serve", "keys": "the key of each version",
		"token_disk": n.SoftHSM, "room": "keys can be made",
	} {
		if c := said.find(t, name); !strings.Contains(c.Meaning, words) {
			t.Errorf("%s does not say %q: %q", name, words, c.Meaning)
		}
	}
	d.stop()
}
