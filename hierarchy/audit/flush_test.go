package audit_test

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/kekd/kekd/hierarchy/audit"
)

// TestManyShareASync: after a sync that many appenders shared, the next one waits a little for
// more. Who appends alone does not wait.
func TestManyShareASync(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGate()
		r := newRig(t, func(o *audit.Options) { *o = o.WithFiles(g.wrap) })
		alone := func() time.Duration {
			from := time.Now() // stands still but for sleepers
			r.write(unwrap(1))
			return time.Since(from)
		}
		if took := alone(); took != 0 {
			t.Errorf("an append waited for %v", took)
		}
		g.shut()
		var last audit.Position
		for range 10 {
			var err error
			if last, err = r.j.Append(t.Context(), []audit.Record{unwrap(2)}); err != nil {
				t.Fatal(err)
			}
			synctest.Wait() // the first is with the disk, and the others wait for it
		}
		g.open()
		if err := r.j.Wait(t.Context(), last); err != nil {
			t.Fatal(err)
		}
		if took := alone(); took == 0 || took > time.Millisecond {
			t.Errorf("after many, an append waited for %v", took)
		}
		if took := alone(); took != 0 {
			t.Errorf("alone again, an append waited for %v", took)
		}
		r.close()
	})
}

// Syncs are counted by how long the disk took, and bytes once they are durable.
func TestSyncsAreCounted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const slow = 30 * time.Millisecond
		g := newGate()
		r := newRig(t, func(o *audit.Options) { *o = o.WithFiles(g.wrap) })
		onDisk := func() (n uint64) {
			for _, line := range r.lines() {
				n += uint64(len(line)) + 1
			}
			return n
		}
		r.write(unwrap(1))
		syncs, written, before := r.j.Syncs(), r.j.Written(), onDisk()
		g.shut()
		p, err := r.j.Append(t.Context(), []audit.Record{unwrap(2), unwrap(3)})
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(slow)
		if n := r.j.Written() - written; n != 0 {
			t.Errorf("%d bytes are durable, and the disk has not answered", n)
		}
		g.open()
		if err := r.j.Wait(t.Context(), p); err != nil {
			t.Fatal(err)
		}
		if s := r.j.Syncs(); s.Count != syncs.Count+1 || s.Sum != syncs.Sum+slow {
			t.Errorf("%d syncs in %v, before them %d in %v", s.Count, s.Sum, syncs.Count, syncs.Sum)
		}
		if n, want := r.j.Written()-written, onDisk()-before; n != want {
			t.Errorf("%d bytes were made durable, on the disk are %d more", n, want)
		}
		r.close()
	})
}
