package softhsmtests

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/kekd/kekd/softhsm-tests/devcluster"
	"github.com/kekd/kekd/unix-socket-api/client"
	"github.com/kekd/kekd/unix-socket-api/kekdv1"
)

// One of three nodes is not as it should be: it says what is wrong and what to do, the others go on, and once it has been
// put right it has all that it missed.
func TestANodeThatIsNotAsItShouldBe(t *testing.T) {
	t.Parallel()
	c := startCluster(t, "eu=voting*3")
	setUp(t, c.Nodes[0], "acme")
	caughtUp(t, c.Nodes)
	bad := called(t, c, "eu-3")
	dir, raft := filepath.Dir(bad.DataDir), filepath.Join(bad.DataDir, "raft", "raft")
	for i, test := range []struct {
		what  string
		spoil func(t *testing.T)
		words []string
	}{
		{"its log is cut short", func(t *testing.T) { truncate(t, filepath.Join(raft, "log.db"), 2*4096) },
			[]string{"the cluster's data is damaged", "log.db", "restore the directory from a backup of this node, or remove the node from the cluster and let it join again"}},
		{"its log is no log", func(t *testing.T) { overwrite(t, filepath.Join(raft, "log.db")) },
			[]string{"the cluster's data is damaged", "log.db", "remove the node from the cluster and let it join again"}},
		{"its stable store is cut short", func(t *testing.T) { truncate(t, filepath.Join(raft, "stable.db"), 2*4096) },
			[]string{"the cluster's data is damaged", "stable.db", "remove the node from the cluster and let it join again"}},
		{"its stable store is none", func(t *testing.T) { overwrite(t, filepath.Join(raft, "stable.db")) },
			[]string{"the cluster's data is damaged", "stable.db", "remove the node from the cluster and let it join again"}},
		{"its snapshot is half of one", func(t *testing.T) {
			snapshot := filepath.Join(raft, "snapshots", "2-100-1700000000000")
			if err := os.MkdirAll(snapshot, 0o700); err != nil {
				t.Fatal(err)
			}
			for name, text := range map[string]string{"meta.json": `{"Version":1,"ID":"2-100-17`, "state.bin": "half"} {
				if err := os.WriteFile(filepath.Join(snapshot, name), []byte(text), 0o600); err != nil {
					t.Fatal(err)
				}
			}
		}, []string{"the cluster's data is damaged", "snapshots", "1 snapshots are there and 0 can be read", "remove the node from the cluster and let it join again"}},
		{"its certificate is for another name", func(t *testing.T) {
			ca := filepath.Join(c.Dir, "ca")
			cert, key := issue(t, filepath.Join(ca, "ca.pem"), filepath.Join(ca, "ca.key"), "eu-9")
			for name, text := range map[string][]byte{"peer.pem": cert, "peer.key": key} {
				if err := os.WriteFile(filepath.Join(dir, name), text, 0o600); err != nil {
					t.Fatal(err)
				}
			}
		}, []string{"the certificate's files cannot be used", `the certificate is for ["eu-9"], the node is called "eu-3"`}},
	} {
		t.Run(test.what, func(t *testing.T) {
			killNode(t, c, called(t, c, bad.Name))
			kept := filepath.Join(c.Dir, fmt.Sprint("kept-", i))
			runTool(t, "cp", "-a", dir, kept)
			test.spoil(t)
			err := c.Restart(within(t, 60*time.Second), bad.Name)
			if err == nil {
				t.Fatal("it serves")
			}
			for _, w := range test.words {
				if !strings.Contains(err.Error(), w) {
					t.Errorf("it does not say %q", w)
				}
			}
			if strings.Contains(err.Error(), "goroutine ") {
				t.Error("it panicked")
			}
			if t.Failed() {
				t.Fatal(err)
			}
			makeTenant(t, c.Nodes[0], fmt.Sprint("meanwhile-", i), 10*time.Second)
			servesAlike(t, c.Nodes[:2], "acme/orders")

			if err := os.RemoveAll(dir); err != nil {
				t.Fatal(err)
			}
			runTool(t, "mv", kept, dir)
			if err := c.Restart(within(t, 90*time.Second), bad.Name); err != nil {
				t.Fatal(err)
			}
			caughtUp(t, c.Nodes)
			tenantOf(t, called(t, c, bad.Name), fmt.Sprint("meanwhile-", i))
		})
	}
	servesAlike(t, c.Nodes, "acme/orders")
}

func truncate(t *testing.T, path string, size int64) {
	t.Helper()
	if err := os.Truncate(path, size); err != nil {
		t.Fatal(err)
	}
}

// overwrite puts something else into a file, of the same size.
func overwrite(t *testing.T, path string) {
	t.Helper()
	info, err := os.Stat(path)
	if err == nil {
		err = os.WriteFile(path, bytes.Repeat([]byte{0xa5}, int(info.Size())), 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// listenLine is where a configuration says on which address a node's peers reach it.
var listenLine = regexp.MustCompile(`(?m)^ *listen = .*$`)

// A node of another cluster, with a certificate of this one's authority, stands at the address of a member. Nobody takes it for
// that member, the logs say what it is, and both clusters go on.
func TestANodeOfAnotherCluster(t *testing.T) {
	t.Parallel()
	c := startCluster(t, "eu=voting*3")
	setUp(t, c.Nodes[0], "acme")
	gone := called(t, c, "eu-3")
	config, err := os.ReadFile(filepath.Join(filepath.Dir(gone.DataDir), "kekd.toml"))
	if err != nil {
		t.Fatal(err)
	}
	address := listenLine.Find(config)
	if address == nil {
		t.Fatalf("no address of its port in\n%s", config)
	}
	killNode(t, c, gone)

	n := applicant(t, c, gone.Name, gone.Region) // by its name
	n.Extra = listenLine.ReplaceAllString(n.Extra, string(address))
	n.init()
	n.serve()
	setUp(t, n.Node, "acme")
	eventually(t, 20*time.Second, "the leader says what it meets at the address", func() bool {
		log, err := os.ReadFile(logOf(leaderOf(t, c, c.Nodes[0])))
		return err == nil && strings.Contains(string(log), "of another cluster")
	})
	makeTenant(t, c.Nodes[0], "globex", 10*time.Second)
	servesAlike(t, c.Nodes[:2], "acme/orders")
	sealAndOpen(t, n, "acme/orders")
	list, err := admin(t, n.Node).ListTenants(within(t, 10*time.Second), &kekdv1.ListTenantsRequest{})
	if err != nil || len(list.Tenants) != 1 {
		t.Errorf("the other cluster has %d tenants: %v", len(list.GetTenants()), err)
	}
}

// A request larger than any command may be is refused where it is made, and nothing has come of it.
func TestACommandThatIsTooLarge(t *testing.T) {
	t.Parallel()
	c := startCluster(t, "eu=voting*3")
	setUp(t, c.Nodes[0], "acme")
	for _, n := range c.Nodes {
		for _, size := range []int{1 << 10, 1 << 20, 32 << 20} {
			_, err := admin(t, n).DisableTenant(within(t, 20*time.Second), &kekdv1.DisableTenantRequest{Name: "acme", Reason: strings.Repeat("x", size)})
			if e := (*client.Error)(nil); !errors.As(err, &e) || e.Code != "INVALID_ARGUMENT" && e.Code != "RATE_LIMITED" {
				t.Errorf("node %s: a reason of %d bytes: %v", n.Name, size, err)
			}
		}
	}
	makeTenant(t, c.Nodes[1], "globex", 10*time.Second)
	servesAlike(t, []devcluster.Node{c.Nodes[0], c.Nodes[1], c.Nodes[2]}, "acme/orders")
	for _, n := range c.Nodes {
		verifyAudit(t, asNode(t, n))
	}
}
