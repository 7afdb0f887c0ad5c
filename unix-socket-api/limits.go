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
	// StrangerConns are those of all uids together that are not [Limits.Known].
	StrangerConns int
	// ConnsPerSecond is how many one uid may open in the long run, and ConnsPerUID of them at
	// once; further ones wait. Each costs some 0.3 ms of processor time, also if it is closed right away.
	ConnsPerSecond int
	// Calls that are open, a stream counting as one.
	Calls, CallsPerUID int
	// StrangerCalls are those of all uids together that are not [Limits.Known], and
	// StrangerCallsPerUID those of one of them: what they can be told is that they are refused.
	StrangerCalls, StrangerCallsPerUID int
	// BytesPerUID bounds the messages of a uid that were read and not answered yet, of calls and
	// streams together, in bytes on the wire. Over it calls are refused and streams wait.
	BytesPerUID int64
	// GivenUpPerSecond is how many calls a uid may give up before they are answered, in the long
	// run and at once. After that what its connections send is not read for as long as it takes.
	// The second is for uids that are not [Limits.Known].
	GivenUpPerSecond, StrangerGivenUpPerSecond int
	// Operations in flight, from the moment when they were read until their answer was handed
	// to the transport: a batch counts as many as it has.
	Ops, OpsPerUID int

	// What a known uid may always have, though the others together are at their limits: so many
	// uids as there are services cannot lock one out, and no number of strangers can.
	ReservedConns, ReservedCalls, ReservedOps int
	// Known tells whom a service names; nil: everybody. It is asked often, and at any time.
	Known func(hierarchy.Principal) bool

	// ShareOps is how many operations a uid may have in flight before more are let in, while
	// other known uids call. Company is how long a uid that has called counts as one that calls.
	ShareOps int
	Company  time.Duration

	// StreamsPerConn is HTTP/2's limit of open calls on one connection. A client that obeys
	// it, as all do, waits.
	StreamsPerConn uint32
	// StreamOps and StreamBytes bound what one stream has in flight, in operations and in bytes of
	// messages. Over them the stream is not read from: its caller waits.
	StreamOps, StreamBytes int
	// SendTimeout ends a stream that has an answer which its caller does not take.
	// Unsent bounds the bytes of answers that a connection's caller has not read. Over it new
	// calls are refused, a stream's next message is not read, and if that lasts for SendTimeout
	// the connection is closed, or the stream. UnsentPerUID bounds those of all its connections.
	Unsent, UnsentPerUID int64
	SendTimeout          time.Duration

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
		Conns: 2048, ConnsPerUID: 256, StrangerConns: 256, ConnsPerSecond: 128,
		Calls: 4096, CallsPerUID: 512,
		StrangerCalls: 64, StrangerCallsPerUID: 16,
		BytesPerUID:      32 << 20,
		GivenUpPerSecond: 4096, StrangerGivenUpPerSecond: 64,
		Ops: 65536, OpsPerUID: 8192,
		ReservedConns: 16, ReservedCalls: 64, ReservedOps: custody.MaxBatch,
		ShareOps: 128, Company: 100 * time.Millisecond,
		StreamsPerConn: 256,
		StreamOps:      4 * custody.MaxBatch, StreamBytes: 8 << 20,
		Unsent: 8 << 20, UnsentPerUID: 32 << 20, SendTimeout: 10 * time.Second,
		MaxMessage:      1 << 20,
		DefaultDeadline: 10 * time.Second, MaxDeadline: 30 * time.Second,
		HandshakeTimeout: 5 * time.Second,
	}
}

// DefaultAdminLimits are those of admin.sock. Its calls wait for commits and for key objects, so their
// deadlines are longer; and a change that closes may have to wait for leases of a tenant's max_staleness, which
// is up to a day.
func DefaultAdminLimits() Limits {
	l := DefaultLimits()
	l.Conns, l.ConnsPerUID, l.StrangerConns = 128, 64, 64
	l.Calls, l.CallsPerUID = 128, 64
	l.StrangerCalls, l.StrangerCallsPerUID = l.Calls, l.CallsPerUID // administrators need no service
	l.ReservedConns, l.ReservedCalls = 4, 8
	l.DefaultDeadline, l.MaxDeadline = 60*time.Second, 25*time.Hour
	return l
}

func (l Limits) validate() error {
	switch {
	case min(l.ReservedConns, l.ReservedCalls, l.ReservedOps) < 0:
		return fmt.Errorf("%w: a reservation is below 0", hierarchy.ErrInvalidArgument)
	case l.Conns < 1 || l.ConnsPerUID < 1 || l.StrangerConns < 1 || l.ConnsPerSecond < 1 || l.ShareOps < 1 || l.Calls < 1 || l.CallsPerUID < 1 || l.StreamsPerConn < 1:
		return fmt.Errorf("%w: a limit is below 1", hierarchy.ErrInvalidArgument)
	case min(l.Ops, l.OpsPerUID, l.StreamOps) < custody.MaxBatch:
		return fmt.Errorf("%w: a limit of operations is below the %d of one batch", hierarchy.ErrInvalidArgument, custody.MaxBatch)
	case min(l.StrangerCalls, l.StrangerCallsPerUID, l.GivenUpPerSecond, l.StrangerGivenUpPerSecond) < 1:
		return fmt.Errorf("%w: a limit of calls is below 1", hierarchy.ErrInvalidArgument)
	case l.BytesPerUID < int64(l.MaxMessage):
		return fmt.Errorf("%w: a uid's limit of bytes is below that of one message, %d", hierarchy.ErrInvalidArgument, l.MaxMessage)
	case l.StreamBytes < l.MaxMessage:
		return fmt.Errorf("%w: a stream's limit of bytes is below that of one message, %d", hierarchy.ErrInvalidArgument, l.MaxMessage)
	case min(l.Unsent, l.UnsentPerUID) < 1 || l.MaxMessage < 1:
		return fmt.Errorf("%w: a limit of bytes is below 1", hierarchy.ErrInvalidArgument)
	case min(l.Company, l.SendTimeout, l.DefaultDeadline, l.MaxDeadline, l.HandshakeTimeout) <= 0:
		return fmt.Errorf("%w: a timeout is not above 0", hierarchy.ErrInvalidArgument)
	}
	return nil
}
