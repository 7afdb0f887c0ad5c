package faultmodule_test

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"

	"github.com/kekd/kekd/softhsm-tests/faultmodule"
)

// recorder is a test that notes how it failed.
type recorder struct {
	testing.TB
	failure string
}

func (r *recorder) Fatal(args ...any) { r.failure = fmt.Sprint(args...); runtime.Goexit() }
func (r *recorder) Fatalf(format string, args ...any) {
	r.failure = fmt.Sprintf(format, args...)
	runtime.Goexit()
}

// failure is how f fails its test.
func failure(t *testing.T, f func(testing.TB)) string {
	r := &recorder{TB: t}
	done := make(chan struct{})
	go func() {
		defer close(done)
		f(r)
	}()
	<-done
	return r.failure
}

// A count of what cannot be counted is no zero.
func TestCountersOfNothing(t *testing.T) {
	t.Run("no process", func(t *testing.T) {
		got := failure(t, func(r testing.TB) { faultmodule.New(r).Counters.Calls("C_Login") })
		if !strings.Contains(got, "no process has loaded") {
			t.Errorf("failure %q", got)
		}
	})
	t.Run("no such function", func(t *testing.T) {
		got := failure(t, func(r testing.TB) { newToken(r).Counters.Calls("C_Encyrpt") })
		if !strings.Contains(got, `no PKCS#11 function "C_Encyrpt"`) {
			t.Errorf("failure %q", got)
		}
	})
}

// Each test of a process has counters of its own.
func TestCountersOfEachTest(t *testing.T) {
	var last *faultmodule.Counters
	for _, name := range []string{"first", "second", "third"} {
		t.Run(name, func(t *testing.T) {
			tok := newToken(t)
			if got := tok.Counters.Calls("C_Initialize"); got != 1 {
				t.Errorf("%d calls of C_Initialize, want 1", got)
			}
			tok.works(tok.key())
			if got := len(tok.Counters.Processes()); got != 1 {
				t.Errorf("%d processes, want 1", got)
			}
			if tok.Counters == last {
				t.Error("the counters of another test")
			}
			last = tok.Counters
		})
	}
}

// Processes that build at once all get the one that is complete, and nothing else is left.
func TestBuildAtOnce(t *testing.T) {
	cache := t.TempDir()
	t.Setenv("GOCACHE", t.TempDir())
	t.Setenv("XDG_CACHE_HOME", cache)
	var wg sync.WaitGroup
	for range 2 {
		wg.Go(func() {
			if _, err := faultmodule.Compile("faultmodule.so"); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	left := must(filepath.Glob(filepath.Join(cache, "kekd-faultmodule", "*")))(t)
	if len(left) != 1 || !strings.HasSuffix(left[0], "-faultmodule.so") {
		t.Fatalf("in the cache: %v", left)
	}
	before := must(os.Stat(left[0]))(t)
	again := must(faultmodule.Compile("faultmodule.so"))(t)
	if after := must(os.Stat(again))(t); !os.SameFile(before, after) || before.ModTime() != after.ModTime() {
		t.Error("it was built anew")
	}
}
