package main

import (
	"context"
	"os"
	"runtime/debug"
	"runtime/metrics"
	"time"
)

// A heap is collected when it has grown by a percentage of what is live in it. Little is live in a
// daemon, some megabytes, and each call leaves some kilobytes behind: at Go's 100 % a busy one with few
// tenants spends a third of its time on collecting. Where much is live, 400 % are a great deal of
// memory, which is not given back: locked pages stay. So the heap may grow by gcRoom, in bytes, as long
// as that is between these two.
const (
	gcRoom    = 24 << 20
	gcLeast   = 100
	gcMost    = 400
	gcLooking = time.Second
)

// memoryLimit is where room ends, in bytes. What one user can have the daemon hold at once, with
// streams that he never reads, was measured at 290 MB; five times that would be his to take too.
const memoryLimit = 512 << 20

// limitMemory begins as Go does: to start leaves more garbage behind than to serve. A worker, who uses
// its memory again, goes on like that.
func limitMemory() {
	debug.SetGCPercent(gcLeast)
	if os.Getenv("GOMEMLIMIT") == "" {
		debug.SetMemoryLimit(memoryLimit)
	}
}

// keepGCRoom sets the percentage to what is live, until the context ends.
func keepGCRoom(ctx context.Context) {
	set := gcLeast
	live := []metrics.Sample{{Name: "/gc/heap/live:bytes"}}
	look := time.NewTicker(gcLooking)
	defer look.Stop()
	for {
		metrics.Read(live)
		// To set it stops the world, so not for a trifle.
		if want := gcPercent(live[0].Value.Uint64()); want < set*7/8 || want > set*9/8 {
			debug.SetGCPercent(want)
			set = want
		}
		select {
		case <-look.C:
		case <-ctx.Done():
			return
		}
	}
}

// gcPercent is how much the heap may grow when so many bytes are live in it.
func gcPercent(live uint64) int {
	return int(min(max(gcRoom*100/max(live, 1), gcLeast), gcMost))
}
