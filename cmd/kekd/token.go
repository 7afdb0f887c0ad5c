package main

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/kekd/kekd/hsm"
	"github.com/kekd/kekd/hsm/identity"
	"github.com/kekd/kekd/hsm/pkcs11"
	"github.com/kekd/kekd/hsm/softhsm"
)

// openedToken is this region's token, driven in this process: a token worker, or init.
type openedToken struct {
	*pkcs11.Token
	connection *identity.Connection // of the manager alone, as is the identity
	identity   *identity.Identity
	guard      *softhsm.Guard // nil: the token is not one that kekd looks after
	selected   pkcs11.Selected
}

// softHSMConf is where the token directory has its softhsm2.conf.
func softHSMConf(dir string) string { return filepath.Join(dir, "softhsm2.conf") }

// openToken opens the token in the order that the module demands: look; log in through crypto11,
// where this process also signs; join. The identity is looked for while the keys are listed: both take SoftHSM a
// second with 10,000 objects. repaired is told what was put right, then and later.
func openToken(ctx context.Context, c hsmConfig, manager bool, pin pkcs11.PIN, repaired func(softhsm.Report)) (_ *openedToken, err error) {
	t := &openedToken{}
	defer func() {
		if err != nil {
			err = errors.Join(err, t.Close(context.WithoutCancel(ctx)))
		}
	}()
	look := pkcs11.Probe // and leave it to crypto11 to initialise the module
	if !manager {
		leave := func() error { return nil }
		defer func() { err = errors.Join(err, leave()) }()
		look = func(u pkcs11.URI, module string) (pkcs11.Selected, error) {
			s, l, err := pkcs11.Enter(u, module)
			if err == nil {
				leave = l
			}
			return s, err
		}
	}
	if err := t.find(ctx, c, look, repaired); err != nil {
		return t, err
	}
	cfg := pkcs11.Config{PIN: pin, Manager: manager, Appeals: !manager, Slots: c.Sessions, Copies: c.MaxCopies}
	if t.guard != nil {
		cfg.Guard = t.guard
	}
	if manager {
		err = t.change(ctx, func() (err error) {
			t.connection, err = identity.Connect(t.identityConfig(pin))
			return err
		})
		if err != nil {
			return t, err
		}
		cfg.Before = sync.OnceValue(t.findIdentity())
		defer cfg.Before() // nothing is closed under it
	}
	t.Token, err = pkcs11.Open(ctx, t.selected, cfg)
	return t, err
}

// findIdentity begins to look for the identity, and gives what waits for the end of it.
func (t *openedToken) findIdentity() (wait func() error) {
	found := make(chan error, 1)
	go func() {
		id, err := t.connection.Identity()
		if err != nil {
			err = fmt.Errorf("the token's identity: %w", err)
		}
		t.identity = id
		found <- err
	}()
	return func() error { return <-found }
}

func (t *openedToken) identityConfig(pin pkcs11.PIN) identity.Config {
	return identity.Config{Module: t.selected.Module, Serial: t.selected.Serial, PIN: pin.Bytes()}
}

// readPIN reads the PIN from where the token's URI says.
func readPIN(c hsmConfig) (pkcs11.PIN, error) {
	uri, err := pkcs11.ParseURI(c.Token)
	if err != nil {
		return pkcs11.PIN{}, err
	}
	pin, err := pkcs11.ReadPIN(uri.PINSource)
	if errors.Is(err, fs.ErrNotExist) {
		err = fmt.Errorf("%w: put the file back, or say with pin-source where it is; a token opens under its own PIN alone, and kekd makes none for a token that exists", err)
	}
	return pin, err
}

// find takes this process's part in the directory, if it is ours, and selects the token.
func (t *openedToken) find(ctx context.Context, c hsmConfig, look func(pkcs11.URI, string) (pkcs11.Selected, error), repaired func(softhsm.Report)) error {
	uri, err := pkcs11.ParseURI(c.Token)
	if err != nil {
		return err
	}
	if c.SoftHSM != "" {
		if t.guard, err = attach(ctx, c.SoftHSM, repaired); err != nil {
			return err
		}
	}
	// In a bracket too: a look in the middle of another process's login finds no token.
	return t.change(ctx, func() (err error) {
		t.selected, err = look(uri, c.Module)
		return err
	})
}

// repairTimeout is how long a repair waits for processes that have the token open: those of a daemon that
// was killed are just ending. Those of the region's other nodes are not, and it is left to their brackets
// then.
const repairTimeout = 500 * time.Millisecond

// repair puts the embedded token's directory right, before any worker has it open.
func repair(ctx context.Context, c hsmConfig, repaired func(softhsm.Report)) error {
	if c.SoftHSM == "" {
		return nil
	}
	dir, err := softhsm.Open(c.SoftHSM)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, repairTimeout)
	defer cancel()
	report, err := dir.Repair(ctx)
	if errors.Is(err, softhsm.ErrInUse) {
		err = nil
	}
	if !report.Empty() {
		repaired(report)
	}
	return err
}

// logRepairs says in the log what was put right.
func logRepairs(log *slog.Logger, directory string) func(softhsm.Report) {
	return func(r softhsm.Report) {
		log.Warn("the token directory was put right", "directory", directory, "report", r.String())
	}
}

// attach takes this process's part in the token directory, and points SoftHSM to it.
func attach(ctx context.Context, path string, repaired func(softhsm.Report)) (*softhsm.Guard, error) {
	dir, err := softhsm.Open(path)
	if err != nil {
		return nil, err
	}
	guard, err := dir.Attach(ctx, repaired)
	if err != nil {
		return nil, err
	}
	return guard, os.Setenv("SOFTHSM2_CONF", dir.Conf())
}

// change runs f in a bracket of the token directory.
func (t *openedToken) change(ctx context.Context, f func() error) error {
	if t.guard == nil {
		return f()
	}
	return t.guard.Change(ctx, f)
}

// Close lets go in the reverse order.
func (t *openedToken) Close(ctx context.Context) error {
	var errs []error
	if t.Token != nil {
		errs = append(errs, t.Token.Close(ctx))
	}
	if t.connection != nil {
		errs = append(errs, t.connection.Close())
	}
	if t.guard != nil {
		errs = append(errs, t.guard.Close())
	}
	return errors.Join(errs...)
}

// initToken makes sure that there is a token with an identity, and opens it. What an interrupted
// init has made is used; a token that is somebody else's is only given an identity, never
// initialised.
func initToken(ctx context.Context, c hsmConfig, log *slog.Logger) (*openedToken, error) {
	logged := logRepairs(log, c.SoftHSM) // there is no journal yet
	if c.SoftHSM != "" {
		if err := makeSoftHSM(ctx, c, logged); err != nil {
			return nil, err
		}
	}
	pin, err := readPIN(c)
	if err != nil {
		return nil, err
	}
	defer pin.Wipe()
	t, err := openToken(ctx, c, true, pin, logged)
	if !errors.Is(err, hsm.ErrKeyNotFound) {
		return t, err
	}
	if err := makeIdentity(ctx, c, pin, logged); err != nil {
		return nil, fmt.Errorf("the token's identity: %w", err)
	}
	return openToken(ctx, c, true, pin, logged)
}

func makeIdentity(ctx context.Context, c hsmConfig, pin pkcs11.PIN, repaired func(softhsm.Report)) (err error) {
	t := &openedToken{}
	defer func() { err = errors.Join(err, t.Close(context.WithoutCancel(ctx))) }()
	if err := t.find(ctx, c, pkcs11.Probe, repaired); err != nil {
		return err
	}
	create := func() error {
		made, err := identity.Create(t.identityConfig(pin))
		if err != nil {
			return err
		}
		return made.Close()
	}
	if t.guard == nil {
		return create()
	}
	return t.guard.ChangeWhole(ctx, create)
}

// makeSoftHSM makes the embedded token: its directory, a PIN that nobody has seen, the token.
func makeSoftHSM(ctx context.Context, c hsmConfig, repaired func(softhsm.Report)) error {
	uri, err := pkcs11.ParseURI(c.Token)
	if err != nil {
		return err
	}
	if uri.Token == "" {
		return fmt.Errorf("hsm.token: name the token to be made, such as pkcs11:token=kekd")
	}
	if _, err := softhsm.Create(c.SoftHSM); err != nil && !errors.Is(err, softhsm.ErrExists) {
		return err
	}
	// The PIN comes first: a token whose PIN was lost in a crash could never be opened.
	if err := makePIN(uri.PINSource); err != nil {
		return err
	}
	if err := repair(ctx, c, repaired); err != nil {
		return err
	}
	guard, err := attach(ctx, c.SoftHSM, repaired)
	if err != nil {
		return err
	}
	defer guard.Close()
	switch _, err := pkcs11.Probe(uri, c.Module); {
	case err == nil:
		return nil // an earlier init made it
	case !errors.Is(err, hsm.ErrNoToken):
		return err
	}
	pin, err := pkcs11.ReadPIN(uri.PINSource)
	if err != nil {
		return err
	}
	defer pin.Wipe()
	soPIN, err := pkcs11.NewPIN(randomPIN()) // of no use afterwards, so nobody has it
	if err != nil {
		return err
	}
	defer soPIN.Wipe()
	return guard.ChangeWhole(ctx, func() error {
		_, err := pkcs11.InitToken(c.Module, uri.Token, soPIN, pin)
		return err
	})
}

func makePIN(source string) error {
	path, ok := strings.CutPrefix(source, "file:")
	if !ok || !filepath.IsAbs(path) {
		return fmt.Errorf("hsm.token: give pin-source=file:/absolute/path, where the token's PIN is to be written")
	}
	if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	pin := append(randomPIN(), '\n')
	defer clear(pin)
	return writeFileAtomic(path, pin, 0o600)
}

// randomPIN is 128 bits in hex.
func randomPIN() []byte {
	var b [16]byte
	rand.Read(b[:])
	return hex.AppendEncode(nil, b[:])
}
