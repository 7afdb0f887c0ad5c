package main

import (
	"fmt"
	"os"
	"runtime"

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
		if err := lockAll(); err != nil {
			warnings = append(warnings, fmt.Sprintf("memory is not locked and may be swapped out (%v): set LimitMEMLOCK to infinity, or lock_memory = false", err))
		}
	}
	return warnings
}

// lockAll keeps all memory that is mapped, and all that will be, from swap. It does not try where
// there is a limit: one that is above what is mapped now lets mlockall succeed, and makes a later
// mmap fail, at which the Go runtime ends the process.
func lockAll() error {
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_MEMLOCK, &limit); err != nil {
		return err
	}
	if limit.Cur != unix.RLIM_INFINITY && !has(unix.CAP_IPC_LOCK) {
		return fmt.Errorf("the limit for locked memory is %d bytes", limit.Cur)
	}
	// ONFAULT: the Go runtime reserves far more address space than it uses.
	return unix.Mlockall(unix.MCL_CURRENT | unix.MCL_FUTURE | unix.MCL_ONFAULT)
}

// has tells whether the process has an effective capability; one whose number is below 32.
func has(capability uint) bool {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var sets [2]unix.CapUserData
	return unix.Capget(&header, &sets[0]) == nil && sets[0].Effective&(1<<capability) != 0
}

// spareP lets one thread more run Go code than there are processors. One is in the journal's sync
// most of the time, and each time the runtime's monitor had to take its place away from it, polling
// every 20 us for that: with two processors this took a tenth of the daemon's time.
func spareP() {
	if os.Getenv("GOMAXPROCS") == "" {
		runtime.GOMAXPROCS(runtime.GOMAXPROCS(0) + 1)
	}
}
