package softhsmtests

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/kekd/kekd/hierarchy"
	"github.com/kekd/kekd/hierarchy/audit"
	"github.com/kekd/kekd/hierarchy/envelope"
	"github.com/kekd/kekd/unix-socket-api/client"
	"github.com/kekd/kekd/unix-socket-api/kekdv1"
)

// ledger is what callers were told by a daemon that is killed again and again: what was acknowledged,
// what they hold, and which commands nobody knows the outcome of.
type ledger struct {
	mu       sync.Mutex
	tenants  map[string]string // name: state
	versions map[string]uint32 // key: how many were made
	names    []string          // of the keys
	pending  []command         // sent, and not answered
	sealed   []sealedKey
	received map[audit.Hash]int // how often a plaintext was handed out, by its envelope

	journal journalReader
	records map[audit.Hash]int // how often the journal says so
}

type sealedKey struct{ envelope, plaintext []byte }

// command is a change with an idempotency ID of its own, so that it may be sent again.
type command struct {
	name string
	send func(ctx context.Context, a kekdv1.AdminServiceClient) error
	done func(l *ledger) // what holds from then on; under the lock
}

func newLedger() *ledger {
	return &ledger{tenants: map[string]string{}, versions: map[string]uint32{}, received: map[audit.Hash]int{}, records: map[audit.Hash]int{}}
}

func createTenant(name string) command {
	id := hierarchy.NewID()
	return command{"create tenant " + name,
		func(ctx context.Context, a kekdv1.AdminServiceClient) error {
			_, err := a.CreateTenant(ctx, &kekdv1.CreateTenantRequest{IdempotencyId: id[:], Name: name})
			return err
		},
		func(l *ledger) { l.tenants[name] = "enabled" },
	}
}

func createKey(name string) command {
	id := hierarchy.NewID()
	return command{"create key " + name,
		func(ctx context.Context, a kekdv1.AdminServiceClient) error {
			_, err := a.CreateKey(ctx, &kekdv1.CreateKeyRequest{IdempotencyId: id[:], Key: name})
			return err
		},
		func(l *ledger) { l.versions[name] = 1; l.names = append(l.names, name) },
	}
}

func rotate(name string) command {
	id := hierarchy.NewID()
	return command{"rotate " + name,
		func(ctx context.Context, a kekdv1.AdminServiceClient) error {
			_, err := a.RotateKey(ctx, &kekdv1.RotateKeyRequest{IdempotencyId: id[:], Key: name})
			return err
		},
		func(l *ledger) { l.versions[name]++ },
	}
}

func toggle(name string, enabled bool) command {
	id := hierarchy.NewID()
	if enabled {
		return command{"enable " + name,
			func(ctx context.Context, a kekdv1.AdminServiceClient) error {
				_, err := a.EnableTenant(ctx, &kekdv1.EnableTenantRequest{IdempotencyId: id[:], Name: name})
				return err
			},
			func(l *ledger) { l.tenants[name] = "enabled" },
		}
	}
	return command{"disable " + name,
		func(ctx context.Context, a kekdv1.AdminServiceClient) error {
			_, err := a.DisableTenant(ctx, &kekdv1.DisableTenantRequest{IdempotencyId: id[:], Name: name, Reason: "kill"})
			return err
		},
		func(l *ledger) { l.tenants[name] = "disabled" },
	}
}

// do sends a command and notes what is known afterwards.
func (l *ledger) do(ctx context.Context, a kekdv1.AdminServiceClient, c command) error {
	err := c.send(ctx, a)
	l.mu.Lock()
	defer l.mu.Unlock()
	if err != nil {
		l.pending = append(l.pending, c)
		return fmt.Errorf("%s: %w", c.name, err)
	}
	c.done(l)
	return nil
}

// settle sends again whatever was not answered, in its order, and now it must be.
func (l *ledger) settle(t *testing.T, a kekdv1.AdminServiceClient) {
	t.Helper()
	pending := l.pending
	l.pending = nil
	for _, c := range pending {
		if err := l.do(within(t, 30*time.Second), a, c); err != nil {
			t.Fatalf("again after a kill: %v", err)
		}
	}
}

// generate makes a data key of a key at random and keeps what it got.
func (l *ledger) generate(ctx context.Context, k kekdv1.KeyServiceClient) error {
	l.mu.Lock()
	key := l.names[rand.IntN(len(l.names))]
	l.mu.Unlock()
	r, err := k.GenerateDataKey(ctx, &kekdv1.GenerateDataKeyRequest{Key: key})
	if err != nil {
		return fmt.Errorf("data key of %s: %w", key, err)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.sealed = append(l.sealed, sealedKey{r.Envelope, r.Plaintext})
	l.received[envelope.Hash(r.Envelope)]++
	return nil
}

// unwrap opens an envelope at random.
func (l *ledger) unwrap(ctx context.Context, k kekdv1.KeyServiceClient) error {
	l.mu.Lock()
	s := l.sealed[rand.IntN(len(l.sealed))]
	l.mu.Unlock()
	r, err := k.Unwrap(ctx, &kekdv1.UnwrapRequest{Envelope: s.envelope})
	if err != nil {
		return fmt.Errorf("unwrap: %w", err)
	}
	if !bytes.Equal(r.Plaintext, s.plaintext) {
		return errors.New("unwrap gave another data key")
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.received[envelope.Hash(s.envelope)]++
	return nil
}

// holds checks it against a daemon that was started again.
func (l *ledger) holds(t *testing.T, n *node) {
	t.Helper()
	a, c := admin(t, n.Node), keys(t, n.Node)
	ctx := within(t, time.Minute)
	tenants, err := a.ListTenants(ctx, &kekdv1.ListTenantsRequest{})
	if err != nil {
		t.Fatal(err)
	}
	states := map[string]string{}
	for _, tenant := range tenants.Tenants {
		states[tenant.Name] = tenant.State
	}
	for name, want := range l.tenants {
		if states[name] != want {
			t.Errorf("tenant %s is %q, and %q was acknowledged", name, states[name], want)
		}
		list, err := a.ListKeys(ctx, &kekdv1.ListKeysRequest{Tenant: name})
		if err != nil {
			t.Fatal(err)
		}
		for _, key := range list.Keys {
			l.keyHolds(t, name+"/"+key.Key, key)
		}
	}
	// What is called active works: nothing half-made is.
	var active []string
	for name := range l.versions {
		if tenant, _, _ := strings.Cut(name, "/"); l.tenants[tenant] == "enabled" {
			active = append(active, name)
		}
	}
	for some := range slices.Chunk(active, client.MaxBatch) {
		ops := make([]client.Operation, len(some))
		for i, name := range some {
			ops[i] = client.Operation{Op: hierarchy.OpDataKey, Key: name}
		}
		results, err := c.Batch(ctx, ops)
		if err != nil {
			t.Fatal(err)
		}
		for i, r := range results {
			if r.Err != nil || r.Version != l.versions[some[i]] {
				t.Errorf("%s: a data key of version %d of %d: %v", some[i], r.Version, l.versions[some[i]], r.Err)
				continue
			}
			l.received[envelope.Hash(r.Envelope)]++
		}
	}
	// The newest always; of what has survived many kills, some.
	rand.Shuffle(max(0, len(l.sealed)-client.MaxBatch), func(i, j int) { l.sealed[i], l.sealed[j] = l.sealed[j], l.sealed[i] })
	newest := l.sealed[max(0, len(l.sealed)-2*client.MaxBatch):]
	for some := range slices.Chunk(newest, client.MaxBatch) {
		ops := make([]client.Operation, len(some))
		for i := range some {
			ops[i] = client.Operation{Op: hierarchy.OpUnwrap, Envelope: some[i].envelope}
		}
		results, err := c.Batch(ctx, ops)
		if err != nil {
			t.Fatal(err)
		}
		for i, r := range results {
			if r.Err != nil || !bytes.Equal(r.Plaintext, some[i].plaintext) {
				t.Errorf("an envelope that was handed out does not open: %v", r.Err)
			} else {
				l.received[envelope.Hash(some[i].envelope)]++
			}
		}
	}
	verifyAudit(t, n)
}

func (l *ledger) keyHolds(t *testing.T, name string, key *kekdv1.Key) {
	t.Helper()
	want, acknowledged := l.versions[name]
	if !acknowledged || uint32(len(key.Versions)) != want {
		t.Errorf("%s has %d versions, and %d were asked for", name, len(key.Versions), want)
	}
	for i, v := range key.Versions {
		state := "deactivated"
		if i == len(key.Versions)-1 {
			state = "active"
		}
		if v.State != state {
			t.Errorf("%s@%d is %s, and not %s", name, v.Version, v.State, state)
		}
	}
}

// recorded checks that each plaintext that anybody got has a record of its own in the journal.
func (l *ledger) recorded(t *testing.T, n *node) {
	t.Helper()
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, e := range l.journal.more(t, n) {
		if (e.Kind == "unwrap" || e.Kind == "datakey") && (e.Outcome == audit.OutcomeOK || e.Outcome == audit.OutcomeAuthorised) {
			l.records[e.Envelope]++
		}
	}
	for hash, times := range l.received {
		if l.records[hash] < times {
			t.Errorf("of envelope %s %d plaintexts were handed out, and %d are in the audit", hash, times, l.records[hash])
		}
	}
}
