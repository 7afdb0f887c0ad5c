package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"

	"github.com/spf13/cobra"

	"github.com/kekd/kekd/cluster"
	"github.com/kekd/kekd/hierarchy"
	"github.com/kekd/kekd/hierarchy/audit"
	"github.com/kekd/kekd/hierarchy/commandpb"
)

func initCommand() *cobra.Command {
	var path, within string
	cmd := &cobra.Command{
		Use:   "init",
		Short: "make a new cluster, with this node as its first",
		Long: `init makes, once and on purpose, what kekd serve needs: the token's identity, the audit
journal and the Raft store of a new cluster of one node. With hsm.softhsm set it makes the
SoftHSM2 token as well, with a PIN of its own in the file that the token's pin-source names.

It never replaces anything, and takes no token that another cluster has. An init that was
interrupted is finished by running it again.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return runInit(cmd.Context(), path, within, cmd.OutOrStdout(), cmd.ErrOrStderr())
		},
	}
	cmd.Flags().StringVar(&path, "config", "/etc/kekd/kekd.toml", "configuration")
	withinFlag(cmd, &within)
	return cmd
}

// place is a data directory that init or join fills, and what they need for it.
type place struct {
	config config
	log    *slog.Logger
	lock   *os.File
}

// takePlace makes the data directory, and keeps others out of it until the lock is closed.
func takePlace(configPath, within string, stderr io.Writer) (place, error) {
	c, err := loadConfig(configPath)
	if err != nil {
		return place{}, err
	}
	log, err := newLogger(stderr, c.Log)
	if err != nil {
		return place{}, err
	}
	harden(false)
	if err := c.mustBeOurs(configPath, within); err != nil {
		return place{}, err
	}
	if err := os.MkdirAll(c.DataDir, 0o700); err != nil {
		return place{}, err
	}
	if err := mustBeOurOwn(c.DataDir, within); err != nil { // somebody was quicker, in a sticky directory
		return place{}, err
	}
	lock, err := lockDataDir(c.DataDir)
	return place{c, log, lock}, err
}

// runInit makes things in an order in which each crash leaves something that the next try
// goes on from: the identifiers, token and identity, journal, Raft, and last the mark that all
// is there.
func runInit(ctx context.Context, configPath, within string, stdout, stderr io.Writer) (err error) {
	p, err := takePlace(configPath, within, stderr)
	if err != nil {
		return err
	}
	defer p.lock.Close()
	c := p.config
	if !c.hasToken() {
		return errors.New("a cluster begins with a node that has an HSM: a witness joins it, with kekd join")
	}
	n, err := startNode(ctx, c, p.log)
	if err != nil {
		return err
	}
	s, err := makeSigning(ctx, c, p.log)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.close(context.WithoutCancel(ctx))) }()
	if err := publishIdentity(c.DataDir, s.identity); err != nil {
		return err
	}
	if err := initJournal(c, n, s); err != nil {
		return err
	}
	if err := initRaft(c, n, s); err != nil {
		return err
	}
	n.Initialised = true
	if err := writeNode(c.DataDir, n); err != nil {
		return err
	}
	fmt.Fprintf(stdout, "cluster %s, node %s (%s) of region %s\n", n.ClusterID, n.NodeID, n.Node, n.Region)
	return nil
}

// startNode draws the identifiers, or takes those of an init that was interrupted. Only a token
// that is nobody's yet gets that far; what is in it afterwards is this node's.
func startNode(ctx context.Context, c config, log *slog.Logger) (nodeFile, error) {
	n, err := readNode(c.DataDir)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		if err := mustHoldNothing(c.DataDir); err != nil {
			return n, err
		}
		if err := mustBeFree(ctx, c.HSM, log); err != nil {
			return n, err
		}
		n = nodeFile{
			Format:    1,
			ClusterID: hierarchy.ClusterID{ID: hierarchy.NewID()},
			NodeID:    hierarchy.NodeID{ID: hierarchy.NewID()}, Node: c.Node.Name,
			RegionID: hierarchy.RegionID{ID: hierarchy.NewID()}, Region: c.Node.Region,
		}
		return n, writeNode(c.DataDir, n)
	case err != nil:
		return n, err
	case n.Joins && !n.Initialised:
		return n, fmt.Errorf("%s was begun by kekd join: go on with that, or remove it", c.DataDir)
	}
	return n, mustGoOn(c, n)
}

// mustGoOn refuses to fill a directory that is complete, or was begun under another name.
func mustGoOn(c config, n nodeFile) error {
	switch {
	case n.Initialised:
		return fmt.Errorf("%s is initialised already, as node %s of region %s: start it with kekd serve", c.DataDir, n.Node, n.Region)
	case n.Node != c.Node.Name || n.Region != c.Node.Region:
		return fmt.Errorf("%s was begun as node %s of region %s: finish it under these names, or remove it", c.DataDir, n.Node, n.Region)
	}
	return nil
}

func initJournal(c config, n nodeFile, s signing) error {
	err := audit.Create(auditDir(c.DataDir), audit.Options{Cluster: n.ClusterID, Node: n.NodeID, Signer: s.signer})
	if errors.Is(err, hierarchy.ErrAlreadyExists) {
		return nil
	}
	return err
}

// initRaft makes the cluster's store, unless an init that was interrupted has.
func initRaft(c config, n nodeFile, s signing) error {
	if err := checkStore(c.DataDir, n); !errors.Is(err, cluster.ErrUninitialised) {
		return err
	}
	node := &commandpb.Node{Id: n.NodeID.ID[:], Name: n.Node, RegionId: n.RegionID.ID[:], Voter: true}
	if c.Peers != nil {
		node.Address = c.Peers.address()
	}
	return cluster.Init(cluster.Config{Dir: raftDir(c.DataDir), Marks: marksOf(n, s.marks)}, &commandpb.InitCluster{
		ClusterId: n.ClusterID.ID[:],
		Region: &commandpb.Region{
			Id: n.RegionID.ID[:], Name: n.Region, Role: commandpb.RegionRole_REGION_ROLE_VOTING,
			Identity: s.identity, MintingNode: n.NodeID.ID[:],
		},
		Node: node,
	})
}
