// Kekctl is the command line of kekd.
//
// It talks to one daemon over its two Unix sockets: data keys over the first, the hierarchy over the
// second. It holds no state and no key. What it promises to scripts:
//
//   - Standard output has the result and nothing else, and nothing at all if there is none. With
//     -o json it is one line of JSON (for a log: one line per record).
//   - Standard error has what went wrong and what to do next, with a "kekctl:" prefix. With -o json it is
//     one line {"code","message","hint"}, whatever went wrong.
//   - The exit status is 0 for done, 1 for used wrongly or a local fault, 2 for refused by the daemon, and
//     3 for a change that is committed or may be, and is not known to be complete.
//   - Each change has an idempotency ID. If its outcome is unknown, the hint has the command that asks
//     again under the same ID, and can do nothing twice.
package main

import (
	"context"
	"io"
	"os"
	"os/signal"
	"syscall"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	status := run(ctx, os.Args[1:], os.Stdin, os.Stdout, os.Stderr)
	stop()
	os.Exit(status)
}

// run is kekctl without the process around it. It returns the exit status.
func run(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	a := &app{args: args, stdin: stdin, stdout: stdout, stderr: stderr}
	cmd, err := a.root().ExecuteContextC(ctx)
	if err == nil {
		return exitDone
	}
	f := a.fault(cmd, err)
	f.render(stderr, wantsJSON(args))
	return f.exit
}
