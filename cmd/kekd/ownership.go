package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"syscall"
)

// mustBeOurs refuses a file or directory that somebody else can write to. A configuration names
// the module that is loaded with the daemon's rights, and a directory's owner decides what is in
// it.
func mustBeOurs(path string) error {
	uid, mode, err := ownerOf(path)
	if err != nil {
		return err
	}
	if uid != 0 && uid != uint32(os.Geteuid()) {
		return fmt.Errorf("%s belongs to uid %d, who could change what this process does: it has to be root's or uid %d's", path, uid, os.Geteuid())
	}
	return writableByOwner(path, mode)
}

// mustBeOurOwn refuses a directory that this process would leave files in which its owner cannot use,
// as root does in everybody's, and one that others can write to. One that is not there yet is fine.
func mustBeOurOwn(path string) error {
	uid, mode, err := ownerOf(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if uid != uint32(os.Geteuid()) {
		return fmt.Errorf("%s belongs to uid %d, and this process has uid %d, whose files uid %d could not use: run it as that user (runuser -u USER -- kekd ...), or chown -R the directory", path, uid, os.Geteuid(), uid)
	}
	return writableByOwner(path, mode)
}

func writableByOwner(path string, mode fs.FileMode) error {
	if mode&0o022 != 0 {
		return fmt.Errorf("%s can be written to by others (mode %04o): run chmod go-w on it", path, mode)
	}
	return nil
}

func ownerOf(path string) (uid uint32, mode fs.FileMode, err error) {
	info, err := os.Stat(path)
	if err != nil {
		return 0, 0, err
	}
	stat, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return 0, 0, fmt.Errorf("%s: its owner cannot be told", path)
	}
	return stat.Uid, info.Mode().Perm(), nil
}

// mustBeOurOwn is for what this process writes in its own directories.
func (c config) mustBeOurOwn() error {
	for _, dir := range []string{c.DataDir, c.HSM.SoftHSM} {
		if dir == "" {
			continue
		}
		if err := mustBeOurOwn(dir); err != nil {
			return err
		}
	}
	return nil
}
