package main

import (
	"bytes"
	"maps"
	"os"
	"strconv"
	"strings"

	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/kekd/kekd/cmd/kekctl/clitest"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"kekctl": main, "journal": journalMain})
}

// TestScripts holds how kekctl behaves, each script with a scripted daemon of its own.
func TestScripts(t *testing.T) { runScripts(t, "testdata/script") }

// TestDaemonScripts holds the scripted daemon to what the real one is held to.
func TestDaemonScripts(t *testing.T) { runScripts(t, "testdata/daemon") }

type fakeKey struct{}

func runScripts(t *testing.T, dir string) {
	commands := clitest.Commands()
	maps.Copy(commands, map[string]func(*testscript.TestScript, bool, []string){
		"fake":  fakeCommand,
		"bytes": bytesCommand,
		"retry": retryCommand,
	})
	testscript.Run(t, testscript.Params{
		Dir:                 dir,
		Cmds:                commands,
		RequireExplicitExec: true,
		Setup: func(env *testscript.Env) error {
			f := startFake(env.T().(testing.TB))
			env.Values[fakeKey{}] = f
			env.Setenv("KEKD_SOCKET", f.socket)
			env.Setenv("KEKD_ADMIN_SOCKET", f.adminSocket)
			env.Setenv("METRICS_SOCKET", f.metricsSocket)
			// Else each process of a race detector's build sleeps for a second at its end.
			env.Setenv("GORACE", "atexit_sleep_ms=0")
			return nil
		},
	})
}

// fakeCommand says what the scripted daemon does at the next call of a method:
//
//	fake fail METHOD CODE   refuse it with the daemon's own code
//	fake grpc METHOD CODE   refuse it in gRPC's words alone
//	fake hang METHOD        never answer
//	fake lose METHOD        do it, and cut the connection before the answer
//	fake losing METHOD      lose all answers from now on
//	fake blank METHOD       do it, and answer with nothing filled in
//	fake short METHOD       do it, and answer with a data key that lacks a byte
//	fake spoil SaveSnapshot send it, and flip a bit of it
//	fake ail Doctor STATUS  do it, and answer that its first check went so
//	fake hanging            wait for the next call that hangs
//	fake miss               let whoever watches miss seven events
//	fake stop               end
func fakeCommand(ts *testscript.TestScript, neg bool, args []string) {
	f := ts.Value(fakeKey{}).(*fakeDaemon)
	switch {
	case !neg && len(args) == 1 && args[0] == "stop":
		f.stop()
	case !neg && len(args) == 1 && args[0] == "miss":
		f.miss(7)
	case !neg && len(args) == 1 && args[0] == "hanging":
		f.waitHanging(ts)
	case !neg && len(args) == 2:
		f.inject(args[1], fakeFault{kind: args[0]})
	case !neg && len(args) == 3:
		f.inject(args[1], fakeFault{kind: args[0], code: args[2]})
	default:
		ts.Fatalf("usage: fake stop|hanging|miss|fail|grpc|hang|lose|losing|blank|short|ail METHOD [CODE]")
	}
}

// bytesCommand writes a file of N bytes: bytes N FILE.
func bytesCommand(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: bytes N FILE")
	}
	n, err := strconv.Atoi(args[0])
	ts.Check(err)
	ts.Check(os.WriteFile(ts.MkAbs(args[1]), bytes.Repeat([]byte("k"), n), 0o600))
}

// retryCommand does as a hint says: retry HINT.
func retryCommand(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: retry HINT")
	}
	_, command, ok := strings.Cut(args[0], "ask again with: ")
	if !ok {
		ts.Fatalf("there is no command in %q", args[0])
	}
	ts.Check(ts.Exec("sh", "-c", command))
}
