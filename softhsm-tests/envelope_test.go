package softhsmtests

import (
	"bytes"
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/kekd/kekd/hierarchy"
	"github.com/kekd/kekd/hierarchy/envelope"
	"github.com/kekd/kekd/unix-socket-api/client"
	"github.com/kekd/kekd/unix-socket-api/kekdv1"
)

// What must not open does not, in whatever way it is put before a daemon, and an innocent caller
// does not notice.
func TestEnvelopes(t *testing.T) {
	t.Parallel()
	n := initialised(t)
	d := n.serve()
	setUp(t, n.Node, "acme", "globex")
	p := probe(t, n, "globex/orders")
	c := keys(t, n.Node)
	with := client.Options{Context: map[string]string{"app": "billing"}}
	sealed, err := c.GenerateDataKey(within(t, 10*time.Second), "acme/orders", 32, with)
	if err != nil {
		t.Fatal(err)
	}
	parsed, err := envelope.Parse(sealed.Envelope)
	if err != nil {
		t.Fatal(err)
	}
	text, err := parsed.Text()
	if err != nil {
		t.Fatal(err)
	}

	t.Run("truncated", func(t *testing.T) {
		for _, whole := range [][]byte{sealed.Envelope, []byte(text)} {
			var bad [][]byte
			for i := range whole {
				bad = append(bad, whole[:i], whole[i+1:])
			}
			noneOpens(t, c, bad, with, "ENVELOPE_INVALID", "CONTEXT_MISMATCH", "PERMISSION_DENIED")
		}
	})
	t.Run("extended", func(t *testing.T) {
		var bad [][]byte
		for _, whole := range [][]byte{sealed.Envelope, []byte(text)} {
			for _, more := range []string{"\x00", " ", "A", "\n\n", string(whole)} {
				bad = append(bad, append(slices.Clone(whole), more...), append([]byte(more), whole...))
			}
		}
		noneOpens(t, c, bad, with, "ENVELOPE_INVALID")
	})
	t.Run("every bit", func(t *testing.T) {
		var bad [][]byte
		for i := range sealed.Envelope {
			for bit := range 8 {
				m := slices.Clone(sealed.Envelope)
				m[i] ^= 1 << bit
				bad = append(bad, m)
			}
		}
		noneOpens(t, c, bad, with, "ENVELOPE_INVALID", "CONTEXT_MISMATCH", "PERMISSION_DENIED", "FAILED_PRECONDITION")
	})
	t.Run("every character of the text", func(t *testing.T) {
		var bad [][]byte
		for i := range text {
			for _, with := range []byte("A_z+/= \x00") {
				if text[i] != with {
					m := []byte(text)
					m[i] = with
					bad = append(bad, m)
				}
			}
		}
		noneOpens(t, c, bad, with, "ENVELOPE_INVALID", "CONTEXT_MISMATCH", "PERMISSION_DENIED", "FAILED_PRECONDITION")
	})
	t.Run("oversized", func(t *testing.T) {
		// Of the right form, but larger than any may be; and no form at all.
		large := *parsed
		large.Recipients = []envelope.Recipient{parsed.Recipients[0]}
		large.Recipients[0].Ciphertext = make([]byte, envelope.MaxPlaintext+envelope.TagSize)
		edge, err := large.Marshal()
		if err != nil {
			t.Fatal(err)
		}
		noneOpens(t, c, [][]byte{edge}, with, "CONTEXT_MISMATCH")
		noneOpens(t, c, [][]byte{make([]byte, envelope.MaxSize+1), bytes.Repeat([]byte{0xff}, 64<<10), []byte("kekd:v1:" + strings.Repeat("A", 100<<10))}, with, "ENVELOPE_INVALID")
		_, err = c.Unwrap(within(t, 10*time.Second), make([]byte, 2<<20), with)
		if code := codeOf(err); code != "INVALID_ARGUMENT" {
			t.Errorf("a message of 2 MiB: %v", err)
		}
	})
	t.Run("replayed", func(t *testing.T) {
		for range 3 {
			for _, e := range [][]byte{sealed.Envelope, []byte(text), []byte(text + "\n")} {
				opened, err := c.Unwrap(within(t, 10*time.Second), e, with)
				if err != nil || !bytes.Equal(opened.Plaintext, sealed.Plaintext) {
					t.Fatalf("the same envelope again: %v", err)
				}
			}
		}
	})
	t.Run("wrong context", func(t *testing.T) {
		for _, other := range []map[string]string{nil, {"app": "Billing"}, {"app": ""}, {"App": "billing"}, {"app": "billing", "x": ""}, {"appb": "illing"}} {
			noneOpens(t, c, [][]byte{sealed.Envelope}, client.Options{Context: other}, "CONTEXT_MISMATCH")
		}
	})
	t.Run("of a version that is not", func(t *testing.T) {
		e := *parsed
		e.Version = 2
		b, err := e.Marshal()
		if err != nil {
			t.Fatal(err)
		}
		noneOpens(t, c, [][]byte{b}, with, "ENVELOPE_INVALID")
	})
	t.Run("under another tenant's name", func(t *testing.T) {
		other, err := c.GenerateDataKey(within(t, 10*time.Second), "globex/orders", 32, with)
		if err != nil {
			t.Fatal(err)
		}
		theirs, err := envelope.Parse(other.Envelope)
		if err != nil {
			t.Fatal(err)
		}
		// One's header and the other's ciphertext.
		crossed := envelope.Envelope{Header: theirs.Header, Recipients: parsed.Recipients}
		b, err := crossed.Marshal()
		if err != nil {
			t.Fatal(err)
		}
		noneOpens(t, c, [][]byte{b}, with, "CONTEXT_MISMATCH")
	})
	t.Run("of another cluster", func(t *testing.T) {
		other := newNode(t)
		other.init()
		stranger := other.serve()
		setUp(t, other.Node, "acme")
		foreign, err := keys(t, other.Node).GenerateDataKey(within(t, 10*time.Second), "acme/orders", 32, with)
		if err != nil {
			t.Fatal(err)
		}
		stranger.stop()
		theirs, err := envelope.Parse(foreign.Envelope)
		if err != nil {
			t.Fatal(err)
		}
		noneOpens(t, c, [][]byte{foreign.Envelope}, with, "PERMISSION_DENIED")
		// Also not under IDs of this one.
		renamed := *theirs
		renamed.Tenant, renamed.Key = parsed.Tenant, parsed.Key
		first, err := renamed.Marshal()
		if err != nil {
			t.Fatal(err)
		}
		renamed.SealedIn = parsed.SealedIn
		renamed.Recipients = []envelope.Recipient{theirs.Recipients[0]}
		renamed.Recipients[0].Region = parsed.Recipients[0].Region
		second, err := renamed.Marshal()
		if err != nil {
			t.Fatal(err)
		}
		noneOpens(t, c, [][]byte{first}, with, "FAILED_PRECONDITION")
		noneOpens(t, c, [][]byte{second}, with, "CONTEXT_MISMATCH")
	})
	t.Run("names", func(t *testing.T) {
		for _, name := range badNames {
			_, err := c.GenerateDataKey(within(t, 10*time.Second), name, 32, with)
			if code := codeOf(err); code != "INVALID_ARGUMENT" {
				t.Errorf("%.80q: %s, %v", name, code, err)
			}
		}
		for _, name := range []string{"acme/nothing", "nobody/orders"} {
			_, err := c.GenerateDataKey(within(t, 10*time.Second), name, 32, with)
			if code := codeOf(err); code != "NOT_FOUND" {
				t.Errorf("%s: %s, %v", name, code, err)
			}
		}
	})
	t.Run("names of tenants and keys", func(t *testing.T) {
		a := admin(t, n.Node)
		for _, name := range badNames {
			if _, err := a.CreateKey(within(t, 10*time.Second), &kekdv1.CreateKeyRequest{Key: name}); codeOf(err) != "INVALID_ARGUMENT" {
				t.Errorf("key %.80q: %v", name, err)
			}
			if strings.Contains(name, "/") || name == "acme" {
				name = strings.ReplaceAll(name, "/", "") + "_"
			}
			if _, err := a.CreateTenant(within(t, 10*time.Second), &kekdv1.CreateTenantRequest{Name: name}); codeOf(err) != "INVALID_ARGUMENT" {
				t.Errorf("tenant %.80q: %v", name, err)
			}
		}
		if _, err := a.CreateTenant(within(t, 10*time.Second), &kekdv1.CreateTenantRequest{Name: "acme"}); codeOf(err) != "ALREADY_EXISTS" {
			t.Errorf("a tenant again: %v", err)
		}
		if _, err := a.CreateKey(within(t, 10*time.Second), &kekdv1.CreateKeyRequest{Key: "acme/orders"}); codeOf(err) != "ALREADY_EXISTS" {
			t.Errorf("a key again: %v", err)
		}
		if _, err := a.CreateKey(within(t, 10*time.Second), &kekdv1.CreateKeyRequest{Key: "nobody/orders"}); codeOf(err) != "NOT_FOUND" {
			t.Errorf("a key of no tenant: %v", err)
		}
	})
	t.Run("contexts", func(t *testing.T) {
		k, closer, err := client.DialKeys(n.Socket)
		if err != nil {
			t.Fatal(err)
		}
		defer closer.Close()
		many := make([]*kekdv1.ContextEntry, hierarchy.MaxContextEntries+1)
		for i := range many {
			many[i] = &kekdv1.ContextEntry{Key: fmt.Sprint(i)}
		}
		for what, entries := range map[string][]*kekdv1.ContextEntry{
			"a key twice":       {{Key: "app", Value: "billing"}, {Key: "app", Value: "billing"}},
			"two values":        {{Key: "app", Value: "billing"}, {Key: "app", Value: "other"}},
			"an empty key":      {{Value: "billing"}},
			"a long key":        {{Key: strings.Repeat("k", hierarchy.MaxContextKeyLen+1)}},
			"a long value":      {{Key: "app", Value: strings.Repeat("v", hierarchy.MaxContextValueLen+1)}},
			"too many entries":  many,
			"an enormous value": {{Key: "app", Value: strings.Repeat("v", 512<<10)}},
		} {
			_, sealing := k.GenerateDataKey(within(t, 10*time.Second), &kekdv1.GenerateDataKeyRequest{Key: "acme/orders", Context: entries})
			_, opening := k.Unwrap(within(t, 10*time.Second), &kekdv1.UnwrapRequest{Envelope: sealed.Envelope, Context: entries})
			if codeOf(sealing) != "INVALID_ARGUMENT" || codeOf(opening) != "INVALID_ARGUMENT" {
				t.Errorf("%s: sealing %v, opening %v", what, sealing, opening)
			}
		}
	})

	p.stop()
	verifyAudit(t, n)
	d.stop()
	if strings.Contains(d.says(), "panic") {
		t.Error("a call panicked")
	}
}

var badNames = []string{
	"", "/", "acme", "acme/", "/orders", "acme/orders/x", "acme//orders", "ACME/orders", "acme/Orders", "acme/orders@1",
	"-acme/orders", "acme-/orders", "acme/-", "acme/..", "../orders", "acme/*", "*/orders", "acme /orders", "acme/orders\n", "acme/orders\x00",
	"acme/\u00f6rders", "acme/" + strings.Repeat("o", 64), strings.Repeat("a", 64) + "/orders", strings.Repeat("a", 100<<10),
}

// noneOpens unwraps and rewraps the envelopes, in batches, and wants each refused with one of the codes.
func noneOpens(t *testing.T, c *client.Client, bad [][]byte, o client.Options, codes ...string) {
	t.Helper()
	for _, op := range []hierarchy.Op{hierarchy.OpUnwrap, hierarchy.OpRewrap} {
		for some := range slices.Chunk(bad, 500) {
			ops := make([]client.Operation, len(some))
			for i := range some {
				ops[i] = client.Operation{Op: op, Envelope: some[i], Options: o}
			}
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
			results, err := c.Batch(ctx, ops)
			cancel()
			if err != nil {
				t.Fatal(err)
			}
			for i, r := range results {
				if r.Err == nil {
					t.Fatalf("%s succeeds with the altered envelope %x", op, some[i])
				}
				if code := codeOf(r.Err); !slices.Contains(codes, code) {
					t.Errorf("%s: %s, want one of %q: %v", op, code, codes, r.Err)
				}
			}
		}
	}
}
