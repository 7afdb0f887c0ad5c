package faultmodule_test

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/miekg/pkcs11"

	"github.com/kekd/kekd/softhsm-tests/faultmodule"
)

// What must happen in a process of its own runs in this test binary again, under this variable.
const childVariable = "FAULTMODULE_TEST_CHILD"

func TestMain(m *testing.M) {
	if role := os.Getenv(childVariable); role != "" {
		if err := runChild(role, os.Getenv(childVariable+"_MODULE")); err != nil {
			fmt.Println("error:", err)
			os.Exit(3)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func runChild(role, path string) error {
	p := pkcs11.New(path)
	if p == nil {
		return fmt.Errorf("cannot load the module")
	}
	if role == "initialize" {
		return p.Initialize()
	}
	if err := p.Initialize(); err != nil {
		return err
	}
	slots, err := p.GetSlotList(true)
	if err != nil {
		return err
	}
	s, err := p.OpenSession(slots[0], pkcs11.CKF_SERIAL_SESSION|pkcs11.CKF_RW_SESSION)
	if err != nil {
		return err
	}
	if err := p.Login(s, pkcs11.CKU_USER, testPIN); err != nil {
		return err
	}
	tok := &token{Ctx: p, slot: slots[0], session: s}
	fmt.Println("ready")
	switch role {
	case "random-on-input":
		for in := bufio.NewScanner(os.Stdin); in.Scan(); {
			if _, err := p.GenerateRandom(s, 16); err != nil {
				return err
			}
			fmt.Println("done")
		}
	case "generate-keys":
		for i := range 5 {
			if _, err := tok.generate(fmt.Sprintf("crash-%d", i), true); err != nil {
				return err
			}
		}
	case "hang":
		go p.GenerateRandom(s, 16)
		for {
			if _, err := p.GetSessionInfo(s); err != nil {
				return err
			}
		}
	default:
		return fmt.Errorf("no role %s", role)
	}
	return nil
}

// child is a process that works on the token of its parent.
type child struct {
	t      *testing.T
	cmd    *exec.Cmd
	in     io.WriteCloser
	out    *bufio.Reader
	stderr bytes.Buffer
}

func childCommand(path, role string, env ...string) *exec.Cmd {
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), childVariable+"="+role, childVariable+"_MODULE="+path)
	cmd.Env = append(cmd.Env, env...)
	return cmd
}

// startChild returns when the child has logged in.
func startChild(t *testing.T, tok *token, role string) *child {
	t.Helper()
	c := &child{t: t, cmd: childCommand(tok.Path, role)}
	c.in = must(c.cmd.StdinPipe())(t)
	c.out = bufio.NewReader(must(c.cmd.StdoutPipe())(t))
	c.cmd.Stderr = &c.stderr
	check(t, c.cmd.Start())
	t.Cleanup(func() {
		if c.cmd.ProcessState == nil {
			c.cmd.Process.Kill()
			c.cmd.Wait()
		}
	})
	if line := c.readLine(); line != "ready" {
		t.Fatalf("the child says %q", line)
	}
	return c
}

func (c *child) println(line string) {
	c.t.Helper()
	_, err := fmt.Fprintln(c.in, line)
	check(c.t, err)
}

func (c *child) readLine() string {
	c.t.Helper()
	return strings.TrimSpace(must(c.out.ReadString('\n'))(c.t))
}

func (c *child) end() {
	c.t.Helper()
	check(c.t, c.in.Close())
	check(c.t, c.cmd.Wait())
}

// of is what the counters say about the child.
func (c *child) of(counters *faultmodule.Counters) faultmodule.Process {
	c.t.Helper()
	for _, p := range counters.Processes() {
		if p.PID == c.cmd.Process.Pid {
			return p
		}
	}
	c.t.Fatal("the child is not counted")
	panic("unreachable")
}

func TestCountersByProcess(t *testing.T) {
	tok := newToken(t)
	before := tok.Counters.Calls("C_Login")
	var children []*child
	for range 3 {
		children = append(children, startChild(t, tok, "random-on-input"))
	}
	for i, c := range children {
		for range i {
			c.println("go")
			c.readLine()
		}
	}
	for i, c := range children {
		p := c.of(tok.Counters)
		if p.Calls("C_Login") != 1 || p.Calls("C_GenerateRandom") != i {
			t.Errorf("child %d: %d logins, %d calls; want 1, %d", i, p.Calls("C_Login"), p.Calls("C_GenerateRandom"), i)
		}
		c.end()
	}
	if got := tok.Counters.Calls("C_Login") - before; got != 3 {
		t.Errorf("%d logins in all, want 3", got)
	}
}

// The process dies at the third key, before it is made or after.
func TestCrash(t *testing.T) {
	for when, third := range map[string]int{"before": 0, "after": 1} {
		t.Run(when, func(t *testing.T) {
			tok := newToken(t)
			tok.Control.Set("C_GenerateKey crash after=2 when=" + when)
			c := startChild(t, tok, "generate-keys")
			err := c.cmd.Wait()
			if err == nil || !strings.Contains(c.stderr.String(), "SIGSEGV") {
				t.Fatalf("child ended with %v, want SIGSEGV", err)
			}
			p := c.of(tok.Counters)
			if p.Calls("C_GenerateKey") != 3 || p.Inside("C_GenerateKey") != 1 {
				t.Errorf("%d calls, %d inside; want 3, 1", p.Calls("C_GenerateKey"), p.Inside("C_GenerateKey"))
			}
			for label, want := range map[string]int{"crash-0": 1, "crash-1": 1, "crash-2": third, "crash-3": 0} {
				if got := tok.find(label); got != want {
					t.Errorf("%d keys %s, want %d", got, label, want)
				}
			}
		})
	}
}

func TestHangForever(t *testing.T) {
	tok := newToken(t)
	tok.Control.Set("C_GenerateRandom hang=forever")
	c := startChild(t, tok, "hang")
	tok.Counters.AwaitInside("C_GenerateRandom", 1)

	// It goes on to hang without the rule, for as long as it takes others to do this much.
	tok.Control.Clear()
	p := c.of(tok.Counters)
	from := p.Calls("C_GetSessionInfo")
	await(t, "the child does nothing else", func() bool { return p.Calls("C_GetSessionInfo") > from+10000 })
	if p.Inside("C_GenerateRandom") != 1 {
		t.Error("it returned")
	}
	_, err := tok.GenerateRandom(tok.session, 16)
	check(t, err)
}

// What is wrong in the environment is told, and nothing works.
func TestWrongEnvironment(t *testing.T) {
	dir := t.TempDir()
	notCounters := dir + "/file"
	check(t, os.WriteFile(notCounters, []byte("something else"), 0o600))
	for _, tt := range []struct{ name, variable, says string }{
		{"no real module", "KEKD_FAULT_MODULE=" + dir + "/none.so", "none.so: cannot be loaded"},
		{"not a module", "KEKD_FAULT_MODULE=libc.so.6", "libc.so.6: cannot be loaded"},
		{"counters in no directory", "KEKD_FAULT_COUNTERS=" + dir + "/none/counters", "No such file"},
		{"not counters", "KEKD_FAULT_COUNTERS=" + notCounters, "not a counters' file"},
		{"control is a directory", "KEKD_FAULT_CONTROL=" + dir, "cannot be read"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var stderr bytes.Buffer
			cmd := childCommand(faultmodule.Build(t), "initialize", tt.variable)
			cmd.Stderr = &stderr
			out, _ := cmd.Output()
			if !strings.Contains(string(out), "CKR_ARGUMENTS_BAD") {
				t.Errorf("C_Initialize answers %q", out)
			}
			if !strings.Contains(stderr.String(), tt.says) {
				t.Errorf("stderr is %q, want %q in it", stderr.String(), tt.says)
			}
		})
	}
}
