package approval_test

import (
	"bufio"
	"bytes"
	"crypto/rand"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/agent"

	"github.com/kekd/kekd/hierarchy/approval"
	"github.com/kekd/kekd/hierarchy/approval/approvaltest"
)

// run runs one of OpenSSH's programs.
func run(t *testing.T, stdin []byte, name string, args ...string) {
	t.Helper()
	c := exec.Command(name, args...)
	c.Stdin = bytes.NewReader(stdin)
	if out, err := c.CombinedOutput(); err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
}

// generate makes a key file and returns its name.
func generate(t *testing.T, name string, args ...string) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), name)
	run(t, nil, "ssh-keygen", append([]string{"-q", "-N", "", "-C", name, "-f", file}, args...)...)
	return file
}

var keygenKinds = map[string][]string{
	"ed25519":   {"-t", "ed25519"},
	"ecdsa-256": {"-t", "ecdsa", "-b", "256"},
	"ecdsa-521": {"-t", "ecdsa", "-b", "521"},
	"rsa":       {"-t", "rsa", "-b", "3072"},
}

// operator reads the public half of a key file as a file of operators.
func operator(t *testing.T, file string) approval.Operator {
	t.Helper()
	line, err := os.ReadFile(file + ".pub")
	if err != nil {
		t.Fatal(err)
	}
	operators, err := approval.ParseOperators(line)
	if err != nil {
		t.Fatal(err)
	}
	return operators[0]
}

func verified(t *testing.T, file string, armored []byte, want approval.Key) {
	t.Helper()
	wire, err := approval.Unarmor(armored)
	if err != nil {
		t.Fatal(err)
	}
	if diff := bytes.Compare(approval.Armor(wire), armored); diff != 0 {
		t.Errorf("%s: the armor is another than ssh-keygen's", file)
	}
	sig, err := approval.ParseSignature(wire)
	if err != nil {
		t.Fatal(err)
	}
	if !sig.Key.Equal(want) {
		t.Errorf("%s: it is by %s, want %s", file, sig.Key, want)
	}
	if err := sig.Verify(text); err != nil {
		t.Errorf("%s: %v", file, err)
	}
	if sig.Verify(append(text[:len(text):len(text)], ' ')) == nil {
		t.Errorf("%s: it verifies for another text", file)
	}
}

// What ssh-keygen signs is taken as it is.
func TestSSHKeygenSigns(t *testing.T) {
	t.Parallel()
	for name, args := range keygenKinds {
		key := generate(t, name, args...)
		statement := filepath.Join(t.TempDir(), "statement")
		for _, hash := range []string{"sha512", "sha256"} {
			if err := os.WriteFile(statement, text, 0o600); err != nil {
				t.Fatal(err)
			}
			os.Remove(statement + ".sig")
			run(t, nil, "ssh-keygen", "-q", "-Y", "sign", "-O", "hashalg="+hash, "-n", approval.Namespace, "-f", key, statement)
			armored, err := os.ReadFile(statement + ".sig")
			if err != nil {
				t.Fatal(err)
			}
			verified(t, key, armored, operator(t, key).Keys[0])
		}
		// In another namespace it is no approval.
		os.Remove(statement + ".sig")
		run(t, nil, "ssh-keygen", "-q", "-Y", "sign", "-n", "git", "-f", key, statement)
		armored, err := os.ReadFile(statement + ".sig")
		if err != nil {
			t.Fatal(err)
		}
		wire, err := approval.Unarmor(armored)
		if err != nil {
			t.Fatal(err)
		}
		_, err = approval.ParseSignature(wire)
		refused(t, err, `namespace: it is "git"`)
	}
}

// What we sign, ssh-keygen verifies, for each kind of key: what was approved can be looked at without kekd.
func TestSSHKeygenVerifies(t *testing.T) {
	t.Parallel()
	for kind, s := range everyKind() {
		dir := t.TempDir()
		allowed, signature := filepath.Join(dir, "allowed"), filepath.Join(dir, "signature")
		line := "alice namespaces=\"" + approval.Namespace + "\" " + approvaltest.Key(s).String() + "\n"
		if err := os.WriteFile(allowed, []byte(line), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(signature, approval.Armor(approvaltest.Sign(s, text)), 0o600); err != nil {
			t.Fatal(err)
		}
		t.Log(kind)
		run(t, text, "ssh-keygen", "-Y", "verify", "-f", allowed, "-I", "alice", "-n", approval.Namespace, "-s", signature)
	}
}

// A key may be in an agent.
func TestSSHAgentSigns(t *testing.T) {
	t.Parallel()
	socket := filepath.Join(t.TempDir(), "agent")
	daemon := exec.Command("ssh-agent", "-D", "-a", socket)
	out, err := daemon.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := daemon.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		daemon.Process.Kill()
		daemon.Wait()
	})
	if _, err := bufio.NewReader(out).ReadString('\n'); err != nil { // it says where it listens, and listens by then
		t.Fatal(err)
	}
	for name, args := range keygenKinds {
		key := generate(t, name, args...)
		add := exec.Command("ssh-add", "-q", key)
		add.Env = append(os.Environ(), "SSH_AUTH_SOCK="+socket)
		if out, err := add.CombinedOutput(); err != nil {
			t.Fatalf("ssh-add: %v\n%s", err, out)
		}
	}
	conn, err := net.Dial("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	signers, err := agent.NewClient(conn).Signers()
	if err != nil {
		t.Fatal(err)
	}
	if len(signers) != len(keygenKinds) {
		t.Fatalf("the agent has %d keys", len(signers))
	}
	for _, s := range signers {
		wire, err := approval.Sign(rand.Reader, s, text)
		if err != nil {
			t.Fatal(err)
		}
		verified(t, ssh.FingerprintSHA256(s.PublicKey()), approval.Armor(wire), approvaltest.Key(s))
	}
}
