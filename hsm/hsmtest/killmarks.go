package hsmtest

import (
	"bufio"
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"testing"
	"time"

	"github.com/kekd/kekd/hsm"
)

// RaiseUntilKilled is what a process of [KillMarks] runs: it says what the mark is on standard output,
// then raises it, and says each step before and after it.
func RaiseUntilKilled(marks hsm.Marks) error {
	ctx := context.Background()
	m, _, err := marks.Mark(ctx, MarkOwner)
	if err != nil {
		return err
	}
	say := func(what string, m hsm.Mark) { // in one write: what was said before the end is heard
		os.Stdout.WriteString(fmt.Sprintln(what, m.Term, m.LastTerm, m.LastIndex))
	}
	say("found", m)
	for i := 0; ; i++ {
		switch i % 3 {
		case 0:
			m.Term++
		case 1:
			m.LastIndex++
		case 2:
			m.LastTerm, m.LastIndex = m.LastTerm+1, m.LastIndex/2
		}
		say("begin", m)
		if err := marks.RaiseMark(ctx, MarkOwner, m); err != nil {
			return err
		}
		say("ok", m)
	}
}

// KillMarks starts processes of [RaiseUntilKilled] in one place, one after the other, and kills each at
// a random moment of a raise: 20 times, and 300 in a nightly run. What was acknowledged is there for
// the next one, and nothing that nobody asked for. It returns the last mark that was begun. The seed is
// printed, and KEKD_SEED takes it again.
func KillMarks(t *testing.T, command func() *exec.Cmd) hsm.Mark {
	t.Helper()
	kills := 20
	if os.Getenv("KEKD_NIGHTLY") == "1" {
		kills = 300
	}
	seed := uint64(time.Now().UnixNano())
	if s := os.Getenv("KEKD_SEED"); s != "" {
		_, err := fmt.Sscan(s, &seed)
		must(t, err)
	}
	t.Logf("KEKD_SEED=%d", seed)
	r := rand.New(rand.NewPCG(seed, 2))
	k := killing{takes: time.Millisecond}
	n := 0
	for inside := 0; inside < kills; n++ {
		if n == 5*kills {
			t.Fatalf("of %d kills %d came in the middle of a raise: too few to show anything", n, inside)
		}
		k.round(t, r, command())
		if t.Failed() {
			t.Fatalf("after kill %d", n+1)
		}
		if k.acknowledged != k.begun {
			inside++
		}
	}
	t.Logf("%d kills, %d in the middle of a raise", n, kills)
	return k.begun
}

// killing is what was said by the processes so far.
type killing struct {
	acknowledged, begun hsm.Mark
	since               time.Time     // of begun
	takes               time.Duration // a raise, lately
}

// round kills one process.
func (k *killing) round(t *testing.T, r *rand.Rand, cmd *exec.Cmd) {
	t.Helper()
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	must(t, err)
	must(t, cmd.Start())
	defer func() { _ = cmd.Process.Kill(); _ = cmd.Wait() }()
	lines := bufio.NewScanner(out)
	if !k.hear(t, lines) {
		t.Error("the place does not open")
		return
	}
	for range 2 + r.IntN(4) {
		k.hear(t, lines)
	}
	time.Sleep(time.Duration(r.Int64N(int64(k.takes) + 1)))
	must(t, cmd.Process.Kill())
	for k.hear(t, lines) {
	}
}

// hear takes one line; false: there is none any more.
func (k *killing) hear(t *testing.T, lines *bufio.Scanner) bool {
	t.Helper()
	if !lines.Scan() {
		return false
	}
	var what string
	var m hsm.Mark
	if _, err := fmt.Sscan(lines.Text(), &what, &m.Term, &m.LastTerm, &m.LastIndex); err != nil {
		t.Errorf("it said %q", lines.Text())
	}
	switch what {
	case "found":
		if !m.Covers(k.acknowledged) || !k.begun.Covers(m) {
			t.Errorf("found {%v}; {%v} was acknowledged, {%v} begun", m, k.acknowledged, k.begun)
		}
		k.acknowledged = m // it was told
	case "begin":
		k.begun, k.since = m, time.Now()
	case "ok":
		k.acknowledged, k.takes = m, time.Since(k.since)
	}
	return true
}
