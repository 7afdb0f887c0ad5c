// Command kekd is the daemon: `kekd init` makes a cluster's first node, `kekd join` the others, `kekd
// serve` runs one, and `kekd dev` runs a cluster for trying and testing. The command line for its users is kekctl.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"runtime/debug"
	"syscall"
	"unsafe"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/kekd/kekd/hsm"
)

func init() {
	// Before any other goroutine: main stays on the thread that lives as long as the process
	// does. See dev.go.
	runtime.LockOSThread()
	// A program that was started through /proc/self/exe is called exe. The name is the main
	// thread's, and a wrong one is no reason to stop.
	_ = unix.Prctl(unix.PR_SET_NAME, uintptr(unsafe.Pointer(unsafe.StringData("kekd\x00"))), 0, 0, 0)
}

// again runs this very program once more, also when its file was replaced meanwhile.
func again(args ...string) *exec.Cmd {
	cmd := exec.Command("/proc/self/exe", args...)
	cmd.Args[0] = "kekd"
	return cmd
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	if err := rootCommand().ExecuteContext(ctx); err != nil {
		fmt.Fprintf(os.Stderr, "kekd: %v\n", err)
		os.Exit(exitStatus(err))
	}
}

// exitStatus is 1, 2 for a token that lacks what kekd needs, or EX_CONFIG (sysexits.h) for a PIN
// that must not be tried again by a service manager's restart: docs/OPERATIONS.md has the line for
// the unit.
func exitStatus(err error) int {
	if errors.Is(err, errMissing) {
		return 2
	}
	for _, final := range []error{hsm.ErrPINIncorrect, hsm.ErrPINLocked, hsm.ErrPINMissing} {
		if errors.Is(err, final) {
			return 78
		}
	}
	return 1
}

func rootCommand() *cobra.Command {
	root := &cobra.Command{
		Use:           "kekd",
		Short:         "one key domain per tenant, in an HSM",
		SilenceUsage:  true,
		SilenceErrors: true,
		Version:       version(),
	}
	root.AddCommand(initCommand(), joinCommand(), serveCommand(), restoreCommand(), recoverCommand(), devCommand(), tokenWorkerCommand(), doctorCommand(), tokenCheckupCommand())
	return root
}

// version is that of the module, or of the commit that it was built from.
func version() string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "unknown"
	}
	v := info.Main.Version
	for _, s := range info.Settings {
		if s.Key == "vcs.revision" && v == "(devel)" {
			v = s.Value
		}
	}
	return v
}
