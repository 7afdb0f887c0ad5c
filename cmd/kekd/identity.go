package main

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"os"

	"github.com/kekd/kekd/hsm"
	"github.com/kekd/kekd/hsm/identity"
	"github.com/kekd/kekd/hsm/pkcs11"
	"github.com/kekd/kekd/hsm/softhsm"
)

// publishIdentity writes the public key that signs this node's journal to where auditors look for it,
// unless it is there. The file is for people: what the daemon trusts is pinned in the hierarchy.
func publishIdentity(dataDir string, spki []byte) error {
	text := pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: spki})
	if there, err := os.ReadFile(identityPath(dataDir)); err == nil && bytes.Equal(there, text) {
		return nil
	}
	return writeFileAtomic(identityPath(dataDir), text, 0o644)
}

// checkIdentity holds the token's identity against the one that the hierarchy has pinned for this
// region, or a witness's own key against the one that it joined with, and puts its file back if that was
// lost.
func (n *node) checkIdentity() error {
	spki, err := x509.MarshalPKIXPublicKey(n.signer.Public())
	if err != nil {
		return err
	}
	if s := n.raft.State(); n.token == nil {
		if m, ok := s.Node(n.self.NodeID); !ok || !bytes.Equal(m.Identity, spki) {
			return fmt.Errorf("the key in %s is not the one that this node joined with. Put the right one back", fileKeyPath(n.config.Witness.Dir))
		}
	} else if r, ok := s.Region(n.self.RegionID); !ok || !bytes.Equal(r.Identity, spki) {
		return fmt.Errorf("the token's identity is not the one that region %s was made with: this is another token, or one that was made anew. Put the right one back", n.self.Region)
	}
	if err := publishIdentity(n.config.DataDir, spki); err != nil {
		n.log.Warn("the identity's public key was not written for auditors", "error", err)
	}
	return nil
}

// mustBeFree refuses a token that has an identity already. A second cluster in it would sign with
// the first one's, so that nobody could tell their records and keys apart.
func mustBeFree(ctx context.Context, c hsmConfig, log *slog.Logger) (err error) {
	if c.SoftHSM != "" {
		if _, err := softhsm.Open(c.SoftHSM); errors.Is(err, softhsm.ErrMissing) {
			return nil // init makes it
		}
	}
	t := &openedToken{}
	defer func() { err = errors.Join(err, t.Close(context.WithoutCancel(ctx))) }()
	err = t.find(ctx, c, pkcs11.Probe, logRepairs(log, c.SoftHSM))
	switch {
	case c.SoftHSM != "" && errors.Is(err, hsm.ErrNoToken):
		return nil
	case err != nil:
		return err
	}
	pin, err := readPIN(c)
	if err != nil {
		return err
	}
	defer pin.Wipe()
	err = t.change(ctx, func() error {
		there, err := identity.Open(t.identityConfig(pin))
		if err != nil {
			return err
		}
		return there.Close()
	})
	switch {
	case errors.Is(err, hsm.ErrKeyNotFound):
		return nil
	case err != nil:
		return fmt.Errorf("the token's identity: %w", err)
	}
	return fmt.Errorf("the token %s (serial %s) has an identity already: it belongs to another cluster. Give this one a token of its own, "+
		"or put that cluster's data directory back. Only if that cluster is gone for ever, destroy its key pair %s first",
		t.selected.Label, t.selected.Serial, identity.Label)
}
