package main

import (
	"context"
	"crypto/sha256"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/kekd/kekd/cluster"
	"github.com/kekd/kekd/cluster/peer"
	"github.com/kekd/kekd/hierarchy"
)

func joinCommand() *cobra.Command {
	var o joinOptions
	cmd := &cobra.Command{
		Use:   "join",
		Short: "make this node a member of a cluster that is there",
		Long: `join makes, once and on purpose, what kekd serve needs, with a token that kekctl node invite
has given: the node's identifiers, the audit journal and an empty Raft store. The first node of a
region gives its token an identity, and with hsm.softhsm set makes the SoftHSM2 token as well; the
others share it. The join token is read from a file, or from standard input.

It never replaces anything. A join that was interrupted is finished by running it again, with the
same join token.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return runJoin(cmd.Context(), o, cmd.InOrStdin(), cmd.OutOrStdout(), cmd.ErrOrStderr())
		},
	}
	cmd.Flags().StringVar(&o.config, "config", "/etc/kekd/kekd.toml", "configuration")
	cmd.Flags().StringVar(&o.tokenFile, "token-file", "", "the file with the join token (default: standard input)")
	withinFlag(cmd, &o.within)
	return cmd
}

type joinOptions struct {
	config    string
	within    string // see mustBeOurs
	tokenFile string // empty: standard input
}

// applyTimeout is how long all the members that a token names may take together to take a node in.
const applyTimeout = 60 * time.Second

// runJoin makes things in an order in which each crash leaves something that the next try goes on from: the
// identifiers; the region's token and identity; membership, in the cluster; what the cluster said of the region; journal; Raft; and last the mark that all is there. Before the
// identifiers nothing is written: a token of another cluster leaves nothing behind.
func runJoin(ctx context.Context, o joinOptions, stdin io.Reader, stdout, stderr io.Writer) (err error) {
	p, err := takePlace(o.config, o.within, stderr)
	if err != nil {
		return err
	}
	defer p.lock.Close()
	c := p.config
	if c.Peers == nil {
		return fmt.Errorf("a node that joins needs a port for its peers, and a certificate: give it [peers] in %s", o.config)
	}
	token, err := readJoinToken(o.tokenFile, stdin)
	if err != nil {
		return err
	}
	defer clear(token.Secret[:])
	if err := mustFit(c, token); err != nil {
		return err
	}
	n, err := startJoin(ctx, c, token, p.log)
	if err != nil {
		return err
	}
	open := shareSigning
	if token.NewRegion || !c.hasToken() {
		open = makeSigning
	}
	s, err := open(ctx, c, p.log)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.close(context.WithoutCancel(ctx))) }()
	m, err := apply(ctx, c, n, token, s)
	if err != nil {
		return err
	}
	n.RegionID = m.Region
	if err := writeNode(c.DataDir, n); err != nil {
		return err
	}
	if err := publishIdentity(c.DataDir, s.identity); err != nil {
		return err
	}
	if err := initJournal(c, n, s); err != nil {
		return err
	}
	if err := checkStore(c.DataDir, n); errors.Is(err, cluster.ErrUninitialised) {
		err = cluster.Join(cluster.Config{Dir: raftDir(c.DataDir), Marks: marksOf(n, s.marks)}, m)
		if err != nil {
			return err
		}
	} else if err != nil {
		return err
	}
	n.Initialised = true
	if err := writeNode(c.DataDir, n); err != nil {
		return err
	}
	fmt.Fprintf(stdout, "node %s (%s) of region %s has joined cluster %s: start it with kekd serve\n", n.NodeID, n.Node, n.Region, n.ClusterID)
	return nil
}

func apply(ctx context.Context, c config, n nodeFile, token *peer.JoinToken, s signing) (*cluster.Membership, error) {
	ctx, cancel := context.WithTimeout(ctx, applyTimeout)
	defer cancel()
	return cluster.Apply(ctx, cluster.Applicant{
		Token: token, Node: n.NodeID, Region: n.RegionID, Identity: s.identity, Peers: *c.peers(),
	})
}

// startJoin draws the identifiers, or takes those of a join that was interrupted.
func startJoin(ctx context.Context, c config, token *peer.JoinToken, log *slog.Logger) (nodeFile, error) {
	n, err := readNode(c.DataDir)
	begun := err == nil
	switch {
	case errors.Is(err, fs.ErrNotExist):
		if err := mustHoldNothing(c.DataDir); err != nil {
			return n, err
		}
		n = nodeFile{
			Format: 1, Joins: true, ClusterID: token.Cluster,
			NodeID: hierarchy.NodeID{ID: hierarchy.NewID()}, Node: c.Node.Name,
			RegionID: hierarchy.RegionID{ID: hierarchy.NewID()}, Region: c.Node.Region,
		}
	case err != nil:
		return n, err
	case !n.Joins && !n.Initialised:
		return n, fmt.Errorf("%s was begun by kekd init: go on with that, or remove it", c.DataDir)
	default:
		if err := mustGoOn(c, n); err != nil {
			return n, err
		}
		if n.ClusterID != token.Cluster {
			return n, fmt.Errorf("%s was begun as a node of cluster %s, and the join token is of cluster %s: use a token of the first, or remove the directory", c.DataDir, n.ClusterID, token.Cluster)
		}
	}
	if c.hasToken() && token.NewRegion && !n.NewRegion {
		if err := mustBeFree(ctx, c.HSM, log); err != nil {
			return n, fmt.Errorf("region %s was not there when this node was invited, so that its token has to be new. If the region has another node by now, invite this one again. %w", c.Node.Region, err)
		}
		n.NewRegion, begun = true, false
	}
	if begun {
		return n, nil
	}
	return n, writeNode(c.DataDir, n)
}

// maxJoinToken is more than a token has, in bytes.
const maxJoinToken = 16 << 10

// readJoinToken reads what kekctl node invite has printed. It is a secret until it was used.
func readJoinToken(path string, stdin io.Reader) (*peer.JoinToken, error) {
	from := stdin
	if path != "" {
		f, err := os.Open(path)
		if err != nil {
			return nil, err
		}
		defer f.Close()
		info, err := f.Stat()
		if err != nil {
			return nil, err
		}
		if mode := info.Mode().Perm(); mode&0o007 != 0 {
			return nil, fmt.Errorf("everybody on this machine may read the join token in %s (mode %04o): run chmod 0600 on it, and if somebody may have, remove the invitation's node if it has joined", path, mode)
		}
		from = f
	}
	b, err := io.ReadAll(io.LimitReader(from, maxJoinToken))
	if err != nil {
		return nil, fmt.Errorf("the join token: %w", err)
	}
	defer clear(b)
	return peer.ParseJoinToken(strings.TrimSpace(string(b)))
}

// mustFit compares a token with the configuration, before anything is made.
func mustFit(c config, token *peer.JoinToken) error {
	if token.Node != c.Node.Name || token.Region != c.Node.Region {
		return fmt.Errorf("the join token is for node %s of region %s, the configuration names %s of %s: correct the configuration, or invite the node again", token.Node, token.Region, c.Node.Name, c.Node.Region)
	}
	if witness := token.Role == roleWitness; witness == c.hasToken() {
		return fmt.Errorf("the join token is for a node of a %s region: a witness has [witness] in its configuration and no [hsm], all others have [hsm]", token.Role)
	}
	b, err := os.ReadFile(c.Peers.CA)
	if err != nil {
		return fmt.Errorf("peers.ca: %w", err)
	}
	for block, rest := pem.Decode(b); block != nil; block, rest = pem.Decode(rest) {
		if sha256.Sum256(block.Bytes) == token.CA {
			return nil
		}
	}
	return fmt.Errorf("%w: the join token is of a cluster whose certificate authority is not in %s: it is of another cluster, or the file is", peer.ErrForeignAuthority, c.Peers.CA)
}
