package softhsmtests

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/kekd/kekd/softhsm-tests/devcluster"
	"github.com/kekd/kekd/unix-socket-api/client"
	"github.com/kekd/kekd/unix-socket-api/kekdv1"
)

// Keys in the token that no version has are listed by every node of the region, by its doctor too, and stay, whoever dies or
// takes over. They go on command, at the node that mints, and nothing else goes: no key of a version, none that is being
// made meanwhile, none that is another's.
func TestOrphansGoOnCommandAlone(t *testing.T) {
	t.Parallel()
	c := startCluster(t, "eu=voting*3")
	setUp(t, c.Nodes[0], "acme")
	caughtUp(t, c.Nodes)
	first := asNode(t, c.Nodes[0])
	orphans := []string{hex.EncodeToString(randomBytes(20)), hex.EncodeToString(randomBytes(20))}
	for _, id := range orphans {
		first.keygen("kekd/acme/gone/v1/kek", id)
	}
	slices.Sort(orphans)
	others := hex.EncodeToString(randomBytes(20))
	first.keygen("somebody-elses", others)

	listed := func(n devcluster.Node) (ids []string) {
		t.Helper()
		list, err := admin(t, n).ListOrphans(within(t, 20*time.Second), &kekdv1.ListOrphansRequest{})
		if err != nil {
			t.Fatal(err)
		}
		for _, o := range list.Orphans {
			ids = append(ids, o.CkaId)
		}
		slices.Sort(ids)
		return ids
	}
	stay := func(when string) {
		t.Helper()
		for _, n := range c.Nodes {
			if got := listed(n); !slices.Equal(got, orphans) {
				t.Errorf("%s node %s lists %q, want %q", when, n.Name, got, orphans)
			}
		}
	}
	stay("at first")
	killed := called(t, c, mintingNode(t, c.Nodes[0]))
	killNode(t, c, killed)
	if err := c.Restart(within(t, 90*time.Second), killed.Name); err != nil {
		t.Fatal(err)
	}
	caughtUp(t, c.Nodes)
	stay("after a kill of the node that mints")
	for _, n := range c.Nodes {
		// Its exit status is of other things as well.
		out, _ := exec.Command(kekctl, "--admin-socket", n.AdminSocket, "doctor", "-o", "json").Output()
		for _, id := range orphans {
			if !strings.Contains(string(out), id) {
				t.Errorf("the doctor of node %s does not list %s:\n%s", n.Name, id, out)
			}
		}
	}

	minter := mintingNode(t, c.Nodes[0])
	making, stop := context.WithCancel(t.Context())
	defer stop()
	var makers sync.WaitGroup
	for i, n := range c.Nodes {
		if n.Name != minter {
			_, err := admin(t, n).SweepOrphans(within(t, 20*time.Second), &kekdv1.SweepOrphansRequest{})
			if e := (*client.Error)(nil); !errors.As(err, &e) || e.Code != "FAILED_PRECONDITION" || !strings.Contains(e.Message, minter) {
				t.Errorf("node %s does not mint, and sweeps: %v", n.Name, err)
			}
		}
		a := admin(t, n)
		makers.Go(func() {
			for k := 0; making.Err() == nil; k++ {
				ctx, cancel := context.WithTimeout(context.WithoutCancel(making), 20*time.Second)
				if _, err := a.CreateKey(ctx, &kekdv1.CreateKeyRequest{Key: fmt.Sprintf("acme/key-%d-%d", i, k)}); err != nil {
					t.Errorf("a key that is made while orphans are swept: %v", err)
				}
				cancel()
			}
		})
	}
	var swept []string
	for range 5 {
		resp, err := admin(t, called(t, c, minter)).SweepOrphans(within(t, 20*time.Second), &kekdv1.SweepOrphansRequest{})
		if err != nil {
			t.Fatal(err)
		}
		for _, o := range resp.Destroyed {
			swept = append(swept, o.CkaId)
		}
	}
	stop()
	makers.Wait()
	slices.Sort(swept)
	if !slices.Equal(swept, orphans) {
		t.Errorf("%q were swept, want %q", swept, orphans)
	}
	orphans = nil
	stay("after the sweep")
	everyObjectIsKnown(t, first)
	uri, _, _ := strings.Cut(first.Token, "?")
	if out := first.softHSM("pkcs11-tool", "--module", softHSMModule, "--token-label", strings.TrimPrefix(uri, "pkcs11:token="), "--login", "--pin", "env:PIN", "--list-objects", "--type", "secrkey"); !strings.Contains(out, others) {
		t.Error("what was another's is gone")
	}
	servesAlike(t, c.Nodes, "acme/orders")
}

// keygen makes a key in the node's token as somebody else would, in a session of his own.
func (n *node) keygen(label, id string) {
	n.t.Helper()
	uri, _, _ := strings.Cut(n.Token, "?")
	n.softHSM("pkcs11-tool", "--module", softHSMModule, "--token-label", strings.TrimPrefix(uri, "pkcs11:token="), "--login", "--pin", "env:PIN",
		"--keygen", "--key-type", "AES:32", "--sensitive", "--label", label, "--id", id)
}
