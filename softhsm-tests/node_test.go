package softhsmtests

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/kekd/kekd/softhsm-tests/devcluster"
	"github.com/kekd/kekd/unix-socket-api/client"
	"github.com/kekd/kekd/unix-socket-api/kekdv1"
)

// node is a kekd with a configuration of its own, driven as an operator drives it: init, serve,
// signals. It has the sockets and paths of a [devcluster.Node], but for what only a running dev
// cluster tells.
type node struct {
	devcluster.Node
	t *testing.T

	Dir     string
	Name    string
	Module  string
	Token   string // the URI, with its pin-source
	SoftHSM string // empty: the token is somebody else's
	Extra   string // further lines of the configuration, for its top level
	HSM     string // and for [hsm]
	Env     []string
	Prefix  []string // what runs the daemon, such as prlimit and its arguments
}

const softHSMModule = "/usr/lib/softhsm/libsofthsm2.so"

// newNode is not initialised yet.
func newNode(t *testing.T) *node {
	t.Helper()
	dir := tempDir(t)
	t.Cleanup(func() {
		if log, err := os.ReadFile(filepath.Join(dir, "kekd.log")); err == nil && t.Failed() {
			t.Logf("log of the node in %s:\n%s", dir, log)
		}
	})
	return &node{
		t: t, Dir: dir, Name: "one", Module: softHSMModule,
		Token:   "pkcs11:token=kekd?pin-source=file:" + filepath.Join(dir, "pin"),
		SoftHSM: filepath.Join(dir, "softhsm"),
		Node: devcluster.Node{
			Region: "here", Socket: filepath.Join(dir, "kekd.sock"), AdminSocket: filepath.Join(dir, "admin.sock"),
			SoftHSM2Conf: filepath.Join(dir, "softhsm", "softhsm2.conf"), PINFile: filepath.Join(dir, "pin"),
			DataDir: filepath.Join(dir, "data"),
		},
	}
}

// initialised is a node that has been through init. All of them are copies of one, which is
// quicker: of the same cluster, and each alone.
func initialised(t *testing.T) *node {
	t.Helper()
	template.Do(func() {
		made := newNode(t)
		made.init()
		template.dir = filepath.Join(filepath.Dir(kekd), "node")
		runTool(t, "cp", "-a", made.Dir, template.dir)
		template.was = made.Dir
	})
	if template.dir == "" {
		t.Fatal("the first kekd init has failed")
	}
	n := newNode(t)
	runTool(t, "cp", "-aT", template.dir, n.Dir)
	// A token directory that was moved is refused, unless its configuration says where it is.
	conf, err := os.ReadFile(n.SoftHSM2Conf)
	if err == nil {
		conf = bytes.ReplaceAll(conf, []byte(template.was), []byte(n.Dir))
		err = os.WriteFile(n.SoftHSM2Conf, conf, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	return n
}

var template struct {
	sync.Once
	dir string
	was string // what it is called in its own files
}

// runTool runs a program that has to succeed, and returns what it printed.
func runTool(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v\n%s", name, err, out)
	}
	return string(out)
}

// in is the node for a subtest, which may change its fields.
func (n *node) in(t *testing.T) *node {
	c := *n
	c.t = t
	return &c
}

func (n *node) configPath() string { return filepath.Join(n.Dir, "kekd.toml") }

// writeConfig writes kekd.toml as the fields say.
func (n *node) writeConfig() {
	n.t.Helper()
	text := fmt.Sprintf(`data_dir = %q
%s
[node]
name = %q
region = %q

[hsm]
module = %q
token = %q
softhsm = %q
%s
[socket]
path = %q
mode = "0666"

[admin_socket]
path = %q
mode = "0666"
`, n.DataDir, n.Extra, n.Name, n.Region, n.Module, n.Token, n.SoftHSM, n.HSM, n.Socket, n.AdminSocket)
	if err := os.WriteFile(n.configPath(), []byte(text), 0o644); err != nil {
		n.t.Fatal(err)
	}
}

// command is a kekd that has not been started.
func (n *node) command(args ...string) *exec.Cmd {
	argv := append(append([]string{}, n.Prefix...), append([]string{kekd}, args...)...)
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Env = append(os.Environ(), n.Env...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	return cmd
}

// run runs a kekd that ends by itself, and returns what it printed and its exit status.
func (n *node) run(args ...string) (output string, status int) {
	n.t.Helper()
	n.writeConfig()
	cmd := n.command(append(args, "--config", n.configPath())...)
	var b bytes.Buffer
	cmd.Stdout, cmd.Stderr = &b, &b
	if err := cmd.Start(); err != nil {
		n.t.Fatal(err)
	}
	late := time.AfterFunc(30*time.Second, func() { _ = cmd.Process.Kill() })
	err := cmd.Wait()
	if !late.Stop() {
		n.t.Fatalf("kekd %s does not end by itself:\n%s", args[0], b.String())
	}
	if exit := (*exec.ExitError)(nil); err != nil && !errors.As(err, &exit) {
		n.t.Fatal(err)
	}
	return b.String(), cmd.ProcessState.ExitCode()
}

func (n *node) init() {
	n.t.Helper()
	if out, status := n.run("init"); status != 0 {
		n.t.Fatalf("kekd init: status %d\n%s", status, out)
	}
}

// refused runs a kekd that has to end with this status and words.
func (n *node) refused(status int, words []string, args ...string) {
	n.t.Helper()
	out, got := n.run(args...)
	if got != status {
		n.t.Errorf("kekd %s: status %d, want %d", args[0], got, status)
	}
	for _, w := range words {
		if !strings.Contains(out, w) {
			n.t.Errorf("kekd %s does not say %q", args[0], w)
		}
	}
	if strings.Contains(out, "goroutine ") {
		n.t.Errorf("kekd %s panicked", args[0])
	}
	if n.t.Failed() {
		n.t.Fatalf("it says:\n%s", out)
	}
}

// daemon is a running `kekd serve`.
type daemon struct {
	n       *node
	cmd     *exec.Cmd
	log     string // path
	ready   chan struct{}
	exited  chan struct{}
	started time.Time
}

// launch starts the daemon and waits for nothing.
func (n *node) launch(flags ...string) *daemon {
	n.t.Helper()
	n.writeConfig()
	d := &daemon{n: n, cmd: n.command(append([]string{"serve", "--config", n.configPath()}, flags...)...), log: filepath.Join(n.Dir, "kekd.log"),
		ready: make(chan struct{}), exited: make(chan struct{}), started: time.Now()}
	log, err := os.OpenFile(d.log, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		n.t.Fatal(err)
	}
	defer log.Close()
	d.cmd.Stdout, d.cmd.Stderr = log, log

	// It says that it is ready as to systemd (sd_notify(3)).
	notify := filepath.Join(n.Dir, fmt.Sprintf("notify-%d", d.started.UnixNano()))
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: notify, Net: "unixgram"})
	if err != nil {
		n.t.Fatal(err)
	}
	if err := os.Chmod(notify, 0o666); err != nil {
		n.t.Fatal(err)
	}
	d.cmd.Env = append(d.cmd.Env, "NOTIFY_SOCKET="+notify)
	if err := d.cmd.Start(); err != nil {
		conn.Close()
		n.t.Fatal(err)
	}
	go func() {
		buf := make([]byte, 256)
		for {
			size, err := conn.Read(buf)
			if err != nil {
				return
			}
			if strings.Contains(string(buf[:size]), "READY=1") {
				close(d.ready)
				return
			}
		}
	}()
	go func() {
		_ = d.cmd.Wait() // how it ended is in ProcessState
		conn.Close()
		os.Remove(notify)
		close(d.exited)
	}()
	n.t.Cleanup(d.kill)
	return d
}

// serve starts the daemon and waits until it serves.
func (n *node) serve() *daemon {
	n.t.Helper()
	return n.serveWith()
}

func (n *node) serveWith(flags ...string) *daemon {
	n.t.Helper()
	d := n.launch(flags...)
	select {
	case <-d.ready:
	case <-d.exited:
		n.t.Fatalf("kekd serve ended: %s", d.cmd.ProcessState)
	case <-time.After(60 * time.Second):
		n.t.Fatal("kekd serve does not serve after 60 s")
	}
	n.PID = d.cmd.Process.Pid
	return d
}

// says is what it has logged, all runs of the node together.
func (d *daemon) says() string {
	b, err := os.ReadFile(d.log)
	if err != nil {
		d.n.t.Fatal(err)
	}
	return string(b)
}

// kill ends it with SIGKILL, if it has not ended, and waits until its children are gone with it.
func (d *daemon) kill() {
	d.n.t.Helper()
	if !d.running() {
		return // and its PID may be another's by now
	}
	children := childrenOf(d.n.t, d.cmd.Process.Pid)
	_ = d.cmd.Process.Kill()
	<-d.exited
	for _, pid := range children {
		eventually(d.n.t, 5*time.Second, "what the daemon started ends with it", func() bool { return !alive(pid) })
	}
}

// stop ends it in order.
func (d *daemon) stop() {
	d.n.t.Helper()
	_ = d.cmd.Process.Signal(syscall.SIGTERM)
	if status := d.ends(20 * time.Second); status != 0 {
		d.n.t.Fatalf("after SIGTERM kekd serve ended with %s", d.cmd.ProcessState)
	}
}

// ends waits until it ends by itself, and returns its exit status.
func (d *daemon) ends(within time.Duration) int {
	d.n.t.Helper()
	select {
	case <-d.exited:
	case <-time.After(within):
		d.n.t.Fatalf("kekd serve has not ended within %v", within)
	}
	return d.cmd.ProcessState.ExitCode()
}

func (d *daemon) running() bool {
	select {
	case <-d.exited:
		return false
	default:
		return true
	}
}

// childrenOf returns a process's children, those of all its threads.
func childrenOf(t *testing.T, pid int) []int {
	t.Helper()
	var all []int
	lists, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	if err != nil {
		t.Fatal(err)
	}
	for _, list := range lists {
		b, err := os.ReadFile(list)
		if err != nil {
			continue // the thread has ended
		}
		for field := range strings.FieldsSeq(string(b)) {
			var child int
			if _, err := fmt.Sscan(field, &child); err == nil {
				all = append(all, child)
			}
		}
	}
	return all
}

// sealAndOpen fails the test if the node does not serve the key.
func sealAndOpen(t *testing.T, n *node, key string) {
	t.Helper()
	c := keys(t, n.Node)
	sealed, err := c.GenerateDataKey(within(t, 20*time.Second), key, 32, client.Options{})
	if err != nil {
		t.Fatal(err)
	}
	opened, err := c.Unwrap(within(t, 20*time.Second), sealed.Envelope, client.Options{})
	if err != nil || string(opened.Plaintext) != string(sealed.Plaintext) {
		t.Fatalf("what was sealed does not open: %v", err)
	}
}

func statusOf(t *testing.T, n *node) *kekdv1.Status {
	t.Helper()
	s, err := admin(t, n.Node).GetStatus(within(t, 20*time.Second), &kekdv1.GetStatusRequest{})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func verifyAudit(t *testing.T, n *node) {
	t.Helper()
	r, err := admin(t, n.Node).VerifyAudit(within(t, 20*time.Second), &kekdv1.VerifyAuditRequest{})
	if err != nil || !r.Ok {
		t.Fatalf("the audit: %v %v", r, err)
	}
}
