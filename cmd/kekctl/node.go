package main

import (
	"context"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/kekd/kekd/hierarchy"
	"github.com/kekd/kekd/unix-socket-api/kekdv1"
)

type nodeOut struct {
	ID           string `json:"id"`
	Name         string `json:"name"`
	Region       string `json:"region"`
	Role         string `json:"role"`
	Address      string `json:"address"`
	Voter        bool   `json:"voter"` // is to vote
	Votes        *bool  `json:"votes"` // does; null: not known
	Leader       bool   `json:"leader"`
	HeardAgo     string `json:"heard_ago"` // empty: not known, or nothing
	AppliedIndex uint64 `json:"applied_index"`
	FeatureLevel uint32 `json:"feature_level"`
	Mints        bool   `json:"mints"`
	Self         bool   `json:"self"`
}

func newNodeOut(n *kekdv1.Node) nodeOut {
	return nodeOut{
		ID: n.Id, Name: n.Name, Region: n.Region, Role: n.Role, Address: n.Address, Voter: n.Voter, Votes: n.Votes, Leader: n.Leader,
		HeardAgo: heardAgo(n), AppliedIndex: n.AppliedIndex, FeatureLevel: n.FeatureLevel, Mints: n.Mints, Self: n.Self,
	}
}

func heardAgo(n *kekdv1.Node) string {
	if n.HeardAgo == nil {
		return ""
	}
	return formatDuration(time.Duration(*n.HeardAgo).Round(time.Millisecond))
}

func (a *app) nodeCommand() *cobra.Command {
	return group("node", "Nodes: the members of the cluster",
		a.nodeInviteCommand(),
		a.nodeListCommand(),
		a.nodePromoteCommand(),
		a.nodeDemoteCommand(),
		a.nodeRemoveCommand(),
		a.nodeTransferCommand(),
	)
}

func nodeTable(w io.Writer, nodes []*kekdv1.Node) {
	row(w, "NAME", "REGION", "ROLE", "VOTES", "DOES", "HEARD", "APPLIED", "ADDRESS", "ID")
	for _, n := range nodes {
		var does []string
		if n.Leader {
			does = append(does, "leads")
		}
		if n.Mints {
			does = append(does, "mints")
		}
		row(w, n.Name, n.Region, n.Role, votes(n), strings.Join(does, ","), heardAgo(n), n.AppliedIndex, n.Address, n.Id)
	}
}

// votes says also where Raft has not followed yet.
func votes(n *kekdv1.Node) string {
	switch {
	case n.Votes == nil || *n.Votes == n.Voter:
		return yesNo(n.Voter)
	case n.Voter:
		return "not yet"
	}
	return "still"
}

func (a *app) printNodes(v any, nodes ...*kekdv1.Node) error {
	return a.print(v, func(w io.Writer) { nodeTable(w, nodes) })
}

type invitationOut struct {
	Token     string `json:"token"`
	ExpiresAt string `json:"expires_at"`
	Name      string `json:"name"`
	Region    string `json:"region"`
	Role      string `json:"role"`
	Voter     bool   `json:"voter"`
}

func (a *app) nodeInviteCommand() *cobra.Command {
	var (
		region, role string
		noVote       bool
		ttl          duration
	)
	cmd := &cobra.Command{
		Use:   "invite NAME --region NAME",
		Short: "Make a token with which one node can join, once",
		Long: `Make a token with which one node can join the cluster, once and for a while, under this name and as what is
said here. Standard output has the token alone: it is a secret, told once and kept nowhere. Give it to
'kekd join' on that node. The first node of a region makes the region, whose role has to be said then.
Inviting the same name again makes its earlier token void.`,
		Example: `  kekctl node invite eu-west-2 --region eu-west | ssh eu-west-2 kekd join --config /etc/kekd/kekd.toml
  kekctl node invite us-east-1 --region us-east --role replica`,
		Args: arguments("NAME"),
	}
	cmd.Flags().StringVar(&region, "region", "", "`NAME` of the node's region (required)")
	cmd.Flags().StringVar(&role, "role", "", "role of the region: voting, replica or witness (default: the one that it has)")
	cmd.Flags().BoolVar(&noVote, "no-vote", false, "the node does not vote, though its region's nodes do")
	cmd.Flags().Var(&ttl, "ttl", "how long the token can be used, up to 1d (default 15m)")
	cmd.RegisterFlagCompletionFunc("role", cobra.FixedCompletions([]string{"voting", "replica", "witness"}, noFiles))
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if region == "" {
			return usagef(cmd, "say in which region the node is: --region")
		}
		for _, name := range []string{args[0], region} {
			if err := hierarchy.ValidateName(name); err != nil {
				return err
			}
		}
		if cmd.Flags().Changed("ttl") && ttl == 0 {
			return usagef(cmd, "--ttl has to be more than nothing")
		}
		m, err := change(a, cmd, func(ctx context.Context, c kekdv1.AdminServiceClient, id []byte) (*kekdv1.InviteNodeResponse, error) {
			return c.InviteNode(ctx, &kekdv1.InviteNodeRequest{IdempotencyId: id, Name: args[0], Region: region, Role: role, NoVote: noVote, Ttl: int64(ttl)})
		})
		if err != nil {
			return err
		}
		if m.Token == "" || strings.ContainsAny(m.Token, " \n") {
			return badAnswer("the token is none")
		}
		if a.output == "json" {
			return a.print(invitationOut{m.Token, timestamp(m.ExpiresAt), m.Name, m.Region, m.Role, m.Voter}, nil)
		}
		voting := "votes"
		if !m.Voter {
			voting = "does not vote"
		}
		fmt.Fprintf(a.stderr, "kekctl: until %s, %s may join once: in region %s (%s), where it %s\n", shortTime(m.ExpiresAt), printable(m.Name), printable(m.Region), printable(m.Role), voting)
		return a.write([]byte(m.Token + "\n"))
	}
	return changing(cmd)
}

func (a *app) listNodes(cmd *cobra.Command) (*kekdv1.ListNodesResponse, error) {
	return read(a, cmd, func(ctx context.Context, c kekdv1.AdminServiceClient) (*kekdv1.ListNodesResponse, error) {
		return c.ListNodes(ctx, &kekdv1.ListNodesRequest{})
	})
}

func (a *app) nodeListCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "list",
		Short: "List all members, and how the leader knows them",
		Args:  arguments(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			list, err := a.listNodes(cmd)
			if err != nil {
				return err
			}
			out := make([]nodeOut, 0, len(list.Nodes))
			for _, n := range list.Nodes {
				out = append(out, newNodeOut(n))
			}
			if list.Unknown != "" && a.output != "json" {
				fmt.Fprintf(a.stderr, "kekctl: what only the leader knows is lacking: %s\n", printable(list.Unknown))
			}
			return a.printNodes(out, list.Nodes...)
		},
	}
}

// changeNode is a command that changes one member.
func (a *app) changeNode(use, short, long string, call func(ctx context.Context, c kekdv1.AdminServiceClient, id []byte, name string) (*kekdv1.Node, error)) *cobra.Command {
	return changing(&cobra.Command{
		Use:               use,
		Short:             short,
		Long:              long,
		Args:              arguments("NAME"),
		ValidArgsFunction: a.completeNode,
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := hierarchy.ValidateName(args[0]); err != nil {
				return err
			}
			n, err := change(a, cmd, func(ctx context.Context, c kekdv1.AdminServiceClient, id []byte) (*kekdv1.Node, error) {
				return call(ctx, c, id, args[0])
			})
			if err != nil {
				return err
			}
			return a.printNodes(newNodeOut(n), n)
		},
	})
}

func (a *app) nodePromoteCommand() *cobra.Command {
	return a.changeNode("promote NAME", "Let a node vote",
		`Let a node vote. It returns when the node does, which is once it has caught up.`,
		func(ctx context.Context, c kekdv1.AdminServiceClient, id []byte, name string) (*kekdv1.Node, error) {
			return c.PromoteNode(ctx, &kekdv1.PromoteNodeRequest{IdempotencyId: id, Name: name})
		})
}

func (a *app) nodeDemoteCommand() *cobra.Command {
	return a.changeNode("demote NAME", "Take a node's vote; it goes on serving",
		`Take a node's vote. It returns when the node does not vote any more, and goes on serving. The last voter keeps
its vote.`,
		func(ctx context.Context, c kekdv1.AdminServiceClient, id []byte, name string) (*kekdv1.Node, error) {
			return c.DemoteNode(ctx, &kekdv1.DemoteNodeRequest{IdempotencyId: id, Name: name})
		})
}

type removedOut struct {
	ID   string `json:"id"`
	Name string `json:"name"`
}

func (a *app) nodeRemoveCommand() *cobra.Command {
	return changing(&cobra.Command{
		Use:   "remove NAME",
		Short: "End a node's membership, for ever",
		Long: `End a node's membership. Its ID is never a member's again; its name may be another node's. A node that is
removed stops serving when it hears of it, or when its lease has run out.`,
		Args:              arguments("NAME"),
		ValidArgsFunction: a.completeNode,
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := hierarchy.ValidateName(args[0]); err != nil {
				return err
			}
			m, err := change(a, cmd, func(ctx context.Context, c kekdv1.AdminServiceClient, id []byte) (*kekdv1.RemoveNodeResponse, error) {
				return c.RemoveNode(ctx, &kekdv1.RemoveNodeRequest{IdempotencyId: id, Name: args[0]})
			})
			if err != nil {
				return err
			}
			return a.print(removedOut{m.Id, args[0]}, func(w io.Writer) {
				row(w, "REMOVED", "ID")
				row(w, args[0], m.Id)
			})
		},
	})
}

type leaderOut struct {
	Leader string `json:"leader"` // a node's name; empty: none is known yet
}

func (a *app) nodeTransferCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "transfer-leadership [NAME]",
		Short: "Have another node lead; without a name, whoever is best",
		Long: `Have another node lead, as before the one that leads is stopped. No call fails on the way; commands wait for a
moment. If no answer comes, 'kekctl node list' shows who leads.`,
		Args:              atMostOne("NAME"),
		ValidArgsFunction: a.completeNode,
		RunE: func(cmd *cobra.Command, args []string) error {
			to := strings.Join(args, "")
			if len(args) > 0 {
				if err := hierarchy.ValidateName(to); err != nil {
					return err
				}
			}
			m, err := exchange(a, cmd, a.connectAdmin, func(ctx context.Context, c kekdv1.AdminServiceClient) (*kekdv1.TransferLeadershipResponse, error) {
				return c.TransferLeadership(ctx, &kekdv1.TransferLeadershipRequest{To: to})
			})
			if err != nil {
				return err
			}
			return a.print(leaderOut{m.Leader}, func(w io.Writer) { row(w, "leader", m.Leader) })
		},
	}
}

func (a *app) completeNode(cmd *cobra.Command, args []string, _ string) (completions, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, noFiles
	}
	list, err := a.listNodes(a.ask(cmd))
	if err != nil {
		return nil, noFiles
	}
	var names completions
	for _, n := range list.Nodes {
		names = append(names, n.Name)
	}
	return names, noFiles
}
