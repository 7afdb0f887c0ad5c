package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/kekd/kekd/hierarchy"
	"github.com/kekd/kekd/unix-socket-api/kekdv1"
)

func (a *app) auditCommand() *cobra.Command {
	return group("audit", "The tamper-evident log",
		a.auditTailCommand(),
		a.auditVerifyCommand(),
		a.auditHeadCommand(),
	)
}

func (a *app) auditTailCommand() *cobra.Command {
	var (
		last   uint32
		follow bool
	)
	cmd := &cobra.Command{
		Use:   "tail [TENANT]",
		Short: "Show the last records of a tenant on this node, or of the whole node",
		Long: `Show the last records of a tenant on this node, or of the whole node.
With -o json each record is the line that stands in the journal, byte for byte.`,
		Args:              atMostOne("TENANT"),
		ValidArgsFunction: a.completeTenant,
	}
	cmd.Flags().Uint32VarP(&last, "last", "n", 20, "`HOW MANY` of the past")
	cmd.Flags().BoolVar(&follow, "follow", false, "go on with those to come, until interrupted")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		tenant := ""
		if len(args) == 1 {
			tenant = args[0]
			if err := hierarchy.ValidateName(tenant); err != nil {
				return err
			}
		}
		if last == 0 {
			return usagef(cmd, "-n has to be 1 or more")
		}
		return a.tail(cmd, &kekdv1.TailAuditRequest{Tenant: tenant, Last: last, Follow: follow})
	}
	return cmd
}

// tail prints records as they come. One that is followed ends by an interrupt, and that is no fault.
// A million records take their time, so it is the next one that has to come in time.
func (a *app) tail(cmd *cobra.Command, req *kekdv1.TailAuditRequest) error {
	ctx, cancel := context.WithCancelCause(cmd.Context())
	defer cancel(nil)
	patience := time.AfterFunc(a.timeout, func() { cancel(context.DeadlineExceeded) })
	defer patience.Stop()
	c, conn, err := a.connectAdmin(ctx)
	if err != nil {
		return err
	}
	defer conn.Close()
	records, err := c.TailAudit(ctx, req)
	for err == nil {
		if req.Follow {
			patience.Stop()
		} else {
			patience.Reset(a.timeout)
		}
		var record *kekdv1.AuditRecord
		if record, err = records.Recv(); err != nil {
			break
		}
		patience.Stop() // a pager may take what it wants
		line := record.Json
		if a.output != "json" {
			line = recordLine(line)
		}
		if err := a.write([]byte(line + "\n")); err != nil {
			return err
		}
	}
	if errors.Is(err, io.EOF) || req.Follow && cmd.Context().Err() != nil {
		return nil
	}
	if context.Cause(ctx) == context.DeadlineExceeded {
		return a.noAnswer()
	}
	return a.callFault(err)
}

// recordLine is a record for people: when, what, what became of it, and then all else that it says,
// without what only a verifier needs. A line that is not understood is shown as it is.
func recordLine(line string) string {
	var r struct {
		At         string  `json:"at"`
		Sequence   uint64  `json:"seq"`
		Kind       string  `json:"kind"`
		Outcome    string  `json:"outcome"`
		Code       string  `json:"code"`
		TenantName string  `json:"tenant_name"`
		Key        string  `json:"key"`
		Version    uint32  `json:"version"`
		Service    string  `json:"service"`
		UID        *uint32 `json:"uid"`
		PID        int64   `json:"pid"`
		Of         uint64  `json:"of"`
		Reason     string  `json:"reason"`
		Detail     string  `json:"detail"`
	}
	if err := json.Unmarshal([]byte(line), &r); err != nil {
		return printable(line)
	}
	words := []string{cmp.Or(r.At, "-"), fmt.Sprintf("#%d", r.Sequence), r.Kind}
	add := func(ok bool, format string, args ...any) {
		if ok {
			words = append(words, fmt.Sprintf(format, args...))
		}
	}
	name := r.TenantName
	if r.Key != "" {
		name += "/" + r.Key
	}
	if r.Version != 0 {
		name += fmt.Sprintf("@%d", r.Version)
	}
	add(name != "", "%s", name)
	add(r.Outcome != "", "%s", r.Outcome)
	add(r.Code != "", "%s", r.Code)
	add(r.Of != 0, "of=#%d", r.Of)
	add(r.Service != "", "service=%s", r.Service)
	if r.UID != nil {
		add(true, "uid=%d pid=%d", *r.UID, r.PID)
	}
	add(r.Reason != "", "reason=%q", r.Reason)
	add(r.Detail != "", "detail=%q", r.Detail)
	return printable(strings.Join(words, " "))
}
