package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/kekd/kekd/unix-socket-api/kekdv1"
)

// watchPeriod is how often a status that is watched is asked for.
const watchPeriod = time.Second

// redraw takes a terminal's cursor to its corner, and clears what is below of it.
const redraw = "\x1b[H\x1b[J"

// watchStatus shows the status anew each second, until it is interrupted. That a daemon does not answer
// is shown in its place: one that is started again is what somebody watches for.
func (a *app) watchStatus(cmd *cobra.Command) error {
	ctx := cmd.Context()
	tick := time.NewTicker(watchPeriod)
	defer tick.Stop()
	for {
		block, err := a.statusBlock(cmd)
		if ctx.Err() != nil {
			return nil
		}
		switch f, down := errors.AsType[*fault](err); {
		case err == nil && a.onTerminal():
			block = append([]byte(redraw), block...)
		case down && a.onTerminal():
			block = []byte(redraw + printable(f.message) + "\n")
		case down:
			f.render(a.stderr, a.output == "json")
		case err != nil:
			return err
		}
		if err := a.write(block); err != nil {
			return err
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil
		}
	}
}

// statusBlock is what one second shows: with JSON a line, else the status and the other members, and an
// empty line after it.
func (a *app) statusBlock(cmd *cobra.Command) ([]byte, error) {
	s, err := a.status(cmd)
	if err != nil {
		return nil, err
	}
	if a.output == "json" {
		return encodeLine(newStatusOut(s))
	}
	var b bytes.Buffer
	w := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	statusTable(w, s)
	w.Flush() // a bytes.Buffer takes everything
	if list, err := a.listNodes(cmd); err == nil && len(list.Nodes) > 1 {
		io.WriteString(w, "\n")
		nodeTable(w, list.Nodes)
		w.Flush()
	}
	fmt.Fprintln(&b)
	return b.Bytes(), nil
}

func (a *app) status(cmd *cobra.Command) (*kekdv1.Status, error) {
	return read(a, cmd, func(ctx context.Context, c kekdv1.AdminServiceClient) (*kekdv1.Status, error) {
		return c.GetStatus(ctx, &kekdv1.GetStatusRequest{})
	})
}

// onTerminal tells whether the result goes to somebody who looks at it.
func (a *app) onTerminal() bool {
	f, ok := a.stdout.(*os.File)
	return ok && a.output != "json" && term.IsTerminal(int(f.Fd()))
}
