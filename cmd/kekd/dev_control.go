package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
)

// A running `kekd dev` is told what to do through a socket in its directory, by its own user and root.

// controlRequest and controlResponse are one JSON object each, on a connection of their own.
type controlRequest struct {
	Restart string `json:"restart"` // a node's name or ID
}

type controlResponse struct {
	Error string `json:"error,omitempty"`
	PID   int    `json:"pid,omitempty"`
}

// controlTimeout is for the words alone.
const controlTimeout = 5 * time.Second

func controlSocket(dir string) string { return filepath.Join(dir, "dev.sock") }

func devRestartCommand(dir *string) *cobra.Command {
	return &cobra.Command{
		Use:   "restart NODE",
		Short: "have the running kekd dev start a node again, by its name or ID",
		Long: `restart has the kekd dev that runs in --dir start a node again that has ended; one that runs
is stopped in order before. It returns when the node serves.`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			pid, err := askControl(cmd.Context(), *dir, controlRequest{Restart: args[0]})
			if err == nil {
				fmt.Fprintf(cmd.OutOrStdout(), "node %s serves, PID %d\n", args[0], pid)
			}
			return err
		},
	}
}

func askControl(ctx context.Context, dir string, r controlRequest) (pid int, err error) {
	conn, err := new(net.Dialer).DialContext(ctx, "unix", controlSocket(dir))
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ECONNREFUSED) {
		return 0, fmt.Errorf("no kekd dev runs in %s, or it does not serve yet: run kekd dev --dir %s", dir, dir)
	}
	if err != nil {
		return 0, err
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	if err := json.NewEncoder(conn).Encode(r); err != nil {
		return 0, err
	}
	var answer controlResponse
	if err := json.NewDecoder(conn).Decode(&answer); err != nil {
		return 0, fmt.Errorf("kekd dev has not answered: %w", err)
	}
	if answer.Error != "" {
		return 0, errors.New(answer.Error)
	}
	return answer.PID, nil
}

// listenControl takes the socket. What is there is of a run that has ended: the directory is locked.
func listenControl(dir string) (*net.UnixListener, error) {
	path := controlSocket(dir)
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return nil, err
	}
	if err := os.Chmod(path, 0o600); err != nil {
		l.Close()
		return nil, err
	}
	return l, nil
}

// control serves the socket until it is closed, and returns when all that was asked is answered.
func (c *devCluster) control(ctx context.Context, l *net.UnixListener) {
	var answering sync.WaitGroup
	defer answering.Wait()
	for {
		conn, err := l.AcceptUnix()
		if err != nil {
			return
		}
		answering.Go(func() {
			defer conn.Close()
			pid, err := c.answer(ctx, conn)
			answer := controlResponse{PID: pid}
			if err != nil {
				answer.Error = err.Error()
			}
			_ = conn.SetDeadline(time.Now().Add(controlTimeout))
			_ = json.NewEncoder(conn).Encode(answer) // who is gone hears nothing
		})
	}
}

func (c *devCluster) answer(ctx context.Context, conn *net.UnixConn) (pid int, err error) {
	if err := conn.SetDeadline(time.Now().Add(controlTimeout)); err != nil {
		return 0, err
	}
	var r controlRequest
	d := json.NewDecoder(io.LimitReader(conn, 4096))
	d.DisallowUnknownFields()
	if err := d.Decode(&r); err != nil {
		return 0, fmt.Errorf("not understood: %w", err)
	}
	if err := mustBeOurUser(conn); err != nil { // after it was read: who is cut off in his words hears no answer
		return 0, err
	}
	return c.restart(ctx, r.Restart)
}

// mustBeOurUser asks the kernel who connected: a directory's mode alone would let a mistake through.
func mustBeOurUser(conn *net.UnixConn) error {
	raw, err := conn.SyscallConn()
	if err != nil {
		return err
	}
	var cred *unix.Ucred
	var credErr error
	if err := raw.Control(func(fd uintptr) { cred, credErr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) }); err != nil {
		return err
	}
	if credErr != nil {
		return credErr
	}
	if cred.Uid != 0 && int(cred.Uid) != os.Geteuid() {
		return fmt.Errorf("this kekd dev is run by uid %d, and takes no orders from uid %d", os.Geteuid(), cred.Uid)
	}
	return nil
}

// restart returns when the node serves.
func (c *devCluster) restart(ctx context.Context, node string) (pid int, err error) {
	errStopping := errors.New("kekd dev is stopping")
	var n *devNode
	var running *devProcess
	if !c.ask(func() {
		if n = c.find(node); n != nil {
			running = n.process
		}
	}) {
		return 0, errStopping
	}
	if n == nil {
		return 0, fmt.Errorf("there is no node %s; there are %s", node, strings.Join(c.names(), ", "))
	}
	if running != nil {
		running.end()
	}
	var started *devProcess
	if !c.ask(func() {
		if n.process != nil && n.process != running {
			err = fmt.Errorf("node %s is being started by somebody else", n.Name)
			return
		}
		if started, err = c.launch(n); err == nil {
			pid, err = n.PID, c.write()
		}
	}) {
		return 0, errStopping
	}
	if err != nil {
		return 0, err
	}
	return pid, started.await(ctx)
}

// find finds a node by its name or ID; nil if there is none.
func (c *devCluster) find(node string) *devNode {
	for _, n := range c.nodes {
		if n.Name == node || n.ID == node {
			return n
		}
	}
	return nil
}

func (c *devCluster) names() (names []string) {
	for _, n := range c.nodes {
		names = append(names, n.Name)
	}
	return names
}
