package worker_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
	"pgregory.net/rapid"

	"github.com/kekd/kekd/hierarchy"
	"github.com/kekd/kekd/hsm"
	"github.com/kekd/kekd/hsm/worker"
)

func drawBytes(t *rapid.T, least, most int, name string) []byte {
	return rapid.SliceOfN(rapid.Byte(), least, most).Draw(t, name)
}

func drawKey(t *rapid.T) (k hsm.KeyRef) {
	copy(k.ID[:], drawBytes(t, len(k.ID), len(k.ID), "id"))
	copy(k.Check[:], drawBytes(t, len(k.Check), len(k.Check), "check"))
	k.Bridge = rapid.Bool().Draw(t, "bridge")
	return k
}

// drawOperation draws a valid operation.
func drawOperation(t *rapid.T) hsm.Operation {
	var op hsm.Operation
	copy(op.Lane.ID[:], drawBytes(t, hierarchy.IDSize, hierarchy.IDSize, "lane"))
	switch rapid.IntRange(1, 3).Draw(t, "source") {
	case 1:
		op.Plaintext = drawBytes(t, 1, 64, "plaintext")
	case 2:
		op.Random = rapid.IntRange(16, hsm.MaxPlaintext).Draw(t, "random")
	case 3:
		op.Open = &hsm.Opening{Key: drawKey(t), AAD: drawBytes(t, 1, 300, "aad")}
		op.Open.IV = drawBytes(t, hsm.IVSize, hsm.IVSize, "iv")
		op.Open.Ciphertext = drawBytes(t, hsm.TagSize+1, 100, "ciphertext")
	}
	for range rapid.IntRange(1, 4).Draw(t, "targets") {
		op.To = append(op.To, hsm.Target{Key: drawKey(t), AAD: drawBytes(t, 1, 50, "aad")})
	}
	op.Reveal = op.Plaintext == nil && rapid.Bool().Draw(t, "reveal")
	return op
}

// TestOperationsArrive: what is asked is what is heard.
func TestOperationsArrive(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		ops := rapid.SliceOfN(rapid.Custom(drawOperation), 1, 20).Draw(t, "ops")
		frame := worker.OperationsFrame(ops)
		size := 5
		for i := range ops {
			if err := ops[i].Validate(); err != nil {
				t.Fatal(err)
			}
			size += worker.OperationSize(&ops[i])
		}
		if size != len(frame) {
			t.Fatalf("%d bytes reserved for %d", size, len(frame))
		}
		got, again, err := worker.ParseOperations(frame[5:])
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(ops, got); diff != "" {
			t.Fatalf("(-sent +got):\n%s", diff)
		}
		if !bytes.Equal(again, frame[5:]) {
			t.Fatal("it is written in two ways")
		}
	})
}

// TestResultsArrive: what is answered is what is heard, and in no more bytes than were reserved.
func TestResultsArrive(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		op := drawOperation(t)
		asked := op
		if rapid.Bool().Draw(t, "failed") {
			op.Err = fmt.Errorf("%w: %s", hsm.ErrTagMismatch, strings.Repeat("x", rapid.IntRange(0, 10_000).Draw(t, "text")))
		} else {
			for range op.To {
				op.Sealed = append(op.Sealed, hsm.Sealed{IV: drawBytes(t, hsm.IVSize, hsm.IVSize, "iv"), Ciphertext: drawBytes(t, 17, 100, "ciphertext")})
			}
			if op.Reveal {
				op.Revealed = drawBytes(t, 1, 64, "revealed")
			}
		}
		size, err := worker.RoundResult(&op, &asked)
		if err != nil {
			t.Fatal(err)
		}
		if size > worker.ResultSize(&op) {
			t.Fatalf("%d bytes reserved for %d", worker.ResultSize(&op), size)
		}
		if op.Err != nil {
			if !errors.Is(asked.Err, hsm.ErrTagMismatch) || errors.Is(asked.Err, hsm.ErrUnavailable) || asked.Revealed != nil || asked.Sealed != nil {
				t.Fatalf("%+v", asked)
			}
			return
		}
		if diff := cmp.Diff(op, asked); diff != "" {
			t.Fatalf("(-sent +got):\n%s", diff)
		}
	})
}

// TestLargest: what is valid fits into a frame.
func TestLargest(t *testing.T) {
	long := make([]byte, hsm.MaxAAD)
	op := hsm.Operation{Open: &hsm.Opening{AAD: long, Sealed: hsm.Sealed{IV: make([]byte, hsm.IVSize), Ciphertext: make([]byte, hsm.MaxPlaintext+hsm.TagSize)}}, Reveal: true}
	for range hsm.MaxTargets {
		op.To = append(op.To, hsm.Target{AAD: long})
	}
	must(t, op.Validate())
	if n := len(worker.OperationsFrame([]hsm.Operation{op})); n > worker.FrameLimit {
		t.Errorf("the largest operation has %d bytes, a frame %d", n, worker.FrameLimit)
	}
}

func TestThingsArrive(t *testing.T) {
	o := hsm.Object{ID: hierarchy.ObjectID{1}, RawID: []byte("raw"), Label: "label", Check: hierarchy.CheckValue{1, 2, 3}, Usable: true, Bridge: true}
	got, err := worker.RoundObject(o)
	must(t, err)
	if diff := cmp.Diff(o, got); diff != "" {
		t.Errorf("object (-sent +got):\n%s", diff)
	}
	o.Fault = fmt.Errorf("why: %w", hsm.ErrAmbiguous)
	got, err = worker.RoundObject(o)
	must(t, err)
	if !errors.Is(got.Fault, hsm.ErrAmbiguous) || got.Fault.Error() != o.Fault.Error() {
		t.Errorf("a fault arrived as %v", got.Fault)
	}
	i := hsm.Info{Label: "l", Manufacturer: "m", Model: "mo", Serial: "s", Firmware: "f", KDFs: []hsm.KDF{hsm.KDFECDHAESCBC}, CanCopy: true, CanLatch: true, FreeBytes: ^uint64(0), FreeObjects: 7, MaxObjects: 4096, Others: 3}
	gotInfo, err := worker.RoundInfo(i)
	must(t, err)
	if diff := cmp.Diff(i, gotInfo); diff != "" {
		t.Errorf("info (-sent +got):\n%s", diff)
	}
	joined := fmt.Errorf("%w: %w: text", hsm.ErrUnavailable, hsm.ErrPINLocked)
	if err := worker.RoundError(joined); !errors.Is(err, hsm.ErrUnavailable) || !errors.Is(err, hsm.ErrPINLocked) || errors.Is(err, hsm.ErrDeadline) || err.Error() != joined.Error() {
		t.Errorf("an error arrived as %v", err)
	}
	if err := worker.RoundError(io.EOF); !errors.Is(err, hsm.ErrUnavailable) {
		t.Errorf("a stranger's error arrived as %v, want ErrUnavailable", err)
	}
}

// TestFramesInPieces: however a socket cuts frames, they arrive; and one that is cut off is no end.
func TestFramesInPieces(t *testing.T) {
	var sent []byte
	var want [][]byte
	for _, n := range []int{1, 10, 70_000, 3, 300_000, 1_000_000, 5} {
		op := hsm.Operation{Plaintext: make([]byte, n%4000+1)}
		for i := 0; i < n/hsm.MaxAAD; i++ {
			op.To = append(op.To, hsm.Target{AAD: bytes.Repeat([]byte{byte(n)}, hsm.MaxAAD)})
		}
		frame := worker.OperationsFrame([]hsm.Operation{op})
		sent, want = append(sent, frame...), append(want, frame[4:])
	}
	for name, r := range map[string]io.Reader{
		"at once": bytes.NewReader(sent), "halves": iotest.HalfReader(bytes.NewReader(sent)), "with the end": iotest.DataErrReader(bytes.NewReader(sent)),
	} {
		got, err := worker.ReadFrames(r)
		must(t, err)
		if !slices.EqualFunc(want, got, bytes.Equal) {
			t.Errorf("%s: the frames are not those that were sent", name)
		}
	}
	for _, n := range []int{1, 3, 4, 5, len(sent) - 1} {
		if _, err := worker.ReadFrames(bytes.NewReader(sent[:n])); err != io.ErrUnexpectedEOF {
			t.Errorf("cut off after %d bytes: %v, want ErrUnexpectedEOF", n, err)
		}
	}
}

// TestImports: the daemon's side loads no module, since it cannot.
func TestImports(t *testing.T) {
	out, err := exec.Command("go", "list", "-deps", "github.com/kekd/kekd/hsm/worker").Output()
	must(t, err)
	for pkg := range strings.Lines(string(out)) {
		pkg = strings.TrimSpace(pkg)
		first, _, _ := strings.Cut(pkg, "/")
		allowed := !strings.Contains(first, ".") || strings.HasPrefix(pkg, "golang.org/x/sys/") ||
			pkg == "github.com/kekd/kekd/hsm/worker" || pkg == "github.com/kekd/kekd/hsm" || pkg == "github.com/kekd/kekd/hierarchy" || pkg == "github.com/kekd/kekd/stats"
		if !allowed {
			t.Errorf("package worker imports %s", pkg)
		}
	}
}

func FuzzOperations(f *testing.F) {
	f.Add(worker.OperationsFrame([]hsm.Operation{
		{Plaintext: []byte("dek"), To: []hsm.Target{{AAD: []byte("aad")}}}, {Random: 32, Reveal: true},
		{Open: &hsm.Opening{AAD: []byte("aad"), Sealed: hsm.Sealed{IV: make([]byte, 12), Ciphertext: make([]byte, 20)}}, Reveal: true},
	})[5:])
	f.Fuzz(func(t *testing.T, body []byte) {
		_, again, err := worker.ParseOperations(body)
		if err == nil && !bytes.Equal(again, body) {
			// Only a source that the writer would not choose may read back otherwise.
			if _, thrice, err := worker.ParseOperations(again); err != nil || !bytes.Equal(thrice, again) {
				t.Errorf("what was read is not what is written: %v", err)
			}
		}
	})
}

func FuzzRequest(f *testing.F) {
	for _, r := range worker.Requests() {
		f.Add(r)
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		again, err := worker.ReadRequest(body)
		if err != nil {
			return
		}
		if thrice, err := worker.ReadRequest(again); err != nil || !bytes.Equal(thrice, again) {
			t.Errorf("what was read is not what is written: %v", err)
		}
	})
}

// listening are operations that a worker is asked to run, and how they end.
func listening() []hsm.Operation {
	return []hsm.Operation{
		{Reveal: true, Revealed: []byte("dek"), Open: &hsm.Opening{}},
		{To: make([]hsm.Target, 1), Sealed: []hsm.Sealed{{IV: make([]byte, 12), Ciphertext: make([]byte, 20)}}},
		{Err: hsm.ErrKeyNotFound, Reveal: true}, {Err: hsm.ErrTagMismatch, Reveal: true},
	}
}

// FuzzListen: whatever a worker sends, the daemon lives, and an operation has a result of its own
// kind or none.
func FuzzListen(f *testing.F) {
	var all []byte
	for _, a := range worker.Answers(listening()) {
		f.Add(a)
		all = append(all, a...)
	}
	f.Add(all)
	f.Fuzz(func(t *testing.T, sent []byte) {
		ops := listening()
		for i := range ops {
			ops[i].Revealed, ops[i].Sealed, ops[i].Err = nil, nil, nil
		}
		_ = worker.Listen(sent, ops)
		for i, op := range ops {
			if op.Err == nil && (op.Revealed != nil && !op.Reveal || op.Sealed != nil && len(op.Sealed) != len(op.To)) {
				t.Errorf("operation %d has a result of another", i)
			}
		}
	})
}

func TestListen(t *testing.T) {
	want := listening()
	ops := listening()
	for i := range ops {
		ops[i].Revealed, ops[i].Sealed, ops[i].Err = nil, nil, nil
	}
	answers := worker.Answers(want)
	var repaired []string
	must(t, worker.ListenRepaired(bytes.Join([][]byte{answers[7], answers[0], answers[6], answers[2], answers[3], answers[7], answers[4], answers[5]}, nil), ops,
		func(text string) { repaired = append(repaired, text) }))
	if diff := cmp.Diff([]string{worker.Repaired, worker.Repaired}, repaired); diff != "" {
		t.Errorf("what was put right (-sent +got):\n%s", diff)
	}
	if !bytes.Equal(ops[0].Revealed, want[0].Revealed) || len(ops[1].Sealed) != 1 || !errors.Is(ops[3].Err, hsm.ErrTagMismatch) {
		t.Errorf("results: %+v", ops)
	}
	if ops[2].Err != nil { // for the manager to confirm
		t.Errorf("a server's word that there is no key was taken for final: %v", ops[2].Err)
	}
	for name, sent := range map[string][]byte{
		"twice ready":      bytes.Repeat(answers[0], 2),
		"results twice":    bytes.Repeat(answers[2], 2),
		"an answer twice":  bytes.Repeat(answers[5], 2),
		"waits twice":      bytes.Repeat(answers[6], 2),
		"waits no more":    slices.Concat(answers[2], answers[6]),
		"half an id":       {4, 0, 0, 0, answers[6][4], 0, 0, 0},
		"half a repair":    {4, 0, 0, 0, answers[7][4], 2, 0, 'x'},
		"repaired, more":   {5, 0, 0, 0, answers[7][4], 1, 0, 'x', 'y'},
		"a long repair":    slices.Concat([]byte{4, 16, 0, 0, answers[7][4], 1, 16}, make([]byte, 4097)),
		"an empty frame":   {0, 0, 0, 0},
		"too long a frame": {0xff, 0xff, 0xff, 0x7f, 1},
		"a daemon's frame": worker.Hello(worker.RoleServer),
	} {
		ops := listening()
		if err := worker.Listen(sent, ops); !errors.Is(err, worker.ErrGarbage) {
			t.Errorf("%s: %v, want garbage", name, err)
		}
	}
	if err := worker.Listen(answers[1], listening()); !errors.Is(err, hsm.ErrPINLocked) {
		t.Errorf("a failure: %v, want ErrPINLocked", err)
	}
}

// pair makes a socket pair.
func pair(t testing.TB) (a, b *net.UnixConn) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	must(t, err)
	conn := func(fd int) *net.UnixConn {
		f := os.NewFile(uintptr(fd), "pair")
		defer f.Close()
		c, err := net.FileConn(f)
		must(t, err)
		return c.(*net.UnixConn)
	}
	return conn(fds[0]), conn(fds[1])
}

// FuzzServe: whatever a daemon sends, a worker ends when the daemon hangs up.
func FuzzServe(f *testing.F) {
	hello := worker.Hello(worker.RoleManager)
	f.Add(hello)
	f.Add(append(bytes.Clone(hello), worker.OperationsFrame([]hsm.Operation{fakeSeal(acme, []byte("x"))})...))
	for _, r := range worker.Requests() {
		f.Add(append(append(bytes.Clone(hello), byte(len(r)+1), 0, 0, 0, 3), r...))
	}
	f.Fuzz(func(t *testing.T, sent []byte) {
		if bytes.Contains(sent, poison) {
			return
		}
		ours, theirs := pair(t)
		defer ours.Close()
		served := make(chan error, 1)
		go func() {
			served <- worker.ServeOn(context.Background(), theirs, io.NopCloser(strings.NewReader("pin")), func(context.Context, worker.Role, []byte, func(string)) (worker.Backend, error) {
				return worker.Backend{Token: &fakeToken{}}, nil
			})
		}()
		go func() { _, _ = io.Copy(io.Discard, ours) }()
		_, _ = ours.Write(sent)
		_ = ours.CloseWrite()
		select {
		case <-served:
		case <-time.After(10 * time.Second):
			t.Fatal("it goes on serving")
		}
	})
}

// TestServe: a worker wipes the PIN, tells why it cannot open, and ends without an error when
// its daemon hangs up.
func TestServe(t *testing.T) {
	for _, fault := range []error{nil, hsm.ErrPINLocked} {
		ours, theirs := pair(t)
		var kept []byte
		served := make(chan error, 1)
		go func() {
			served <- worker.ServeOn(soon(t), theirs, io.NopCloser(strings.NewReader("1234")), func(_ context.Context, role worker.Role, pin []byte, _ func(string)) (worker.Backend, error) {
				if string(pin) != "1234" || role != worker.RoleServer {
					t.Errorf("opened with %d bytes of PIN as %v", len(pin), role)
				}
				kept = pin
				return worker.Backend{Token: &fakeToken{}}, fault
			})
		}()
		_, err := ours.Write(worker.Hello(worker.RoleServer))
		must(t, err)
		said := make([]byte, 1000)
		n, err := ours.Read(said)
		must(t, err)
		said = said[:n]
		if fault == nil { // else it ends by itself
			must(t, ours.CloseWrite())
		}
		if err := <-served; !errors.Is(err, fault) || (err == nil) != (fault == nil) {
			t.Errorf("serve: %v, want %v", err, fault)
		}
		if fault != nil && !bytes.Equal(said, worker.Answers(nil)[1]) {
			t.Errorf("it said %q", said)
		}
		if !bytes.Equal(kept, make([]byte, 4)) {
			t.Error("the PIN is still there")
		}
		ours.Close()
	}
}
