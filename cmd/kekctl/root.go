package main

import (
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/kekd/kekd/unix-socket-api/client"
)

// app is one run of kekctl.
type app struct {
	args   []string // as typed, for the command that tries again
	stdin  io.Reader
	stdout io.Writer
	stderr io.Writer

	output      string
	socket      string
	adminSocket string
	timeout     time.Duration

	// started tells that the command line was understood. Whatever cobra complains of before is the
	// user's mistake.
	started bool
}

func (a *app) root() *cobra.Command {
	root := group("kekctl", "Keys of tenants, held in an HSM by kekd",
		a.statusCommand(),
		a.doctorCommand(),
		a.tenantCommand(),
		a.keyCommand(),
		a.dataKeyCommand(),
		a.wrapCommand(),
		a.unwrapCommand(),
		a.rewrapCommand(),
		a.serviceCommand(),
		a.policyCommand(),
		a.auditCommand(),
		a.nodeCommand(),
		a.snapshotCommand(),
		a.orphanCommand(),
		a.metricsCommand(),
		a.versionCommand(),
	)
	root.SetArgs(a.args)
	root.SetIn(a.stdin)
	root.SetOut(a.stdout)
	root.SetErr(a.stderr)
	root.SilenceErrors = true
	root.SilenceUsage = true

	flags := root.PersistentFlags()
	flags.StringVarP(&a.output, "output", "o", "table", "`FORMAT` of the result and of errors: table or json")
	flags.StringVar(&a.socket, "socket", "", "`PATHS` of the sockets of one or more daemons, with commas: the first that serves is used (default $KEKD_SOCKET, else "+client.DefaultSocket+")")
	flags.StringVar(&a.adminSocket, "admin-socket", "", "`PATHS` of their admin sockets, with commas (default $KEKD_ADMIN_SOCKET, else "+client.DefaultAdminSocket+")")
	flags.DurationVar(&a.timeout, "timeout", 30*time.Second, "how long to wait for the daemon")
	root.RegisterFlagCompletionFunc("output", cobra.FixedCompletions([]string{"table", "json"}, cobra.ShellCompDirectiveNoFileComp))

	root.PersistentPreRunE = func(cmd *cobra.Command, _ []string) error {
		if a.output != "table" && a.output != "json" {
			return usagef(cmd, "--output %q: use table or json", a.output)
		}
		if a.timeout <= 0 {
			return usagef(cmd, "--timeout has to be more than nothing")
		}
		a.started = true
		return nil
	}
	return root
}

// group is a command that only holds others.
func group(use, short string, children ...*cobra.Command) *cobra.Command {
	cmd := &cobra.Command{
		Use:   use,
		Short: short,
		Args:  cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				f := usagef(cmd, "%s: which command?", cmd.CommandPath())
				f.hint = "one of " + strings.Join(childNames(cmd), ", ") + "; " + f.hint
				return f
			}
			f := usagef(cmd, "unknown command %q for %q", args[0], cmd.CommandPath())
			if like := cmd.SuggestionsFor(args[0]); len(like) > 0 {
				f.hint = "did you mean " + strings.Join(like, " or ") + "? " + f.hint
			}
			return f
		},
		SuggestionsMinimumDistance: 2,
		// A misspelled command is reported as such, and not by the flags that it would have had.
		FParseErrWhitelist: cobra.FParseErrWhitelist{UnknownFlags: true},
	}
	cmd.AddCommand(children...)
	return cmd
}

func childNames(cmd *cobra.Command) []string {
	var names []string
	for _, c := range cmd.Commands() {
		if c.IsAvailableCommand() {
			names = append(names, c.Name())
		}
	}
	return names
}

// arguments asks for exactly these positional arguments.
func arguments(names ...string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) == len(names) {
			return nil
		}
		if len(names) == 0 {
			return fmt.Errorf("%s takes no arguments, got %q", cmd.CommandPath(), args)
		}
		return fmt.Errorf("%s takes %s, got %d argument(s)", cmd.CommandPath(), strings.Join(names, " "), len(args))
	}
}

// atMostOne asks for one positional argument or none.
func atMostOne(name string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) <= 1 {
			return nil
		}
		return fmt.Errorf("%s takes at most one %s, got %d argument(s)", cmd.CommandPath(), name, len(args))
	}
}
