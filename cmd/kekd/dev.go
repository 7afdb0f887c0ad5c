package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/BurntSushi/toml"
	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
)

// A dev cluster's processes are forked by one thread that lives as long as `kekd dev` does:
// PDEATHSIG is sent when the forking *thread* ends (prctl(2)), and main's is the one that cannot.
// main.go locks the main goroutine to it.

const devRegion = "local"

func devCommand() *cobra.Command {
	var dir string
	cmd := &cobra.Command{
		Use:   "dev",
		Short: "run a cluster on this machine, with SoftHSM2 tokens of its own, in the foreground",
		Long: `dev makes a node with a SoftHSM2 token, identity, Raft store and sockets of its own in
--dir, or goes on with what is there, and runs it until it is interrupted. Once it serves,
DIR/cluster.json says where everything is. What it started ends when it ends.

It is for trying and testing. For production see kekd init and kekd serve.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return runDev(cmd.Context(), dir, cmd.OutOrStdout(), cmd.ErrOrStderr())
		},
	}
	cmd.Flags().StringVar(&dir, "dir", "kekd-dev", "where the cluster lives")
	return cmd
}

// devNode is one node as cluster.json shows it.
type devNode struct {
	ID           string `json:"id"`
	Region       string `json:"region"`
	Role         string `json:"role"`
	PID          int    `json:"pid"` // 0: it has ended
	Socket       string `json:"socket"`
	AdminSocket  string `json:"admin_socket"`
	TokenURI     string `json:"token_uri"`
	SoftHSM2Conf string `json:"softhsm2_conf"`
	PINFile      string `json:"pin_file"`
	DataDir      string `json:"data_dir"`

	name   string
	dir    string
	cmd    *exec.Cmd
	exited chan error
}

type devCluster struct {
	dir    string
	nodes  []*devNode
	served bool // cluster.json is this run's
}

func runDev(ctx context.Context, dir string, stdout, stderr io.Writer) error {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return err
	}
	// Clients of other users have to reach the sockets; what is secret is closed further down.
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	// One place has one name, so that mustBeHere can tell.
	if dir, err = filepath.EvalSymlinks(dir); err != nil {
		return err
	}
	if err := mustBeOurs(dir, dir); err != nil {
		return err
	}
	unlock, err := lockDev(dir)
	if err != nil {
		return err
	}
	defer unlock()
	// Who waits for it waits for this run: the last one's would let him through at once.
	if err := os.Remove(clusterFile(dir)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}

	c := &devCluster{dir: dir, nodes: []*devNode{{name: devRegion + "-1", Region: devRegion, Role: "voting"}}}
	defer c.stop(stderr)
	for _, n := range c.nodes {
		if err := c.prepare(n); err != nil {
			return err
		}
		if err := c.start(ctx, n); err != nil {
			return err
		}
	}
	if err := c.write(); err != nil {
		return err
	}
	c.served = true
	c.printExports(stdout)
	return c.watch(ctx, stderr)
}

// lockDev keeps a second kekd dev out of the directory.
func lockDev(dir string) (unlock func(), err error) {
	f, err := os.OpenFile(filepath.Join(dir, "dev.lock"), os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		return nil, fmt.Errorf("another kekd dev runs in %s: use it, or give another --dir", dir)
	}
	return func() { f.Close() }, nil
}

// prepare writes a node's configuration and initialises it, unless that was done before.
func (c *devCluster) prepare(n *devNode) error {
	n.dir = filepath.Join(c.dir, "nodes", n.name)
	regionDir := filepath.Join(c.dir, "regions", n.Region)
	n.DataDir = filepath.Join(n.dir, "data")
	n.Socket = filepath.Join(n.dir, "kekd.sock")
	n.AdminSocket = filepath.Join(n.dir, "admin.sock")
	n.PINFile = filepath.Join(regionDir, "pin")
	n.TokenURI = "pkcs11:token=kekd-" + n.Region
	own := defaults()
	own.DataDir = n.DataDir
	own.Node = nodeConfig{Name: n.name, Region: n.Region}
	own.HSM.Token = n.TokenURI + "?pin-source=file:" + n.PINFile
	own.HSM.SoftHSM = filepath.Join(regionDir, "softhsm")
	own.Socket = socketConfig{Path: n.Socket, Mode: 0o666}
	own.AdminSocket = socketConfig{Path: n.AdminSocket, Mode: 0o660}
	n.SoftHSM2Conf = softHSMConf(own.HSM.SoftHSM)
	if err := os.MkdirAll(n.dir, 0o755); err != nil {
		return err
	}
	if err := os.MkdirAll(regionDir, 0o700); err != nil {
		return err
	}

	configPath := n.configPath()
	if _, err := os.Stat(configPath); errors.Is(err, fs.ErrNotExist) {
		if err := own.check(); err != nil {
			return err
		}
		var b strings.Builder
		b.WriteString("# Made by kekd dev.\n")
		if err := toml.NewEncoder(&b).Encode(own); err != nil {
			return err
		}
		if err := writeFileAtomic(configPath, []byte(b.String()), 0o644); err != nil {
			return err
		}
	}
	cfg, err := loadConfig(configPath)
	if err != nil {
		return err
	}
	if err := c.mustBeHere(n, cfg, own); err != nil {
		return err
	}
	if _, err := loadNode(cfg, configPath); err != nil {
		// In a process of its own, since a module serves one token directory per process.
		out, err := again("init", "--config", configPath, "--within", c.dir).CombinedOutput()
		if err != nil {
			return fmt.Errorf("initialise node %s: %w\n%s", n.name, err, out)
		}
	}
	nf, err := readNode(n.DataDir)
	if err != nil {
		return err
	}
	n.ID = nf.NodeID.String()
	return nil
}

// mustBeHere refuses a configuration of another directory: this one was copied from there, and would
// drive that one's token and data, or was moved, and would begin anew there.
func (c *devCluster) mustBeHere(n *devNode, cfg, own config) error {
	for _, p := range []struct{ key, is, want string }{
		{"data_dir", cfg.DataDir, own.DataDir}, {"hsm.softhsm", cfg.HSM.SoftHSM, own.HSM.SoftHSM}, {"hsm.token", cfg.HSM.Token, own.HSM.Token},
		{"socket.path", cfg.Socket.Path, own.Socket.Path}, {"admin_socket.path", cfg.AdminSocket.Path, own.AdminSocket.Path},
	} {
		if p.is != p.want {
			return fmt.Errorf("%s has %s = %q, and kekd dev has to find %q there: the directory was copied or moved, or the file was changed. "+
				"Move it back, or give another --dir. If it was moved for good, put the new paths into this file and into %s",
				n.configPath(), p.key, p.is, p.want, n.SoftHSM2Conf)
		}
	}
	return nil
}

func (n *devNode) configPath() string { return filepath.Join(n.dir, "kekd.toml") }
func (n *devNode) logPath() string    { return filepath.Join(n.dir, "kekd.log") }

// devStartTimeout is how long a node may take until it serves.
const devStartTimeout = 60 * time.Second

// start runs a node and waits until it says that it serves.
func (c *devCluster) start(ctx context.Context, n *devNode) error {
	ready, notifySocket, err := listenNotify(n.dir)
	if err != nil {
		return err
	}
	defer ready.Close()
	logFile, err := os.OpenFile(n.logPath(), os.O_CREATE|os.O_WRONLY|os.O_APPEND|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return err
	}
	defer logFile.Close()
	from, err := logFile.Seek(0, io.SeekEnd)
	if err != nil {
		return err
	}

	n.cmd = again("serve", "--config", n.configPath(), "--within", c.dir)
	n.cmd.Stdout, n.cmd.Stderr = logFile, logFile
	n.cmd.Env = append(os.Environ(), "NOTIFY_SOCKET="+notifySocket)
	n.cmd.SysProcAttr = &syscall.SysProcAttr{
		Pdeathsig: syscall.SIGKILL, // kekd dev may itself be killed
		Setpgid:   true,            // an interrupt at the terminal is for kekd dev, which stops its nodes in order
	}
	if err := n.cmd.Start(); err != nil {
		return fmt.Errorf("start node %s: %w", n.name, err)
	}
	n.PID = n.cmd.Process.Pid
	n.exited = make(chan error, 1)
	go func() { n.exited <- n.cmd.Wait() }()

	serving := make(chan error, 1)
	go func() { serving <- awaitReady(ready) }()
	select {
	case err = <-serving:
	case err = <-n.exited:
		n.exited <- err
		err = fmt.Errorf("it ended: %v", err)
	case <-time.After(devStartTimeout):
		err = fmt.Errorf("it does not serve after %v", devStartTimeout)
	case <-ctx.Done():
		return ctx.Err()
	}
	if err != nil {
		return fmt.Errorf("node %s: %w\n%s", n.name, err, tailOf(n.logPath(), from))
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

func clusterFile(dir string) string { return filepath.Join(dir, "cluster.json") }

// write makes cluster.json true.
func (c *devCluster) write() error {
	b, err := json.MarshalIndent(struct {
		Nodes []*devNode `json:"nodes"`
	}{c.nodes}, "", "  ")
	if err != nil {
		return err
	}
	return writeFileAtomic(clusterFile(c.dir), append(b, '\n'), 0o644)
}

func (c *devCluster) printExports(w io.Writer) {
	n := c.nodes[0]
	fmt.Fprintf(w, "export KEKD_SOCKET=%s\nexport KEKD_ADMIN_SOCKET=%s\n", n.Socket, n.AdminSocket)
	fmt.Fprintf(w, "# the token:  SOFTHSM2_CONF=%s pkcs11-tool --module %s --list-slots\n", n.SoftHSM2Conf, softHSMModule)
	fmt.Fprintf(w, "# the log:    %s\n# interrupt to stop\n", n.logPath())
}

// watch keeps cluster.json true until ctx ends. A node that dies stays dead.
func (c *devCluster) watch(ctx context.Context, stderr io.Writer) error {
	died := make(chan *devNode)
	for _, n := range c.nodes {
		go func() {
			err := <-n.exited
			n.exited <- err
			select {
			case died <- n:
			case <-ctx.Done():
			}
		}()
	}
	for {
		select {
		case n := <-died:
			fmt.Fprintf(stderr, "node %s has ended (%s); its log is %s\n", n.name, n.cmd.ProcessState, n.logPath())
			n.PID = 0
			if err := c.write(); err != nil {
				return err
			}
		case <-ctx.Done():
			return nil
		}
	}
}

// devStopTimeout is how long a node may take to stop in order.
const devStopTimeout = 15 * time.Second

// stop ends what was started, in order first and by force then.
func (c *devCluster) stop(stderr io.Writer) {
	for _, n := range c.nodes {
		if n.exited != nil {
			_ = n.cmd.Process.Signal(syscall.SIGTERM)
		}
	}
	deadline := time.After(devStopTimeout)
	for _, n := range c.nodes {
		if n.exited == nil {
			continue
		}
		select {
		case <-n.exited:
		case <-deadline:
			fmt.Fprintf(stderr, "node %s does not stop; killed\n", n.name)
			_ = n.cmd.Process.Kill()
			<-n.exited
		}
		n.PID = 0
	}
	if !c.served {
		return
	}
	if err := c.write(); err != nil {
		slog.Warn("cluster.json was not updated", "error", err)
	}
}
