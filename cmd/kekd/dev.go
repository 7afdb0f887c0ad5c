package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sync"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
)

func devCommand() *cobra.Command {
	var dir string
	var flags []string
	cmd := &cobra.Command{
		Use:   "dev",
		Short: "run a cluster on this machine, with SoftHSM2 tokens of its own, in the foreground",
		Long: `dev makes a cluster in --dir, or goes on with what is there, and runs it until it is
interrupted. Each node is a process of its own, with a Raft store and sockets of its own; each
region has a SoftHSM2 token, which its nodes share. Once all serve, DIR/cluster.json says where
everything is. What it started ends when it ends. A node that dies stays dead, until
kekd dev restart starts it again.

It is for trying and testing. For production see kekd init, kekd join and kekd serve.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			regions, err := parseRegions(flags)
			if err != nil {
				return err
			}
			return runDev(cmd.Context(), dir, regions, cmd.OutOrStdout(), cmd.ErrOrStderr())
		},
	}
	cmd.PersistentFlags().StringVar(&dir, "dir", "kekd-dev", "where the cluster lives")
	cmd.Flags().StringArrayVar(&flags, "region", nil, "a region, as `NAME=ROLE[*COUNT]`: its role is voting, replica or witness, COUNT its nodes; give it again for more regions (default local=voting)")
	cmd.AddCommand(devRestartCommand(&dir))
	return cmd
}

// runDev runs the cluster in dir. Regions are nil where nobody said which.
func runDev(ctx context.Context, dir string, regions []devRegion, stdout, stderr io.Writer) error {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return err
	}
	// Clients of other users have to reach the sockets; what is secret is closed further down.
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	// One place has one name, so that mustBeHere can tell.
	if dir, err = filepath.EvalSymlinks(dir); err != nil {
		return err
	}
	if err := mustBeOurs(dir, dir); err != nil {
		return err
	}
	unlock, err := lockDev(dir)
	if err != nil {
		return err
	}
	defer unlock()
	// Who waits for it waits for this run: the last one's would let him through at once.
	if err := os.Remove(clusterFile(dir)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if regions, err = keepRegions(dir, regions); err != nil {
		return err
	}

	c := newDevCluster(dir, regions, stderr)
	defer c.stop()
	if err := c.bringUp(ctx); err != nil {
		return err
	}
	control, err := listenControl(dir)
	if err != nil {
		return err
	}
	var controlled sync.WaitGroup
	defer func() {
		control.Close()
		c.quit()
		controlled.Wait()
	}()
	controlled.Go(func() { c.control(ctx, control) })

	if err := c.write(); err != nil {
		return err
	}
	c.served = true
	c.printExports(stdout)
	return c.watch(ctx)
}

// lockDev keeps a second kekd dev out of the directory.
func lockDev(dir string) (unlock func(), err error) {
	f, err := os.OpenFile(filepath.Join(dir, "dev.lock"), os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		return nil, fmt.Errorf("another kekd dev runs in %s: use it, or give another --dir", dir)
	}
	return func() { f.Close() }, nil
}
