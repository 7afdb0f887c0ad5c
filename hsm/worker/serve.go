package worker

import (
	"context"
	"crypto"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/signal"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kekd/kekd/hsm"
)

// Role is what a worker is for.
type Role byte

const (
	// RoleServer runs operations.
	RoleServer Role = 1 + iota
	// RoleManager runs operations too, and is the one that changes objects and signs.
	RoleManager
)

func (r Role) String() string {
	switch r {
	case RoleServer:
		return "server"
	case RoleManager:
		return "manager"
	}
	return fmt.Sprintf("role %d", byte(r))
}

// A Backend is an open token, in the process that serves it.
type Backend struct {
	Token hsm.Token
	// Manager and Agreer are asked in the manager only, and one thing at a time; Marks in the manager
	// only, beside them.
	Manager  hsm.Manager
	Agreer   hsm.Agreer
	Marks    hsm.Marks    // nil: it keeps none
	Examiner hsm.Examiner // nil: it cannot be examined
	// Signer is the manager's signing identity; nil where there is none.
	Signer crypto.Signer

	// Parallel is how many operations the token runs at once. 1: it is fed whole batches, and
	// a second process is a second core (SoftHSM). More: each operation goes its own way.
	Parallel int

	// Failed receives the error after which the token cannot be served any more in this
	// process, and is closed. Nil: it never fails.
	Failed <-chan error

	// Close lets go of the token.
	Close func(context.Context) error
}

// OpenFunc opens the token in a worker process. It tries the PIN once. Its error is told to the
// daemon, so it holds no secret. The PIN is wiped when it returns.
//
// repaired tells the daemon what was put right of where the token is kept, in a text of 4 KiB at
// most: then, and for as long as the token is open. It does not wait for the daemon to read it.
type OpenFunc func(ctx context.Context, role Role, pin []byte, repaired func(text string)) (Backend, error)

// The descriptors that a worker inherits besides its standard ones.
const (
	fdSocket = 3
	fdPIN    = 4
)

const (
	pinLimit      = 4096 // bytes; SoftHSM takes 255
	parallelLimit = 1024
	// inFlightLimit is what a daemon keeps in flight to one worker at most, in operations.
	inFlightLimit = 1 << 14
	// pairLimit is how many agreements one manager has open at a time.
	pairLimit = 1024
	// closing is how long a token may take to close: less than what the daemon waits.
	closing = time.Second
)

// Serve is what a worker process runs: it takes over the descriptors that the daemon left, opens
// the token and serves it until the daemon hangs up, which is the only end that is no error. The
// process ends after that.
//
// It ignores SIGINT, SIGTERM and SIGHUP: they may be sent to a whole control group, and the
// daemon has to finish first.
func Serve(ctx context.Context, open OpenFunc) error {
	signal.Ignore(syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
	conn, err := inherited()
	if err != nil {
		return fmt.Errorf("a token worker is started by the daemon, not by hand: %w", err)
	}
	pin := os.NewFile(fdPIN, "pin")
	unix.CloseOnExec(fdPIN) // a module may run programs
	return serve(ctx, conn, pin, open)
}

func inherited() (*net.UnixConn, error) {
	f := os.NewFile(fdSocket, "daemon")
	if f == nil {
		return nil, errors.New("no socket")
	}
	defer f.Close() // FileConn has its own, close-on-exec
	c, err := net.FileConn(f)
	if err != nil {
		return nil, err
	}
	conn, ok := c.(*net.UnixConn)
	if !ok {
		return nil, errors.New("not a socket of the right kind")
	}
	return conn, nil
}

// A server serves one token to one daemon.
type server struct {
	socket  *socket
	out     *sender
	backend Backend
	ctx     context.Context

	ended  chan struct{} // closed when err is set
	ending sync.Once
	err    error // why it ended; nil: the daemon hung up

	inFlight atomic.Int64
	waiting  jobs          // of a token that runs one operation at a time; its reader's alone
	changes  chan *request // the manager's, in order
	pairs    map[uint32]hsm.Agreement
	jobs     sync.Pool
}

func serve(ctx context.Context, conn *net.UnixConn, pin io.ReadCloser, open OpenFunc) error {
	socket, err := newSocket(conn)
	if err != nil {
		pin.Close()
		return fmt.Errorf("the daemon's socket: %w", err)
	}
	defer socket.Close()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	s := &server{
		socket: socket, out: newSender(socket), ctx: ctx, ended: make(chan struct{}),
		changes: make(chan *request, 1024), pairs: map[uint32]hsm.Agreement{},
		jobs: sync.Pool{New: func() any { return &job{} }},
	}
	frames := newFrameReader(socket)
	role, err := readHello(frames)
	if err != nil {
		pin.Close()
		return err
	}
	opened := make(chan error, 1)
	go func() { opened <- s.open(role, pin, open) }()
	reading := make(chan struct{})
	go func() { s.read(frames, reading) }()
	select {
	case err := <-opened:
		if err != nil {
			return err
		}
	case <-s.ended: // while the token is being opened: nobody waits for it any more
		return s.why()
	}
	close(reading)
	if role == RoleManager {
		go s.manage()
	}
	go s.watch()
	select {
	case <-s.ended:
	case <-ctx.Done():
		s.end(ctx.Err())
	}
	return errors.Join(s.why(), s.close())
}

func readHello(frames *frameReader) (Role, error) {
	k, frame, err := frames.next()
	if err != nil {
		return 0, fmt.Errorf("no word from the daemon: %w", err)
	}
	if k != kindHello {
		return 0, errGarbage
	}
	h, err := parseHello(frame)
	return h.role, err
}

// open opens the token, and says how that went.
func (s *server) open(role Role, pinFile io.ReadCloser, open OpenFunc) error {
	pin, err := readPIN(pinFile)
	defer clear(pin)
	if err == nil {
		s.backend, err = open(s.ctx, role, pin, s.repaired)
	}
	r := ready{parallel: s.backend.Parallel}
	if err == nil && s.backend.Signer != nil {
		r.public = s.backend.Signer.Public()
	}
	var message []byte
	if err == nil {
		var at int
		message, at = beginFrame(nil, kindReady)
		if message, err = appendReady(message, r); err == nil {
			s.out.end(append(s.out.begin(), endFrame(message, at)...))
			return nil
		}
	}
	s.last(err)
	return err
}

// repaired tells the daemon what was put right. It is written before the worker goes on, unless the
// daemon is behind: what comes next may end this process.
func (s *server) repaired(text string) {
	b, at := beginFrame(s.out.begin(), kindRepaired)
	s.out.end(endFrame(appendText(b, text), at))
}

func readPIN(f io.ReadCloser) ([]byte, error) {
	defer f.Close()
	pin := make([]byte, pinLimit)
	n, err := io.ReadFull(f, pin)
	if err == nil {
		clear(pin)
		return nil, fmt.Errorf("%w: it is longer than %d bytes", hsm.ErrPINMissing, pinLimit-1)
	}
	if err != io.EOF && err != io.ErrUnexpectedEOF {
		return pin, fmt.Errorf("%w: %w", hsm.ErrPINMissing, err)
	}
	return pin[:n], nil
}

// last tells the daemon why there will be nothing more.
func (s *server) last(err error) {
	b := s.out.begin()
	b, at := beginFrame(b, kindFailed)
	s.out.end(endFrame(appendError(b, err), at))
	s.out.drain()
}

// end ends the server, once. nil: the daemon hung up.
func (s *server) end(err error) {
	s.ending.Do(func() {
		s.err = err
		close(s.ended)
	})
}

func (s *server) why() error {
	<-s.ended
	return s.err
}

// watch waits for the token to be lost.
func (s *server) watch() {
	select {
	case err, ok := <-s.backend.Failed:
		if ok {
			s.lost(err)
		}
	case <-s.ended:
	}
}

func (s *server) lost(err error) {
	s.last(err)
	s.end(err)
}

// failing tells whether the token was lost, as far as is known right now.
func (s *server) failing() bool {
	select {
	case err, ok := <-s.backend.Failed: // nil: never
		if ok {
			go s.lost(err)
		}
		return true
	default:
		return false
	}
}

func (s *server) close() error {
	s.socket.Close()
	if s.backend.Close == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(s.ctx), closing)
	defer cancel()
	return s.backend.Close(ctx)
}
