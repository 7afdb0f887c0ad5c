package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"strings"
	"text/tabwriter"
	"time"
	"unicode"

	"github.com/spf13/cobra"

	"github.com/kekd/kekd/hsm"
	"github.com/kekd/kekd/hsm/pkcs11"
)

// errMissing is that a check found something missing. The checks themselves have been printed.
var errMissing = errors.New("something is missing that kekd cannot do without")

type doctorOptions struct {
	module  string
	uri     string
	pinFile string
	output  string
	timeout time.Duration
}

func doctorCommand() *cobra.Command {
	var o doctorOptions
	cmd := &cobra.Command{
		Use:   "doctor --module PATH",
		Short: "say what a PKCS#11 module and its token are good for, before there is a cluster",
		Long: `doctor loads a PKCS#11 module, in a process of its own, and tries on its token what kekd
needs. Each line is ok, degraded (kekd does without) or missing (it cannot), with what that means
and what to do. The PIN is tried once, and no object is left in the token. The exit status is 2 if
something is missing.

Of a running node kekctl doctor says the same, and more.`,
		Example: `  kekd doctor --module /usr/lib/softhsm/libsofthsm2.so --token-uri pkcs11:token=kekd --pin-file /etc/kekd/pin`,
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return runDoctor(cmd.Context(), o, cmd.OutOrStdout())
		},
	}
	cmd.Flags().StringVar(&o.module, "module", "", "`PATH` of the PKCS#11 module (required, unless the URI has a module-path)")
	cmd.Flags().StringVar(&o.uri, "token-uri", "", "RFC 7512 `URI` of the token; without one, the only token that there is")
	cmd.Flags().StringVar(&o.pinFile, "pin-file", "", "`FILE` with the user's PIN, instead of the URI's pin-source")
	cmd.Flags().StringVarP(&o.output, "output", "o", "table", "table or json")
	cmd.Flags().DurationVar(&o.timeout, "timeout", checkupTimeout, "how long the module may take for all of it")
	return cmd
}

func runDoctor(ctx context.Context, o doctorOptions, stdout io.Writer) error {
	harden(false)
	if o.output != "table" && o.output != "json" {
		return fmt.Errorf("--output %q: use table or json", o.output)
	}
	uri, err := parseToken(o.uri)
	if err != nil {
		return err
	}
	if uri.ModulePath != "" {
		o.module = uri.ModulePath
	}
	if o.module == "" {
		return errors.New("say which module: --module /path/to/module.so")
	}
	if o.module, err = filepath.Abs(o.module); err != nil {
		return err
	}
	pin, err := doctorPIN(o, uri)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, o.timeout)
	defer cancel()
	checks, err := runCheckup(ctx, o.module, o.uri, pin)
	pin.Wipe()
	if err != nil {
		return err
	}
	if err := printChecks(stdout, o.output, checks); err != nil {
		return err
	}
	return missing(checks)
}

// parseToken reads a token's URI. An empty one fits every token.
func parseToken(uri string) (pkcs11.URI, error) {
	if uri == "" {
		return pkcs11.URI{}, nil
	}
	return pkcs11.ParseURI(uri)
}

// doctorPIN reads the PIN, if it is said where it is.
func doctorPIN(o doctorOptions, uri pkcs11.URI) (pkcs11.PIN, error) {
	source := uri.PINSource
	if o.pinFile != "" {
		path, err := filepath.Abs(o.pinFile)
		if err != nil {
			return pkcs11.PIN{}, err
		}
		source = path
	}
	if source == "" {
		return pkcs11.PIN{}, nil
	}
	return pkcs11.ReadPIN(source)
}

// missing is errMissing, with their names, if a check found something missing.
func missing(checks []hsm.Check) error {
	var names []string
	for _, c := range checks {
		if c.Verdict == hsm.Missing {
			names = append(names, c.Name)
		}
	}
	if len(names) == 0 {
		return nil
	}
	return fmt.Errorf("%w: %s", errMissing, strings.Join(names, ", "))
}

func printChecks(w io.Writer, format string, checks []hsm.Check) error {
	if format == "json" {
		enc := json.NewEncoder(w)
		enc.SetEscapeHTML(false)
		return enc.Encode(struct {
			Checks []hsm.Check `json:"checks"`
		}{checks})
	}
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for _, c := range checks {
		fmt.Fprintf(t, "%s\t%s\t%s\n", c.Name, c.Verdict, harmless(c.Meaning))
		if c.Action != "" {
			fmt.Fprintf(t, "\t\t-> %s\n", harmless(c.Action))
		}
	}
	return t.Flush()
}

// harmless keeps a token's label, which can be anything, from speaking to the terminal.
func harmless(s string) string {
	return strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return '?'
		}
		return r
	}, s)
}
