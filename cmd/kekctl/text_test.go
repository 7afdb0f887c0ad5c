package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os/exec"
	"strings"
	"testing"
	"unicode"

	"github.com/google/go-cmp/cmp"
	"github.com/spf13/cobra"
	"google.golang.org/protobuf/testing/protocmp"

	"github.com/kekd/kekd/hierarchy"
	"github.com/kekd/kekd/unix-socket-api/kekdv1"
)

func TestRenderFault(t *testing.T) {
	f := &fault{exit: exitRefused, code: "NOT_FOUND", message: "no tenant \"a\x1b[2Jb\" <here>", hint: "look\nagain"}
	for _, test := range []struct {
		name   string
		asJSON bool
		want   string
	}{
		{"people", false, "kekctl: no tenant \"a\\x1b[2Jb\" <here> (NOT_FOUND)\nkekctl: hint: look\\nagain\n"},
		{"machines", true, `{"code":"NOT_FOUND","message":"no tenant \"a\u001b[2Jb\" <here>","hint":"look\nagain"}` + "\n"},
	} {
		var b bytes.Buffer
		f.render(&b, test.asJSON)
		if diff := cmp.Diff(test.want, b.String()); diff != "" {
			t.Errorf("for %s (-want +got):\n%s", test.name, diff)
		}
	}
	var b bytes.Buffer
	(&fault{exit: exitLocal, code: codeLocal, message: "no room"}).render(&b, false)
	if got, want := b.String(), "kekctl: no room\n"; got != want {
		t.Errorf("without a hint: %q, want %q", got, want)
	}
}

func TestWhichFault(t *testing.T) {
	cmd := &cobra.Command{Use: "kekctl"}
	for _, test := range []struct {
		name    string
		started bool
		err     error
		code    string
	}{
		{"before the command line is understood", false, errors.New("unknown flag: --x"), codeUsage},
		{"a name", true, fmt.Errorf("tenant: %w", hierarchy.ErrInvalidArgument), codeUsage},
		{"an envelope", true, fmt.Errorf("it: %w", hierarchy.ErrEnvelopeInvalid), codeEnvelope},
		{"anything else", true, errors.New("no such file"), codeLocal},
		{"one that is made already", true, fmt.Errorf("so: %w", badAnswer("x")), codeBadAnswer},
	} {
		a := &app{started: test.started}
		if f := a.fault(cmd, test.err); f.code != test.code || f.exit != exitLocal {
			t.Errorf("%s: code %s and status %d, want %s and 1", test.name, f.code, f.exit, test.code)
		}
	}
}

func TestWantsJSON(t *testing.T) {
	for args, want := range map[string]bool{
		"":                                   false,
		"status":                             false,
		"status -o json":                     true,
		"-o json status":                     true,
		"status -ojson":                      true,
		"status -o=json":                     true,
		"status --output json":               true,
		"status --output=json --bogus":       true,
		"status -o table":                    false,
		"status -o json -o table":            false,
		"status -o table --output=json":      true,
		"status -o":                          false,
		"policy explain me a/b wrap -- json": false,
		"tenant show -- -o json":             false,
		"status --output -o json":            false,
	} {
		if got := wantsJSON(strings.Fields(args)); got != want {
			t.Errorf("wantsJSON(%q) = %t", args, got)
		}
	}
}

func TestContextFlag(t *testing.T) {
	got, err := (&contextFlag{[]string{"b=1,2", "a=x=y", "c="}}).parse()
	if err != nil {
		t.Fatal(err)
	}
	want := []*kekdv1.ContextEntry{{Key: "a", Value: "x=y"}, {Key: "b", Value: "1,2"}, {Key: "c"}}
	if diff := cmp.Diff(want, got, protocmp.Transform()); diff != "" {
		t.Errorf("context (-want +got):\n%s", diff)
	}
	many := make([]string, hierarchy.MaxContextEntries+1)
	for i := range many {
		many[i] = fmt.Sprintf("k%d=v", i)
	}
	for name, entries := range map[string][]string{
		"no value":    {"a"},
		"no key":      {"=v"},
		"a key twice": {"a=1", "b=2", "a=1"},
		"not UTF-8":   {"a=\xff"},
		"a long key":  {strings.Repeat("k", hierarchy.MaxContextKeyLen+1) + "=v"},
		"too many":    many,
	} {
		if _, err := (&contextFlag{entries}).parse(); !errors.Is(err, hierarchy.ErrInvalidArgument) {
			t.Errorf("%s: %v, want an invalid argument", name, err)
		}
	}
}

// The command in a hint is for a shell, which has to read what was typed.
func TestCommandLineIsForAShell(t *testing.T) {
	words := []string{"tenant", "disable", "acme", "--reason", "it's $HOME `x` \"y\" \\ * ~ !\nend", "", "--", "-x"}
	command := (&app{args: words}).commandLine("--extra=1")
	quoted, ok := strings.CutPrefix(command, "kekctl ")
	if !ok {
		t.Fatalf("not a command of kekctl: %s", command)
	}
	out, err := exec.Command("sh", "-c", `printf '%s\0' `+quoted).Output()
	if err != nil {
		t.Fatalf("%v: %s", err, command)
	}
	want := []string{"tenant", "disable", "acme", "--reason", words[4], "", "--extra=1", "--", "-x"}
	if diff := cmp.Diff(want, strings.Split(strings.TrimSuffix(string(out), "\x00"), "\x00")); diff != "" {
		t.Errorf("the shell reads (-want +got):\n%s", diff)
	}
}

func TestRecordLine(t *testing.T) {
	for line, want := range map[string]string{
		`{"kind":"unwrap","at":"2026-01-02T03:04:05.000000006Z","node":"00","tenant":"01","tenant_name":"acme","key":"orders","version":3,"uid":0,"gid":0,"pid":7,"service":"billing","outcome":"denied","code":"PERMISSION_DENIED","reason":"a b","envelope":"ff","of":4,"detail":"d","seq":9,"prev":"ee"}`: `2026-01-02T03:04:05.000000006Z #9 unwrap acme/orders@3 denied PERMISSION_DENIED of=#4 service=billing uid=0 pid=7 reason="a b" detail="d"`,
		`{"kind":"checkpoint","node":"00","seq":10,"prev":"ee"}`: `- #10 checkpoint`,
		"no record \x1b[0m": `no record \x1b[0m`,
	} {
		if got := recordLine(line); got != want {
			t.Errorf("recordLine:\n got %s\nwant %s", got, want)
		}
	}
}

// Whatever a record says, it is one line and leaves the terminal alone.
func FuzzRecordLine(f *testing.F) {
	f.Add(`{"kind":"unwrap","seq":1,"reason":"x\u001b[2J\ny"}`)
	f.Add("\x1b[2J")
	f.Fuzz(func(t *testing.T, line string) {
		got := recordLine(line)
		if i := strings.IndexFunc(got, func(r rune) bool { return !unicode.IsPrint(r) }); i >= 0 {
			t.Fatalf("recordLine(%q) = %q", line, got)
		}
	})
}

func TestServiceMatchTellsZeroFromAbsent(t *testing.T) {
	zero := uint32(0)
	got, err := json.Marshal(newServiceOut(&kekdv1.Service{Name: "root", Uid: &zero}))
	if err != nil {
		t.Fatal(err)
	}
	if want := `{"name":"root","match":{"uid":0}}`; string(got) != want {
		t.Errorf("%s, want %s", got, want)
	}
}
