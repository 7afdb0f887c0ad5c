package worker

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kekd/kekd/hierarchy"
	"github.com/kekd/kekd/hsm"
)

// A worker is one process, as the daemon sees it.
type worker struct {
	p    *Pool
	role Role
	cmd  *exec.Cmd
	conn *net.UnixConn
	out  *sender

	opened   chan ready    // receives once, when the worker has opened the token
	down     chan struct{} // closed when it is given nothing any more and all in flight was taken back
	exited   chan struct{} // closed when its process is gone
	parallel int           // as it told
	since    time.Time     // when it began to serve
	heard    atomic.Int64  // when it last said something or was given something to do: see hear

	got    []result // the reader's, kept to be used again
	landed []piece

	// Guarded by the pool's mu.
	flights   []piece // in flight, by ID
	free      []uint32
	load      int // cost in flight
	inFlight  int // operations
	frames    int
	sending   bool // somebody sends it operations
	suspect   bool // what is in flight has ended workers before
	takenBack bool
	requests  map[uint32]*pending
	nextID    uint32
	pings     int // health requests that nobody waits for
	cause     error
	murdered  bool          // it was killed, and not by us
	changed   time.Duration // when it last answered a manager's request, since epoch
}

// pending is a request without an answer.
type pending struct {
	verb   verb
	since  time.Time
	body   []byte
	answer chan answer // receives once; nil: nobody waits
}

// errGone is what a request gets whose worker has ended.
var errGone = errors.New("the token worker has ended")

// A toldError is why a worker could not open its token, in its own words.
type toldError struct{ error }

func (e toldError) Unwrap() error { return e.error }

func isTold(err error) bool {
	var told toldError
	return errors.As(err, &told)
}

// exec starts a process and says hello to it.
func (p *Pool) exec(role Role) (*worker, error) {
	pin, err := p.cfg.PIN()
	defer clear(pin)
	if err != nil {
		return nil, toldError{err}
	}
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("%w: socket pair: %w", hsm.ErrUnavailable, err)
	}
	ours, theirs := os.NewFile(uintptr(fds[0]), "token worker"), os.NewFile(uintptr(fds[1]), "daemon")
	defer theirs.Close()
	conn, err := net.FileConn(ours)
	ours.Close()
	if err != nil {
		return nil, fmt.Errorf("%w: socket pair: %w", hsm.ErrUnavailable, err)
	}
	pinEnd, err := pinPipe(pin)
	if err != nil {
		conn.Close()
		return nil, err
	}
	defer pinEnd.Close()

	w := &worker{
		p: p, role: role, cmd: p.cfg.Command(), conn: conn.(*net.UnixConn),
		opened: make(chan ready, 1), down: make(chan struct{}), exited: make(chan struct{}),
		requests: map[uint32]*pending{},
	}
	link, err := newNetLink(w.conn)
	if err == nil {
		w.out = newSender(link)
		w.prepare(theirs, pinEnd)
		err = p.spawn.start(w.cmd)
	}
	if err != nil {
		conn.Close()
		return nil, fmt.Errorf("%w: %w", hsm.ErrUnavailable, err)
	}
	return w, nil
}

// pinPipe gives the read end of a pipe that holds the PIN.
func pinPipe(pin []byte) (*os.File, error) {
	if len(pin) >= pinLimit { // it must fit, since nobody reads yet
		return nil, toldError{fmt.Errorf("%w: it is longer than %d bytes", hsm.ErrPINMissing, pinLimit-1)}
	}
	r, w, err := os.Pipe()
	if err == nil {
		_, err = w.Write(pin)
		w.Close()
	}
	if err != nil {
		return nil, fmt.Errorf("%w: pipe: %w", hsm.ErrUnavailable, err)
	}
	return r, nil
}

// prepare gives the command its descriptors, and sees to it that it dies with the daemon and not
// with a Ctrl-C.
func (w *worker) prepare(socket, pin *os.File) {
	c := w.cmd
	c.ExtraFiles = []*os.File{socket, pin} // fdSocket, fdPIN
	if c.Stderr == nil {
		c.Stderr = os.Stderr
	}
	if c.SysProcAttr == nil {
		c.SysProcAttr = &syscall.SysProcAttr{}
	}
	c.SysProcAttr.Pdeathsig = syscall.SIGKILL
	c.SysProcAttr.Setpgid = true
}

// run begins the conversation.
func (w *worker) run() {
	go func() {
		_ = w.cmd.Wait() // how it ended is in ProcessState
		close(w.exited)
	}()
	b, at := beginFrame(w.out.begin(), kindHello)
	w.out.end(endFrame(appendHello(b, hello{w.role}), at))
	w.hear()
	go w.read()
}

// epoch makes times of the monotonic clock, which no correction of the wall clock moves.
var epoch = time.Now()

// hear notes that the worker is not silent.
func (w *worker) hear() { w.heard.Store(int64(time.Since(epoch))) }

// read takes what the worker says until it ends, and then takes back what it was given.
func (w *worker) read() {
	frames := newFrameReader(w.conn)
	w.end(w.listen(frames))
	frames.wipe()
	w.conn.Close()
	w.inquire()
	_ = w.cmd.Process.Kill() // if it has not ended by itself
	w.p.takeBack(w)
	close(w.down)
}

// inquire finds out whether what the worker ran may have ended it: not if somebody has killed it,
// be it an operator or a kernel that is out of memory.
func (w *worker) inquire() {
	w.p.mu.Lock()
	silent := w.cause == nil
	w.p.mu.Unlock()
	if !silent {
		return
	}
	select {
	case <-w.exited:
	case <-time.After(100 * time.Millisecond):
		return // it has hung up and lives: it will not for long
	}
	status, ok := w.cmd.ProcessState.Sys().(syscall.WaitStatus)
	w.p.mu.Lock()
	w.murdered = ok && status.Signal() == syscall.SIGKILL
	w.p.mu.Unlock()
}

// blameless tells whether the worker's end says nothing about what it ran. It is known when down
// is closed.
func (w *worker) blameless() bool {
	w.p.mu.Lock()
	defer w.p.mu.Unlock()
	return w.murdered
}

// listen returns nil when the worker has hung up without a word, at whatever moment.
func (w *worker) listen(frames *frameReader) error {
	landed := false // there is room for more
	for {
		k, frame, err := frames.next()
		if err == nil {
			w.hear()
			err = w.take(k, frame)
			if landed = landed || k == kindResults || k == kindWaits; landed && !frames.another() {
				w.p.pump() // once for all frames that came together
				landed = false
			}
		} else if !errors.Is(err, errGarbage) {
			return nil
		}
		if errors.Is(err, errGarbage) {
			return fmt.Errorf("%w: it sent %w", hsm.ErrUnavailable, err)
		}
		if err != nil {
			return err
		}
	}
}

func (w *worker) take(k kind, frame []byte) error {
	switch k {
	case kindResults:
		return w.results(frame)
	case kindWaits:
		return w.wait(frame)
	case kindAnswer:
		return w.answer(frame)
	case kindRepaired:
		d := decoder{b: frame}
		text := d.text()
		if err := d.done(); err != nil || len(text) > textLimit {
			return errGarbage
		}
		w.p.cfg.Repaired(text)
		return nil
	case kindReady:
		r, err := parseReady(frame)
		if err != nil {
			return err
		}
		select {
		case w.opened <- r:
			return nil
		default:
			return errGarbage
		}
	case kindFailed:
		d := decoder{b: frame}
		err := d.error()
		if e := d.done(); e != nil {
			return e
		}
		return toldError{err}
	}
	return errGarbage
}

// end notes why the worker ends, the first reason only. nil: it hung up without a word.
func (w *worker) end(cause error) {
	w.p.mu.Lock()
	defer w.p.mu.Unlock()
	if w.cause == nil {
		w.cause = cause
	}
}

// why says why a worker whose process is gone has ended.
func (w *worker) why() error {
	w.p.mu.Lock()
	defer w.p.mu.Unlock()
	if w.cause != nil {
		return w.cause
	}
	return fmt.Errorf("%w: the worker ended without a word (%s)", hsm.ErrUnavailable, w.cmd.ProcessState)
}

// kill ends the process.
func (w *worker) kill(cause error) {
	w.end(fmt.Errorf("%w: the worker was killed: %w", hsm.ErrUnavailable, cause))
	_ = w.cmd.Process.Kill() // its own child, by pidfd where the kernel has it
	w.conn.Close()           // so that nobody waits for a process that does not die
}

// post sends a request, and notes that answer waits for what comes. errGone: the worker has ended.
func (w *worker) post(r *request, answer chan answer) error {
	w.p.mu.Lock()
	if w.takenBack {
		w.p.mu.Unlock()
		return errGone
	}
	if w.idle() {
		w.hear()
	}
	w.nextID++
	r.id = w.nextID
	w.requests[r.id] = &pending{verb: r.verb, since: time.Now(), answer: answer}
	// Sent under the lock: the manager's requests keep their order.
	b, at := beginFrame(w.out.begin(), kindRequest)
	w.out.end(endFrame(appendRequest(b, r), at))
	w.p.mu.Unlock()
	return nil
}

// ask asks the worker something and waits for the answer until ctx ends.
func (w *worker) ask(ctx context.Context, r *request) (_ []byte, err error) {
	r.id = 0 // that of a try at another worker
	if ctx.Err() != nil {
		return nil, late(ctx)
	}
	defer func(began time.Time) { w.p.counts.asked(r.verb, began, err) }(time.Now())
	if deadline, ok := ctx.Deadline(); ok && r.verb != verbForget { // it is not given up
		r.timeout = max(time.Until(deadline), 1)
	}
	came := make(chan answer, 1)
	if err := w.post(r, came); err != nil {
		return nil, err
	}
	select {
	case a := <-came:
		return a.body, a.err
	case <-w.down:
		select {
		case a := <-came: // it was the last thing that it said
			return a.body, a.err
		default:
			return nil, errGone
		}
	case <-ctx.Done():
		return nil, late(ctx)
	}
}

// bodyLimit bounds an answer of several parts, in bytes: a listing of 100,000 objects has 20 MB.
const bodyLimit = 64 << 20

// answer hands an answer over.
func (w *worker) answer(frame []byte) error {
	a, err := parseAnswer(frame)
	if err != nil {
		return err
	}
	w.p.mu.Lock()
	defer w.p.mu.Unlock()
	x := w.requests[a.id]
	if x == nil {
		if w.takenBack {
			return nil
		}
		return fmt.Errorf("%w: an answer that nobody asked for", errGarbage)
	}
	if len(x.body)+len(a.body) > bodyLimit {
		return fmt.Errorf("%w: an answer of more than %d bytes", errGarbage, bodyLimit)
	}
	if x.verb.managers() {
		w.changed = time.Since(epoch)
	}
	x.since = time.Now()
	x.body = append(x.body, a.body...)
	if a.more {
		return nil
	}
	delete(w.requests, a.id)
	for _, other := range w.requests {
		if other.verb.managers() && x.verb.managers() {
			other.since = x.since // they had waited for this one
		}
	}
	if x.answer != nil {
		x.answer <- answer{err: a.err, body: x.body}
	} else {
		w.pings--
	}
	return nil
}

// forget tells the worker to forget keys. One that does not answer is killed.
func (w *worker) forget(ctx context.Context, keys []hierarchy.ObjectID) error {
	for len(keys) > 0 {
		n := min(len(keys), forgetLimit)
		within, cancel := context.WithTimeout(ctx, w.p.cfg.ForgetTimeout)
		_, err := w.ask(within, &request{verb: verbForget, keys: keys[:n]})
		cancel()
		switch {
		case errors.Is(err, errGone):
			return nil
		case err != nil && ctx.Err() != nil:
			return late(ctx)
		case err != nil:
			// What is cached in a process that is gone is gone.
			w.kill(fmt.Errorf("it does not forget keys: %w", err))
			select {
			case <-w.down:
				return nil
			case <-ctx.Done():
				return late(ctx)
			}
		}
		keys = keys[n:]
	}
	return nil
}

// idle tells whether the worker has nothing to do. The caller holds the pool's mu.
func (w *worker) idle() bool { return w.inFlight == 0 && len(w.requests) == 0 }

// watch kills the worker when it hangs.
func (w *worker) watch() {
	tick := time.NewTicker(min(time.Second, w.p.cfg.HangTimeout/4))
	defer tick.Stop()
	for {
		select {
		case <-w.down:
			return
		case <-tick.C:
			if err := w.hangs(); err != nil {
				w.kill(err)
				return
			}
			w.ping()
		}
	}
}

// hangs tells whether the worker does not answer, or does not answer something: a token that does
// many things at once can go on with all others.
func (w *worker) hangs() error {
	w.p.mu.Lock()
	defer w.p.mu.Unlock()
	if w.idle() {
		return nil
	}
	now, timeout := time.Since(epoch), w.p.cfg.HangTimeout
	if silent := now - time.Duration(w.heard.Load()); silent > timeout {
		return fmt.Errorf("it has not answered for %v", silent.Round(time.Millisecond))
	}
	changing := false
	for _, x := range w.requests {
		took := time.Since(x.since)
		switch {
		case x.verb.managers():
			changing = true
			if took > w.p.cfg.ChangeTimeout {
				return fmt.Errorf("one of its changes takes %v", took.Round(time.Millisecond))
			}
		case x.verb == verbHealthy && took > timeout:
			return fmt.Errorf("it has not said for %v whether the token is well", took.Round(time.Millisecond))
		}
	}
	oldest := now
	for i := range w.flights {
		if x := &w.flights[i]; x.call != nil {
			oldest = min(oldest, x.frame.sent)
		}
	}
	if changing || oldest < w.changed { // it may have waited for a change, to look for its key
		timeout += w.p.cfg.ChangeTimeout
	}
	if took := now - oldest; took > timeout {
		return fmt.Errorf("one of its operations takes %v", took.Round(time.Millisecond))
	}
	return nil
}

// ping asks for the health of the token, so that a hang is found though nobody asks for
// anything. A token that is not well is reported by the worker itself.
func (w *worker) ping() {
	w.p.mu.Lock()
	busy := w.pings > 0
	if !busy {
		w.pings++
	}
	w.p.mu.Unlock()
	if !busy {
		_ = w.post(&request{verb: verbHealthy}, nil)
	}
}
