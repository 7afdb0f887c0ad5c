package main

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

const nobody = 65534

// Each case names a path, and what of it is wrong; nothing, where it has to be taken.
func TestWhatOthersCanChangeIsRefused(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Fatal("run it as root: files have to be given away")
	}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	top := t.TempDir()
	dir := func(name string, uid int, mode fs.FileMode) string {
		path := filepath.Join(top, name)
		must(os.Mkdir(path, 0o755))
		must(os.Chown(path, uid, uid))
		must(os.Chmod(path, mode))
		return path
	}
	file := func(dir, name string, uid int, mode fs.FileMode) string {
		path := filepath.Join(dir, name)
		must(os.WriteFile(path, nil, 0o600))
		must(os.Chown(path, uid, uid))
		must(os.Chmod(path, mode))
		return path
	}
	link := func(target, dir string, uid int) string {
		path := filepath.Join(dir, "to-"+filepath.Base(target))
		must(os.Symlink(target, path))
		must(os.Lchown(path, uid, uid))
		return path
	}
	good := dir("good", 0, 0o755)
	theirs := dir("theirs", nobody, 0o755)
	open := dir("open", 0, 0o777)
	group := dir("group", 0, 0o775)
	sticky := dir("sticky", 0, 0o777|fs.ModeSticky)
	theirSticky := dir("their-sticky", nobody, 0o777|fs.ModeSticky)
	ours := file(good, "ours", 0, 0o755)
	inTheirs := file(theirs, "in-theirs", 0, 0o600)
	loop := filepath.Join(good, "loop")
	must(os.Symlink("loop", loop))
	inGroup := filepath.Join(group, "within")
	must(os.Mkdir(inGroup, 0o755))

	for _, c := range []struct{ path, within, wrong, says string }{
		{path: ours},
		{path: good + "/../good/./ours"},
		{path: softHSMModule}, // Debian has links on the way to it
		{path: file(sticky, "ours", 0, 0o600)},
		{path: sticky},
		{path: link(ours, good, 0)},
		{path: link("../good/ours", sticky, 0)},
		{path: filepath.Join(good, "nothing", "there")},
		{path: file(good, "given", nobody, 0o644), wrong: "given", says: "belongs to uid 65534"},
		{path: file(good, "writable", 0, 0o646), wrong: "writable", says: "chmod go-w"},
		{path: file(good, "group-writable", 0, 0o664), wrong: "group-writable", says: "chmod go-w"},
		{path: inTheirs, wrong: "theirs", says: "belongs to uid 65534"},
		{path: filepath.Join(theirs, "nothing"), wrong: "theirs", says: "belongs to uid 65534"},
		{path: file(open, "f", 0, 0o600), wrong: "open", says: "chmod go-w"},
		{path: file(group, "f", 0, 0o600), wrong: "group", says: "chmod go-w"},
		{path: file(theirSticky, "f", 0, 0o600), wrong: "their-sticky", says: "belongs to uid 65534"},
		{path: link(inTheirs, good, 0), wrong: "theirs", says: "belongs to uid 65534"},
		{path: link(good, theirs, 0) + "/ours", wrong: "theirs", says: "belongs to uid 65534"},
		{path: link(good, sticky, nobody) + "/ours", wrong: "to-good", says: "belongs to uid 65534"},
		{path: loop, wrong: "loop", says: unix.ELOOP.Error()},
		{path: file(inGroup, "f", 0, 0o600), wrong: "group", says: "chmod go-w"},
		{path: filepath.Join(inGroup, "f"), within: inGroup},
		{path: inGroup, within: inGroup},
		{path: inGroup + "2", within: inGroup, wrong: "group", says: "chmod go-w"},
		{path: file(inGroup, "open", 0, 0o666), within: inGroup, wrong: "open", says: "chmod go-w"},
		{path: link(inTheirs, inGroup, 0), within: inGroup, wrong: "theirs", says: "belongs to uid 65534"},
	} {
		err := mustBeOurs(c.path, c.within)
		switch {
		case c.says == "" && err != nil:
			t.Errorf("%s: %v", c.path, err)
		case c.says != "" && (err == nil || !strings.Contains(err.Error(), c.wrong+" ") && !strings.Contains(err.Error(), c.wrong+": ") || !strings.Contains(err.Error(), c.says)):
			t.Errorf("%s: %v, want an error about %s that says %q", c.path, err, c.wrong, c.says)
		}
	}
	if err := mustBeOurs(loop, ""); !errors.Is(err, unix.ELOOP) {
		t.Errorf("a loop: %v", err)
	}
}
