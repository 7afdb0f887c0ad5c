package softhsmtests

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/kekd/kekd/softhsm-tests/devcluster"
	"github.com/kekd/kekd/unix-socket-api/client"
	"github.com/kekd/kekd/unix-socket-api/kekdv1"
)

// applicant is a node beside a dev cluster, which wants to join it. Its certificate is of the cluster's authority.
func applicant(t *testing.T, c *devcluster.Cluster, name, region string) *node {
	t.Helper()
	n := newNode(t)
	n.Name, n.Region = name, region
	n.certified(c, name)
	return n
}

// inRegionOf has the node use the token of a region that is there.
func (n *node) inRegionOf(of devcluster.Node) {
	n.SoftHSM2Conf, n.PINFile = of.SoftHSM2Conf, of.PINFile
	n.SoftHSM = filepath.Dir(of.SoftHSM2Conf)
	n.Token = of.TokenURI + "?pin-source=file:" + of.PINFile
}

// certified gives it a certificate for a name, and a port.
func (n *node) certified(c *devcluster.Cluster, name string) {
	n.t.Helper()
	ca := filepath.Join(c.Dir, "ca")
	cert, key := issue(n.t, filepath.Join(ca, "ca.pem"), filepath.Join(ca, "ca.key"), name)
	for file, text := range map[string][]byte{"peer.pem": cert, "peer.key": key} {
		if err := os.WriteFile(filepath.Join(n.Dir, file), text, 0o600); err != nil {
			n.t.Fatal(err)
		}
	}
	// A loopback address of its own, as those of a dev cluster.
	b := randomBytes(2)
	listen := net.JoinHostPort(net.IPv4(127, 77, b[0], b[1]|1).String(), "7601")
	n.Extra = fmt.Sprintf("[peers]\nlisten = %q\ncertificate = %q\nkey = %q\nca = %q\n",
		listen, filepath.Join(n.Dir, "peer.pem"), filepath.Join(n.Dir, "peer.key"), filepath.Join(ca, "ca.pem"))
}

// issue makes a node's certificate as an operator would: not by the code that is tested.
func issue(t *testing.T, caFile, caKeyFile, name string) (cert, key []byte) {
	t.Helper()
	block := func(path string) []byte {
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		p, _ := pem.Decode(b)
		return p.Bytes
	}
	ca, err := x509.ParseCertificate(block(caFile))
	if err != nil {
		t.Fatal(err)
	}
	caKey, err := x509.ParsePKCS8PrivateKey(block(caKeyFile))
	if err != nil {
		t.Fatal(err)
	}
	own, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: "a node"}, DNSNames: []string{name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}, ca, own.Public(), caKey.(crypto.Signer))
	if err != nil {
		t.Fatal(err)
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(own)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs8})
}

// invite returns the file with a token.
func (n *node) invite(by devcluster.Node, role string, ttl time.Duration) string {
	n.t.Helper()
	i, err := admin(n.t, by).InviteNode(within(n.t, 10*time.Second), &kekdv1.InviteNodeRequest{Name: n.Name, Region: n.Region, Role: role, Ttl: int64(ttl)})
	if err != nil {
		n.t.Fatal(err)
	}
	return n.tokenFile(i.Token)
}

func (n *node) tokenFile(token string) string {
	n.t.Helper()
	path := filepath.Join(n.Dir, fmt.Sprintf("token-%d", time.Now().UnixNano()))
	if err := os.WriteFile(path, []byte(token+"\n"), 0o600); err != nil {
		n.t.Fatal(err)
	}
	return path
}

// join joins, and fails the test if that fails.
func (n *node) join(token string) {
	n.t.Helper()
	if out, status := n.run("join", "--token-file", token); status != 0 {
		n.t.Fatalf("kekd join: status %d\n%s", status, out)
	}
}

// listed is a node as the cluster lists it; nil: it does not.
func listed(t *testing.T, asked devcluster.Node, name string) *kekdv1.Node {
	t.Helper()
	a, done, err := asked.Admin() // not until the test ends: it is asked often
	if err != nil {
		t.Fatal(err)
	}
	defer done()
	list, err := a.ListNodes(within(t, 10*time.Second), &kekdv1.ListNodesRequest{})
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range list.Nodes {
		if n.Name == name {
			return n
		}
	}
	return nil
}

// What an operator may hold in his hands when he lets a node join: each wrong thing is named, makes nobody a
// member, and leaves a directory in which the right one goes on.
func TestJoinWithTheWrongThing(t *testing.T) {
	t.Parallel()
	c := startCluster(t, "eu=voting*2")
	other := startCluster(t, "eu=voting*2")
	by := c.Nodes[0]
	n := applicant(t, c, "eu-9", "eu")
	n.inRegionOf(by)

	foreign := applicant(t, other, "eu-9", "eu").invite(other.Nodes[0], "", time.Hour)
	n.refused(1, []string{"of a cluster whose certificate authority is not in"}, "join", "--token-file", foreign)
	n.refused(1, []string{"not a join token"}, "join", "--token-file", n.tokenFile("kekd-join:v1:half"))
	open := n.tokenFile("kekd-join:v1:half")
	if err := os.Chmod(open, 0o644); err != nil {
		t.Fatal(err)
	}
	n.refused(1, []string{"everybody on this machine may read the join token"}, "join", "--token-file", open)
	if err := os.Remove(filepath.Join(n.Dir, "data", "lock")); err != nil { // the only thing that is there
		t.Fatal(err)
	}
	if err := os.Remove(n.DataDir); err != nil {
		t.Errorf("something was made before the token was looked at: %v", err)
	}

	expired := n.invite(by, "", time.Second)
	time.Sleep(1200 * time.Millisecond)
	n.refused(1, []string{"has expired"}, "join", "--token-file", expired)

	misnamed := n.in(t)
	misnamed.Name = "eu-8"
	misnamed.refused(1, []string{"for node eu-9 of region eu, the configuration names eu-8 of eu"}, "join", "--token-file", expired)

	replaced := n.invite(by, "", time.Hour)
	good := n.invite(c.Nodes[1], "", time.Hour) // of a name whose token was lost: nobody waits until that expires
	n.refused(1, []string{"replaced by a later one", "invite the node again"}, "join", "--token-file", replaced)
	n.certified(c, "eu-8")
	n.refused(1, []string{"eu-8", "eu-9", "certificate"}, "join", "--token-file", good)
	n.certified(c, n.Name)

	own := n.in(t)
	own.SoftHSM, own.PINFile = filepath.Join(n.Dir, "softhsm"), filepath.Join(n.Dir, "pin")
	own.Token = "pkcs11:token=kekd?pin-source=file:" + own.PINFile
	own.refused(statusOfPIN, []string{"no PIN"}, "join", "--token-file", good)
	if _, err := os.Stat(own.SoftHSM); !os.IsNotExist(err) {
		t.Errorf("a token was made for a region that has one: %v", err)
	}

	if listed(t, by, n.Name) != nil {
		t.Fatal("it is a member already")
	}
	n.join(good)
	n.refused(1, []string{"initialised already"}, "join", "--token-file", good)
	reuser := applicant(t, c, "eu-9", "eu")
	reuser.inRegionOf(by)
	reuser.refused(1, []string{"was used"}, "join", "--token-file", good)

	n.serve()
	setUp(t, by, "acme")
	servesAlike(t, []devcluster.Node{by, c.Nodes[1], n.Node}, "acme/orders")
	eventually(t, 20*time.Second, "it votes", func() bool { l := listed(t, by, n.Name); return l != nil && l.GetVotes() })
}

// A new region's token is nobody's before, and gets an identity of its own.
func TestJoinAsANewRegion(t *testing.T) {
	t.Parallel()
	c := startCluster(t, "eu=voting*2")
	n := applicant(t, c, "asia-1", "asia")
	n.inRegionOf(c.Nodes[0])
	token := n.invite(c.Nodes[0], "replica", time.Hour)
	n.refused(1, []string{"belongs to another cluster"}, "join", "--token-file", token)

	fresh := newNode(t)
	fresh.Name, fresh.Region, fresh.Extra = n.Name, n.Region, n.Extra
	fresh.join(token)
	fresh.serve()
	caughtUp(t, []devcluster.Node{c.Nodes[0], fresh.Node})
	l := listed(t, c.Nodes[0], "asia-1")
	if l == nil || l.Region != "asia" || l.Role != "replica" || l.Voter || !l.Mints {
		t.Errorf("it is listed as %v", l)
	}
	makeTenant(t, fresh.Node, "globex", 10*time.Second)
	verifyAudit(t, fresh)
}

// A join that is killed at any moment is gone on with, under the token that it has used up.
func TestJoinKilledAtRandomMoments(t *testing.T) {
	t.Parallel()
	c := startCluster(t, "eu=voting*2")
	random := moments(t)
	for i := range loops(3, 30) {
		n := applicant(t, c, fmt.Sprintf("asia-%d", i), fmt.Sprintf("asia-%d", i))
		token := n.invite(c.Nodes[0], "replica", time.Hour)
		n.writeConfig()
		for done := false; !done; {
			cmd := n.command("join", "--config", n.configPath(), "--token-file", token)
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			timer := time.AfterFunc(time.Duration(random.Int64N(int64(600*time.Millisecond))), func() { _ = cmd.Process.Kill() })
			err := cmd.Wait()
			done = err == nil
			if timer.Stop() && err != nil {
				out, _ := n.run("join", "--token-file", token)
				// The one before was killed after its last step.
				if done = strings.Contains(string(out), "is initialised already"); !done {
					t.Fatalf("a join that was gone on with: %v\n%s", err, out)
				}
			}
		}
		d := n.serve()
		caughtUp(t, []devcluster.Node{c.Nodes[0], n.Node})
		l := listed(t, c.Nodes[0], n.Name)
		if s := statusOf(t, n); l == nil || l.Id != s.NodeId {
			t.Errorf("the cluster lists %v, it says that it is %s", l, s.NodeId)
		}
		verifyAudit(t, n)
		d.stop()
		caughtUp(t, c.Nodes)
		if _, err := admin(t, c.Nodes[1]).RemoveNode(within(t, 20*time.Second), &kekdv1.RemoveNodeRequest{Name: n.Name}); err != nil {
			t.Fatal(err)
		}
	}
}

// Who was removed is a member no longer, whatever it still has, and its name may be used again.
func TestRemovedNode(t *testing.T) {
	t.Parallel()
	c := startCluster(t, "eu=voting*3")
	setUp(t, c.Nodes[0], "acme")
	gone := called(t, c, "eu-3")
	if _, err := admin(t, c.Nodes[0]).RemoveNode(within(t, 20*time.Second), &kekdv1.RemoveNodeRequest{Name: gone.Name}); err != nil {
		t.Fatal(err)
	}
	caughtUp(t, c.Nodes[:2])
	if l := listed(t, c.Nodes[1], gone.Name); l != nil {
		t.Errorf("it is still listed: %v", l)
	}
	caller := keys(t, gone)
	eventually(t, 10*time.Second, "it serves nothing any more", func() bool {
		_, err := caller.GenerateDataKey(within(t, time.Second), "acme/orders", 32, client.Options{})
		return err != nil
	})
	if err := syscall.Kill(gone.PID, syscall.SIGKILL); err != nil && err != syscall.ESRCH {
		t.Fatal(err)
	}
	servesAlike(t, c.Nodes[:2], "acme/orders")

	next := applicant(t, c, gone.Name, "eu")
	next.inRegionOf(c.Nodes[0])
	next.join(next.invite(c.Nodes[0], "", time.Hour))
	next.serve()
	caughtUp(t, []devcluster.Node{c.Nodes[0], next.Node})
	l := listed(t, c.Nodes[0], next.Name)
	if l == nil || l.Id == gone.ID || l.Id != statusOf(t, next).NodeId {
		t.Errorf("under the name %s there is now %v; %s was removed", next.Name, l, gone.ID)
	}
	servesAlike(t, []devcluster.Node{c.Nodes[0], c.Nodes[1], next.Node}, "acme/orders")
}

// The token of a join is said nowhere: not in a log, not on a command line, not in the journal.
func TestJoinTokenIsSeenNowhere(t *testing.T) {
	t.Parallel()
	c := startCluster(t, "eu=voting*2")
	n := applicant(t, c, "eu-9", "eu")
	n.inRegionOf(c.Nodes[0])
	i, err := admin(t, c.Nodes[1]).InviteNode(within(t, 10*time.Second), &kekdv1.InviteNodeRequest{Name: n.Name, Region: n.Region})
	if err != nil {
		t.Fatal(err)
	}
	n.writeConfig()
	cmd := n.command("join", "--config", n.configPath())
	cmd.Stdin = strings.NewReader(i.Token) // as from a pipe
	if out, err := cmd.CombinedOutput(); err != nil || strings.Contains(string(out), i.Token) {
		t.Fatalf("kekd join: %v\n%s", err, strings.ReplaceAll(string(out), i.Token, "(the token)"))
	}
	n.serve()
	for _, dir := range []string{c.Dir, n.Dir} {
		err := filepath.WalkDir(dir, func(path string, e os.DirEntry, err error) error {
			if err != nil || !e.Type().IsRegular() {
				return err
			}
			b, err := os.ReadFile(path)
			if strings.Contains(string(b), i.Token[len(i.Token)-40:]) {
				t.Errorf("%s has the join token", path)
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
}
