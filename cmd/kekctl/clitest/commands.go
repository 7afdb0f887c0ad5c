// Package clitest has the commands that scripts about kekctl use beside those of testscript. They are
// shared by the scripts here, which run against a scripted daemon, and by those in testdata/daemon, which
// run against a real one as well: each of these wants a fresh daemon, KEKD_SOCKET and KEKD_ADMIN_SOCKET
// in its environment, and kekctl on its PATH.
package clitest

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/rogpeppe/go-internal/testscript"
)

// Commands are for testscript.Params.
//
//	exits N PROGRAM ARGS...     runs a program, which has to end with that very status
//	capture VAR                 puts standard output, without white space around it, into a variable
//	waitlines N FILE            waits until a file has that many lines, for at most 20 s
//	jsonget FILE PATH VAR       puts a value into a variable: text as it is, everything else as JSON
//	[!] jsonis FILE PATH JSON   compares a value, types included: 3 is not "3"
//	[!] jsonhas FILE PATH       tells whether there is such a value
//	jsonlen FILE PATH N         compares the length of an array
//
// FILE may be stdout or stderr. PATH is names and indexes with dots between them, as in
// versions.0.state; negative indexes count from the end, and a lone dot is the whole.
func Commands() map[string]func(ts *testscript.TestScript, neg bool, args []string) {
	return map[string]func(ts *testscript.TestScript, neg bool, args []string){
		"exits":     exits,
		"capture":   capture,
		"waitlines": waitLines,
		"jsonget":   jsonGet,
		"jsonis":    jsonIs,
		"jsonhas":   jsonHas,
		"jsonlen":   jsonLen,
	}
}

func usage(ts *testscript.TestScript, ok bool, text string) {
	if !ok {
		ts.Fatalf("usage: %s", text)
	}
}

func exits(ts *testscript.TestScript, neg bool, args []string) {
	usage(ts, !neg && len(args) >= 2, "exits N PROGRAM ARGS...")
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	got := 0
	if err := ts.Exec(args[1], args[2:]...); err != nil {
		exit, ok := errors.AsType[*exec.ExitError](err)
		if !ok {
			ts.Fatalf("%v", err)
		}
		got = exit.ExitCode()
	}
	if got != want {
		ts.Fatalf("exit status %d, want %d", got, want)
	}
}

func capture(ts *testscript.TestScript, neg bool, args []string) {
	usage(ts, !neg && len(args) == 1, "capture VAR")
	ts.Setenv(args[0], strings.TrimSpace(ts.ReadFile("stdout")))
}

func waitLines(ts *testscript.TestScript, neg bool, args []string) {
	usage(ts, !neg && len(args) == 2, "waitlines N FILE")
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		b, err := os.ReadFile(ts.MkAbs(args[1])) // it may not be there yet
		if got := bytes.Count(b, []byte("\n")); got >= want {
			return
		} else if time.Now().After(deadline) {
			ts.Fatalf("%s has %d lines, want %d (%v):\n%s", args[1], got, want, err, b)
		}
	}
}

func jsonGet(ts *testscript.TestScript, neg bool, args []string) {
	usage(ts, !neg && len(args) == 3, "jsonget FILE PATH VAR")
	v, ok := lookUp(ts, args[0], args[1])
	if !ok {
		ts.Fatalf("there is no %s in:\n%s", args[1], ts.ReadFile(args[0]))
	}
	text, isText := v.(string)
	if !isText {
		b, err := json.Marshal(v)
		ts.Check(err)
		text = string(b)
	}
	ts.Setenv(args[2], text)
}

func jsonIs(ts *testscript.TestScript, neg bool, args []string) {
	usage(ts, len(args) == 3, "[!] jsonis FILE PATH JSON")
	got, ok := lookUp(ts, args[0], args[1])
	if !ok {
		ts.Fatalf("there is no %s in:\n%s", args[1], ts.ReadFile(args[0]))
	}
	diff := cmp.Diff(decode(ts, args[2]), got)
	if neg && diff == "" {
		ts.Fatalf("%s is %s", args[1], args[2])
	}
	if !neg && diff != "" {
		ts.Fatalf("%s differs (-want +got):\n%s", args[1], diff)
	}
}

func jsonHas(ts *testscript.TestScript, neg bool, args []string) {
	usage(ts, len(args) == 2, "[!] jsonhas FILE PATH")
	if _, ok := lookUp(ts, args[0], args[1]); ok == neg {
		ts.Fatalf("%s: there is one: %t, in:\n%s", args[1], ok, ts.ReadFile(args[0]))
	}
}

func jsonLen(ts *testscript.TestScript, neg bool, args []string) {
	usage(ts, !neg && len(args) == 3, "jsonlen FILE PATH N")
	v, _ := lookUp(ts, args[0], args[1])
	list, ok := v.([]any)
	if !ok {
		ts.Fatalf("%s is no array in:\n%s", args[1], ts.ReadFile(args[0]))
	}
	if got := strconv.Itoa(len(list)); got != args[2] {
		ts.Fatalf("%s has %s elements, want %s:\n%s", args[1], got, args[2], ts.ReadFile(args[0]))
	}
}

// decode reads one JSON value and nothing after it. Numbers stay as they are written.
func decode(ts *testscript.TestScript, text string) any {
	dec := json.NewDecoder(strings.NewReader(text))
	dec.UseNumber()
	var v any
	if err := dec.Decode(&v); err != nil {
		ts.Fatalf("not JSON: %v:\n%s", err, text)
	}
	if dec.More() {
		ts.Fatalf("more than one JSON value:\n%s", text)
	}
	return v
}

func lookUp(ts *testscript.TestScript, file, path string) (any, bool) {
	return walk(decode(ts, ts.ReadFile(file)), path)
}

func walk(v any, path string) (any, bool) {
	if path == "." {
		return v, true
	}
	for name := range strings.SplitSeq(path, ".") {
		switch inner := v.(type) {
		case map[string]any:
			next, ok := inner[name]
			if !ok {
				return nil, false
			}
			v = next
		case []any:
			i, err := strconv.Atoi(name)
			if i < 0 {
				i += len(inner)
			}
			if err != nil || i < 0 || i >= len(inner) {
				return nil, false
			}
			v = inner[i]
		default:
			return nil, false
		}
	}
	return v, true
}
