package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/kekd/kekd/hsm/pkcs11"
)

// Whoever can write to a file that the daemon goes by, or to a directory on the way to it, decides
// what the daemon does: its configuration names the module that is loaded with its rights. So all
// of them have to belong to root or to the daemon's user, and nobody else may write to them.

// maxLinks is how many symbolic links the kernel follows in a path (path_resolution(7)).
const maxLinks = 40

// mustBeOurs refuses a path that somebody else can change, or lead elsewhere: it looks at the file,
// at every directory above it, and at every symbolic link on the way with what that leads to. In a
// sticky directory, such as /tmp, others can do nothing to what is not theirs. What is above within,
// which has no links in it, is taken as it is; with "" nothing is. A path that ends early is fine as far as it goes.
func mustBeOurs(path, within string) error {
	at, rest := "/", path
	if below, ok := strings.CutPrefix(path+"/", within+"/"); ok && within != "" {
		at, rest = within, below
	}
	if err := nobodyElseCanChange(at); err != nil {
		return err
	}
	links := 0
	for steps := strings.Split(rest, "/"); len(steps) > 0; {
		step := steps[0]
		steps = steps[1:]
		next := filepath.Join(at, step) // at has no links in it any more, so that .. is its parent
		err := nobodyElseCanChange(next)
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		target, err := os.Readlink(next)
		if errors.Is(err, unix.EINVAL) { // no link
			at = next
			continue
		}
		if err != nil {
			return err
		}
		if links++; links > maxLinks {
			return fmt.Errorf("%s: %w", path, unix.ELOOP)
		}
		if filepath.IsAbs(target) {
			at = "/"
		}
		steps = append(strings.Split(target, "/"), steps...)
	}
	return nil
}

// nobodyElseCanChange looks at one file, directory or link itself.
func nobodyElseCanChange(path string) error {
	uid, mode, err := ownerOf(path)
	if err != nil {
		return err
	}
	if uid != 0 && uid != uint32(os.Geteuid()) {
		return fmt.Errorf("%s belongs to uid %d, who could change what this process does: it has to be root's or uid %d's; run this as that user (runuser -u USER -- kekd ...), or chown it", path, uid, os.Geteuid())
	}
	if mode.Type() == fs.ModeSymlink || mode.IsDir() && mode&fs.ModeSticky != 0 {
		return nil // nobody writes to a link
	}
	return writableByOwner(path, mode)
}

// withinFlag is for kekd dev, which runs init and serve in a directory of its user's: where that is,
// in a checkout that a group works on for example, is the user's own affair.
func withinFlag(cmd *cobra.Command, within *string) {
	cmd.Flags().StringVar(within, "within", "", "take the directories above this one as they are")
	_ = cmd.Flags().MarkHidden("within") // its only error is that there is no such flag
}

// mustBeOurOwn refuses a directory that this process would leave files in which its owner cannot use,
// as root does in everybody's, and one that others can write to. One that is not there yet is fine,
// if nobody else can make it.
func mustBeOurOwn(path, within string) error {
	info, err := os.Stat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return err
	default:
		if uid := info.Sys().(*syscall.Stat_t).Uid; uid != uint32(os.Geteuid()) {
			return fmt.Errorf("%s belongs to uid %d, and this process has uid %d, whose files uid %d could not use: run it as that user (runuser -u USER -- kekd ...), or chown -R the directory", path, uid, os.Geteuid(), uid)
		}
		if err := writableByOwner(path, info.Mode()); err != nil {
			return err
		}
	}
	return mustBeOurs(path, within)
}

func writableByOwner(path string, mode fs.FileMode) error {
	if mode.Perm()&0o022 != 0 {
		return fmt.Errorf("%s can be written to by others (mode %04o): run chmod go-w on it", path, mode.Perm())
	}
	return nil
}

// ownerOf does not follow a link.
func ownerOf(path string) (uid uint32, mode fs.FileMode, err error) {
	info, err := os.Lstat(path)
	if err != nil {
		return 0, 0, err
	}
	return info.Sys().(*syscall.Stat_t).Uid, info.Mode(), nil
}

// mustBeOurs is for a configuration and all that it names, before any of it is used.
func (c config) mustBeOurs(configPath, within string) error {
	configPath, err := filepath.Abs(configPath)
	if err != nil {
		return err
	}
	if err := mustBeOurs(configPath, within); err != nil {
		return fmt.Errorf("configuration: %w", err)
	}
	own, paths := []string{c.DataDir}, []string{}
	files := []string{c.Socket.Path, c.AdminSocket.Path} // whose own mode is another matter
	if p := c.Peers; p != nil {
		paths = append(paths, p.Certificate, p.Key, p.CA)
	}
	if c.hasToken() {
		uri, err := pkcs11.ParseURI(c.HSM.Token)
		if err != nil {
			return err
		}
		if c.HSM.SoftHSM != "" {
			own = append(own, c.HSM.SoftHSM)
		}
		module := c.HSM.Module
		if uri.ModulePath != "" { // it is the one that is loaded
			module = uri.ModulePath
		}
		if !filepath.IsAbs(module) {
			return fmt.Errorf("hsm.token: module-path %q is not an absolute path", module)
		}
		paths = append(paths, module)
		if pin, err := pkcs11.PINPath(uri.PINSource); err == nil {
			files = append(files, pin)
		}
	} else {
		own = append(own, c.Witness.Dir)
	}
	for _, file := range files {
		dir, _ := filepath.Split(file)
		paths = append(paths, dir)
	}
	for _, dir := range own {
		if err := mustBeOurOwn(dir, within); err != nil {
			return err
		}
	}
	for _, path := range paths {
		if err := mustBeOurs(path, within); err != nil {
			return err
		}
	}
	return nil
}
