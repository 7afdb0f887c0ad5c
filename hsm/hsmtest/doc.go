// Package hsmtest is what every token must pass: [Run] is one conformance suite against the
// port in package hsm, whatever stands behind it. A token may lack session copies, the latch
// or agreement, if it says so.
//
// The package also has the fixture that makes real SoftHSM2 tokens for a test.
package hsmtest

import (
	"context"
	"testing"
	"time"
)

// deadline bounds what a test waits for, so that a token that hangs fails one test and not
// all of them. It is not the test's own context, which has ended when cleanups run.
func deadline(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	t.Cleanup(cancel)
	return ctx
}
