package view_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// Each sentence of what Look promises about its reads is left out once, and is missed.
func TestLookWithoutOneOfItsRules(t *testing.T) {
	binary := filepath.Join(t.TempDir(), "mutants")
	if out, err := exec.Command("go", "test", "-c", "-tags", "view_mutant", "-o", binary, ".").CombinedOutput(); err != nil {
		t.Fatalf("go test -c: %v\n%s", err, out)
	}
	run := func(mutant string) (string, error) {
		cmd := exec.Command(binary, "-test.run", "^TestLook(AmongEvents|ReadsInOrder)$", "-rapid.checks=3000", "-rapid.nofailfile")
		cmd.Env = append(os.Environ(), "VIEW_MUTANT="+mutant)
		out, err := cmd.CombinedOutput()
		return string(out), err
	}
	if out, err := run("none"); err != nil {
		t.Fatalf("without a mutant: %v\n%s", err, out)
	}
	for mutant, found := range map[string]string{
		"state-first": "a copy that is current is refused",
		"clock-first": "before that, is not in it",
		"any-index":   "before that, is not in it",
	} {
		out, err := run(mutant)
		if err == nil {
			t.Errorf("%s is not noticed", mutant)
		}
		for _, want := range []string{found, "--- FAIL: TestLookReadsInOrder"} {
			if !strings.Contains(out, want) {
				t.Errorf("%s: no %q in\n%s", mutant, want, out)
			}
		}
	}
}
