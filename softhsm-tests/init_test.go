package softhsmtests

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestServeOnAnUninitialisedDirectory(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	n.refused(1, []string{n.DataDir + " is not initialised", "kekd init --config " + n.configPath()}, "serve")
	if _, err := os.Stat(n.DataDir); !os.IsNotExist(err) {
		t.Fatalf("serve has made the data directory: %v", err)
	}
}

func TestInitTwice(t *testing.T) {
	t.Parallel()
	n := initialised(t)
	before := tree(t, n.Dir)
	n.refused(1, []string{n.DataDir + " is initialised already", "kekd serve"}, "init")
	if after := tree(t, n.Dir); before != after {
		t.Fatalf("the second init has changed something:\n%s\nafter:\n%s", before, after)
	}
	n.serve().stop()
}

// A token has one cluster. An init with another data directory does not take it over, and changes nothing.
func TestInitOnATokenOfAnotherCluster(t *testing.T) {
	t.Parallel()
	n := initialised(t)
	other := n.in(t)
	other.DataDir = filepath.Join(n.Dir, "other")
	// A login writes to the token's own file; its objects have to stay the same ones.
	before := objectFiles(t, filepath.Join(n.SoftHSM, "tokens"))
	other.refused(1, []string{"the token kekd ", "belongs to another cluster", "a token of its own", "kekd/identity"}, "init")
	if diff := cmp.Diff(before, objectFiles(t, filepath.Join(n.SoftHSM, "tokens"))); diff != "" {
		t.Errorf("it has changed the token's objects:\n%s", diff)
	}
	other.refused(1, []string{"is not initialised"}, "serve")

	// The same where its PIN is lost: no new one is made, and the token is not asked.
	pin, err := os.ReadFile(n.PINFile)
	if err == nil {
		err = os.Remove(n.PINFile)
	}
	if err != nil {
		t.Fatal(err)
	}
	other.refused(statusOfPIN, []string{"no PIN", "put the file back"}, "init")
	if err := os.WriteFile(n.PINFile, pin, 0o600); err != nil {
		t.Fatal(err)
	}
	n.serve().stop()
}

// A token that was made anew under the same name is another token.
func TestServeOnAnotherToken(t *testing.T) {
	t.Parallel()
	n, other := initialised(t), newNode(t)
	other.init()
	n.SoftHSM, n.Token, n.PINFile = other.SoftHSM, other.Token, other.PINFile
	was, err := os.ReadFile(filepath.Join(n.DataDir, "identity.pub"))
	if err != nil {
		t.Fatal(err)
	}
	n.refused(1, []string{"this node's mark is missing", "is another one, give the node its own again"}, "serve")
	if is, err := os.ReadFile(filepath.Join(n.DataDir, "identity.pub")); err != nil || string(is) != string(was) {
		t.Errorf("identity.pub is that of the other token: %v", err)
	}
}

// What auditors check signatures with is put back at the next start.
func TestIdentityFileIsPutBack(t *testing.T) {
	t.Parallel()
	n := initialised(t)
	path := filepath.Join(n.DataDir, "identity.pub")
	was, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for how, spoil := range map[string]func() error{
		"lost":    func() error { return os.Remove(path) },
		"altered": func() error { return os.WriteFile(path, was[:len(was)/2], 0o644) },
	} {
		if err := spoil(); err != nil {
			t.Fatal(err)
		}
		n.serve().stop()
		if is, err := os.ReadFile(path); err != nil || string(is) != string(was) {
			t.Errorf("%s: it says %q, %v", how, is, err)
		}
	}
}

// tree lists what a node consists of, with the time of its last change: not the locks, which every
// start takes.
func tree(t *testing.T, dir string) string {
	t.Helper()
	var b strings.Builder
	err := filepath.WalkDir(dir, func(path string, e os.DirEntry, err error) error {
		if err != nil || e.Name() == "kekd.toml" || e.Name() == "lock" {
			return err
		}
		info, err := e.Info()
		if err == nil && !info.IsDir() {
			b.WriteString(path + " " + info.ModTime().String() + "\n")
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return b.String()
}

// An init that was killed at any moment is finished by running it again, also when that is killed
// too, and what it has made serves. A serve that comes first works, or names the command to run.
func TestInitKilledAtRandomMoments(t *testing.T) {
	t.Parallel()
	begun := time.Now()
	newNode(t).init()
	whole := time.Since(begun)

	kills, interrupted, random := loops(20, 300), 0, moments(t)
	for i := 0; i < kills; {
		n := newNode(t)
		for range 2 { // the second one kills the repair
			i++
			n.writeConfig()
			cmd := n.command("init", "--config", n.configPath())
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			after := time.Duration(random.Int64N(int64(whole)))
			time.Sleep(after)
			_ = cmd.Process.Kill()
			if err := cmd.Wait(); err == nil {
				break // it was quicker
			}
			interrupted++
			t.Logf("killed after %v of %v", after, whole)
		}
		if i%4 == 0 {
			serveOrSayHow(t, n)
		}
		if out, status := n.run("init"); status != 0 && !strings.Contains(out, "is initialised already") {
			t.Fatalf("init after a killed one: status %d\n%s", status, out)
		}
		d := n.serve()
		setUp(t, n.Node, "acme")
		sealAndOpen(t, n, "acme/orders")
		verifyAudit(t, n)
		if w := statusOf(t, n).Warnings; len(w) > 0 {
			t.Errorf("warnings: %q", w)
		}
		d.stop()
	}
	if interrupted < kills/3 {
		t.Fatalf("only %d of %d kills came before the end", interrupted, kills)
	}
}

// serveOrSayHow runs serve on what an init has left that was killed.
func serveOrSayHow(t *testing.T, n *node) {
	t.Helper()
	d := n.launch()
	select {
	case <-d.ready:
		d.stop()
	case <-d.exited:
		if says := d.says(); !strings.Contains(says, n.DataDir+" is not initialised: run") || !strings.Contains(says, "kekd init --config "+n.configPath()) {
			t.Fatalf("serve after a killed init says:\n%s", says)
		}
	case <-time.After(60 * time.Second):
		t.Fatal("serve after a killed init neither serves nor ends")
	}
}

func TestConfigurationsThatAreRefused(t *testing.T) {
	t.Parallel()
	base := initialised(t)
	long := "/run/" + strings.Repeat("x", 120) + ".sock"
	for name, c := range map[string]struct {
		change func(n *node)
		words  []string
	}{
		"unknown key":           {func(n *node) { n.Extra = `lock_memry = true` }, []string{"unknown: lock_memry"}},
		"not TOML":              {func(n *node) { n.Extra = `lock_memory = ` }, []string{"kekd.toml"}},
		"wrong type":            {func(n *node) { n.Extra = `lock_memory = "yes"` }, []string{"lock_memory"}},
		"socket path too long":  {func(n *node) { n.Socket = long }, []string{long, "107"}},
		"one path for both":     {func(n *node) { n.AdminSocket = n.Socket }, []string{"same path"}},
		"relative data_dir":     {func(n *node) { n.DataDir = "data" }, []string{"data_dir", "absolute"}},
		"no token":              {func(n *node) { n.Token = "" }, []string{"hsm.token", "RFC 7512"}},
		"bad token URI":         {func(n *node) { n.Token = "pkcs11:tokn=kekd" }, []string{"tokn"}},
		"reserved region name":  {func(n *node) { n.Region = "Here!" }, []string{"node.region"}},
		"another node":          {func(n *node) { n.Name = "two" }, []string{"belongs to node one of region here", "two"}},
		"another region":        {func(n *node) { n.Region = "there" }, []string{"belongs to node one of region here", "there"}},
		"a data_dir of no node": {func(n *node) { n.DataDir += "2" }, []string{"is not initialised", "kekd init"}},
	} {
		t.Run(name, func(t *testing.T) {
			n := base.in(t)
			c.change(n)
			n.refused(1, c.words, "serve")
		})
	}
	t.Run("bad mode", func(t *testing.T) {
		n := newNode(t)
		n.writeConfig()
		b, err := os.ReadFile(n.configPath())
		if err != nil {
			t.Fatal(err)
		}
		for _, mode := range []string{"0999", "rw-rw----", "07777", ""} {
			text := strings.ReplaceAll(string(b), `mode = "0666"`, `mode = "`+mode+`"`)
			path := filepath.Join(n.Dir, "bad.toml")
			if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
				t.Fatal(err)
			}
			out, err := n.command("serve", "--config", path).CombinedOutput()
			if err == nil || !strings.Contains(string(out), `write it in octal, such as "0660"`) {
				t.Errorf("mode %q: %v %s", mode, err, out)
			}
		}
	})
	t.Run("somebody else's directories", func(t *testing.T) {
		for name, dir := range map[string]func(*node) string{"data_dir": func(n *node) string { return n.DataDir }, "softhsm": func(n *node) string { return n.SoftHSM }} {
			n := base.in(t)
			n.writeConfig()
			if err := os.Chown(dir(n), 65534, 65534); err != nil {
				t.Fatal(err)
			}
			t.Log(name)
			for _, command := range []string{"serve", "init"} {
				n.refused(1, []string{dir(n) + " belongs to uid 65534", "runuser"}, command)
			}
			if err := os.Chown(dir(n), 0, 0); err != nil {
				t.Fatal(err)
			}
			if err := os.Chmod(dir(n), 0o770); err != nil {
				t.Fatal(err)
			}
			n.refused(1, []string{dir(n) + " can be written to by others", "chmod go-w"}, "serve")
			if err := os.Chmod(dir(n), 0o700); err != nil {
				t.Fatal(err)
			}
		}
	})
	t.Run("what others can change", func(t *testing.T) {
		n := base.in(t)
		theirs := filepath.Join(n.Dir, "theirs")
		if err := os.Mkdir(theirs, 0o755); err != nil {
			t.Fatal(err)
		}
		module := filepath.Join(n.Dir, "module.so")
		runTool(t, "cp", "-L", softHSMModule, module)
		runTool(t, "chown", "65534", theirs, module)
		for name, c := range map[string]struct {
			change func(*node)
			who    string
		}{
			"module":             {func(n *node) { n.Module = module }, module},
			"module of the URI":  {func(n *node) { n.Token += "&module-path=" + module }, module},
			"module's directory": {func(n *node) { n.Module = filepath.Join(theirs, "module.so") }, theirs},
			"above data_dir":     {func(n *node) { n.DataDir = filepath.Join(theirs, "data") }, theirs},
			"above softhsm":      {func(n *node) { n.SoftHSM = filepath.Join(theirs, "softhsm") }, theirs},
			"PIN's directory":    {func(n *node) { n.Token = "pkcs11:token=kekd?pin-source=file:" + filepath.Join(theirs, "pin") }, theirs},
			"socket":             {func(n *node) { n.Socket = filepath.Join(theirs, "kekd.sock") }, theirs},
			"admin_socket":       {func(n *node) { n.AdminSocket = filepath.Join(theirs, "admin.sock") }, theirs},
			"configuration":      {func(n *node) { n.Dir = theirs }, theirs},
		} {
			n := n.in(t)
			c.change(n)
			t.Log(name)
			for _, command := range []string{"serve", "init"} {
				n.refused(1, []string{c.who + " belongs to uid 65534", "chown"}, command)
			}
		}
		if files, err := os.ReadDir(theirs); err != nil || len(files) != 1 || files[0].Name() != "kekd.toml" {
			t.Errorf("something was made in a directory of somebody else's: %v %v", files, err)
		}
	})
	t.Run("a PIN file that waits for a writer", func(t *testing.T) {
		n := base.in(t)
		fifo := filepath.Join(n.Dir, "fifo")
		if err := syscall.Mkfifo(fifo, 0o600); err != nil {
			t.Fatal(err)
		}
		n.Token = "pkcs11:token=kekd?pin-source=file:" + fifo
		n.refused(statusOfPIN, []string{fifo + " is not a file"}, "serve")
	})
	t.Run("no configuration", func(t *testing.T) {
		for _, command := range []string{"serve", "init"} {
			out, err := newNode(t).command(command, "--config", "/nonexistent/kekd.toml").CombinedOutput()
			if err == nil || !strings.Contains(string(out), "no configuration at /nonexistent/kekd.toml: give --config") {
				t.Errorf("%s: %v %s", command, err, out)
			}
		}
	})
}
