package softhsmtests

import (
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/kekd/kekd/hierarchy"
	"github.com/kekd/kekd/unix-socket-api/client"
	"github.com/kekd/kekd/unix-socket-api/kekdv1"
)

func creation(key string) *kekdv1.CreateKeyRequest { return &kekdv1.CreateKeyRequest{Key: key} }
func rotation(key string) *kekdv1.RotateKeyRequest { return &kekdv1.RotateKeyRequest{Key: key} }

// refusedForRoom fails the test unless it is a refusal for want of room that says what to do.
func refusedForRoom(t *testing.T, what string, err error) {
	t.Helper()
	if e := (*client.Error)(nil); !errors.Is(err, hierarchy.ErrCapacity) || !errors.As(err, &e) || !strings.Contains(err.Error(), "hsm.max_objects") {
		t.Errorf("%s: %v", what, err)
	}
}

// A token is never filled: keys are refused while each of those that exist can still be rotated, and
// versions before it is full. What there is works on, and with more room all goes on.
func TestTokenIsNeverFilled(t *testing.T) {
	t.Parallel()
	n := initialised(t)
	n.HSM = "max_objects = 30"
	m := n.behindFaults()
	d := n.serve()
	setUp(t, n.Node, "acme") // with acme/orders
	a := admin(t, n.Node)
	s := statusOf(t, n).Hsm
	if s.ObjectsMax != 30 || s.ObjectsUsed != 5 || s.ObjectsReserved != 1 { // a canary, the identity's pair, a mark, a KEK
		t.Fatalf("at first: %v", s)
	}

	// Requests at the same time are no way around it.
	var all sync.WaitGroup
	var mu sync.Mutex
	made := []string{"acme/orders"}
	for i := range 20 {
		all.Go(func() {
			name := fmt.Sprintf("acme/key-%d", i)
			_, err := a.CreateKey(within(t, 30*time.Second), creation(name))
			mu.Lock()
			defer mu.Unlock()
			if err == nil {
				made = append(made, name)
				return
			}
			refusedForRoom(t, name, err)
		})
	}
	all.Wait()
	s = statusOf(t, n).Hsm
	if s.ObjectsLeft < uint64(len(made)) || s.ObjectsUsed != uint64(4+len(made)) {
		t.Fatalf("after %d keys: %v", len(made), s)
	}
	if len(made) < 5 {
		t.Errorf("only %d keys were made", len(made))
	}
	if c := kekctlDoctor(t, n).find(t, "room"); c.Status == "missing" {
		t.Errorf("every key can be rotated, and doctor says %+v", c)
	}

	// An incident: every key is rotated. Then some more, until no version has room.
	sealed, err := keys(t, n.Node).GenerateDataKey(within(t, 10*time.Second), "acme/orders", 32, client.Options{})
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range made {
		if _, err := a.RotateKey(within(t, 30*time.Second), rotation(name)); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
	}
	for err == nil {
		_, err = a.RotateKey(within(t, 30*time.Second), rotation("acme/orders"))
	}
	refusedForRoom(t, "a version too many", err)
	_, err = a.CreateKey(within(t, 30*time.Second), creation("acme/one-more"))
	refusedForRoom(t, "a key too many", err)
	s = statusOf(t, n).Hsm
	if s.ObjectsLeft != 0 || s.ObjectsUsed >= s.ObjectsMax || s.Objects+4 != s.ObjectsUsed {
		t.Errorf("at the end: %v", s)
	}
	if files := objectFiles(t, n.SoftHSM+"/tokens"); len(files) != int(s.ObjectsUsed)+1 { // and token.object
		t.Errorf("the token has %d files, and %d objects are said to be used", len(files), s.ObjectsUsed)
	}
	said := kekctlDoctor(t, n)
	if c := said.find(t, "room"); said.exit != 2 || c.Status != "missing" || !strings.Contains(c.Action, "hsm.max_objects") {
		t.Errorf("doctor: exit status %d, %+v", said.exit, c)
	}
	sealAndOpen(t, n, "acme/orders")
	if opened, err := keys(t, n.Node).Unwrap(within(t, 10*time.Second), sealed.Envelope, client.Options{}); err != nil || string(opened.Plaintext) != string(sealed.Plaintext) {
		t.Errorf("what was sealed before: %v", err)
	}
	verifyAudit(t, n)
	d.stop()

	n.HSM = "max_objects = 60"
	m.Control.Clear()
	d = n.serve()
	if _, err := a.CreateKey(within(t, 30*time.Second), creation("acme/one-more")); err != nil {
		t.Errorf("with more room: %v", err)
	}
	d.stop()
}

// A token that is full although nobody knew it costs the key that was just asked for, and only for as
// long as it is full.
func TestTokenIsFullUnexpectedly(t *testing.T) {
	t.Parallel()
	n := initialised(t)
	m := n.behindFaults()
	m.Control.Set("token objects=5")
	d := n.serve()
	setUp(t, n.Node, "acme") // the fifth object is acme/orders
	a := admin(t, n.Node)
	_, err := a.CreateKey(within(t, 3*time.Second), creation("acme/mail"))
	if !errors.Is(err, hierarchy.ErrOutcomeUnknown) || !strings.Contains(err.Error(), "the token is full") {
		t.Errorf("the first key too many: %v", err)
	}
	_, err = a.CreateKey(within(t, 10*time.Second), creation("acme/files"))
	refusedFor(t, "the next one", err, "the token itself refuses")
	_, err = a.RotateKey(within(t, 10*time.Second), rotation("acme/orders"))
	refusedFor(t, "a rotation", err, "the token itself refuses")
	if c := kekctlDoctor(t, n).find(t, "room"); c.Status != "missing" {
		t.Errorf("doctor: %+v", c)
	}
	sealAndOpen(t, n, "acme/orders")

	m.Control.Set("token objects=100")
	eventually(t, 20*time.Second, "the key that was asked for is made", func() bool {
		k, err := a.GetKey(within(t, 10*time.Second), &kekdv1.GetKeyRequest{Key: "acme/mail"})
		return err == nil && k.Versions[0].State == "active"
	})
	if _, err := a.CreateKey(within(t, 10*time.Second), creation("acme/files")); err != nil {
		t.Errorf("with room: %v", err)
	}
	sealAndOpen(t, n, "acme/files")
	d.stop()
}

func refusedFor(t *testing.T, what string, err error, words string) {
	t.Helper()
	if !errors.Is(err, hierarchy.ErrCapacity) || !strings.Contains(err.Error(), words) {
		t.Errorf("%s: %v", what, err)
	}
}

// Where the token tells how much memory it has left, that counts, and is looked at again.
func TestTokenTellsItsMemory(t *testing.T) {
	t.Parallel()
	n := initialised(t)
	m := n.behindFaults()
	m.Control.Set("token free_private=9216") // nine keys of 1 KiB, of which eight are spare
	d := n.serve()
	setUp(t, n.Node)
	a := admin(t, n.Node)
	if _, err := a.CreateTenant(within(t, 10*time.Second), &kekdv1.CreateTenantRequest{Name: "acme"}); err != nil {
		t.Fatal(err)
	}
	var s *kekdv1.HSMStatus
	eventually(t, 20*time.Second, "the token was looked at", func() bool {
		got, err := a.GetStatus(within(t, 10*time.Second), &kekdv1.GetStatusRequest{})
		s = got.GetHsm()
		return err == nil && s.ObjectsMax > 0
	})
	if s.ObjectsLeft != 1 || s.ObjectsUsed != 4 {
		t.Errorf("status: %v", s)
	}
	_, err := a.CreateKey(within(t, 10*time.Second), creation("acme/orders"))
	refusedForRoom(t, "a key", err)
	m.Control.Set("token free_private=1000000")
	eventually(t, 20*time.Second, "it is noticed that there is room", func() bool {
		s, err := a.GetStatus(within(t, 10*time.Second), &kekdv1.GetStatusRequest{})
		return err == nil && s.Hsm.ObjectsLeft > 100
	})
	if _, err := a.CreateKey(within(t, 10*time.Second), creation("acme/orders")); err != nil {
		t.Errorf("with memory: %v", err)
	}
	d.stop()
}
