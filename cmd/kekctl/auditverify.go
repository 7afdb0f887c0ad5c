package main

import (
	"context"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/kekd/kekd/unix-socket-api/kekdv1"
)

type verifyOut struct {
	OK     bool       `json:"ok"`
	Chains []chainOut `json:"chains"`
	Faults []faultOut `json:"faults"`

	// Of a journal that was read here, without the daemon.
	Offline *offlineOut `json:"offline,omitempty"`
}

type chainOut struct {
	Node    string `json:"node"`
	Tenant  string `json:"tenant"` // empty: the node's own chain
	Records uint64 `json:"records"`
	Head    string `json:"head"` // hex
}

type faultOut struct {
	Where string `json:"where"` // file and line
	What  string `json:"what"`
}

func (a *app) auditVerifyCommand() *cobra.Command {
	var dir, keyFile string
	var anchorFiles []string
	cmd := &cobra.Command{
		Use:   "verify",
		Short: "Check that nothing in the log was changed, moved, removed or cut off",
		Long: `Check that nothing in the log was changed, moved, removed or cut off. The exit status is 1 if it was.

The daemon checks its own journal against its identity key and the heads that the cluster keeps.
With --dir the journal is read here, without a daemon, so that an auditor can check a copy. By itself
such a copy proves that it agrees with itself. --public-key proves whose it is; --anchor, that it has not
been cut off before that signed head, or written anew. 'kekctl audit head' prints one to be kept elsewhere.`,
		Example: `  kekctl audit verify
  kekctl audit verify --dir ./audit-copy --public-key node1.pem --anchor head.txt`,
		Args: arguments(),
	}
	cmd.Flags().StringVar(&dir, "dir", "", "`DIRECTORY` of a journal, or data directory of a daemon, to be read without the daemon")
	cmd.Flags().StringVar(&keyFile, "public-key", "", "`FILE` with the public key of the node's identity, in PEM or DER; with --dir")
	cmd.Flags().StringArrayVar(&anchorFiles, "anchor", nil, "`FILE` with a signed head that was kept elsewhere; with --dir; may be repeated")
	cmd.MarkFlagDirname("dir")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		verify := func() (*verifyOut, error) { return a.verifyByDaemon(cmd) }
		switch {
		case cmd.Flags().Changed("dir"):
			verify = func() (*verifyOut, error) { return verifyOffline(cmd.Context(), dir, keyFile, anchorFiles) }
		case keyFile != "" || len(anchorFiles) > 0:
			return usagef(cmd, "--public-key and --anchor go with --dir: the daemon knows its own")
		}
		out, err := verify()
		if err != nil {
			return err
		}
		if err := a.printVerification(out); err != nil {
			return err
		}
		if !out.OK {
			return auditFault(out.Faults)
		}
		return nil
	}
	return cmd
}

func auditFault(faults []faultOut) *fault {
	f := &fault{exit: exitLocal, code: codeAuditFault, message: "the audit log does not verify",
		hint: "keep the journal as it is, as evidence, and compare it with its copies elsewhere"}
	if n := len(faults); n > 0 {
		f.message += fmt.Sprintf(": %s: %s", faults[0].Where, faults[0].What)
		if n > 1 {
			f.message += fmt.Sprintf(" (and %d more)", n-1)
		}
	}
	return f
}

func (a *app) verifyByDaemon(cmd *cobra.Command) (*verifyOut, error) {
	r, err := read(a, cmd, func(ctx context.Context, c kekdv1.AdminServiceClient) (*kekdv1.VerifyAuditResponse, error) {
		return c.VerifyAudit(ctx, &kekdv1.VerifyAuditRequest{})
	})
	if err != nil {
		return nil, err
	}
	out := &verifyOut{OK: r.Ok, Chains: make([]chainOut, 0, len(r.Chains)), Faults: make([]faultOut, 0, len(r.Faults))}
	for _, c := range r.Chains {
		out.Chains = append(out.Chains, chainOut{c.Node, c.Tenant, c.Records, c.Head})
	}
	for _, f := range r.Faults {
		out.Faults = append(out.Faults, faultOut{f.Where, f.What})
	}
	return out, nil
}

func (a *app) printVerification(v *verifyOut) error {
	return a.print(v, func(w io.Writer) {
		row(w, "NODE", "TENANT", "RECORDS", "HEAD")
		for _, c := range v.Chains {
			row(w, c.Node, c.Tenant, c.Records, c.Head)
		}
		if len(v.Faults) > 0 {
			io.WriteString(w, "\n")
			row(w, "FAULT AT", "WHAT")
			for _, f := range v.Faults {
				row(w, f.Where, f.What)
			}
		}
		io.WriteString(w, "\n")
		if o := v.Offline; o != nil {
			key := "the key that the journal itself names; --public-key says whether it is the node's"
			if o.Pinned {
				key = "the key that was given"
			}
			row(w, "signatures", key)
			row(w, "sealed", fmt.Sprintf("up to record %d of %d", o.Sealed, o.Last))
			end := fmt.Sprintf("not proven: what was cut off after record %d leaves no trace here; an --anchor would tell", o.Last)
			if o.Anchored > 0 {
				end = fmt.Sprintf("proven up to record %d, by an anchor", o.Anchored)
			}
			row(w, "end", end)
		}
		row(w, "ok", yesNo(v.OK))
	})
}
