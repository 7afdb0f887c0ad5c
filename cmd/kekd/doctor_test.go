package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/kekd/kekd/hsm"
)

func TestJudgeDisk(t *testing.T) {
	for _, c := range []struct {
		free     uint64
		readOnly bool
		want     hsm.Verdict
	}{
		{0, false, hsm.Missing}, {100<<20 - 1, false, hsm.Missing},
		{100 << 20, false, hsm.Degraded}, {1<<30 - 1, false, hsm.Degraded},
		{1 << 30, false, hsm.OK}, {1 << 40, true, hsm.Missing},
	} {
		if got := judgeDisk("data_disk", "/data", c.free, c.readOnly); got.Verdict != c.want {
			t.Errorf("%d bytes free, read-only %t: %+v, want %s", c.free, c.readOnly, got, c.want)
		}
	}
}

func TestMissingIsStatus2(t *testing.T) {
	if err := missing([]hsm.Check{hsm.Passed("a", "works"), hsm.Lacking("b", "slower", "nothing")}); err != nil {
		t.Errorf("nothing is missing: %v", err)
	}
	err := missing([]hsm.Check{hsm.Failed("a", "x", "y"), hsm.Passed("b", "works"), hsm.Failed("c", "x", "y")})
	if !strings.HasSuffix(fmt.Sprint(err), ": a, c") || exitStatus(err) != 2 {
		t.Errorf("two are missing: %v, exit status %d", err, exitStatus(err))
	}
}

// A token's label speaks to no terminal.
func TestChecksArePrintedHarmlessly(t *testing.T) {
	var b strings.Builder
	if err := printChecks(&b, "table", []hsm.Check{hsm.Lacking("token", "label \x1b[31m\n", "say \a")}); err != nil {
		t.Fatal(err)
	}
	if got, want := b.String(), "token  degraded  label ?[31m?\n                 -> say ?\n"; got != want {
		t.Errorf("printed %q, want %q", got, want)
	}
}

// Of what a crash says, pages of it, the signal is kept.
func TestCauseOfACrash(t *testing.T) {
	said := &beginning{}
	for range 1000 {
		fmt.Fprintln(said, "the module's own words")
	}
	if len(said.b) > 4096 {
		t.Errorf("%d bytes are kept", len(said.b))
	}
	exit := errors.New("exit status 2")
	if got := said.cause(exit); got != exit {
		t.Errorf("without a signal: %v", got)
	}
	said = &beginning{}
	fmt.Fprint(said, "the module's own words\nSIGSEGV: segmentation violation\nPC=0x0\n")
	if got := fmt.Sprint(said.cause(exit)); got != "SIGSEGV: segmentation violation" {
		t.Errorf("with a signal: %s", got)
	}
	if c := ended(context.Background(), []hsm.Check{hsm.Passed("latch", "works")}, said.cause(exit)); c.Verdict != hsm.Missing || !strings.Contains(c.Meaning, `after "latch"`) {
		t.Errorf("it is told as %+v", c)
	}
}

func TestMaxObjectsInTheConfiguration(t *testing.T) {
	dir := t.TempDir()
	for value, refused := range map[string]bool{"0": false, "16": false, "200000": false, "15": true, "200001": true, "-1": true} {
		path := filepath.Join(dir, "kekd.toml")
		text := "[node]\nname = \"one\"\nregion = \"here\"\n[hsm]\ntoken = \"pkcs11:token=kekd\"\nmax_objects = " + value + "\n"
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := loadConfig(path); (err != nil) != refused || refused && !strings.Contains(err.Error(), "max_objects") {
			t.Errorf("max_objects = %s: %v", value, err)
		}
	}
}
