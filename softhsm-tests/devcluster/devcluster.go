// Package devcluster runs `kekd dev` for tests and measurements: real processes, real tokens,
// real sockets, in a directory of their own.
package devcluster

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"github.com/kekd/kekd/unix-socket-api/client"
	"github.com/kekd/kekd/unix-socket-api/kekdv1"
)

// Node is one node as cluster.json has it.
type Node struct {
	ID           string `json:"id"`
	Name         string `json:"name"`
	Region       string `json:"region"`
	Role         string `json:"role"`
	PID          int    `json:"pid"`
	Socket       string `json:"socket"`
	AdminSocket  string `json:"admin_socket"`
	TokenURI     string `json:"token_uri"`
	SoftHSM2Conf string `json:"softhsm2_conf"`
	PINFile      string `json:"pin_file"`
	DataDir      string `json:"data_dir"`
}

// Cluster is a running `kekd dev`.
type Cluster struct {
	Dir   string
	Nodes []Node

	path   string // of the kekd
	cmd    *exec.Cmd
	exited chan struct{}
	err    error // how it ended; set before exited is closed
	output bytes.Buffer
}

// startTimeout is how long a cluster may take until it serves, on a busy machine.
const startTimeout = 180 * time.Second

// Start runs the kekd at path in dir, with these further arguments, until it serves.
func Start(ctx context.Context, path, dir string, args ...string) (*Cluster, error) {
	c := &Cluster{Dir: dir, path: path, exited: make(chan struct{})}
	file := filepath.Join(dir, "cluster.json")
	if err := os.Remove(file); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err // of an earlier run: it would be taken for this one's
	}
	c.cmd = exec.Command(path, append([]string{"dev", "--dir", dir}, args...)...)
	c.cmd.Stdout, c.cmd.Stderr = &c.output, &c.output
	c.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := c.cmd.Start(); err != nil {
		return nil, err
	}
	go func() {
		c.err = c.cmd.Wait()
		close(c.exited)
	}()
	for deadline := time.Now().Add(startTimeout); ; {
		err := c.Reload()
		if err == nil {
			return c, nil
		}
		if !errors.Is(err, fs.ErrNotExist) || time.Now().After(deadline) {
			return nil, errors.Join(fmt.Errorf("kekd dev: %w", err), c.Stop())
		}
		select {
		case <-c.exited:
			return nil, fmt.Errorf("kekd dev ended: %v\n%s", c.err, c.output.String())
		case <-ctx.Done():
			return nil, errors.Join(ctx.Err(), c.Stop())
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// Reload reads cluster.json again.
func (c *Cluster) Reload() error {
	b, err := os.ReadFile(filepath.Join(c.Dir, "cluster.json"))
	if err != nil {
		return err
	}
	var read struct {
		Nodes []Node `json:"nodes"`
	}
	if err := json.Unmarshal(b, &read); err != nil {
		return err
	}
	c.Nodes = read.Nodes
	return nil
}

// Restart has it start a node again, by its name or ID, until that serves. The node's new PID is in Nodes
// then.
func (c *Cluster) Restart(ctx context.Context, node string) error {
	if out, err := exec.CommandContext(ctx, c.path, "dev", "restart", "--dir", c.Dir, node).CombinedOutput(); err != nil {
		return fmt.Errorf("kekd dev restart: %w\n%s", err, out)
	}
	return c.Reload()
}

// PID is that of `kekd dev` itself.
func (c *Cluster) PID() int { return c.cmd.Process.Pid }

// Exited is closed when `kekd dev` has ended.
func (c *Cluster) Exited() <-chan struct{} { return c.exited }

// Output is what it printed; to be read once it has ended.
func (c *Cluster) Output() string { return c.output.String() }

// Stop interrupts it and waits. Stopping one that has ended is no error.
func (c *Cluster) Stop() error { return c.end(syscall.SIGTERM) }

// Kill kills it, and with it its nodes.
func (c *Cluster) Kill() { _ = c.end(syscall.SIGKILL) }

func (c *Cluster) end(sig syscall.Signal) error {
	select {
	case <-c.exited:
		return nil
	default:
	}
	if err := c.cmd.Process.Signal(sig); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	<-c.exited
	if sig != syscall.SIGKILL && c.err != nil {
		return fmt.Errorf("kekd dev: %w\n%s", c.err, c.output.String())
	}
	return nil
}

// Admin dials a node's admin socket.
func (n Node) Admin() (kekdv1.AdminServiceClient, func(), error) {
	a, closer, err := client.DialAdmin(n.AdminSocket)
	if err != nil {
		return nil, nil, err
	}
	return a, func() { _ = closer.Close() }, nil
}
