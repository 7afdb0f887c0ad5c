package softhsmtests

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/kekd/kekd/softhsm-tests/devcluster"
	"github.com/kekd/kekd/unix-socket-api/kekdv1"
)

// attacks are what one user may do to the socket, each until ctx ends.
var attacks = []struct {
	name string
	run  func(t *testing.T, ctx context.Context, n *node)
}{
	{"connections that send nothing", silentConnections},
	{"half of a handshake", halfOpen},
	{"frames too large", largeFrames},
	{"no HTTP/2 at all", noise},
	{"messages too large", largeMessages},
	{"streams that are never read", unreadStreams},
	{"connections that are not read", unreadConnections},
	{"a flood of batches", flood},
	{"a flood of refusals", refusals},
	{"connecting again and again", reconnecting},
}

// An attacker is a process of its own, as he is where kekd runs: in one process with his victim, he
// would mostly keep that from running. What he is to do is in the environment.
const (
	envAttack       = "KEKD_TEST_ATTACK"
	envAttackSocket = "KEKD_TEST_ATTACK_SOCKET"
	envAttackFor    = "KEKD_TEST_ATTACK_FOR"
)

// attack is what the attacker's process does.
func attack(t *testing.T, name string) {
	howLong, err := time.ParseDuration(os.Getenv(envAttackFor))
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range attacks {
		if a.name == name {
			ctx, cancel := context.WithTimeout(t.Context(), howLong)
			defer cancel()
			a.run(t, ctx, &node{t: t, Node: devcluster.Node{Socket: os.Getenv(envAttackSocket)}})
			<-ctx.Done()
			return
		}
	}
	t.Fatalf("there is no attack %q", name)
}

// startAttack starts an attacker, who gets what processor time the others leave: how the kernel shares
// that out is not the daemon's doing.
func startAttack(t *testing.T, n *node, name string, howLong time.Duration) (wait func()) {
	t.Helper()
	cmd := exec.Command(os.Args[0], "-test.v", "-test.run=^TestHostileCallers$")
	cmd.Env = append(os.Environ(), envAttack+"="+name, envAttackSocket+"="+n.Socket, envAttackFor+"="+howLong.String())
	var says bytes.Buffer
	cmd.Stdout, cmd.Stderr = &says, &says
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill() })
	if err := unix.Setpriority(unix.PRIO_PROCESS, cmd.Process.Pid, 19); err != nil {
		t.Fatal(err)
	}
	return func() {
		t.Helper()
		if err := cmd.Wait(); err != nil {
			t.Errorf("the attacker: %v\n%s", err, says.String())
		} else if i := strings.Index(says.String(), "the flood had"); i >= 0 {
			t.Log(strings.TrimSpace(strings.SplitN(says.String()[i:], "\n", 2)[0]))
		}
	}
}

// Whatever one user does to the socket, the calls of another succeed, all of them.
func TestHostileCallers(t *testing.T) {
	if name := os.Getenv(envAttack); name != "" {
		attack(t, name)
		return
	}
	n := initialised(t)
	d := n.serve()
	setUp(t, n.Node, "acme", "flood")
	callerOf(t, n, "acme-app", acmeUID, "acme/*")
	callerOf(t, n, "flood-app", floodUID, "flood/*")
	victim := probeWith(t, keysAs(t, n, acmeUID), "acme/orders")
	time.Sleep(time.Second)
	calm, calls := victim.p99()
	t.Logf("left alone: p99 %v of %d calls; the daemon has %d MiB", calm, calls, residentMiB(t, n.PID))

	for _, attack := range attacks {
		t.Run(attack.name, func(t *testing.T) {
			wait := startAttack(t, n, attack.name, time.Duration(loops(1000, 10_000))*time.Millisecond)
			victim.window()
			wait()
			eventually(t, 5*time.Second, "the victim is served", func() bool { _, calls := victim.p99(); return calls > 0 })
			p99, calls := victim.p99()
			if victim.failed() {
				t.Error("the victim's calls fail")
			}
			mib := residentMiB(t, n.PID)
			if mib > 800 { // its own limit for Go's memory is 512
				t.Errorf("one user made the daemon take %d MiB", mib)
			}
			t.Logf("the victim's p99: %v of %d calls; left alone: %v; the daemon has %d MiB", p99, calls, calm, mib)
		})
	}
	victim.stop()

	// What was held is let go.
	eventually(t, 20*time.Second, "the daemon lets go of what the attackers held", func() bool { return len(descriptors(t, n.PID)) < 100 })
	sealAndOpen(t, n, "acme/orders")
	verifyAudit(t, n)
	d.stop()
	if strings.Contains(d.says(), "panic") {
		t.Error("a call panicked")
	}
}

// Eight services that turn hostile, and strangers besides, take all the connections that there are for
// all. One more service is served all the same.
func TestManyUsersLockNoServiceOut(t *testing.T) {
	t.Parallel()
	n := initialised(t)
	d := n.serve()
	setUp(t, n.Node, "acme")
	callerOf(t, n, "acme-app", acmeUID, "acme/*")
	const each, first = 256, 60_000 // connections of a uid, and the first uid
	var closed, open int
	for i := range uint32(12) {
		uid := first + i
		if i < 8 {
			callerOf(t, n, fmt.Sprintf("hostile-%d", i), uid, "acme/*")
		}
		conns, err := connectMany(t.Context(), n.Socket, uid, each)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			for _, c := range conns {
				c.Close()
			}
		})
		for _, c := range conns {
			// HTTP/2 servers speak first, once a client has said what it wants.
			if _, err := c.Write(append([]byte(preface), settings...)); err != nil {
				closed++
				continue
			}
			if err := c.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
				t.Fatal(err)
			}
			if _, err := c.Read(make([]byte, 9)); err != nil {
				closed++
			} else {
				open++
			}
		}
	}
	t.Logf("%d connections are open, %d were closed", open, closed)
	if open < 2000 || closed == 0 {
		t.Errorf("that are not all there are: %d are open, %d were closed", open, closed)
	}
	if _, err := keysAs(t, n, acmeUID).GenerateDataKey(within(t, 10*time.Second), &kekdv1.GenerateDataKeyRequest{Key: "acme/orders"}); err != nil {
		t.Errorf("a service that had none yet: %v", err)
	}
	d.stop()
}

// hold connects as the attacker and keeps the connections until the attack returns.
func hold(t *testing.T, n *node, count int) []net.Conn {
	t.Helper()
	conns, err := connectMany(t.Context(), n.Socket, floodUID, count)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { // not when ctx ends: they are looked at after that, if the machine is slow
		for _, c := range conns {
			c.Close()
		}
	})
	return conns
}

// silentConnections are many of one user, in the hope that none is left for others.
func silentConnections(t *testing.T, ctx context.Context, n *node) {
	conns := hold(t, n, loops(2000, 10_000))
	// Those over the user's limit are closed at once.
	closed := 0
	for _, c := range conns[len(conns)-100:] {
		if err := c.SetReadDeadline(time.Now().Add(5 * time.Second)); err != nil {
			t.Fatal(err)
		}
		if _, err := io.Copy(io.Discard, c); !errors.Is(err, os.ErrDeadlineExceeded) {
			closed++
		}
	}
	if closed != 100 {
		t.Errorf("of the last 100 of %d connections of one user, %d were closed", len(conns), closed)
	}
	<-ctx.Done()
}

// preface is what an HTTP/2 client begins with (RFC 9113 section 3.4).
const preface = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

// frame is an HTTP/2 frame's header: length, type, flags, stream (RFC 9113 section 4.1).
func frame(length uint32, kind, flags byte, stream uint32) []byte {
	b := binary.BigEndian.AppendUint32(nil, length<<8|uint32(kind))
	return binary.BigEndian.AppendUint32(append(b, flags), stream)
}

var settings = frame(0, 4, 0, 0)

func halfOpen(t *testing.T, ctx context.Context, n *node) {
	for i, c := range hold(t, n, 200) {
		_, _ = io.WriteString(c, preface[:i%len(preface)]) // some are refused for those that were there before
	}
}

func largeFrames(t *testing.T, ctx context.Context, n *node) {
	for _, c := range hold(t, n, 50) {
		_, _ = c.Write([]byte(preface))
		_, _ = c.Write(settings)
		_, _ = c.Write(frame(1<<24-1, 0, 0, 1)) // DATA of 16 MiB, where 16 KiB were allowed
		_, _ = c.Write(make([]byte, 64<<10))
		if err := c.SetReadDeadline(time.Now().Add(5 * time.Second)); err != nil {
			t.Fatal(err)
		}
		if _, err := io.Copy(io.Discard, c); errors.Is(err, os.ErrDeadlineExceeded) {
			t.Fatal("a connection with a frame that is too large stays open")
		}
	}
}

func noise(t *testing.T, ctx context.Context, n *node) {
	for i, c := range hold(t, n, 100) {
		junk := make([]byte, 4096)
		_, _ = rand.Read(junk)
		if i%2 == 0 { // past the preface
			_, _ = c.Write([]byte(preface))
			_, _ = c.Write(settings)
		}
		_, _ = c.Write(junk)
	}
}

func largeMessages(t *testing.T, ctx context.Context, n *node) {
	k := keysAs(t, n, floodUID)
	huge := make([]byte, 16<<20)
	for ctx.Err() == nil {
		_, err := k.Unwrap(t.Context(), &kekdv1.UnwrapRequest{Envelope: huge})
		if code := codeOf(err); code != "INVALID_ARGUMENT" {
			t.Fatalf("a message of 16 MiB: %v", err)
		}
	}
}

// unreadStreams ask for much and read nothing.
func unreadStreams(t *testing.T, ctx context.Context, n *node) {
	batch := &kekdv1.BatchRequest{}
	for range 1024 {
		batch.Operations = append(batch.Operations, &kekdv1.Operation{Op: &kekdv1.Operation_GenerateDataKey{
			GenerateDataKey: &kekdv1.GenerateDataKeyRequest{Key: "flood/orders", Bytes: 4096}}})
	}
	k := keysAs(t, n, floodUID)
	for range 50 {
		s, err := k.Stream(ctx)
		if err != nil {
			t.Fatal(err)
		}
		go func() {
			for s.Send(batch) == nil {
			}
		}()
	}
}

// unreadConnections are connections whose client has stopped to read from its socket.
func unreadConnections(t *testing.T, ctx context.Context, n *node) {
	batch := &kekdv1.BatchRequest{}
	for range 256 {
		batch.Operations = append(batch.Operations, &kekdv1.Operation{Op: &kekdv1.Operation_GenerateDataKey{
			GenerateDataKey: &kekdv1.GenerateDataKeyRequest{Key: "flood/orders", Bytes: 4096}}})
	}
	for range 20 {
		conn, err := grpc.NewClient("passthrough:///kekd",
			grpc.WithContextDialer(func(dial context.Context, _ string) (net.Conn, error) {
				c, err := connectAs(dial, n.Socket, floodUID)
				return &deafConn{Conn: c, until: ctx}, err
			}),
			grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithAuthority("localhost"))
		if err != nil {
			t.Fatal(err)
		}
		context.AfterFunc(ctx, func() { conn.Close() })
		k := kekdv1.NewKeyServiceClient(conn)
		for range 20 {
			go func() { _, _ = k.Batch(ctx, batch) }()
		}
	}
}

// deafConn stops to read soon after it was made.
type deafConn struct {
	net.Conn
	until context.Context
	heard int
}

func (c *deafConn) Read(b []byte) (int, error) {
	if c.heard > 16<<10 {
		<-c.until.Done()
		return 0, c.until.Err()
	}
	n, err := c.Conn.Read(b)
	c.heard += n
	return n, err
}

// flood is a tenant that takes all that it is given.
func flood(t *testing.T, ctx context.Context, n *node) {
	k := keysAs(t, n, floodUID)
	var sealed *kekdv1.GenerateDataKeyResponse
	eventually(t, 10*time.Second, "the attacker may begin anew", func() bool {
		r, err := k.GenerateDataKey(t.Context(), &kekdv1.GenerateDataKeyRequest{Key: "flood/orders"})
		sealed = r
		return err == nil
	})
	batch := &kekdv1.BatchRequest{}
	for range 1024 {
		batch.Operations = append(batch.Operations, &kekdv1.Operation{Op: &kekdv1.Operation_Unwrap{Unwrap: &kekdv1.UnwrapRequest{Envelope: sealed.Envelope}}})
	}
	var done atomic.Int64
	var running sync.WaitGroup
	for range 8 {
		running.Go(func() {
			for ctx.Err() == nil {
				r, err := k.Batch(t.Context(), batch)
				if code := codeOf(err); code != "" && code != "RATE_LIMITED" {
					t.Errorf("a batch of the flood: %v", err)
				}
				done.Add(int64(len(r.GetResults())))
			}
		})
	}
	begun := time.Now()
	running.Wait()
	t.Logf("the flood had %.0f operations a second", float64(done.Load())/time.Since(begun).Seconds())
}

// refusals cost a record each.
func refusals(t *testing.T, ctx context.Context, n *node) {
	k := keysAs(t, n, floodUID)
	var running sync.WaitGroup
	for i := range 32 {
		running.Go(func() {
			for ctx.Err() == nil {
				_, err := k.GenerateDataKey(t.Context(), &kekdv1.GenerateDataKeyRequest{Key: fmt.Sprintf("acme/orders-%d", i)})
				if code := codeOf(err); code != "PERMISSION_DENIED" && code != "RATE_LIMITED" {
					t.Errorf("a refusal: %v", err)
				}
			}
		})
	}
	running.Wait()
}

func reconnecting(t *testing.T, ctx context.Context, n *node) {
	for ctx.Err() == nil {
		conns, err := connectMany(t.Context(), n.Socket, floodUID, 50)
		if err != nil {
			t.Fatal(err)
		}
		for _, c := range conns {
			_, _ = io.WriteString(c, preface)
			c.Close()
		}
	}
}

// residentMiB is a process's memory in RAM.
func residentMiB(t *testing.T, pid int) int {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(b), "VmRSS:")
	var kib int
	if _, err := fmt.Sscan(rest, &kib); err != nil {
		t.Fatal(err)
	}
	return kib / 1024
}
