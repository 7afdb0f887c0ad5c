package main

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kekd/kekd/hierarchy/reconcile"
	"github.com/kekd/kekd/hsm"
	"github.com/kekd/kekd/hsm/pkcs11"
	"github.com/kekd/kekd/hsm/softhsm"
	"github.com/kekd/kekd/unix-socket-api"
	"github.com/kekd/kekd/unix-socket-api/kekdv1"
)

// doctor tries what a running node is needed for.
type doctor struct{ n *node }

func (d doctor) Doctor(ctx context.Context) []*kekdv1.Check {
	checks := append([]hsm.Check{d.hierarchy(), d.memory(), d.descriptors()}, disks(d.n.config)...)
	up, token := d.n.up.Load(), d.n.token != nil
	if up {
		checks = append(checks, d.journal())
	}
	if token {
		checks = append(checks, d.workers())
	}
	if up && token {
		d.awaitListing(ctx)
		checks = append(checks, d.keys(), d.room())
	}
	if token {
		checks = append(checks, d.token(ctx)...)
	}
	told := make([]*kekdv1.Check, 0, len(checks))
	for _, c := range checks {
		told = append(told, &kekdv1.Check{Name: c.Name, Status: string(c.Verdict), Meaning: c.Meaning, Action: c.Action})
	}
	return told
}

// listingTimeout is how long a doctor that is asked for at the start waits for the token's listing.
const listingTimeout = 5 * time.Second

// awaitListing waits for the reconciler's first look at the token. Without one, the checks that need
// it say so.
func (d doctor) awaitListing(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, listingTimeout)
	defer cancel()
	_ = d.n.reconciler.Settled(ctx, 1, reconcile.VersionID{}) // of none: any pass will do
}

// hierarchy: a lease is proved by a command that Raft's store has made durable.
func (d doctor) hierarchy() hsm.Check {
	const name = "raft_store"
	view := d.n.replica().View()
	limit := view.State.MinStaleness()
	switch {
	case view.Fault != nil:
		return hsm.Failed(name, fmt.Sprintf("this node serves nobody: its copy of the hierarchy is not proved current: %v", view.Fault),
			"look for a leader in kekctl status; on the only node the disk of data_dir does not answer")
	case view.Age > limit:
		return hsm.Failed(name, fmt.Sprintf("the last command that was made durable is %v old, and some tenants allow %v: they are refused as STALE", view.Age.Round(time.Millisecond), limit),
			"look at the disk of data_dir, and for a leader in kekctl status")
	}
	return hsm.Passed(name, fmt.Sprintf("the hierarchy is current: a command was made durable %v ago", view.Age.Round(time.Millisecond)))
}

func (d doctor) journal() hsm.Check {
	const name = "audit_journal"
	s := d.n.journal.Status()
	switch err := d.n.journal.Healthy(); {
	case err != nil:
		return hsm.Failed(name, fmt.Sprintf("the journal cannot be written, so nothing is released: %v", err), "repair or free the disk of data_dir, and start the daemon again")
	case s.SpaceErr != nil:
		return hsm.Lacking(name, fmt.Sprintf("the journal cannot make its next segment, and refuses everything when the present one is full: %v", s.SpaceErr), "make 100 MiB of room on the disk of data_dir")
	case s.SignErr != nil:
		return hsm.Lacking(name, fmt.Sprintf("records are written, but their head is not signed, so that a cut is not found: %v", s.SignErr), "see what the token's own checks say")
	}
	return hsm.Passed(name, fmt.Sprintf("%d records are durable, and %d are under a signed head", s.Durable, s.Signed))
}

func (d doctor) memory() hsm.Check {
	const name = "memory_lock"
	action := "set LimitMEMLOCK=infinity for the service and lock_memory = true, or do without swap"
	if !d.n.config.LockMemory {
		return hsm.Lacking(name, "data keys may be swapped out to disk: lock_memory is off", action)
	}
	locked, err := lockedMemory()
	switch {
	case err != nil:
		return hsm.Lacking(name, fmt.Sprintf("it cannot be told whether data keys may be swapped out: %v", err), action)
	case locked == 0:
		return hsm.Lacking(name, "data keys may be swapped out to disk: the memory lock was refused", action)
	}
	return hsm.Passed(name, "data keys are kept out of swap")
}

// lockedMemory is how much of this process's address space is locked, in bytes (proc(5), VmLck).
func lockedMemory() (uint64, error) {
	f, err := os.Open("/proc/self/status")
	if err != nil {
		return 0, err
	}
	defer f.Close()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		if value, ok := strings.CutPrefix(lines.Text(), "VmLck:"); ok {
			n, err := strconv.ParseUint(strings.TrimSpace(strings.TrimSuffix(value, "kB")), 10, 64)
			return n << 10, err
		}
	}
	return 0, fmt.Errorf("/proc/self/status has no VmLck")
}

// ownDescriptors is what the daemon opens besides its callers' connections.
const ownDescriptors = 128

func (d doctor) descriptors() hsm.Check {
	const name = "descriptors"
	var limit unix.Rlimit
	err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit)
	var open []os.DirEntry
	if err == nil {
		open, err = os.ReadDir("/proc/self/fd")
	}
	if err != nil {
		return hsm.Lacking(name, fmt.Sprintf("it cannot be told how many descriptors are free: %v", err), "see that /proc is mounted, and that descriptors are left")
	}
	needed := uint64(socketapi.DefaultLimits().Conns + socketapi.DefaultAdminLimits().Conns + ownDescriptors)
	used := uint64(len(open))
	action := fmt.Sprintf("set LimitNOFILE to %d or more for the service", needed)
	switch {
	case used+ownDescriptors > limit.Cur:
		return hsm.Lacking(name, fmt.Sprintf("%d of %d descriptors are open: soon new callers wait", used, limit.Cur), action)
	case limit.Cur < needed:
		return hsm.Lacking(name, fmt.Sprintf("%d descriptors are allowed, and as many connections as the daemon takes need %d: then new callers wait", limit.Cur, needed), action)
	}
	return hsm.Passed(name, fmt.Sprintf("%d of %d descriptors are open", used, limit.Cur))
}

// What has to be free on a disk, in bytes: the journal's next segment, with what it leaves to others
// and some for Raft's log; and below what it is time to look.
const (
	diskLow  = 1 << 30
	diskFull = 100 << 20
)

// disks looks at the room on the disks that the daemon writes to.
func disks(c config) []hsm.Check {
	checks := []hsm.Check{disk("data_disk", c.DataDir)}
	if c.HSM.SoftHSM != "" {
		checks = append(checks, disk("token_disk", c.HSM.SoftHSM))
	}
	return checks
}

func disk(name, dir string) hsm.Check {
	var fs unix.Statfs_t
	if err := unix.Statfs(dir, &fs); err != nil {
		return hsm.Failed(name, fmt.Sprintf("the disk does not answer: %v", err), "see what is wrong with the disk of "+dir)
	}
	return judgeDisk(name, dir, fs.Bavail*uint64(fs.Bsize), fs.Flags&unix.MS_RDONLY != 0)
}

func judgeDisk(name, dir string, free uint64, readOnly bool) hsm.Check {
	mib := free >> 20
	switch {
	case readOnly:
		return hsm.Failed(name, fmt.Sprintf("%s is on a disk that is read-only: nothing can be recorded, so nothing is released", dir), "see what the kernel's log says of the disk")
	case free < diskFull:
		return hsm.Failed(name, fmt.Sprintf("%d MiB are free for %s: what is next written may be refused, and the daemon ends with it", mib, dir), fmt.Sprintf("make %d MiB of room at once", diskFull>>20))
	case free < diskLow:
		return hsm.Lacking(name, fmt.Sprintf("%d MiB are free for %s", mib, dir), fmt.Sprintf("make room: below %d MiB the daemon is in danger", diskFull>>20))
	}
	return hsm.Passed(name, fmt.Sprintf("%d MiB are free for %s", mib, dir))
}

func (d doctor) workers() hsm.Check {
	const name = "workers"
	alive, seats := len(d.n.token.Workers()), d.n.token.Size()
	action := "the log says why workers end: search it for \"token worker\""
	switch {
	case alive == 0:
		return hsm.Failed(name, fmt.Sprintf("none of %d token workers serves, so no key can be used", seats), action)
	case alive < seats:
		return hsm.Lacking(name, fmt.Sprintf("%d of %d token workers serve: the token is slower, or no key can be made", alive, seats), action)
	}
	return hsm.Passed(name, fmt.Sprintf("%d token workers serve", alive))
}

func (d doctor) keys() hsm.Check {
	const name = "keys"
	inventory := d.n.inventory()
	switch {
	case len(inventory.Missing) > 0:
		return hsm.Failed(name, fmt.Sprintf("what was sealed under %d key versions does not open: their keys are not in the token as they must be, the first is %s", len(inventory.Missing), inventory.Missing[0]),
			"restore the token; kekctl status lists them all")
	case len(inventory.Refused) > 0:
		return hsm.Failed(name, fmt.Sprintf("%d key versions cannot be made, since the token's new keys are not what they must be: the first is %s", len(inventory.Refused), inventory.Refused[0]),
			"see what the token's own checks say; kekctl status lists them all")
	case len(inventory.Orphans) > 0:
		return hsm.Lacking(name, fmt.Sprintf("the token has %d keys that the hierarchy does not know, the first is %s", len(inventory.Orphans), inventory.Orphans[0]),
			"kekctl orphan list names them; if no other cluster and no backup knows them, kekctl orphan sweep at the node that mints destroys them")
	}
	return hsm.Passed(name, fmt.Sprintf("the token has the key of each version, %d in all", inventory.Objects))
}

func (d doctor) room() hsm.Check {
	const name = "room"
	r := d.n.room.Room()
	action := "raise hsm.max_objects if the token has more room; else enlarge the token, or put new keys into another cluster"
	switch {
	case r.Full:
		return hsm.Failed(name, "the token is full: no key and no version can be made", action)
	case r.Max == 0:
		return hsm.Failed(name, "it is not known yet how full the token is", "see what the token's own checks say")
	case r.Left() == 0:
		return hsm.Failed(name, fmt.Sprintf("no key and no version can be made: the token has %d of %d objects", r.Used(), r.Max), action)
	case r.Left() < r.Rotations:
		return hsm.Lacking(name, fmt.Sprintf("no key can be made, and not every key rotated: the token has %d of %d objects, %d are left", r.Used(), r.Max, r.Left()), action)
	case r.LeftForKeys() == 0:
		return hsm.Lacking(name, fmt.Sprintf("every key can be rotated once, and no key made: the token has %d of %d objects, %d are left", r.Used(), r.Max, r.Left()), action)
	}
	return hsm.Passed(name, fmt.Sprintf("%d keys can be made, and every key rotated once: the token has %d of %d objects, %d are left", r.LeftForKeys(), r.Used(), r.Max, r.Left()))
}

// token is what the token itself says, in its own worker.
func (d doctor) token(ctx context.Context) []hsm.Check {
	checks, err := d.n.token.Examine(ctx)
	if err != nil {
		return []hsm.Check{hsm.Failed("token", fmt.Sprintf("the token could not be asked: %v", err), "see the node's log")}
	}
	return append(checks, d.durability(ctx))
}

func (d doctor) durability(ctx context.Context) hsm.Check {
	if path := d.n.config.HSM.SoftHSM; path != "" {
		dir, err := softhsm.Open(path)
		if err != nil {
			return hsm.Failed("durability", fmt.Sprintf("the token's directory is not as it must be: %v", err), "stop the daemon and restore the directory from a backup")
		}
		return durability(dir, true)
	}
	info, err := d.n.token.Info(ctx)
	if err != nil {
		return hsm.Failed("durability", fmt.Sprintf("the token could not be asked: %v", err), "see the node's log")
	}
	return durability(nil, pkcs11.Selected{Manufacturer: info.Manufacturer, Model: info.Model}.IsSoftHSM())
}
