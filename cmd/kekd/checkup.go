package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/kekd/kekd/hsm"
	"github.com/kekd/kekd/hsm/pkcs11"
	"github.com/kekd/kekd/hsm/softhsm"
)

// A checkup loads a module that nobody knows yet. So it has a process of its own, which may crash or
// hang, and tells each check when it is done.

// checkupTimeout is how long a module may take for all of a checkup: over a network each of some
// hundred calls takes some milliseconds.
const checkupTimeout = 60 * time.Second

// fdChecks is where the process of a checkup tells its checks: what a module prints goes elsewhere.
const fdChecks = 3

// runCheckup runs a checkup in a process of its own, to which the PIN goes through a pipe, until ctx
// ends.
func runCheckup(ctx context.Context, module, uri string, pin pkcs11.PIN) ([]hsm.Check, error) {
	r, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer r.Close()
	cmd := again("token-checkup", "--module", module, "--token-uri", uri)
	cmd.Stdin = bytes.NewReader(pin.Bytes())
	said := &beginning{}
	cmd.Stderr = said
	cmd.ExtraFiles = []*os.File{w}
	// The PIN goes with whoever asked for it. main's thread lives as long as the process does.
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	err = cmd.Start()
	w.Close()
	if err != nil {
		return nil, err
	}
	stop := context.AfterFunc(ctx, func() { _ = cmd.Process.Kill() })
	defer stop()
	var checks []hsm.Check
	for lines := bufio.NewScanner(r); lines.Scan(); {
		var c hsm.Check
		if err := json.Unmarshal(lines.Bytes(), &c); err != nil {
			return nil, fmt.Errorf("the checkup's process: %w", err)
		}
		checks = append(checks, c)
	}
	if err := cmd.Wait(); err != nil {
		checks = append(checks, ended(ctx, checks, said.cause(err)))
	} else if _, err := os.Stderr.Write(said.b); err != nil {
		return nil, err
	}
	return checks, nil
}

// beginning keeps the beginning of what a module has said, and of what the runtime says of its crash,
// which is many pages.
type beginning struct{ b []byte }

func (s *beginning) Write(p []byte) (int, error) {
	s.b = append(s.b, p[:min(len(p), 4096-len(s.b))]...)
	return len(p), nil
}

// cause is the signal that the runtime caught and ended the process for, or how it ended otherwise.
func (s *beginning) cause(err error) error {
	for line := range strings.Lines(string(s.b)) {
		if strings.HasPrefix(line, "SIG") {
			return errors.New(strings.TrimSpace(line))
		}
	}
	return err
}

// ended says how a checkup came to an end that was none.
func ended(ctx context.Context, checks []hsm.Check, err error) hsm.Check {
	where := "while it was loaded"
	if n := len(checks); n > 0 {
		where = fmt.Sprintf("after %q had been tried", checks[n-1].Name)
	}
	what := fmt.Sprintf("it ended its process %s (%v)", where, err)
	if ctx.Err() != nil {
		what = fmt.Sprintf("it hung %s", where)
	}
	return hsm.Failed("module", what+": kekd's workers would end in the same way, and no key could be used", "see what the module's own log says, and use another version of it")
}

func tokenCheckupCommand() *cobra.Command {
	var module, uri string
	cmd := &cobra.Command{
		Use:    "token-checkup",
		Short:  "examine a token for kekd doctor, which starts this by itself",
		Hidden: true,
		Args:   cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return runTokenCheckup(cmd.Context(), module, uri)
		},
	}
	cmd.Flags().StringVar(&module, "module", "", "path of the module")
	cmd.Flags().StringVar(&uri, "token-uri", "", "the token's URI")
	return cmd
}

func runTokenCheckup(ctx context.Context, module, uri string) error {
	harden(false)
	out := os.NewFile(fdChecks, "checks")
	u, err := parseToken(uri)
	if err != nil {
		return err
	}
	given, err := io.ReadAll(os.Stdin)
	if err != nil {
		return err
	}
	defer clear(given)
	var pin pkcs11.PIN
	if len(given) > 0 {
		if pin, err = pkcs11.NewPIN(given); err != nil {
			return err
		}
	}
	enc := json.NewEncoder(out)
	tell := func(c hsm.Check) { err = errors.Join(err, enc.Encode(c)) }
	dir, guard, guardErr := ownDirectory(ctx)
	if guardErr != nil {
		tell(hsm.Failed("durability", fmt.Sprintf("the token's directory is kekd's, and not as it must be: %v", guardErr), "run kekd init, or kekd serve, which repairs what a crash left"))
		return err
	}
	var bracket pkcs11.Guard
	if guard != nil {
		defer guard.Close()
		bracket = guard
	}
	if selected := pkcs11.Checkup(ctx, u, module, pin, bracket, tell); selected.Module != "" {
		tell(durability(dir, selected.IsSoftHSM()))
	}
	return err
}

// ownDirectory takes this process's part in the token directory that SOFTHSM2_CONF leads to, if it is
// one that kekd looks after: a node may be using it. Else all it returns is nil.
func ownDirectory(ctx context.Context) (*softhsm.Dir, *softhsm.Guard, error) {
	conf := os.Getenv("SOFTHSM2_CONF")
	if conf == "" {
		return nil, nil, nil
	}
	dir, err := softhsm.Open(filepath.Dir(conf))
	if errors.Is(err, softhsm.ErrMissing) || err == nil && dir.Conf() != filepath.Clean(conf) {
		return nil, nil, nil
	}
	if err != nil {
		return nil, nil, err
	}
	guard, err := dir.Attach(ctx, func(softhsm.Report) {})
	return dir, guard, err
}

// durability says whether what the token acknowledges survives a crash. dir is the directory that
// kekd looks after, nil if there is none.
func durability(dir *softhsm.Dir, softHSM bool) hsm.Check {
	const name = "durability"
	switch {
	case dir != nil:
		bare, err := dir.Unshadowed()
		if err != nil {
			return hsm.Failed(name, fmt.Sprintf("the token's directory cannot be read: %v", err), "see what is wrong with its disk")
		}
		if len(bare) > 0 {
			return hsm.Lacking(name, fmt.Sprintf("%d files of the token have no copy, the first is %s: a crash in the middle of a change may lose them", len(bare), bare[0]),
				"nothing, if keys are being made right now; else start the daemon again, which makes the copies")
		}
		return hsm.Passed(name, "each change of the token is synced, and has a copy, before it counts: a crash loses nothing")
	case softHSM:
		return hsm.Lacking(name, "SoftHSM rewrites its files in place and never syncs them: a crash can lose keys, or the whole token",
			"let kekd look after the directory: set hsm.softhsm and run kekd init")
	}
	return hsm.Lacking(name, "it cannot be tried whether what the token acknowledges survives a crash: that is its vendor's promise", "see the vendor's manual, and how the token is backed up")
}
