package audit

import (
	"fmt"
	"time"

	"golang.org/x/sys/unix"
)

// preparer makes the next segment ready while the present one still has room. Without room on
// the disk it tries again and again: nothing is lost by that, since nothing was written.
func (j *Journal) preparer() {
	defer close(j.preparerDone)
	var retry <-chan time.Time
	for {
		select {
		case <-j.wakePreparer:
		case <-retry:
		case <-j.stopPreparer:
			return
		case <-j.failed:
			return
		}
		retry = nil
		if !j.prepareNext() {
			retry = time.After(prepareRetry)
		}
	}
}

// prepareNext returns false if it should be tried again.
func (j *Journal) prepareNext() bool {
	j.mu.Lock()
	// The next one may take the name that it is made under only once the present one has left it.
	wanted := j.nextWanted && j.cur.published
	// Room for the header, with as many new tenants again as there are.
	size := j.opts.SegmentSize + int64((len(j.chain.heads)+32)*2*maxHeadLen)
	j.mu.Unlock()
	if !wanted {
		return true
	}

	f, err := j.makeNext(size)

	j.mu.Lock()
	defer j.mu.Unlock()
	if err != nil {
		if j.nextErr == nil {
			j.opts.Log.Error("audit journal: the next segment cannot be made; records are refused once the present one is full", "error", err)
		}
		j.nextErr = err
	} else {
		if j.nextErr != nil {
			j.opts.Log.Info("audit journal: there is room again")
		}
		j.next, j.nextErr, j.nextWanted = &segment{f: f, size: size}, nil, false
	}
	j.wakeAppenders()
	return err == nil
}

// makeNext leaves a quarter of a segment free on the disk, 16 MiB of the default size. Others write
// there, Raft's store among them, and a disk that is filled to the last byte ends them.
func (j *Journal) makeNext(size int64) (file, error) {
	floor := j.opts.SegmentSize / 4
	var fs unix.Statfs_t
	if err := unix.Statfs(j.dir.path, &fs); err != nil {
		return nil, err
	}
	if free := int64(fs.Bavail) * fs.Bsize; free < size+floor {
		return nil, fmt.Errorf("%w: %d MiB are free, and %d are needed", unix.ENOSPC, free>>20, (size+floor)>>20)
	}
	return j.dir.prepare(size)
}

// maxHeadLen bounds one tenant's entry in a segment's header, in bytes.
const maxHeadLen = len(`{"tenant":"","tseq":,"seq":,"hash":""},`) + 32 + 2*20 + 64
