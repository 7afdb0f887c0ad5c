package softhsmtests

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/kekd/kekd/softhsm-tests/devcluster"
	"github.com/kekd/kekd/unix-socket-api/kekdv1"
)

// The node that mints is killed while keys are made through all nodes. Another takes over; at the end each version
// is active, and has exactly one object in the token that they share.
func TestMintingIsTakenOver(t *testing.T) {
	t.Parallel()
	c := startCluster(t, "eu=voting*3")
	setUp(t, c.Nodes[0], "acme")
	caughtUp(t, c.Nodes)
	random := moments(t)
	for round := range loops(1, 8) {
		minter := mintingNode(t, c.Nodes[0])
		victim := called(t, c, minter)
		making, stop := context.WithCancel(t.Context())
		var makers sync.WaitGroup
		for i, n := range c.Nodes {
			a := admin(t, n)
			makers.Go(func() {
				for k := 0; making.Err() == nil; k++ {
					// Whether it is told of each is another matter: the node may be the one that dies.
					ctx, cancel := context.WithTimeout(making, 2*time.Second)
					_, _ = a.CreateKey(ctx, &kekdv1.CreateKeyRequest{Key: fmt.Sprintf("acme/key-%d-%d-%d", round, i, k)})
					cancel()
				}
			})
		}
		time.Sleep(time.Second + time.Duration(random.Int64N(int64(time.Second)))) // some are made, others are under way
		killNode(t, c, victim)
		time.Sleep(time.Second) // and are asked for of the others
		stop()
		makers.Wait()

		asked := others(c, victim)[0]
		versions, a := 0, admin(t, asked)
		eventually(t, 60*time.Second, "all that was asked for is made", func() bool {
			list, err := a.ListKeys(within(t, 10*time.Second), &kekdv1.ListKeysRequest{Tenant: "acme"})
			if err != nil {
				return false
			}
			versions = 0
			for _, key := range list.Keys {
				for _, v := range key.Versions {
					if versions++; v.State != "active" {
						return false
					}
				}
			}
			return true
		})
		if versions < 5 {
			t.Errorf("only %d keys were asked for", versions)
		}
		if now := mintingNode(t, asked); now == minter {
			t.Errorf("node %s is dead, and mints still", now)
		}
		if err := c.Restart(within(t, 90*time.Second), victim.Name); err != nil {
			t.Fatal(err)
		}
		// What an attempt that was given up has left is swept when the new node has looked twice.
		awaitSweep(t, asNode(t, called(t, c, mintingNode(t, asked))))
		everyObjectIsKnown(t, asNode(t, asked))
		servesAlike(t, c.Nodes, "acme/orders")
	}
}

// mintingNode is the name of the node that mints for the first region.
func mintingNode(t *testing.T, asked devcluster.Node) string {
	t.Helper()
	list, err := admin(t, asked).ListNodes(within(t, 10*time.Second), &kekdv1.ListNodesRequest{})
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range list.Nodes {
		if n.Mints {
			return n.Name
		}
	}
	t.Fatal("no node mints")
	return ""
}

// awaitSweep waits until the token has no more objects than there are versions.
func awaitSweep(t *testing.T, n *node) {
	t.Helper()
	a, versions := admin(t, n.Node), uint64(0)
	list, err := a.ListKeys(within(t, 10*time.Second), &kekdv1.ListKeysRequest{Tenant: "acme"})
	if err != nil {
		t.Fatal(err)
	}
	for _, key := range list.Keys {
		versions += uint64(len(key.Versions))
	}
	eventually(t, 30*time.Second, "what given-up attempts have left is swept", func() bool {
		s, err := a.GetStatus(within(t, 5*time.Second), &kekdv1.GetStatusRequest{})
		return err == nil && s.Hsm.Objects == versions
	})
}
