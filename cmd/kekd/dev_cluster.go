package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/kekd/kekd/unix-socket-api/client"
	"github.com/kekd/kekd/unix-socket-api/kekdv1"
)

// devCluster is what `kekd dev` runs.
//
// Its processes are forked by one thread that lives as long as it does: PDEATHSIG is sent when the
// forking *thread* ends (prctl(2)), and main's is the one that cannot. main.go locks the main goroutine
// to it. So that goroutine forks, and has the fields below; others bring it what is to be done.
type devCluster struct {
	dir    string
	nodes  []*devNode
	stderr io.Writer
	served bool // cluster.json is this run's

	do   chan func()
	quit context.CancelFunc // nothing is done any more
	gone <-chan struct{}    // closed by quit
}

func newDevCluster(dir string, regions []devRegion, stderr io.Writer) *devCluster {
	ctx, quit := context.WithCancel(context.Background())
	c := &devCluster{dir: dir, stderr: stderr, do: make(chan func()), quit: quit, gone: ctx.Done()}
	for _, r := range regions {
		for i := range r.Count {
			c.nodes = append(c.nodes, &devNode{Name: r.nodeName(i + 1), Region: r.Name, Role: r.Role, dir: filepath.Join(dir, "nodes", r.nodeName(i+1))})
		}
	}
	return c
}

// bringUp returns when all nodes serve, and all that are to vote do. What was there is started, all of it
// at once, since one of three has no majority alone. The others join one after another.
func (c *devCluster) bringUp(ctx context.Context) error {
	if err := c.prepare(); err != nil {
		return err
	}
	first := c.nodes[0]
	if !first.made {
		if err := c.initialise(ctx, first); err != nil {
			return err
		}
	}
	var there, others []*devNode
	for _, n := range c.nodes {
		if n.made {
			there = append(there, n)
		} else {
			others = append(others, n)
		}
	}
	if err := c.start(ctx, there...); err != nil {
		return err
	}
	for _, n := range others {
		if err := c.join(ctx, first, n); err != nil {
			return err
		}
		if err := c.start(ctx, n); err != nil {
			return err
		}
	}
	return c.awaitVotes(ctx)
}

// initialise makes the cluster's first node, in a process of its own, since a module serves one token
// directory per process.
func (c *devCluster) initialise(ctx context.Context, n *devNode) error {
	if err := c.run(ctx, "init", "--config", n.configPath()); err != nil {
		return fmt.Errorf("initialise node %s: %w", n.Name, err)
	}
	return n.load()
}

// invitationTTL is longer than a machine takes to make a node.
const invitationTTL = 5 * time.Minute

// join makes a node that is not there yet. Its token is kept until it has joined: a try that was
// interrupted goes on with the one that it has used up.
func (c *devCluster) join(ctx context.Context, first, n *devNode) error {
	path := filepath.Join(n.dir, "join-token")
	var before error
	if _, err := os.Lstat(path); err == nil {
		if before = c.run(ctx, "join", "--config", n.configPath(), "--token-file", path); before == nil {
			return errors.Join(os.Remove(path), n.load())
		}
		// It may have run out since.
	}
	token, err := first.invite(ctx, n)
	if err != nil {
		return fmt.Errorf("invite node %s: %w", n.Name, errors.Join(err, before))
	}
	if err := writeFileAtomic(path, []byte(token+"\n"), 0o600); err != nil {
		return err
	}
	if err := c.run(ctx, "join", "--config", n.configPath(), "--token-file", path); err != nil {
		return fmt.Errorf("node %s joins: %w", n.Name, err)
	}
	return errors.Join(os.Remove(path), n.load())
}

// callTimeout is how long a node may take to answer while the cluster is made.
const callTimeout = 30 * time.Second

func (n *devNode) invite(ctx context.Context, other *devNode) (token string, err error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	admin, conn, err := client.DialAdmin(n.AdminSocket)
	if err != nil {
		return "", err
	}
	defer conn.Close()
	i, err := admin.InviteNode(ctx, &kekdv1.InviteNodeRequest{Name: other.Name, Region: other.Region, Role: other.Role, Ttl: int64(invitationTTL)})
	return i.GetToken(), err
}

// awaitVotes waits until Raft's configuration is as it is to be: who has joined votes when it has caught up.
func (c *devCluster) awaitVotes(ctx context.Context) error {
	if len(c.nodes) == 1 {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	admin, conn, err := client.DialAdmin(c.nodes[0].AdminSocket)
	if err != nil {
		return err
	}
	defer conn.Close()
	for {
		list, err := admin.ListNodes(ctx, &kekdv1.ListNodesRequest{})
		if err == nil && allVote(list) {
			return nil
		}
		select {
		case <-time.After(20 * time.Millisecond):
		case <-ctx.Done():
			return fmt.Errorf("the nodes do not all vote that are to: %v %w", list.GetUnknown(), errors.Join(err, ctx.Err()))
		}
	}
}

func allVote(list *kekdv1.ListNodesResponse) bool {
	for _, n := range list.Nodes {
		if n.Votes == nil || *n.Votes != n.Voter {
			return false
		}
	}
	return true
}

// start runs nodes, and returns when all of them serve, or with the first that does not.
func (c *devCluster) start(ctx context.Context, nodes ...*devNode) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var starting sync.WaitGroup
	for _, n := range nodes {
		p, err := c.launch(n)
		if err != nil {
			cancel(err)
			break
		}
		starting.Go(func() {
			if err := p.await(ctx); err != nil {
				cancel(err)
			}
		})
	}
	starting.Wait()
	return context.Cause(ctx)
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
	fmt.Fprintf(w, "# the log:    %s\n", n.logPath())
	if len(c.nodes) > 1 {
		fmt.Fprintf(w, "# the others: %s\n", clusterFile(c.dir))
	}
	fmt.Fprintln(w, "# interrupt to stop")
}

// watch does what others bring, until ctx ends. A node that dies stays dead.
func (c *devCluster) watch(ctx context.Context) error {
	for {
		select {
		case f := <-c.do:
			f()
		case <-ctx.Done():
			return nil
		}
	}
}

// later has the main goroutine do something; false: it does nothing any more.
func (c *devCluster) later(f func()) bool {
	select {
	case c.do <- f:
		return true
	case <-c.gone:
		return false
	}
}

// ask has the main goroutine do something, and waits for it.
func (c *devCluster) ask(f func()) bool {
	done := make(chan struct{})
	if !c.later(func() { f(); close(done) }) {
		return false
	}
	<-done
	return true
}

// ended notes that a node has, unless it was started again meanwhile.
func (c *devCluster) ended(n *devNode, p *devProcess) {
	fmt.Fprintf(c.stderr, "node %s has ended (%s); its log is %s\n", n.Name, p.cmd.ProcessState, n.logPath())
	if n.process != p {
		return
	}
	n.process, n.PID = nil, 0
	if !c.served {
		return
	}
	if err := c.write(); err != nil {
		slog.Warn("cluster.json was not updated", "error", err)
	}
}

// stop ends what was started, all at once.
func (c *devCluster) stop() {
	c.quit()
	var stopping sync.WaitGroup
	for _, n := range c.nodes {
		if n.process == nil {
			continue
		}
		stopping.Go(func() {
			if !n.process.end() {
				fmt.Fprintf(c.stderr, "node %s does not stop; killed\n", n.Name)
			}
		})
	}
	stopping.Wait()
	for _, n := range c.nodes {
		n.PID = 0
	}
	if !c.served {
		return
	}
	if err := c.write(); err != nil {
		slog.Warn("cluster.json was not updated", "error", err)
	}
}
