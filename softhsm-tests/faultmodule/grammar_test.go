package faultmodule_test

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/miekg/pkcs11"
	"pgregory.net/rapid"

	"github.com/kekd/kekd/softhsm-tests/faultmodule"
)

// drive builds the module and a program that drives it, in one, under a sanitizer.
func drive(t *testing.T, sanitizer string) string {
	t.Helper()
	path, err := faultmodule.Compile("drive", "sanitized", "SANITIZER="+sanitizer)
	check(t, err)
	return path
}

// parse has the module's parser judge control files: "ok", or the number of the line and the reason.
func parse(path string, texts []string) ([]string, error) {
	var stderr bytes.Buffer
	cmd := exec.Command(path, "parse")
	cmd.Stdin = strings.NewReader(strings.Join(texts, "\x1e"))
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("%w\n%s", err, stderr.String())
	}
	return strings.Split(strings.TrimSuffix(string(out), "\n"), "\n"), nil
}

func TestGrammar(t *testing.T) {
	tests := []struct{ text, want string }{
		{"# nothing", "ok"},
		{"\n\n  \t\r\n", "ok"},
		{"C_Encrypt error=CKR_DEVICE_ERROR after=100 count=3", "ok"},
		{"C_Encrypt  when=after\tcount=3 error=0x30 # late", "ok"},
		{"* latency=0us", "ok"},
		{"* latency=60000000us\ntoken parallel=256", "ok"},
		{"C_Login hang\r\nC_Login hang=forever after=1\nC_Logout crash", "ok"},
		{"C_DestroyObject error=CKR_OK", "ok"},
		{"token vanished iv=init iv=encrypt objects=0 free_private=18446744073709551615", "ok"},
		{"token flags=CKF_USER_PIN_LOCKED without=CKM_ECDH1_DERIVE without=0x1087", "ok"},
		{strings.Repeat("* crash\n", 64), "ok"},

		{"C_Encyrpt crash", "1: no such function"},
		{"c_encrypt crash", "1: no such function"},
		{"\n# one\n= crash", "3: no such function"},
		{"C_GetFunctionList crash", "1: C_GetFunctionList has no faults"},
		{"C_Encrypt", "1: a rule without an action"},
		{"C_Encrypt after=1", "1: a rule without an action"},
		{"C_Encrypt # crash", "1: a rule without an action"},
		{"C_Encrypt crash hang", "1: more than one action in a rule"},
		{"C_Encrypt crush", "1: no such word in a rule"},
		{"C_Encrypt vanished", "1: no such word in a rule"},
		{"C_Encrypt error", "1: no such return code"},
		{"C_Encrypt error=", "1: no such return code"},
		{"C_Encrypt error=CKR_NO_SUCH", "1: no such return code"},
		{"C_Encrypt error=CKM_AES_GCM", "1: no such return code"},
		{"C_Encrypt error=48", "1: no such return code"},
		{"C_Encrypt error=0x", "1: no such return code"},
		{"C_Encrypt error=0x3g", "1: no such return code"},
		{"C_Encrypt latency=1ms", "1: latency is a number of microseconds up to a minute, as in 1000us"},
		{"C_Encrypt latency=1000", "1: latency is a number of microseconds up to a minute, as in 1000us"},
		{"C_Encrypt latency=-1us", "1: latency is a number of microseconds up to a minute, as in 1000us"},
		{"C_Encrypt latency=60000001us", "1: latency is a number of microseconds up to a minute, as in 1000us"},
		{"C_Encrypt latency=1us when=after", "1: a latency has no when"},
		{"C_Encrypt hang=1", "1: a hang has no value but forever"},
		{"C_Encrypt crash=1", "1: a crash has no value"},
		{"C_Encrypt crash after", "1: after is one number of calls"},
		{"C_Encrypt crash after=x", "1: after is one number of calls"},
		{"C_Encrypt crash after=1 after=2", "1: after is one number of calls"},
		{"C_Encrypt crash after=18446744073709551616", "1: after is one number of calls"},
		{"C_Encrypt crash count=0", "1: count is one number of calls, at least 1"},
		{"C_Encrypt crash count=1 count=1", "1: count is one number of calls, at least 1"},
		{"C_Encrypt crash when=later", "1: when is before or after"},
		{"C_Encrypt crash when", "1: when is before or after"},
		{"C_Encrypt crash when=after when=after", "1: when is before or after"},
		{strings.Repeat("* crash\n", 65), "65: too many rules"},
		{"token", "1: token without a fact"},
		{"token crash", "1: no such fact of a token"},
		{"token vanished=1", "1: vanished has no value"},
		{"token iv", "1: iv is init or encrypt"},
		{"token iv=own", "1: iv is init or encrypt"},
		{"token parallel=0", "1: parallel is a number of calls from 1 to 256"},
		{"token parallel=257", "1: parallel is a number of calls from 1 to 256"},
		{"token parallel=16", "2: parallel without a latency holds nothing back"},
		{"C_Login latency=0us\ntoken parallel=16", "3: parallel without a latency holds nothing back"},
		{"token objects=many", "1: objects is a number"},
		{"token flags=CKF_NONE", "1: no such flag of a token"},
		{"token flags=CKF_RW_SESSION", "1: no such flag of a token"},
		{"token without=ECDH", "1: no such mechanism"},
		{"token" + strings.Repeat(" without=0x1", 17), "1: too many mechanisms"},
		{"token free_private=", "1: memory is a number of bytes"},
		{"token free_privat=1", "1: no such fact of a token"},
	}
	var texts, want []string
	for _, tt := range tests {
		// Each as a file has it, with an end of its last line.
		texts = append(texts, strings.TrimSuffix(tt.text, "\n")+"\n")
		want = append(want, tt.want)
	}
	got, err := parse(drive(t, "address,undefined"), texts)
	check(t, err)
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("verdicts (-want +got):\n%s", diff)
	}
}

// No text makes the parser read or write where it must not, and each gets a verdict.
func TestGrammarOfAnything(t *testing.T) {
	path := drive(t, "address,undefined")
	word := rapid.SampledFrom([]string{
		"C_Encrypt", "C_GetFunctionList", "*", "token", "error=CKR_HOST_MEMORY", "error=0x", "latency=5us", "hang",
		"crash", "after=1", "count=2", "when=after", "vanished", "iv=init", "parallel=2", "objects=1", "without=0x1",
		"flags=CKF_ERROR_STATE", "free_public=7", "=", "#", "\n", "\r", "\t", "0x", "after=", "=after", "error==",
	})
	text := rapid.OneOf(
		rapid.Map(rapid.SliceOfN(word, 0, 200), func(words []string) string { return strings.Join(words, " ") }),
		rapid.Map(rapid.SliceOfN(word, 0, 80), func(words []string) string { return strings.Join(words, "\n") }),
		rapid.Map(rapid.SliceOf(rapid.Byte()), func(b []byte) string {
			return strings.Map(func(r rune) rune {
				if r == 0 || r == 0x1e {
					return '#'
				}
				return r
			}, string(b))
		}),
	)
	rapid.Check(t, func(rt *rapid.T) {
		// The leading line keeps an empty text from being none.
		texts := rapid.SliceOfN(rapid.Map(text, func(s string) string { return "#\n" + s }), 1, 100).Draw(rt, "texts")
		got, err := parse(path, texts)
		if err != nil {
			rt.Fatal(err)
		}
		if len(got) != len(texts) {
			rt.Fatalf("%d verdicts on %d texts", len(got), len(texts))
		}
	})
}

// Threads work on a token while the control file goes through every kind of rule.
func TestSanitized(t *testing.T) {
	for _, sanitizer := range []string{"address,undefined", "thread"} {
		t.Run(sanitizer, func(t *testing.T) {
			dir := t.TempDir()
			check(t, os.Mkdir(filepath.Join(dir, "tokens"), 0o700))
			conf := filepath.Join(dir, "softhsm2.conf")
			check(t, os.WriteFile(conf, []byte("directories.tokendir = "+dir+"/tokens\nobjectstore.backend = file\n"), 0o600))
			cmd := exec.Command(drive(t, sanitizer), "run")
			cmd.Env = append(os.Environ(), "SOFTHSM2_CONF="+conf,
				"KEKD_FAULT_CONTROL="+dir+"/control", "KEKD_FAULT_COUNTERS="+dir+"/counters")
			out, err := cmd.CombinedOutput()
			if err != nil {
				t.Fatalf("%v\n%s", err, out)
			}
		})
	}
}

// With a malformed control file nothing works, until it is mended.
func TestMalformedRefusesEverything(t *testing.T) {
	tok := newToken(t)
	key := tok.key()
	params := pkcs11.NewGCMParams(random(12), testAAD, 128)
	defer params.Free()
	check(t, tok.EncryptInit(tok.session, mechanism(pkcs11.CKM_AES_GCM, params), key))

	tok.Control.Set("C_Encyrpt error=CKR_DEVICE_ERROR")
	for name, call := range map[string]func() error{
		"C_GetInfo":        func() error { _, err := tok.GetInfo(); return err },
		"C_GetSlotList":    func() error { _, err := tok.GetSlotList(true); return err },
		"C_GetSessionInfo": func() error { _, err := tok.GetSessionInfo(tok.session); return err },
		"C_GenerateRandom": func() error { _, err := tok.GenerateRandom(tok.session, 8); return err },
		"C_FindObjects":    func() error { _, _, err := tok.FindObjects(tok.session, 1); return err },
		"C_Encrypt":        func() error { _, err := tok.Encrypt(tok.session, random(32)); return err },
		"C_Initialize":     func() error { return tok.Initialize() },
		"C_Finalize":       tok.Finalize,
	} {
		err := call()
		if err == nil {
			t.Fatalf("%s works", name)
		}
		wantCode(t, err, pkcs11.CKR_ARGUMENTS_BAD)
	}

	tok.Control.Clear()
	must(tok.Encrypt(tok.session, random(32)))(t)
	tok.works(key)
}

// It is told where the mistake is.
func TestMalformedIsLoud(t *testing.T) {
	dir := t.TempDir()
	for text, says := range map[string]string{
		"# fine\nC_Login crash\nC_Encyrpt crash": "control:3: no such function: every call is refused",
		"C_Login crash\x00":                      "control:0: a NUL in the text: every call is refused",
		strings.Repeat("#", 1<<16):               "control:0: too large: every call is refused",
	} {
		control := filepath.Join(dir, "control")
		check(t, os.WriteFile(control, []byte(text), 0o600))
		var stderr bytes.Buffer
		cmd := childCommand(faultmodule.Build(t), "initialize", "KEKD_FAULT_CONTROL="+control)
		cmd.Stderr = &stderr
		out, _ := cmd.Output()
		if !strings.Contains(string(out), "CKR_ARGUMENTS_BAD") || !strings.Contains(stderr.String(), says) {
			t.Errorf("C_Initialize answers %q, stderr is %q; want %q in it", out, stderr.String(), says)
		}
	}
}

// A file that was changed in place is read again, though only the nanoseconds of its time tell.
func TestChangedInPlace(t *testing.T) {
	tok := newToken(t)
	path, _ := strings.CutPrefix(tok.Env()[0], "KEKD_FAULT_CONTROL=")
	stamp := time.Unix(1e9, 1)
	for _, code := range []uint{0x30, 0x32, 0x31} {
		check(t, os.WriteFile(path, fmt.Appendf(nil, "C_GenerateRandom error=0x%x", code), 0o600))
		check(t, os.Chtimes(path, stamp, stamp))
		stamp = stamp.Add(1)
		time.Sleep(2 * time.Millisecond) // as long as the module may go on by what it knew
		_, err := tok.GenerateRandom(tok.session, 8)
		wantCode(t, err, code)
	}
}
