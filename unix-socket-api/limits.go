package socketapi

import (
	"fmt"
	"time"

	"github.com/kekd/kekd/hierarchy"
	"github.com/kekd/kekd/hierarchy/custody"
)

// Limits bound what callers may hold of the daemon, all together and each uid alone. A uid that
// sits at its limit leaves the rest to the others.
type Limits struct {
	// Open connections. Each costs about 100 KiB, most of it gRPC's buffers.
	Conns, ConnsPerUID int
	// Calls that are open, a stream counting as one.
	Calls, CallsPerUID int
	// Operations in flight, from the moment when they were read until their answer was handed
	// to the transport: a batch counts as many as it has.
	Ops, OpsPerUID int

	// StreamsPerConn is HTTP/2's limit of open calls on one connection. A client that obeys
	// it, as all do, waits.
	StreamsPerConn uint32
	// StreamOps and StreamMessages bound what one stream has in flight. Over them the stream
	// is not read from: its caller waits.
	StreamOps, StreamMessages int
	// SendTimeout ends a stream that has an answer which its caller does not take.
	// Unsent bounds the bytes of answers that a connection's caller has not read. Over it new
	// calls are refused, and if that lasts for SendTimeout the connection is closed.
	Unsent      int64
	SendTimeout time.Duration

	// MaxMessage is the size of the largest message in, in bytes: one MiB holds 1,024
	// operations of 1 KiB each, which is four times an envelope with its context. An open call
	// can hold that much before it is admitted, so it also bounds memory: CallsPerUID times
	// this for one hostile uid.
	MaxMessage int
	// DefaultDeadline is for callers that set none; MaxDeadline cuts longer ones.
	DefaultDeadline, MaxDeadline time.Duration
	// HandshakeTimeout is how long a connection may take to become one of HTTP/2.
	HandshakeTimeout time.Duration
}

// DefaultLimits are those of kekd.sock.
func DefaultLimits() Limits {
	return Limits{
		Conns: 2048, ConnsPerUID: 256,
		Calls: 4096, CallsPerUID: 512,
		Ops: 65536, OpsPerUID: 8192,
		StreamsPerConn: 256,
		StreamOps:      4 * custody.MaxBatch, StreamMessages: 64,
		Unsent: 8 << 20, SendTimeout: 10 * time.Second,
		MaxMessage:      1 << 20,
		DefaultDeadline: 10 * time.Second, MaxDeadline: 30 * time.Second,
		HandshakeTimeout: 5 * time.Second,
	}
}

// DefaultAdminLimits are those of admin.sock. Its calls wait for commits and for key objects,
// so their deadlines are longer.
func DefaultAdminLimits() Limits {
	l := DefaultLimits()
	l.Conns, l.ConnsPerUID = 128, 64
	l.Calls, l.CallsPerUID = 128, 64
	l.DefaultDeadline, l.MaxDeadline = 60*time.Second, 10*time.Minute
	return l
}

func (l Limits) validate() error {
	switch {
	case l.Conns < 1 || l.ConnsPerUID < 1 || l.Calls < 1 || l.CallsPerUID < 1 || l.StreamsPerConn < 1 || l.StreamMessages < 1:
		return fmt.Errorf("%w: a limit is below 1", hierarchy.ErrInvalidArgument)
	case min(l.Ops, l.OpsPerUID, l.StreamOps) < custody.MaxBatch:
		return fmt.Errorf("%w: a limit of operations is below the %d of one batch", hierarchy.ErrInvalidArgument, custody.MaxBatch)
	case l.Unsent < 1 || l.MaxMessage < 1:
		return fmt.Errorf("%w: a limit of bytes is below 1", hierarchy.ErrInvalidArgument)
	case min(l.SendTimeout, l.DefaultDeadline, l.MaxDeadline, l.HandshakeTimeout) <= 0:
		return fmt.Errorf("%w: a timeout is not above 0", hierarchy.ErrInvalidArgument)
	}
	return nil
}
