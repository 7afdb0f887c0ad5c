package worker_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/kekd/kekd/hsm"
	"github.com/kekd/kekd/hsm/identity"
	"github.com/kekd/kekd/hsm/pkcs11"
	"github.com/kekd/kekd/hsm/softhsm"
	"github.com/kekd/kekd/hsm/worker"
)

// asWorker names the environment variable that makes this test binary a worker process; its
// value is a workerConfig.
const asWorker = "KEKD_TEST_WORKER"

// asDaemon makes it a daemon with workers, to be killed.
const asDaemon = "KEKD_TEST_DAEMON"

func TestMain(m *testing.M) {
	switch {
	case os.Getenv(asWorker) != "":
		if err := workerMain(os.Getenv(asWorker)); err != nil {
			fmt.Fprintln(os.Stderr, "worker:", err)
			os.Exit(1)
		}
		os.Exit(0)
	case os.Getenv(asDaemon) != "":
		if err := daemonMain(os.Getenv(asDaemon)); err != nil {
			fmt.Fprintln(os.Stderr, "daemon:", err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// workerConfig is what a worker of the tests has to know.
type workerConfig struct {
	Kind     string // token, or one that misbehaves: see misbehave
	Module   string
	Serial   string
	Label    string
	Dir      string // kept by package softhsm; empty: not
	Identity bool
	Copies   int
	Parallel int           // also the number of sessions
	Each     time.Duration // of a fake
	// Dies names a file. Who takes it away in the middle of a change dies of it: the module has
	// written, and nobody has looked at it yet.
	Dies string
}

func workerMain(config string) error {
	var c workerConfig
	if err := json.Unmarshal([]byte(config), &c); err != nil {
		return err
	}
	switch c.Kind {
	case "token":
	case "fake":
		return serveFake(c.Each, c.Parallel)
	case "deaf": // it does not end when its daemon hangs up
		_ = serveFake(0, 1)
		time.Sleep(time.Hour)
	default:
		return misbehave(c.Kind)
	}
	return worker.Serve(context.Background(), func(ctx context.Context, role worker.Role, pin []byte, repaired func(string)) (worker.Backend, error) {
		return c.open(ctx, role, pin, repaired)
	})
}

// open does what the daemon's command does: directory, identity, token.
func (c workerConfig) open(ctx context.Context, role worker.Role, pin []byte, repaired func(string)) (b worker.Backend, err error) {
	var g *softhsm.Guard
	if c.Dir != "" {
		dir, err := softhsm.Open(c.Dir)
		if err != nil {
			return b, err
		}
		g, err = dir.Attach(ctx, func(r softhsm.Report) {
			for _, text := range r.Texts(256) {
				repaired(text)
			}
		})
		if err != nil {
			return b, fmt.Errorf("%w: %w", hsm.ErrUnavailable, err)
		}
		os.Setenv("SOFTHSM2_CONF", dir.Conf())
	}
	selected, err := pkcs11.Probe(pkcs11.URI{Serial: c.Serial}, c.Module)
	if err != nil {
		return b, err
	}
	p, err := pkcs11.NewPIN(pin)
	if err != nil {
		return b, err
	}
	var id *identity.Identity
	if c.Identity && role == worker.RoleManager {
		err = change(ctx, g, func() (err error) {
			id, err = identity.Open(identity.Config{Module: c.Module, Serial: c.Serial, PIN: pin})
			return err
		})
		if err != nil {
			return b, err
		}
	}
	config := pkcs11.Config{PIN: p, Manager: role == worker.RoleManager, Appeals: role == worker.RoleServer, Copies: c.Copies, Slots: c.Parallel}
	if g != nil {
		config.Guard = g
		if c.Dies != "" {
			config.Guard = &mortal{Guard: g, marker: c.Dies}
		}
	}
	token, err := pkcs11.Open(ctx, selected, config)
	if err != nil {
		return b, err
	}
	b = worker.Backend{Token: token, Manager: token, Agreer: token, Marks: token, Examiner: token, Parallel: c.Parallel, Failed: token.Failed()}
	if id != nil {
		b.Signer = id
	}
	b.Close = func(ctx context.Context) error {
		errs := []error{token.Close(ctx)}
		if id != nil {
			errs = append(errs, id.Close())
		}
		if g != nil {
			errs = append(errs, g.Close())
		}
		return errors.Join(errs...)
	}
	return b, nil
}

// mortal dies in the middle of a change, once the marker is there.
type mortal struct {
	*softhsm.Guard
	marker string
}

func (m *mortal) Change(ctx context.Context, f func() error) error {
	return m.Guard.Change(ctx, func() error {
		err := f()
		if os.Remove(m.marker) == nil {
			_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
			select {}
		}
		return err
	})
}

func change(ctx context.Context, g *softhsm.Guard, f func() error) error {
	if g == nil {
		return f()
	}
	return g.Change(ctx, f)
}

// misbehave is a worker that is none.
func misbehave(kind string) error {
	f := os.NewFile(3, "socket")
	conn, err := net.FileConn(f)
	if err != nil {
		return err
	}
	switch kind {
	case "mute":
		time.Sleep(time.Hour)
	case "garbage":
		conn.Write([]byte(strings.Repeat("garbage!", 100)))
		time.Sleep(time.Hour)
	case "exit":
		note()
		os.Exit(3)
	}
	return fmt.Errorf("no such kind: %s", kind)
}

// note leaves a line in the file that KEKD_TEST_NOTES names: a process was here.
func note() {
	f, err := os.OpenFile(os.Getenv("KEKD_TEST_NOTES"), os.O_APPEND|os.O_WRONLY|os.O_CREATE, 0o600)
	if err == nil {
		fmt.Fprintln(f, os.Getpid())
		f.Close()
	}
}
