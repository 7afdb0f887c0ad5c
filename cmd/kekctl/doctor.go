package main

import (
	"context"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"github.com/kekd/kekd/unix-socket-api/kekdv1"
)

type doctorOut struct {
	Checks  []checkOut  `json:"checks"`
	Orphans []orphanOut `json:"orphans"`
}

type checkOut struct {
	Name    string `json:"name"`
	Status  string `json:"status"` // ok, degraded or missing
	Meaning string `json:"meaning"`
	Action  string `json:"action"` // what to do; empty: nothing
}

const checkMissing = "missing"

func (a *app) doctorCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "doctor",
		Short: "Try what this node and its HSM are needed for",
		Long: `Try what this node and its HSM are needed for. Each line is ok, degraded (kekd does without) or missing
(it cannot), with what that means and what to do. No object is left in the token. The exit status is 2 if
something is missing. Before there is a node, 'kekd doctor --module' tries a token.`,
		Args: arguments(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			r, err := read(a, cmd, func(ctx context.Context, c kekdv1.AdminServiceClient) (*kekdv1.DoctorResponse, error) {
				return c.Doctor(ctx, &kekdv1.DoctorRequest{})
			})
			if err != nil {
				return err
			}
			out, err := newDoctorOut(r)
			if err != nil {
				return err
			}
			if err := a.print(out, func(w io.Writer) { doctorTable(w, out) }); err != nil {
				return err
			}
			return out.fault()
		},
	}
}

func newDoctorOut(r *kekdv1.DoctorResponse) (doctorOut, error) {
	out := doctorOut{Checks: make([]checkOut, 0, len(r.Checks)), Orphans: newOrphansOut(r.Orphans)}
	for _, c := range r.Checks {
		switch c.Status {
		case "ok", "degraded", checkMissing:
		default:
			return out, badAnswer("check %q is %q", c.Name, c.Status)
		}
		out.Checks = append(out.Checks, checkOut{c.Name, c.Status, c.Meaning, c.Action})
	}
	if len(out.Checks) == 0 {
		return out, badAnswer("nothing was tried")
	}
	return out, nil
}

func doctorTable(w io.Writer, out doctorOut) {
	for _, c := range out.Checks {
		row(w, c.Name, c.Status, c.Meaning)
		if c.Action != "" {
			io.WriteString(w, "\t\t-> "+printable(c.Action)+"\n")
		}
	}
	for _, o := range out.Orphans {
		row(w, "orphan", o.CKAID, o.Label)
	}
}

// fault is what a script sees of checks that are missing; nil if none is. They were printed before.
func (out doctorOut) fault() error {
	var names []string
	for _, c := range out.Checks {
		if c.Status == checkMissing {
			names = append(names, c.Name)
		}
	}
	if len(names) == 0 {
		return nil
	}
	return &fault{exit: exitRefused, code: codeCheckMissing, message: "something is missing that kekd cannot do without: " + strings.Join(names, ", "),
		hint: "each check that is missing says what to do"}
}
