package cluster_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// Each rule that marks rest on is left out once, and is missed.
func TestMarksWithoutOneOfTheirRules(t *testing.T) {
	t.Parallel()
	binary := filepath.Join(t.TempDir(), "mutants")
	if out, err := exec.Command("go", "test", "-c", "-tags", "cluster_mutant", "-o", binary, ".").CombinedOutput(); err != nil {
		t.Fatalf("go test -c: %v\n%s", err, out)
	}
	run := func(mutant, tests string) (string, error) {
		cmd := exec.Command(binary, "-test.run", "^("+tests+")$")
		cmd.Env = append(os.Environ(), "CLUSTER_MUTANT="+mutant)
		out, err := cmd.CombinedOutput()
		return string(out), err
	}
	killed := []struct{ mutant, by, found string }{
		{"index-only", "TestAMarkIsNoIndexAlone", "behind is false"},
		{"rolled-back-votes", "TestARolledBackDirectoryIsRefused", "a rolled-back disk is not refused"},
		{"mark-after-acknowledgement", "TestAnAcknowledgementIsMarkedFirst", "it is acknowledged before it is marked"},
		{"older-term", "TestAnEntryOfAnOlderTermIsNotHeld", "an entry of an older term is held"},
		{"registration-unmarked", "TestARegistrationIsMarkedBeforeItCounts", "a run that was never marked holds a lease"},
	}
	var all []string
	for _, k := range killed {
		all = append(all, k.by)
	}
	if out, err := run("none", strings.Join(all, "|")); err != nil {
		t.Fatalf("without a mutant: %v\n%s", err, out)
	}
	for _, k := range killed {
		if out, err := run(k.mutant, k.by); err == nil {
			t.Errorf("%s is not noticed", k.mutant)
		} else if !strings.Contains(out, k.found) {
			t.Errorf("%s: no %q in\n%s", k.mutant, k.found, out)
		}
	}
}
