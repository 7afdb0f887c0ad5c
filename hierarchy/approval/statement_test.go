package approval_test

import (
	"bytes"
	"errors"
	"flag"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/kekd/kekd/hierarchy"
	"github.com/kekd/kekd/hierarchy/approval"
)

var update = flag.Bool("update", false, "write the golden files anew")

func statement() *approval.Statement {
	return &approval.Statement{
		Operation: approval.TenantEnable,
		Arguments: []approval.Argument{{Name: "tenant", Value: "acme"}, {Name: "tenant-id", Value: "000102030405060708090a0b0c0d0e0f"}},
		Command:   [32]byte{0xfe, 31: 1},
		Cluster:   hierarchy.ClusterID{ID: hierarchy.ID{0x10, 15: 0x1f}},
		Epoch:     3,
		Nonce:     hierarchy.ID{0x20, 15: 0x2f},
		Expires:   time.Date(2030, 1, 1, 0, 10, 0, 0, time.UTC),
		Roster:    7,
		Reason:    "der Vorfall ist vorüber; ticket=4711, argument: none",
	}
}

// The text is signed, kept and verified again after years: not one byte of it changes.
func TestGoldenStatement(t *testing.T) {
	const golden = "testdata/v1.statement"
	got, err := statement().Text()
	if err != nil {
		t.Fatal(err)
	}
	if *update {
		if err := os.WriteFile(golden, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), string(got)); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
	read, err := approval.ParseStatement(want)
	if diff := cmp.Diff(statement(), read); err != nil || diff != "" {
		t.Errorf("%v (-written +read):\n%s", err, diff)
	}
}

// No field can be made to look like another one, and none shows as something else than it is.
func TestNothingIsInjected(t *testing.T) {
	for says, change := range map[string]func(*approval.Statement){
		"reason: it has the character U+000A":    func(s *approval.Statement) { s.Reason = "x\noperation: restore" },
		"reason: it has the character U+000D":    func(s *approval.Statement) { s.Reason = "x\roperation: restore" },
		"reason: it has the character U+001B":    func(s *approval.Statement) { s.Reason = "\x1b[2K" },
		"reason: it has the character U+0085":    func(s *approval.Statement) { s.Reason = "x\u0085y" },
		"reason: it has the character U+2028":    func(s *approval.Statement) { s.Reason = "x\u2028y" },
		"reason: it has the character U+202E":    func(s *approval.Statement) { s.Reason = "x\u202ey" },
		"reason: it has the character U+200B":    func(s *approval.Statement) { s.Reason = "x\u200by" },
		"reason: it has the character U+2067":    func(s *approval.Statement) { s.Reason = "x\u2067y" },
		"reason: it has the character U+FEFF":    func(s *approval.Statement) { s.Reason = "\ufeffx" },
		"reason: it has the character U+00A0":    func(s *approval.Statement) { s.Reason = "x\u00a0" },
		"reason: it has the character U+E0041":   func(s *approval.Statement) { s.Reason = "x\U000e0041" },
		"reason: it is not UTF-8":                func(s *approval.Statement) { s.Reason = "\xff" },
		"reason: it begins or ends":              func(s *approval.Statement) { s.Reason = " x" },
		"reason: it is missing":                  func(s *approval.Statement) { s.Reason = "" },
		"argument tenant: it has the character":  func(s *approval.Statement) { s.Arguments[0].Value = "acme\nargument: tenant=globex" },
		"argument tenant: it begins or ends":     func(s *approval.Statement) { s.Arguments[0].Value = "acme " },
		`argument: invalid argument: name "a=b"`: func(s *approval.Statement) { s.Arguments[0].Name = "a=b" },
		"argument: invalid argument: a name is":  func(s *approval.Statement) { s.Arguments[0].Name = "" },
		`operation "tenant-enable\n" is not`:     func(s *approval.Statement) { s.Operation += "\n" },
		"no whole second":                        func(s *approval.Statement) { s.Expires = s.Expires.Add(1) },
		"from 1970 to 9999":                      func(s *approval.Statement) { s.Expires = s.Expires.AddDate(8000, 0, 0) },
		"at most 65536 are allowed":              func(s *approval.Statement) { s.Reason = strings.Repeat("x", approval.MaxStatement) },
	} {
		s := statement()
		change(s)
		text, err := s.Text()
		refused(t, err, says)
		if text != nil {
			t.Errorf("%s: there is a text beside the error", says)
		}
	}
}

func TestParseStatementRefuses(t *testing.T) {
	whole, err := statement().Text()
	if err != nil {
		t.Fatal(err)
	}
	for says, c := range map[string][2]string{
		"heading":                    {"statement v1", "statement v2"},
		"operation: it is missing":   {"operation: ", "operation:"},
		`operation "tenant-disable"`: {"tenant-enable", "tenant-disable"},
		"argument: write NAME=VALUE": {"tenant=acme", "tenant"},
		"command: it is missing":     {"argument: tenant=", "Argument: tenant="},
		"command: write sha256:":     {"sha256:fe", "sha256:"},
		"it is not written as":       {"sha256:fe", "sha256:FE"},
		"cluster: invalid argument":  {"cluster: 10", "cluster: 1"},
		"epoch: it is no number":     {"epoch: 3", "epoch: -3"},
		"epoch: it is missing":       {"epoch: 3\n", ""},
		"statement: it is not":       {"epoch: 3", "epoch: 03"},
		"nonce: it is missing":       {"epoch: 3", "epoch: 3\nepoch: 4"},
		"expires: write":             {"00:10:00Z", "00:10:00"},
		"roster: it is no number":    {"roster: 7", "roster: 7 "},
		"end: something follows it":  {"argument: none\n", "argument: none\nx\n"},
		"end: its last line":         {"argument: none\n", "argument: none"},
		"reason: it is missing":      {"reason: ", "Reason: "},
		"statement: reason: it has":  {"ticket", "\x1b"},
	} {
		if !bytes.Contains(whole, []byte(c[0])) {
			t.Fatalf("the statement has no %q", c[0])
		}
		_, err := approval.ParseStatement(bytes.Replace(whole, []byte(c[0]), []byte(c[1]), 1))
		if !errors.Is(err, hierarchy.ErrInvalidArgument) || !strings.Contains(err.Error(), strings.TrimPrefix(says, "statement: reason: ")) {
			t.Errorf("%q for %q: got %v, want %q", c[1], c[0], err, says)
		}
	}
	_, err = approval.ParseStatement(make([]byte, approval.MaxStatement+1))
	refused(t, err, "at most 65536 are allowed")
}

// Two statements that differ have two texts.
func TestEveryFieldIsInTheText(t *testing.T) {
	first, err := statement().Text()
	if err != nil {
		t.Fatal(err)
	}
	for field, change := range map[string]func(*approval.Statement){
		"operation": func(s *approval.Statement) { s.Operation = approval.Restore },
		"argument":  func(s *approval.Statement) { s.Arguments[1].Value = "x" },
		"name":      func(s *approval.Statement) { s.Arguments[1].Name = "x" },
		"order":     func(s *approval.Statement) { slices.Reverse(s.Arguments) },
		"fewer":     func(s *approval.Statement) { s.Arguments = s.Arguments[:1] },
		"command":   func(s *approval.Statement) { s.Command[31]++ },
		"cluster":   func(s *approval.Statement) { s.Cluster.ID[15]++ },
		"epoch":     func(s *approval.Statement) { s.Epoch++ },
		"nonce":     func(s *approval.Statement) { s.Nonce[15]++ },
		"expires":   func(s *approval.Statement) { s.Expires = s.Expires.Add(time.Second) },
		"roster":    func(s *approval.Statement) { s.Roster++ },
		"reason":    func(s *approval.Statement) { s.Reason += "." },
	} {
		s := statement()
		change(s)
		if text, err := s.Text(); err != nil || bytes.Equal(text, first) {
			t.Errorf("%s: another one has the same text, or none: %v", field, err)
		}
	}
}

func TestStatementsReadBack(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := statement()
		s.Reason = rapid.String().Draw(t, "reason")
		s.Arguments = nil
		for range rapid.IntRange(0, 3).Draw(t, "arguments") {
			s.Arguments = append(s.Arguments, approval.Argument{Name: rapid.StringMatching(`[a-z]{1,5}`).Draw(t, "name"), Value: rapid.String().Draw(t, "value")})
		}
		s.Epoch, s.Roster = rapid.Uint64().Draw(t, "epoch"), rapid.Uint64().Draw(t, "roster")
		text, err := s.Text()
		if err != nil {
			return
		}
		if lines := bytes.Count(text, []byte("\n")); lines != 9+len(s.Arguments) {
			t.Fatalf("it has %d lines:\n%s", lines, text)
		}
		got, err := approval.ParseStatement(text)
		if diff := cmp.Diff(s, got); err != nil || diff != "" {
			t.Fatalf("%v (-written +read):\n%s", err, diff)
		}
	})
}

func TestOperations(t *testing.T) {
	for s, class := range map[string]approval.Class{
		"tenant-enable": approval.Opens, "grant-create": approval.Opens, "policy-widen": approval.Opens, "quota-raise": approval.Opens,
		"max-staleness-raise": approval.Opens, "node-invite": approval.Moves, "voter-promote": approval.Moves, "tenant-place": approval.Moves,
		"restore": approval.Moves, "emergency-unwrap": approval.Opens, "key-version-destroy": approval.Destroys, "tenant-offboard": approval.Destroys,
		"roster-add": approval.Rosters, "roster-remove": approval.Rosters, "quorum-set": approval.Rosters, "delegate": approval.Rosters,
		"region-pin": approval.Moves, "region-promote": approval.Moves, "key-version-resume": approval.Opens, "min-unwrap-lower": approval.Opens,
		"tenant-release": approval.Opens, "region-add": approval.Moves, "legacy-register": approval.Opens,
	} {
		o, err := approval.ParseOperation(s)
		if err != nil || o.Class() != class {
			t.Errorf("%s: class %q, %v", s, o.Class(), err)
		}
		never := class == approval.Destroys || class == approval.Rosters || s == "emergency-unwrap" || s == "region-promote"
		if (o.CheckDelegable() != nil) != never {
			t.Errorf("%s: left to admins: %v", s, o.CheckDelegable())
		}
	}
	_, err := approval.ParseOperation("tenant-disable")
	refused(t, err, "is not known")
	for _, c := range approval.Classes {
		if got, err := approval.ParseClass(string(c)); err != nil || got != c {
			t.Errorf("%s: %v", c, err)
		}
	}
	for _, c := range []string{"", "roster", "close"} {
		_, err := approval.ParseClass(c)
		refused(t, err, "it is one of")
	}
}

func FuzzParseStatement(f *testing.F) {
	text, err := statement().Text()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(text)
	f.Fuzz(func(t *testing.T, text []byte) {
		s, err := approval.ParseStatement(text)
		if err != nil {
			if !errors.Is(err, hierarchy.ErrInvalidArgument) {
				t.Fatalf("%v is no invalid argument", err)
			}
			return
		}
		if again, err := s.Text(); err != nil || !bytes.Equal(again, text) {
			t.Fatalf("it is written again as %q, %v", again, err)
		}
	})
}
