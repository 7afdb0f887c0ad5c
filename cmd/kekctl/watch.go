package main

import (
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"github.com/kekd/kekd/hierarchy"
	"github.com/kekd/kekd/unix-socket-api/kekdv1"
)

type eventOut struct {
	Time     string     `json:"time"`
	Kind     string     `json:"kind"`
	Outcome  string     `json:"outcome"`
	Code     string     `json:"code"`
	Key      string     `json:"key"`
	Version  uint32     `json:"version"`
	Service  string     `json:"service"`
	Caller   *callerOut `json:"caller"` // null: the node itself
	Reason   string     `json:"reason"`
	Detail   string     `json:"detail"`
	Sequence uint64     `json:"seq"`
	Missed   uint64     `json:"missed"`
}

type callerOut struct {
	UID uint32 `json:"uid"`
	GID uint32 `json:"gid"`
	PID int32  `json:"pid"`
}

func newEventOut(e *kekdv1.TenantEvent) eventOut {
	out := eventOut{
		Time: timestamp(e.Time), Kind: e.Kind, Outcome: e.Outcome, Code: e.Code, Key: e.Key, Version: e.Version,
		Service: e.Service, Reason: e.Reason, Detail: e.Detail, Sequence: e.Sequence, Missed: e.Missed,
	}
	if c := e.Caller; c != nil {
		out.Caller = &callerOut{c.Uid, c.Gid, c.Pid}
	}
	return out
}

func (a *app) tenantWatchCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "watch NAME",
		Short: "Show a tenant's uses, refusals and limits that are hit, as they happen on this node",
		Long: `Show what happens to a tenant on this node, from now on and until interrupted: uses, refusals,
limits that are hit (once a window), and changes. The first line, of the kind watch, says that it has begun.
Whoever reads too slowly misses some, and is told how many by a line of the kind missed; they are in the
journal, which 'kekctl audit tail' reads. With -o json each line is an object.`,
		Args:              arguments("NAME"),
		ValidArgsFunction: a.completeTenant,
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := hierarchy.ValidateName(args[0]); err != nil {
				return err
			}
			return a.watch(cmd, args[0])
		},
	}
}

// watch prints events as they come. It ends by an interrupt, and that is no fault.
func (a *app) watch(cmd *cobra.Command, name string) error {
	ctx := cmd.Context()
	c, conn, err := a.connectAdmin(ctx)
	if err != nil {
		return err
	}
	defer conn.Close()
	events, err := c.WatchTenant(ctx, &kekdv1.WatchTenantRequest{Name: name})
	for err == nil {
		var e *kekdv1.TenantEvent
		if e, err = events.Recv(); err != nil {
			break
		}
		line := []byte(eventLine(e) + "\n")
		if a.output == "json" {
			if line, err = encodeLine(newEventOut(e)); err != nil {
				return err
			}
		}
		if err := a.write(line); err != nil {
			return err
		}
	}
	if errors.Is(err, io.EOF) || ctx.Err() != nil {
		return nil
	}
	return a.callFault(err)
}

// eventLine is an event for people.
func eventLine(e *kekdv1.TenantEvent) string {
	words := []string{timestamp(e.Time), e.Kind}
	add := func(ok bool, format string, args ...any) {
		if ok {
			words = append(words, fmt.Sprintf(format, args...))
		}
	}
	name := e.Key
	if e.Version != 0 {
		name += fmt.Sprintf("@%d", e.Version)
	}
	add(name != "", "%s", name)
	add(e.Outcome != "", "%s", e.Outcome)
	add(e.Code != "", "%s", e.Code)
	add(e.Service != "", "service=%s", e.Service)
	if c := e.Caller; c != nil {
		add(true, "uid=%d pid=%d", c.Uid, c.Pid)
	}
	add(e.Reason != "", "reason=%q", e.Reason)
	add(e.Detail != "", "detail=%q", e.Detail)
	add(e.Missed != 0, "%d events were missed: read faster", e.Missed)
	return printable(strings.Join(words, " "))
}
