package audit_test

import (
	"bytes"
	"context"
	"crypto"
	"errors"
	"io"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/kekd/kekd/hierarchy/audit"
)

// signer is an HSM that can be made to fail or to hang.
type signer struct {
	crypto.Signer
	fail atomic.Pointer[error]
	hang atomic.Pointer[chan struct{}]
	n    atomic.Int64
}

func (s *signer) Sign(rand io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	s.n.Add(1)
	if ch := s.hang.Load(); ch != nil {
		<-*ch
	}
	if err := s.fail.Load(); err != nil {
		return nil, *err
	}
	return s.Signer.Sign(rand, digest, opts)
}

func TestCheckpointsByCountAndTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, func(o *audit.Options) { o.CheckpointRecords, o.CheckpointInterval = 100, 5*time.Second })
		p := r.write(unwrap(1))
		start := time.Now()
		c := <-r.j.Checkpoints()
		if took := time.Since(start); c.Sequence != p.Sequence || took > 5*time.Second {
			t.Errorf("record %d signed after %s", c.Sequence, took)
		}
		if err := c.Verify(&r.key.PublicKey); err != nil {
			t.Error(err)
		}
		if c.Head != p.Hash {
			t.Errorf("signed %s, and the record has %s", c.Head, p.Hash)
		}

		// Nothing new, no checkpoint.
		time.Sleep(time.Minute)
		select {
		case c := <-r.j.Checkpoints():
			t.Errorf("record %d signed, and nothing was new", c.Sequence)
		default:
		}

		start = time.Now()
		r.write(manyRecords(100)...)
		<-r.j.Checkpoints()
		if took := time.Since(start); took > 0 {
			t.Errorf("100 records waited %s for their checkpoint", took)
		}

		// Until it is time again, or enough, a steady flow of records brings none.
		before := r.j.Status().Signed
		for i := range 90 {
			r.write(unwrap(i))
			synctest.Wait()
		}
		if st := r.j.Status(); st.Signed != before {
			t.Errorf("signed to %d, and then to %d", before, st.Signed)
		}
		r.close()
		r.mustVerify()
	})
}

// TestSignerFails shows that records are written on, and that it is made up for.
func TestSignerFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &signer{}
		r := newRig(t, func(o *audit.Options) {
			s.Signer = o.Signer
			o.Signer, o.CheckpointRecords, o.CheckpointInterval = s, 10, 5*time.Second
		})
		broken := errors.New("no HSM")
		s.fail.Store(&broken)
		n := s.n.Load()
		for i := range 200 {
			r.write(unwrap(i))
		}
		synctest.Wait()
		if tried := s.n.Load() - n; tried > 2 {
			t.Errorf("a signer that fails was asked %d times at once", tried)
		}
		if err := r.j.Healthy(); err != nil {
			t.Errorf("healthy: %v", err)
		}
		if st := r.j.Status(); !errors.Is(st.SignErr, broken) {
			t.Errorf("status: %+v", st)
		}
		if _, err := r.j.Seal(r.ctx(), unwrap(1)); !errors.Is(err, broken) {
			t.Errorf("seal: got %v", err)
		}
		s.fail.Store(nil)
		time.Sleep(6 * time.Second)
		synctest.Wait()
		if st := r.j.Status(); st.SignErr != nil || st.Signed+1 != st.Sequence {
			t.Errorf("afterwards: %+v", st)
		}
		r.close()
		r.mustVerify()
	})
}

func TestSignerHangs(t *testing.T) {
	s := &signer{}
	r := newRig(t, func(o *audit.Options) { s.Signer = o.Signer; o.Signer = s })
	hang := make(chan struct{})
	s.hang.Store(&hang)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if _, err := r.j.Seal(ctx, unwrap(1)); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("seal: got %v", err)
	}
	r.write(unwrap(2)) // nobody else waits
	if err := r.j.Close(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("close: got %v", err)
	}
	close(hang)
}

// TestOnlyWhatIsDurableIsSigned: what follows a crash relies on it. A checkpoint after a torn
// write proves that the write was whole.
func TestOnlyWhatIsDurableIsSigned(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, s := newGate(), &signer{}
		r := newRig(t, func(o *audit.Options) {
			s.Signer = o.Signer
			o.Signer = s
			*o = o.WithFiles(g.wrap)
		})
		g.shut()
		before := s.n.Load()
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := r.j.Seal(ctx, unwrap(1)); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("seal: got %v", err)
		}
		if n := s.n.Load() - before; n != 0 {
			t.Errorf("%d signatures over what is not durable", n)
		}
		g.open()
		synctest.Wait()
		if n := s.n.Load() - before; n != 1 {
			t.Errorf("%d signatures once it was", n)
		}
		r.close()
	})
}

func TestCloseSaysWhatIsNotSigned(t *testing.T) {
	s := &signer{}
	r := newRig(t, func(o *audit.Options) { s.Signer = o.Signer; o.Signer = s })
	broken := errors.New("no HSM")
	s.fail.Store(&broken)
	p, err := r.j.Append(r.ctx(), []audit.Record{unwrap(1)})
	if err != nil {
		t.Fatal(err)
	}
	if err := r.j.Close(r.ctx()); !errors.Is(err, broken) {
		t.Errorf("got %v", err)
	}
	if err := r.j.Wait(r.ctx(), p); err != nil {
		t.Errorf("the record: %v", err)
	}
	s.fail.Store(nil)
	r.open()
	if c := <-r.j.Checkpoints(); c.Sequence < p.Sequence {
		t.Errorf("signed %d", c.Sequence)
	}
}

// TestSealsAreThoseAskedFor while much else goes on.
func TestSealsAreThoseAskedFor(t *testing.T) {
	r := newRig(t, func(o *audit.Options) { o.CheckpointRecords = 3 })
	done := make(chan error, 4)
	const each = 20
	sealed := make(chan audit.Checkpoint, each*cap(done))
	for w := range cap(done) {
		go func() {
			for i := range each {
				rec := unwrap(w)
				rec.Kind = "audit-export"
				c, err := r.j.Seal(r.ctx(), rec)
				if err == nil {
					sealed <- c
					_, err = r.j.Write(r.ctx(), []audit.Record{unwrap(i)})
				}
				if err != nil {
					done <- err
					return
				}
			}
			done <- nil
		}()
	}
	for range cap(done) {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	close(sealed)
	r.close()
	var anchors []audit.Checkpoint
	for c := range sealed {
		anchors = append(anchors, c)
	}
	r.mustVerify(anchors...)
	signed := make(map[uint64]bool)
	lines := r.lines()
	for _, l := range lines {
		if e := parse(t, l); e.Checkpoint != nil {
			signed[e.Checkpoint.Sequence] = true
		}
	}
	for _, l := range lines {
		if e := parse(t, l); e.Kind == "audit-export" && !signed[e.Sequence] {
			t.Errorf("record %d was to be signed", e.Sequence)
		}
	}
}

// TestTenantAlone exports a tenant's records and checks them alone.
func TestTenantAlone(t *testing.T) {
	r := newRig(t)
	for range 50 {
		r.write(unwrap(0), unwrap(1), unwrap(2), unwrap(3))
	}
	export := unwrap(2)
	export.Kind = "audit-export"
	seal, err := r.j.Seal(r.ctx(), export)
	if err != nil {
		t.Fatal(err)
	}
	tail, err := r.tail(r.ctx(), tenant(2), 1000)
	if err != nil {
		t.Fatal(err)
	}
	var lines []string
	for _, l := range tail {
		lines = append(lines, string(l.JSON))
	}
	if len(lines) != 51 {
		t.Fatalf("%d records", len(lines))
	}
	verify := func(lines []string, opts audit.VerifyOptions) *audit.Report {
		t.Helper()
		opts.PublicKey = &r.key.PublicKey
		rep, err := audit.VerifyTenant(strings.NewReader(strings.Join(lines, "\n")+"\n"), opts)
		if err != nil {
			t.Fatal(err)
		}
		return rep
	}
	sealed := audit.VerifyOptions{Anchors: []audit.Checkpoint{seal}}
	rep := verify(lines, sealed)
	if !rep.OK() || rep.Sealed != seal.Sequence || rep.Last != seal.Sequence || len(rep.Chains) != 1 || rep.Chains[0].Records != 51 || rep.Chains[0].Head != seal.Head || rep.Chains[0].Tenant != tenant(2) {
		t.Fatalf("%+v", rep)
	}

	for i := range lines {
		edit := func(what string, change func([]string) []string) {
			t.Helper()
			rep := verify(change(append([]string(nil), lines...)), sealed)
			if rep.OK() && rep.Sealed == seal.Sequence {
				t.Errorf("%s of line %d was not found", what, i+1)
			}
		}
		edit("an edit", func(l []string) []string {
			e := parse(t, l[i])
			e.Version++
			l[i] = string(e.AppendLine(nil))
			return l
		})
		edit("deletion", func(l []string) []string { return append(l[:i], l[i+1:]...) })
		edit("truncation", func(l []string) []string { return l[:i] })
		edit("duplication", func(l []string) []string { return append(l[:i+1], l[i:]...) })
		edit("a foreign record", func(l []string) []string {
			e := parse(t, l[i])
			e.Tenant = tenant(3)
			l[i] = string(e.AppendLine(nil))
			return l
		})
		if i > 0 {
			edit("a swap", func(l []string) []string { l[i-1], l[i] = l[i], l[i-1]; return l })
		}
	}

	gap := verify(append(append([]string(nil), lines[:10]...), lines[12:]...), sealed)
	if len(gap.Faults) != 1 || gap.Faults[0].Kind != audit.FaultMissing || gap.Faults[0].Line != 11 {
		t.Errorf("two records removed: %v", gap.Faults)
	}

	// Without the beginning: only if it is said.
	if rep := verify(lines[25:], sealed); rep.OK() {
		t.Error("half of the records verify")
	}
	if rep := verify(lines[25:], audit.VerifyOptions{Start: 26, Anchors: sealed.Anchors}); !rep.OK() {
		t.Errorf("from 26: %v", rep.Faults)
	}
	// Without a public key nothing that is signed is believed.
	rep, err = audit.VerifyTenant(strings.NewReader(strings.Join(lines, "\n")+"\n"), sealed)
	if err != nil || rep.OK() || rep.Sealed != 0 {
		t.Errorf("without a key: %+v, %v", rep, err)
	}
	if rep := verify(nil, sealed); rep.OK() {
		t.Error("nothing verifies")
	}
	if rep := verify([]string{"{"}, sealed); rep.OK() {
		t.Error("rubbish verifies")
	}
	genesis := r.lines()[0]
	if rep := verify([]string{genesis}, sealed); rep.OK() {
		t.Error("a record of no tenant verifies")
	}
	if rep, err := audit.VerifyTenant(bytes.NewReader([]byte(lines[0])), sealed); err != nil || rep.OK() {
		t.Errorf("a line without its end: %v, %v", rep, err)
	}
}
