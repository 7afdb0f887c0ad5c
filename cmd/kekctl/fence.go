package main

import (
	"context"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/kekd/kekd/unix-socket-api/kekdv1"
)

// fenceOut is how far a change that closes is effective. It is a group of fields of the command's result, and absent
// where nothing was closed.
type fenceOut struct {
	Fenced    bool            `json:"fenced"`
	Index     uint64          `json:"index"`
	ElapsedMS int64           `json:"elapsed_ms"`
	Nodes     []fencedNodeOut `json:"nodes"`
}

type fencedNodeOut struct {
	ID   string `json:"id"`
	Name string `json:"name"`
	How  string `json:"how"` // acknowledged or lease-expired
}

func newFenceOut(f *kekdv1.Fence) *fenceOut {
	if f == nil {
		return nil
	}
	out := &fenceOut{Fenced: f.Fenced, Index: f.Index, ElapsedMS: time.Duration(f.Elapsed).Milliseconds(), Nodes: make([]fencedNodeOut, 0, len(f.Nodes))}
	for _, n := range f.Nodes {
		out.Nodes = append(out.Nodes, fencedNodeOut{n.Id, n.Name, n.How})
	}
	return out
}

// writeFence says it in words, if there is something to say.
func writeFence(w io.Writer, f *kekdv1.Fence) {
	if f == nil {
		return
	}
	text := fmt.Sprintf("not fenced yet: it is committed, at index %d, and nodes may serve from the state before it until their leases run out", f.Index)
	if f.Fenced {
		text = fmt.Sprintf("fenced: no node serves from the state before index %d", f.Index)
		var nodes []string
		for _, n := range f.Nodes {
			nodes = append(nodes, n.Name+" "+n.How)
		}
		if len(nodes) > 0 {
			text += fmt.Sprintf(", after %v: %s", time.Duration(f.Elapsed).Round(time.Millisecond), strings.Join(nodes, ", "))
		}
	}
	io.WriteString(w, "\n"+printable(text)+"\n")
}

const noWaitFlag = "no-wait"

// closing marks a command that closes something, or may: it returns when that is effective on every node.
func closing(cmd *cobra.Command) *cobra.Command {
	cmd.Flags().Bool(noWaitFlag, false, "return when it is committed, and do not wait until no node serves from the state before it")
	return changing(cmd)
}

func noWait(cmd *cobra.Command) bool {
	is, _ := cmd.Flags().GetBool(noWaitFlag)
	return is
}

const (
	// answerPatience is how much longer than the daemon needs at most to wait for its answer.
	answerPatience = 5 * time.Second
	// askTime is how long the daemon may take to say how long it needs.
	askTime = 5 * time.Second
)

// waitForFence sets for how long to wait for a change that closes, which depends on the max_staleness of a tenant, or where it is not
// about one alone, of all; unless that was said with --timeout.
func (a *app) waitForFence(cmd *cobra.Command, tenant string) {
	if bound, known := a.fenceBound(cmd, tenant); known {
		a.timeout = bound + answerPatience
	}
}

// mayWaitForFence is that for a change that may as well open something.
func (a *app) mayWaitForFence(cmd *cobra.Command, tenant string) {
	if bound, known := a.fenceBound(cmd, tenant); known {
		a.timeout = max(a.timeout, bound+answerPatience)
	}
}

// fenceBound is what the daemon says. That it says nothing is no fault: what is wrong is heard from the change itself.
func (a *app) fenceBound(cmd *cobra.Command, tenant string) (time.Duration, bool) {
	if noWait(cmd) || cmd.Flags().Changed("timeout") {
		return 0, false
	}
	usual := a.timeout
	defer func() { a.timeout = usual }()
	a.timeout = min(usual, askTime)
	r, err := read(a, cmd, func(ctx context.Context, c kekdv1.AdminServiceClient) (*kekdv1.GetFenceBoundResponse, error) {
		return c.GetFenceBound(ctx, &kekdv1.GetFenceBoundRequest{Tenant: tenant})
	})
	if err != nil {
		return 0, false
	}
	return time.Duration(r.Bound), true
}

// tenantOfPattern is the tenant that a rule is about; empty: any.
func tenantOfPattern(pattern string) string {
	tenant, _, _ := strings.Cut(pattern, "/")
	if strings.Contains(tenant, "*") {
		return ""
	}
	return tenant
}
