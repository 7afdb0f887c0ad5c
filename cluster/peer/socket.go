package peer

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// After what time without an answer the kernel gives a connection up; gRPC's own keepalive takes 10 s at
// least. With a second a call in flight to a machine that is cut off fails after 1.2 s, with two after
// 3.3 s (the kernel looks when it sends again, each time after twice as long), and an idle connection ends
// after two in any case. It is not for a process that is busy or stopped, whose kernel still answers;
// but a peer that does not read counts as silent once its buffers are full. Calls are bounded by what
// gRPC has in flight and never fill them. A snapshot can, on a disk that stalls, so Raft gets more.
const (
	callSilence = time.Second
	raftSilence = 2 * time.Second
)

// keepAlive has an idle connection asked after a second, and each second again.
var keepAlive = net.KeepAliveConfig{Enable: true, Idle: time.Second, Interval: time.Second, Count: 2}

// limitSilence is for sockets that are about to connect or listen.
func limitSilence(silence time.Duration) func(_, _ string, raw syscall.RawConn) error {
	return func(_, _ string, raw syscall.RawConn) error {
		var failed error
		err := raw.Control(func(fd uintptr) {
			failed = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(silence.Milliseconds()))
		})
		return errors.Join(err, failed)
	}
}

// listenTCP listens; what it accepts has the listener's options (tcp(7)).
func listenTCP(address string) (net.Listener, error) {
	config := net.ListenConfig{Control: limitSilence(raftSilence), KeepAliveConfig: keepAlive}
	l, err := config.Listen(context.Background(), "tcp", address)
	if err != nil {
		return nil, fmt.Errorf("listen for peers: %w", err)
	}
	return l, nil
}

func dialTCP(ctx context.Context, address string, what byte) (net.Conn, error) {
	silence := callSilence
	if what == forRaft {
		silence = raftSilence
	}
	dialer := net.Dialer{Control: limitSilence(silence), KeepAliveConfig: keepAlive}
	return dialer.DialContext(ctx, "tcp", address)
}

// maxBeforeHello is how much the other side may send until it has said hello, in bytes. A handshake
// with a chain of certificates has a few thousand.
const maxBeforeHello = 64 << 10

// bounded is a TCP connection that gives so much and no more until it is opened.
type bounded struct {
	net.Conn
	left atomic.Int64 // negative: no bound
}

func newBounded(c net.Conn) *bounded {
	b := &bounded{Conn: c}
	b.left.Store(maxBeforeHello)
	return b
}

func (b *bounded) open() { b.left.Store(-1) }

func (b *bounded) Read(p []byte) (int, error) {
	left := b.left.Load()
	if left < 0 {
		return b.Conn.Read(p)
	}
	if left == 0 {
		return 0, fmt.Errorf("%w: more than %d bytes before a hello", ErrProtocol, maxBeforeHello)
	}
	n, err := b.Conn.Read(p[:min(int64(len(p)), left)])
	b.left.Add(-int64(n)) // the handshake's goroutine alone reads until it is opened
	return n, err
}

// hangUp ends a connection so that the other side reads what it was told last. Closed at once, what
// it still sends would have the kernel reset the connection, and drop what it has not read.
func hangUp(c net.Conn) {
	defer c.Close()
	half, ok := c.(interface{ CloseWrite() error })
	if !ok || half.CloseWrite() != nil {
		return
	}
	c.SetReadDeadline(time.Now().Add(hangUpTime))
	var rest [4 << 10]byte
	for range maxBeforeHello / len(rest) {
		if _, err := c.Read(rest[:]); err != nil {
			return
		}
	}
}

// hangUpTime is how long the other side may take to read it.
const hangUpTime = 300 * time.Millisecond
