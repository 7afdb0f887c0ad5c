package main

import (
	"context"
	"crypto/x509"
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

// runInit makes things in an order in which each crash leaves something that the next try
// goes on from: the identifiers, token and identity, journal, Raft, and last the mark that all
// is there.
func runInit(ctx context.Context, configPath, within string, stdout, stderr io.Writer) (err error) {
	c, err := loadConfig(configPath)
	if err != nil {
		return err
	}
	log, err := newLogger(stderr, c.Log)
	if err != nil {
		return err
	}
	harden(false)
	if err := c.mustBeOurs(configPath, within); err != nil {
		return err
	}
	if err := os.MkdirAll(c.DataDir, 0o700); err != nil {
		return err
	}
	if err := mustBeOurOwn(c.DataDir, within); err != nil { // somebody was quicker, in a sticky directory
		return err
	}
	lock, err := lockDataDir(c.DataDir)
	if err != nil {
		return err
	}
	defer lock.Close()
	n, err := startNode(ctx, c, log)
	if err != nil {
		return err
	}

	token, err := initToken(ctx, c.HSM, log)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, token.Close(context.WithoutCancel(ctx))) }()
	spki, err := x509.MarshalPKIXPublicKey(token.identity.Public())
	if err != nil {
		return err
	}
	if err := publishIdentity(c.DataDir, spki); err != nil {
		return err
	}
	if err := initJournal(c, n, token); err != nil {
		return err
	}
	if err := initRaft(c, n, spki); err != nil {
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
	case n.Initialised:
		return n, fmt.Errorf("%s is initialised already, as node %s of region %s: start it with kekd serve", c.DataDir, n.Node, n.Region)
	case n.Node != c.Node.Name || n.Region != c.Node.Region:
		return n, fmt.Errorf("%s was begun as node %s of region %s: finish it under these names, or remove it", c.DataDir, n.Node, n.Region)
	}
	return n, nil
}

func initJournal(c config, n nodeFile, token *openedToken) error {
	err := audit.Create(auditDir(c.DataDir), audit.Options{Cluster: n.ClusterID, Node: n.NodeID, Signer: token.identity})
	if errors.Is(err, hierarchy.ErrAlreadyExists) {
		return nil
	}
	return err
}

// initRaft makes the cluster's store, unless an init that was interrupted has.
func initRaft(c config, n nodeFile, identity []byte) error {
	if err := checkStore(c.DataDir, n); !errors.Is(err, cluster.ErrUninitialised) {
		return err
	}
	return cluster.Init(cluster.Config{Dir: raftDir(c.DataDir)}, &commandpb.InitCluster{
		ClusterId: n.ClusterID.ID[:],
		Region: &commandpb.Region{
			Id: n.RegionID.ID[:], Name: n.Region, Role: commandpb.RegionRole_REGION_ROLE_VOTING,
			Identity: identity, MintingNode: n.NodeID.ID[:],
		},
		Node: &commandpb.Node{Id: n.NodeID.ID[:], Name: n.Node, RegionId: n.RegionID.ID[:], Voter: true},
	})
}
