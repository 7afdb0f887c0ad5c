package main

import (
	"context"
	"crypto"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"

	"github.com/kekd/kekd/hsm"
)

// signing is the key that signs a node's audit journal, while init or join has it open, and what keeps the node's
// mark: its token, or where there is none two files.
type signing struct {
	signer   crypto.Signer
	identity []byte // SubjectPublicKeyInfo, DER
	marks    hsm.Marks
	close    func(context.Context) error
}

func signWith(s crypto.Signer, m hsm.Marks, close func(context.Context) error) (signing, error) {
	spki, err := x509.MarshalPKIXPublicKey(s.Public())
	return signing{s, spki, m, close}, err
}

// makeSigning makes the key, unless it is there, and what it lives in.
func makeSigning(ctx context.Context, c config, log *slog.Logger) (signing, error) {
	if !c.hasToken() {
		key, err := makeFileKey(c.Witness.Dir)
		if err != nil {
			return signing{}, err
		}
		kept, err := makeMarks(c.Witness)
		if err != nil {
			return signing{}, err
		}
		return signWith(key, kept, func(context.Context) error { return kept.Close() })
	}
	t, err := initToken(ctx, c.HSM, log)
	if err != nil {
		return signing{}, err
	}
	return signWith(t.identity, t, t.Close)
}

// shareSigning opens the token of a region that is there, and makes nothing.
func shareSigning(ctx context.Context, c config, log *slog.Logger) (signing, error) {
	pin, err := readPIN(c.HSM)
	if err != nil {
		return signing{}, err
	}
	defer pin.Wipe()
	t, err := openToken(ctx, c.HSM, true, pin, logRepairs(log, c.HSM.SoftHSM))
	if errors.Is(err, hsm.ErrKeyNotFound) {
		err = fmt.Errorf("the token has no identity, and that of region %s has one: this is another token. Give the node the one that its region has: %w", c.Node.Region, err)
	}
	if err != nil {
		return signing{}, err
	}
	return signWith(t.identity, t, t.Close)
}
