package main

import (
	"fmt"
	"runtime/debug"

	"golang.org/x/sys/unix"
)

// harden keeps data keys, which pass through this process's memory, from core dumps, from
// other processes of the same user (ptrace, /proc/PID/mem) and from swap. It returns what the
// machine does not allow, in words for an operator.
func harden(lockMemory bool) (warnings []string) {
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		warnings = append(warnings, fmt.Sprintf("the process can be dumped: %v", err))
	}
	if err := unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{}); err != nil {
		warnings = append(warnings, fmt.Sprintf("core dumps are not off: %v", err))
	}
	if lockMemory {
		// ONFAULT: the Go runtime reserves far more address space than it uses.
		if err := unix.Mlockall(unix.MCL_CURRENT | unix.MCL_FUTURE | unix.MCL_ONFAULT); err != nil {
			warnings = append(warnings, fmt.Sprintf("memory is not locked and may be swapped out (%v): raise LimitMEMLOCK, or set lock_memory = false", err))
		}
	}
	return warnings
}

// gcPercent lets the heap grow to five times what is live before it is collected. Little is
// live, a few megabytes, and each call leaves some kilobytes behind: at Go's default of 100 a
// busy daemon spends a third of its time on collecting.
const gcPercent = 400

func tuneGC() { debug.SetGCPercent(gcPercent) }
