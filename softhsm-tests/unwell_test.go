package softhsmtests

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/kekd/kekd/hierarchy"
	"github.com/kekd/kekd/unix-socket-api/client"
	"github.com/kekd/kekd/unix-socket-api/kekdv1"
)

// TestTokenIsGoneForAWhile: a node whose token is gone takes no lease, says why to its callers and in its status, says of a disable that
// it is not known to be complete, and serves again by itself once the token is back.
func TestTokenIsGoneForAWhile(t *testing.T) {
	t.Parallel()
	n := initialised(t)
	d := n.serve()
	setUp(t, n.Node, "acme", "globex")
	c, a := keys(t, n.Node), admin(t, n.Node)
	fresh := func() bool {
		s, err := a.GetStatus(within(t, 10*time.Second), &kekdv1.GetStatusRequest{})
		return err == nil && s.Fresh
	}
	made, err := c.GenerateDataKey(within(t, 10*time.Second), "acme/orders", 32, client.Options{})
	if err != nil {
		t.Fatal(err)
	}
	unwrap := func() error {
		_, err := c.Unwrap(within(t, 10*time.Second), made.Envelope, client.Options{})
		return err
	}
	tokens := filepath.Join(filepath.Dir(n.SoftHSM2Conf), "tokens")
	if err := os.Rename(tokens, tokens+".gone"); err != nil {
		t.Fatal(err)
	}
	eventually(t, 30*time.Second, "the node has no lease", func() bool { return !fresh() })
	eventually(t, 30*time.Second, "its callers are told why", func() bool {
		err := unwrap()
		return errors.Is(err, hierarchy.ErrHSMUnavailable) && strings.Contains(err.Error(), "has not answered for") && strings.Contains(err.Error(), "last proved current")
	})
	// It cannot write its mark into the token, without which nobody is told that the tenant will stay disabled.
	again := &kekdv1.DisableTenantRequest{IdempotencyId: []byte("once and for all"), Name: "globex", Reason: "incident"}
	if _, err := a.DisableTenant(within(t, 20*time.Second), again); !errors.Is(client.FromError(err), hierarchy.ErrOutcomeUnknown) {
		t.Errorf("a disable meanwhile: %v", err)
	}
	_ = os.RemoveAll(tokens) // somebody may have made another
	if err := os.Rename(tokens+".gone", tokens); err != nil {
		t.Fatal(err)
	}
	eventually(t, 30*time.Second, "it serves again", func() bool { return unwrap() == nil })
	if !fresh() {
		t.Error("it serves, and status says that it does not")
	}
	if done, err := a.DisableTenant(within(t, 20*time.Second), again); err != nil || !done.GetFence().GetFenced() {
		t.Errorf("the same disable again: %v, %v", done, err)
	}
	eventually(t, 30*time.Second, "all is well", func() bool {
		s, err := a.GetStatus(within(t, 10*time.Second), &kekdv1.GetStatusRequest{})
		return err == nil && s.Hsm.Healthy
	})
	d.stop()
}
