package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// How long a node may take until it serves, on a machine where several start at once, and until it has
// stopped in order.
const (
	devStartTimeout = 90 * time.Second
	devStopTimeout  = 15 * time.Second
)

// devProcess is one run of a node.
type devProcess struct {
	node   *devNode
	cmd    *exec.Cmd
	ready  *net.UnixConn // takes word that it serves
	from   int64         // where its part of the log begins
	exited chan struct{}
}

// launch forks a node, and waits for nothing. It is for the main goroutine alone.
func (c *devCluster) launch(n *devNode) (_ *devProcess, err error) {
	p := &devProcess{node: n, exited: make(chan struct{})}
	var notify string
	if p.ready, notify, err = listenNotify(n.dir); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			p.ready.Close()
			err = fmt.Errorf("start node %s: %w", n.Name, err)
		}
	}()
	logFile, err := os.OpenFile(n.logPath(), os.O_CREATE|os.O_WRONLY|os.O_APPEND|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, err
	}
	defer logFile.Close()
	if p.from, err = logFile.Seek(0, io.SeekEnd); err != nil {
		return nil, err
	}
	p.cmd = again("serve", "--config", n.configPath(), "--within", c.dir)
	p.cmd.Stdout, p.cmd.Stderr = logFile, logFile
	p.cmd.Env = append(os.Environ(), "NOTIFY_SOCKET="+notify)
	p.cmd.SysProcAttr = &syscall.SysProcAttr{
		Pdeathsig: syscall.SIGKILL, // kekd dev may itself be killed
		Setpgid:   true,            // an interrupt at the terminal is for kekd dev, which stops its nodes in order
	}
	if err := p.cmd.Start(); err != nil {
		return nil, err
	}
	n.process, n.PID = p, p.cmd.Process.Pid
	go func() {
		_ = p.cmd.Wait() // how it ended is in ProcessState
		close(p.exited)
		c.later(func() { c.ended(n, p) })
	}()
	return p, nil
}

// await returns when the process says that it serves. It is called once.
func (p *devProcess) await(ctx context.Context) (err error) {
	defer p.ready.Close()
	serving := make(chan error, 1)
	go func() { serving <- awaitReady(p.ready) }()
	select {
	case err = <-serving:
	case <-p.exited:
		err = fmt.Errorf("it ended: %v", p.cmd.ProcessState)
	case <-time.After(devStartTimeout):
		err = fmt.Errorf("it does not serve after %v", devStartTimeout)
	case <-ctx.Done():
		return ctx.Err()
	}
	if err != nil {
		return fmt.Errorf("node %s: %w\n%s", p.node.Name, err, tailOf(p.node.logPath(), p.from))
	}
	return nil
}

// end stops the process, in order first and by force then; false: it took force.
func (p *devProcess) end() bool {
	_ = p.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-p.exited:
		return true
	case <-time.After(devStopTimeout):
		_ = p.cmd.Process.Kill()
		<-p.exited
		return false
	}
}

// run runs this program to its end, in this cluster. It is for the main goroutine alone.
func (c *devCluster) run(ctx context.Context, args ...string) error {
	cmd := again(append(args, "--within", c.dir)...)
	var said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &said, &said
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		return err
	}
	defer context.AfterFunc(ctx, func() { _ = cmd.Process.Signal(syscall.SIGTERM) })()
	if err := cmd.Wait(); err != nil {
		return fmt.Errorf("%w\n%s", err, said.Bytes())
	}
	return nil
}

// listenNotify makes the socket on which a node says that it is ready, as systemd does
// (sd_notify(3)).
func listenNotify(dir string) (*net.UnixConn, string, error) {
	path := filepath.Join(dir, "notify.sock")
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, "", err
	}
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	return conn, path, err
}

func awaitReady(conn *net.UnixConn) error {
	buf := make([]byte, 4096)
	for {
		n, err := conn.Read(buf)
		if err != nil {
			return err
		}
		for line := range strings.SplitSeq(string(buf[:n]), "\n") {
			if line == "READY=1" {
				return nil
			}
		}
	}
}

// tailOf returns what was written to a log since an offset, at most its last 4 KiB.
func tailOf(path string, from int64) string {
	f, err := os.Open(path)
	if err != nil {
		return ""
	}
	defer f.Close()
	if size, err := f.Seek(0, io.SeekEnd); err == nil {
		from = max(from, size-4096)
	}
	b, _ := io.ReadAll(io.NewSectionReader(f, from, 4096))
	return string(b)
}
