package state_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// Each rule that fences rest on is left out once, and is missed.
func TestFencesWithoutOneOfTheirRules(t *testing.T) {
	t.Parallel()
	binary := filepath.Join(t.TempDir(), "mutants")
	if out, err := exec.Command("go", "test", "-c", "-tags", "state_mutant", "-o", binary, ".").CombinedOutput(); err != nil {
		t.Fatalf("go test -c: %v\n%s", err, out)
	}
	run := func(mutant string) (string, error) {
		cmd := exec.Command(binary, "-test.run", "^Test(FencesWaitForWhoMayServe|TombstoneOfAnIncarnationThatCameBack|UnprovedOpensNothing|UnprovedOfAnyKind)$", "-rapid.checks=300", "-rapid.nofailfile")
		cmd.Env = append(os.Environ(), "STATE_MUTANT="+mutant)
		out, err := cmd.CombinedOutput()
		return string(out), err
	}
	if out, err := run("none"); err != nil {
		t.Fatalf("without a mutant: %v\n%s", err, out)
	}
	for mutant, found := range map[string]string{
		"lowered-at-once": "which is longer than what counts",
		"no-tombstones":   "may hold a lease and is no holder",
		"any-wait":        "retired by a wait for an earlier one",
		"recovery-opens":  "it opens: ",
	} {
		if out, err := run(mutant); err == nil {
			t.Errorf("%s is not noticed", mutant)
		} else if !strings.Contains(out, found) {
			t.Errorf("%s: no %q in\n%s", mutant, found, out)
		}
	}
}
