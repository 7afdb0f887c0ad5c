package worker_test

import (
	"bytes"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/kekd/kekd/hsm"
	"github.com/kekd/kekd/hsm/worker"
)

var someChecks = []hsm.Check{
	hsm.Passed("latch", "works"), hsm.Lacking("copies", "slower", "nothing"), hsm.Failed("room", "full", "make room"), {Verdict: hsm.OK},
}

func TestChecksCross(t *testing.T) {
	got, err := worker.ParseChecks(worker.AppendChecks(someChecks))
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(someChecks, got); diff != "" {
		t.Errorf("checks (-sent +got):\n%s", diff)
	}
	whole := worker.AppendChecks(someChecks)
	for name, bad := range map[string][]byte{
		"cut":         whole[:len(whole)-1],
		"a verdict":   worker.AppendChecks([]hsm.Check{{Name: "latch", Verdict: "fine"}}),
		"no verdict":  worker.AppendChecks([]hsm.Check{{Name: "latch"}}),
		"more follow": worker.AppendChecks(make65()),
	} {
		if got, err := worker.ParseChecks(bad); err == nil {
			t.Errorf("%s: read as %+v", name, got)
		}
	}
}

func make65() []hsm.Check {
	many := make([]hsm.Check, 65)
	for i := range many {
		many[i] = hsm.Passed("check", "works")
	}
	return many
}

func FuzzChecks(f *testing.F) {
	f.Add(worker.AppendChecks(someChecks))
	f.Fuzz(func(t *testing.T, sent []byte) {
		checks, err := worker.ParseChecks(sent)
		if err == nil && !bytes.Equal(worker.AppendChecks(checks), sent) {
			t.Errorf("what was read is not what is written: %+v", checks)
		}
	})
}
