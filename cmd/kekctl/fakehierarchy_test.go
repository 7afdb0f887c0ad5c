package main

import (
	"encoding/json"
	"fmt"
	"sync"
	"time"

	"github.com/kekd/kekd/hierarchy"
	"github.com/kekd/kekd/hierarchy/policy"
	"github.com/kekd/kekd/unix-socket-api/kekdv1"
)

// fakeHierarchy is what both services of the fake share.
type fakeHierarchy struct {
	mu       sync.Mutex
	cluster  hierarchy.ID
	node     hierarchy.ID
	region   hierarchy.ID
	index    uint64
	answers  map[string]any // by idempotency ID
	tenants  map[string]*kekdv1.Tenant
	keys     map[hierarchy.KeyName]*kekdv1.Key
	services map[string]*kekdv1.Service
	rules    []policy.Rule
	sealed   map[string]*fakeSealed
	records  []fakeRecord
	used     map[string]uint64 // by limit and window
	refused  map[string]bool   // the same
	missed   uint64            // by the next who watches
	members  map[string]*kekdv1.Node
	swept    bool // there are no orphans any more
}

// fakeSealed is what the fake remembers instead of encrypting.
type fakeSealed struct {
	plaintext []byte
	key       hierarchy.KeyName
	version   uint32
	context   hierarchy.Context
}

type fakeRecord struct {
	Kind    string  `json:"kind"`
	At      string  `json:"at"`
	Tenant  string  `json:"tenant_name,omitempty"`
	Key     string  `json:"key,omitempty"`
	Outcome string  `json:"outcome"`
	Code    string  `json:"code,omitempty"`
	UID     *uint32 `json:"uid,omitempty"`
	Service string  `json:"service,omitempty"`
	Reason  string  `json:"reason,omitempty"`
	Detail  string  `json:"detail,omitempty"`
	Seq     int     `json:"seq"`
}

func newFakeHierarchy() *fakeHierarchy {
	return &fakeHierarchy{
		cluster:  hierarchy.NewID(),
		node:     hierarchy.NewID(),
		region:   hierarchy.NewID(),
		answers:  make(map[string]any),
		tenants:  make(map[string]*kekdv1.Tenant),
		keys:     make(map[hierarchy.KeyName]*kekdv1.Key),
		services: make(map[string]*kekdv1.Service),
		sealed:   make(map[string]*fakeSealed),
		used:     make(map[string]uint64),
		refused:  make(map[string]bool),
	}
}

// once makes a change, unless its idempotency ID has been seen. A refusal changes nothing.
func once[T any](h *fakeHierarchy, id []byte, change func() (T, error)) (T, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if seen, ok := h.answers[string(id)].(T); ok && len(id) > 0 {
		return seen, nil
	}
	v, err := change()
	if err == nil {
		h.index++
		h.answers[string(id)] = v
	}
	return v, err
}

func (h *fakeHierarchy) record(kind, tenant, key, reason string, err error) *fakeRecord {
	r := fakeRecord{Kind: kind, At: time.Now().UTC().Format(time.RFC3339Nano), Tenant: tenant, Key: key, Outcome: "ok", Reason: reason, Seq: len(h.records) + 1}
	if err != nil {
		r.Outcome, r.Code = "denied", hierarchy.Code(err)
	}
	h.records = append(h.records, r)
	return &h.records[len(h.records)-1]
}

func (r fakeRecord) line() string {
	b, _ := json.Marshal(r) // strings and a number: never fails
	return string(b)
}

func (h *fakeHierarchy) tenant(name string) (*kekdv1.Tenant, error) {
	if t, ok := h.tenants[name]; ok {
		return t, nil
	}
	return nil, fmt.Errorf("tenant %q: %w", name, hierarchy.ErrNotFound)
}

func (h *fakeHierarchy) key(name string) (hierarchy.KeyName, *kekdv1.Key, error) {
	n, err := hierarchy.ParseKeyName(name)
	if err != nil {
		return n, nil, err
	}
	if k, ok := h.keys[n]; ok {
		return n, k, nil
	}
	return n, nil, fmt.Errorf("key %q: %w", name, hierarchy.ErrNotFound)
}

func (h *fakeHierarchy) mint(k *kekdv1.Key) {
	for _, v := range k.Versions {
		if v.State == "active" {
			v.State = "deactivated"
		}
	}
	n := uint32(len(k.Versions) + 1)
	now := time.Now().UnixNano()
	k.Versions = append(k.Versions, &kekdv1.KeyVersion{Version: n, State: "active", CreatedAt: now, ActivatedAt: now,
		Regions: []*kekdv1.KeyVersionRegion{{Region: "local", State: "ready", CkaId: hierarchy.NewID().String(), CheckValue: "a1b2c3", WrapsReserved: 1 << 16}}})
}

func active(k *kekdv1.Key) (*kekdv1.KeyVersion, error) {
	for _, v := range k.Versions {
		if v.State == "active" {
			return v, nil
		}
	}
	return nil, fmt.Errorf("%w: there is no active version", hierarchy.ErrVersionDisabled)
}
