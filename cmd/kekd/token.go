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
	"time"

	"github.com/kekd/kekd/hsm"
	"github.com/kekd/kekd/hsm/identity"
	"github.com/kekd/kekd/hsm/pkcs11"
	"github.com/kekd/kekd/hsm/softhsm"
)

// openedToken is this region's token, driven in this process.
type openedToken struct {
	*pkcs11.Token
	identity *identity.Identity
	guard    *softhsm.Guard // nil: the token is not one that kekd looks after
}

// softHSMConf is where the token directory has its softhsm2.conf.
func softHSMConf(dir string) string { return filepath.Join(dir, "softhsm2.conf") }

// openToken opens the token and its identity in the order that the module demands: look, log
// in through crypto11, join.
func openToken(ctx context.Context, c hsmConfig, log *slog.Logger) (_ *openedToken, err error) {
	t := &openedToken{}
	defer func() {
		if err != nil {
			err = errors.Join(err, t.Close(context.WithoutCancel(ctx)))
		}
	}()
	selected, pin, err := t.find(ctx, c, log)
	if err != nil {
		return t, err
	}
	defer pin.Wipe()
	err = t.change(ctx, func() (err error) {
		t.identity, err = identity.Open(identity.Config{Module: selected.Module, Serial: selected.Serial, PIN: pin.Bytes()})
		return err
	})
	if err != nil {
		return t, fmt.Errorf("the token's identity: %w", err)
	}
	cfg := pkcs11.Config{Manager: true, Slots: c.Sessions, Copies: c.MaxCopies}
	if t.guard != nil {
		cfg.Guard = t.guard
	}
	t.Token, err = pkcs11.Open(ctx, selected, cfg)
	return t, err
}

// find prepares the directory, if it is ours, selects the token and reads its PIN.
func (t *openedToken) find(ctx context.Context, c hsmConfig, log *slog.Logger) (pkcs11.Selected, pkcs11.PIN, error) {
	uri, err := pkcs11.ParseURI(c.Token)
	if err != nil {
		return pkcs11.Selected{}, pkcs11.PIN{}, err
	}
	if c.SoftHSM != "" {
		if t.guard, err = attach(ctx, c.SoftHSM, log); err != nil {
			return pkcs11.Selected{}, pkcs11.PIN{}, err
		}
	}
	// In a bracket too: a look in the middle of another process's login finds no token.
	var selected pkcs11.Selected
	err = t.change(ctx, func() (err error) {
		selected, err = pkcs11.Probe(uri, c.Module)
		return err
	})
	if err != nil {
		return selected, pkcs11.PIN{}, err
	}
	pin, err := pkcs11.ReadPIN(uri.PINSource)
	return selected, pin, err
}

// repairTimeout is how long a repair waits for processes that have the token open. Where there
// are some, it is left to their brackets.
const repairTimeout = 2 * time.Second

// attach repairs the token directory, and points SoftHSM to it.
func attach(ctx context.Context, path string, log *slog.Logger) (*softhsm.Guard, error) {
	dir, err := softhsm.Open(path)
	if err != nil {
		return nil, err
	}
	notify := func(r softhsm.Report) {
		log.Warn("the token directory was put right", "directory", path, "report", r.String())
	}
	alone, cancel := context.WithTimeout(ctx, repairTimeout)
	defer cancel()
	switch report, err := dir.Repair(alone); {
	case err != nil && !errors.Is(err, softhsm.ErrInUse):
		return nil, err
	case !report.Empty():
		notify(report)
	}
	guard, err := dir.Attach(ctx, notify)
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
	if t.identity != nil {
		errs = append(errs, t.identity.Close())
	}
	if t.guard != nil {
		errs = append(errs, t.guard.Close())
	}
	return errors.Join(errs...)
}

// initToken makes sure that there is a token with an identity, and returns the identity's
// public key. What an interrupted init has made is used; a token that is somebody else's is
// only given an identity, never initialised.
func initToken(ctx context.Context, c hsmConfig, log *slog.Logger) (publicKey any, err error) {
	uri, err := pkcs11.ParseURI(c.Token)
	if err != nil {
		return nil, err
	}
	if c.SoftHSM != "" {
		if err := makeSoftHSM(ctx, c, uri, log); err != nil {
			return nil, err
		}
	}
	t := &openedToken{}
	defer func() { err = errors.Join(err, t.Close(context.WithoutCancel(ctx))) }()
	selected, pin, err := t.find(ctx, c, log)
	if err != nil {
		return nil, err
	}
	defer pin.Wipe()
	cfg := identity.Config{Module: selected.Module, Serial: selected.Serial, PIN: pin.Bytes()}
	open := func() (err error) {
		t.identity, err = identity.Open(cfg)
		return err
	}
	if err = t.change(ctx, open); errors.Is(err, hsm.ErrKeyNotFound) {
		create := func() (err error) {
			t.identity, err = identity.Create(cfg)
			return err
		}
		if t.guard != nil {
			err = t.guard.ChangeWhole(ctx, create)
		} else {
			err = create()
		}
	}
	if err != nil {
		return nil, fmt.Errorf("the token's identity: %w", err)
	}
	return t.identity.Public(), nil
}

// makeSoftHSM makes the embedded token: its directory, a PIN that nobody has seen, the token.
func makeSoftHSM(ctx context.Context, c hsmConfig, uri pkcs11.URI, log *slog.Logger) error {
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
	guard, err := attach(ctx, c.SoftHSM, log)
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
