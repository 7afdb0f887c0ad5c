package main

import (
	"context"
	"io"
	"log/slog"
	"os/exec"

	"github.com/spf13/cobra"

	"github.com/kekd/kekd/hierarchy/audit"
	"github.com/kekd/kekd/hsm/pkcs11"
	"github.com/kekd/kekd/hsm/softhsm"
	"github.com/kekd/kekd/hsm/worker"
)

// The daemon itself never loads a PKCS#11 module. It starts this program again as its token
// workers, which do.

func tokenWorkerCommand() *cobra.Command {
	var path string
	cmd := &cobra.Command{
		Use:    "token-worker",
		Short:  "drive the token for a daemon, which starts this by itself",
		Hidden: true,
		Args:   cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return runTokenWorker(cmd.Context(), path, cmd.ErrOrStderr())
		},
	}
	cmd.Flags().StringVar(&path, "config", "/etc/kekd/kekd.toml", "configuration")
	return cmd
}

func runTokenWorker(ctx context.Context, path string, stderr io.Writer) error {
	c, err := loadConfig(path)
	if err != nil {
		return err
	}
	log, err := newLogger(stderr, c.Log)
	if err != nil {
		return err
	}
	harden(c.LockMemory) // the daemon has warned
	limitMemory()
	return worker.Serve(ctx, func(ctx context.Context, role worker.Role, pin []byte, repaired func(string)) (worker.Backend, error) {
		logged := logRepairs(log.With("node", c.Node.Name, "worker", role.String()), c.HSM.SoftHSM)
		return openBackend(ctx, c.HSM, role, pin, func(r softhsm.Report) {
			logged(r)
			for _, text := range r.Texts(audit.MaxDetail) {
				repaired(text)
			}
		})
	})
}

func openBackend(ctx context.Context, c hsmConfig, role worker.Role, pin []byte, repaired func(softhsm.Report)) (worker.Backend, error) {
	p, err := pkcs11.NewPIN(pin)
	if err != nil {
		return worker.Backend{}, err
	}
	t, err := openToken(ctx, c, role == worker.RoleManager, p, repaired)
	if err != nil {
		return worker.Backend{}, err
	}
	parallel, _ := t.selected.Profile()
	if c.Sessions > 0 {
		parallel = c.Sessions
	}
	b := worker.Backend{Token: t, Manager: t, Marks: t, Agreer: t, Examiner: t, Parallel: parallel, Failed: t.Failed(), Close: t.Close}
	if t.identity != nil {
		b.Signer = t.identity
	}
	return b, nil
}

// openWorkers starts the processes that drive the token, and returns when the first of them serves. What they put
// right of its directory is recorded.
func openWorkers(ctx context.Context, c config, path string, repaired *repairs, log *slog.Logger) (*worker.Pool, error) {
	return worker.Begin(ctx, worker.Config{
		Command: func() *exec.Cmd { return again("token-worker", "--config", path) },
		PIN: func() ([]byte, error) {
			pin, err := readPIN(c.HSM)
			return pin.Bytes(), err
		},
		Repaired: func(text string) { repaired.add(text) },
		Workers:  c.HSM.Workers,
		Log:      log,
	})
}
