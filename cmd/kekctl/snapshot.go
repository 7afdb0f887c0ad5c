package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"github.com/kekd/kekd/unix-socket-api/kekdv1"
)

// snapshotMagic begins every snapshot; the SHA-256 of all before it ends it.
const snapshotMagic = "kekd snapshot 1\n"

type snapshotOut struct {
	File   string `json:"file"`
	Bytes  int64  `json:"bytes"`
	SHA256 string `json:"sha256"` // that it ends with, hex
}

func (a *app) snapshotCommand() *cobra.Command {
	return group("snapshot", "Snapshots: the whole hierarchy in a file, without any key",
		a.snapshotSaveCommand(),
	)
}

func (a *app) snapshotSaveCommand() *cobra.Command {
	var force bool
	cmd := &cobra.Command{
		Use:   "save FILE",
		Short: "Save the hierarchy as this node has it",
		Long: `Save the hierarchy as this node has it: names, states, rules and audit anchors, and no key. FILE is there when all
of it has arrived, is on the disk, and was read back and found whole. Keys are backed up with the token;
'kekd restore' tightens a hierarchy by a snapshot.`,
		Args: arguments("FILE"),
	}
	cmd.Flags().BoolVar(&force, "force", false, "replace FILE if it is there")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		path := args[0]
		if !force {
			if err := mustBeNew(path); err != nil {
				return err
			}
		}
		out, err := a.saveSnapshot(cmd, path, force)
		if err != nil {
			return err
		}
		return a.print(out, func(w io.Writer) {
			row(w, "FILE", "BYTES", "SHA256")
			row(w, out.File, out.Bytes, out.SHA256)
		})
	}
	return cmd
}

func mustBeNew(path string) error {
	_, err := os.Lstat(path)
	switch {
	case err == nil:
		return &fault{exit: exitLocal, code: codeLocal, message: path + " is there already", hint: "choose another name, or replace it with --force"}
	case !errors.Is(err, fs.ErrNotExist):
		return err
	}
	return nil
}

// saveSnapshot gives the file its name last: what has that name is whole.
func (a *app) saveSnapshot(cmd *cobra.Command, path string, force bool) (out snapshotOut, err error) {
	part := path + ".tmp"
	f, err := os.OpenFile(part, os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return out, err
	}
	defer func() {
		f.Close()
		if err != nil {
			os.Remove(part)
		}
	}()
	if err := a.receiveSnapshot(cmd.Context(), f); err != nil {
		return out, err
	}
	if err := f.Sync(); err != nil {
		return out, err
	}
	if out, err = verifySnapshot(f); err != nil {
		return out, err
	}
	if !force { // somebody else may have saved one meanwhile
		if err := mustBeNew(path); err != nil {
			return out, err
		}
	}
	if err := os.Rename(part, path); err != nil {
		return out, err
	}
	out.File = path
	return out, syncDir(filepath.Dir(path))
}

// receiveSnapshot waits for each chunk, and not for all of them, as long as --timeout says.
func (a *app) receiveSnapshot(ctx context.Context, w io.Writer) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	patience := time.AfterFunc(a.timeout, func() { cancel(context.DeadlineExceeded) })
	defer patience.Stop()
	c, conn, err := a.connectAdmin(ctx)
	if err != nil {
		return err
	}
	defer conn.Close()
	chunks, err := c.SaveSnapshot(ctx, &kekdv1.SaveSnapshotRequest{})
	for err == nil {
		var m *kekdv1.SnapshotChunk
		if m, err = chunks.Recv(); err != nil {
			break
		}
		patience.Stop() // the disk may take what it wants
		if _, err := w.Write(m.Data); err != nil {
			return err
		}
		patience.Reset(a.timeout)
	}
	switch {
	case errors.Is(err, io.EOF):
		return nil
	case context.Cause(ctx) == context.DeadlineExceeded:
		return a.noAnswer()
	}
	return a.callFault(err)
}

// verifySnapshot reads a file back, and finds it whole: it ends with the hash of what is before.
func verifySnapshot(f io.ReadSeeker) (out snapshotOut, err error) {
	notWhole := func(why string) (snapshotOut, error) {
		return out, &fault{exit: exitLocal, code: codeBadAnswer, message: "what was read back is no whole snapshot: " + why,
			hint: "nothing was kept: try again, and look at the disk if it stays so"}
	}
	size, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return out, err
	}
	if size < int64(len(snapshotMagic)+sha256.Size) {
		return notWhole(fmt.Sprintf("it has %d bytes", size))
	}
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return out, err
	}
	r, digest, magic := bufio.NewReaderSize(f, 1<<20), sha256.New(), make([]byte, len(snapshotMagic))
	if _, err := io.ReadFull(r, magic); err != nil {
		return out, err
	}
	if string(magic) != snapshotMagic {
		return notWhole("it does not begin as one")
	}
	digest.Write(magic)
	if _, err := io.CopyN(digest, r, size-int64(len(magic))-sha256.Size); err != nil {
		return out, err
	}
	sum, err := io.ReadAll(r)
	if err != nil {
		return out, err
	}
	if !bytes.Equal(sum, digest.Sum(nil)) {
		return notWhole("its hash is not that of its bytes")
	}
	return snapshotOut{Bytes: size, SHA256: hex.EncodeToString(sum)}, nil
}

func syncDir(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}
