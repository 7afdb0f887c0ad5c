package softhsmtests

import (
	"bytes"
	"context"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/kekd/kekd/softhsm-tests/devcluster"
	"github.com/kekd/kekd/unix-socket-api/client"
)

// patient is the deadline of a call of who has two nodes to choose from.
const patient = 2 * time.Second

// Every node is started again in its turn, the leader too, as for an upgrade. Who has the sockets of two nodes of
// the region is refused nothing meanwhile.
func TestRollingRestart(t *testing.T) {
	t.Parallel()
	c := startCluster(t, "eu=voting*3")
	setUp(t, c.Nodes[0], "acme")
	caughtUp(t, c.Nodes)
	random := moments(t)
	for range loops(1, 20) {
		users := useInPairs(t, c.Nodes, "acme/orders")
		led := 0
		again := func(n devcluster.Node) {
			if leaderOf(t, c, n).ID == n.ID {
				led++
			}
			before := users.opened.Load()
			if err := c.Restart(within(t, 90*time.Second), n.Name); err != nil {
				t.Fatal(err)
			}
			if opened := users.opened.Load() - before; opened < 100 {
				t.Errorf("while node %s was started again only %d were opened: that shows little", n.Name, opened)
			}
		}
		for _, i := range random.Perm(len(c.Nodes)) {
			again(c.Nodes[i])
		}
		for led == 0 { // leadership went round the nodes as they did
			again(leaderOf(t, c, c.Nodes[0]))
		}
		users.end()
		t.Logf("%d were opened and %d sealed, while nodes were started again, %d times the leader", users.opened.Load(), users.sealed.Load(), led)
	}
	servesAlike(t, c.Nodes, "acme/orders")
	for _, n := range c.Nodes {
		verifyAudit(t, asNode(t, n))
	}
}

// pairedUsers open and seal without a pause, each with the sockets of two nodes. Nothing may be refused to them.
type pairedUsers struct {
	opened, sealed atomic.Int64
	end            func() // returns when none works any more
}

// useInPairs has two users for each node, which prefer it and know the next one.
func useInPairs(t *testing.T, nodes []devcluster.Node, key string) *pairedUsers {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	var working sync.WaitGroup
	u := &pairedUsers{end: func() { cancel(); working.Wait() }}
	t.Cleanup(u.end)
	for i, n := range nodes {
		c, err := client.Dial(n.Socket, nodes[(i+1)%len(nodes)].Socket)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		kept, err := c.GenerateDataKey(within(t, 20*time.Second), key, 32, client.Options{})
		if err != nil {
			t.Fatal(err)
		}
		repeat := func(what string, done *atomic.Int64, f func(ctx context.Context) error) {
			working.Go(func() {
				for ctx.Err() == nil {
					begun := time.Now()
					call, cancel := context.WithTimeout(context.WithoutCancel(ctx), patient)
					err := f(call)
					cancel()
					if err != nil {
						t.Errorf("who prefers node %s could not %s, after %v: %v", n.Name, what, time.Since(begun).Round(time.Millisecond), err)
						pause(ctx, 100*time.Millisecond) // a test that fails says so in few words
						continue
					}
					done.Add(1)
				}
			})
		}
		repeat("open", &u.opened, func(ctx context.Context) error {
			r, err := c.Unwrap(ctx, kept.Envelope, client.Options{})
			if err == nil && !bytes.Equal(r.Plaintext, kept.Plaintext) {
				t.Error("an envelope was opened to another data key")
			}
			return err
		})
		repeat("seal", &u.sealed, func(ctx context.Context) error {
			_, err := c.Wrap(ctx, key, kept.Plaintext, client.Options{})
			pause(ctx, time.Millisecond)
			return err
		})
	}
	return u
}
