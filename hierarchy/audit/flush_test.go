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
