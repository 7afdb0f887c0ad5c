package audit_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/kekd/kekd/hierarchy"
	"github.com/kekd/kekd/hierarchy/audit"
)

// TestDiskIsFull fills a small file system, and makes room again.
func TestDiskIsFull(t *testing.T) {
	mount := t.TempDir()
	if err := unix.Mount("tmpfs", mount, "tmpfs", 0, "size=320k"); err != nil {
		t.Fatalf("mounting a small tmpfs, which needs root: %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(mount, 0); err != nil {
			t.Error(err)
		}
	})
	r := newRig(t)
	r.close()
	r.dir = filepath.Join(mount, "audit")
	if err := audit.Create(r.dir, r.opts); err != nil {
		t.Fatal(err)
	}
	r.open()
	ballast := filepath.Join(mount, "ballast")
	if err := os.WriteFile(ballast, make([]byte, 160<<10), 0o600); err != nil {
		t.Fatal(err)
	}

	acked := 0
	var err error
	for err == nil {
		if _, err = r.j.Write(r.ctx(), []audit.Record{unwrap(acked)}); err == nil {
			acked++
		}
	}
	if !errors.Is(err, hierarchy.ErrAuditUnavailable) || !errors.Is(err, syscall.ENOSPC) {
		t.Fatalf("got %v", err)
	}
	if err := r.j.Healthy(); !errors.Is(err, hierarchy.ErrAuditUnavailable) {
		t.Errorf("healthy: %v", err)
	}
	if !errors.Is(r.j.Status().SpaceErr, syscall.ENOSPC) {
		t.Errorf("status: %+v", r.j.Status())
	}
	eventually(t, "the room that was not enough is given back", func() bool {
		_, err := os.Stat(filepath.Join(r.dir, "next"))
		return errors.Is(err, os.ErrNotExist)
	})
	if acked < 100 {
		t.Errorf("only %d records went in", acked)
	}
	select {
	case <-r.j.Failed():
		t.Fatal("a full disk is not a failed one: nothing was written")
	default:
	}
	r.mustVerify() // nothing half-written

	// The head can still be signed and the journal closed and opened: the end of the segment
	// is left for that.
	r.close()
	rep := r.mustVerify()
	if rep.Sealed+1 != rep.Last {
		t.Errorf("sealed to %d of %d", rep.Sealed, rep.Last)
	}
	r.open()
	if _, err := r.j.Write(r.ctx(), []audit.Record{unwrap(1)}); !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("opened again: got %v", err)
	}

	if err := os.Remove(ballast); err != nil {
		t.Fatal(err)
	}
	eventually(t, "records are taken again", func() bool {
		_, err := r.j.Write(r.ctx(), []audit.Record{unwrap(acked)})
		return err == nil
	})
	if err := r.j.Healthy(); err != nil {
		t.Errorf("healthy: %v", err)
	}
	r.close()
	r.mustVerify()
	n := 0
	for _, l := range r.lines() {
		if strings.Contains(l, `"kind":"unwrap"`) {
			n++
		}
	}
	if n != acked+1 {
		t.Errorf("%d records, and %d were acknowledged", n, acked+1)
	}
}
