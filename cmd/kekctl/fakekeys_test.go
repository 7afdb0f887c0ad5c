package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"slices"

	"github.com/kekd/kekd/hierarchy"
	"github.com/kekd/kekd/hierarchy/envelope"
	"github.com/kekd/kekd/hierarchy/policy"
	"github.com/kekd/kekd/unix-socket-api/kekdv1"
)

type fakeKeys struct {
	kekdv1.UnimplementedKeyServiceServer
	h *fakeHierarchy
}

// authorise knows one caller: whoever runs the tests.
func (f *fakeKeys) authorise(op hierarchy.Op, key hierarchy.KeyName, entries []*kekdv1.ContextEntry, reason string) (ec hierarchy.Context, err error) {
	service, uid := "", uint32(os.Getuid())
	defer func() {
		over, ok := errors.AsType[*hierarchy.OverLimit](err)
		if ok && over.Detail == "" {
			return // of a window only the first
		}
		r := f.h.record(op.String(), key.Tenant, key.Key, reason, err)
		if r.Service, r.UID = service, &uid; ok {
			r.Detail = over.Detail
		}
	}()
	if ec, err = contextOf(entries); err != nil {
		return nil, err
	}
	for name, s := range f.h.services {
		if s.Uid == nil || int(*s.Uid) != os.Getuid() {
			continue
		}
		if d := f.h.decide(name, policy.Request{Op: op, Key: key, Context: ec, Reason: reason}); d.Allowed {
			service = name
			t, err := f.h.tenant(key.Tenant)
			if err == nil && t.State == "disabled" {
				err = fmt.Errorf("%w: %s", hierarchy.ErrTenantDisabled, key.Tenant)
			}
			if err == nil {
				err = f.h.use(t, d.Rule)
			}
			return ec, err
		}
	}
	return nil, fmt.Errorf("%w: %s on %s", hierarchy.ErrPermissionDenied, op, key)
}

func (f *fakeKeys) seal(name string, plaintext []byte, ec hierarchy.Context) ([]byte, uint32, error) {
	key, k, err := f.h.key(name)
	if err != nil {
		return nil, 0, err
	}
	v, err := active(k)
	if err != nil {
		return nil, 0, err
	}
	keyID, err := hierarchy.ParseID(k.Id)
	if err != nil {
		return nil, 0, err
	}
	e := envelope.Envelope{
		Header:     envelope.Header{Tenant: hierarchy.TenantID{ID: f.h.cluster}, Key: hierarchy.KeyID{ID: keyID}, Version: v.Version, SealedIn: hierarchy.RegionID{ID: f.h.region}},
		Recipients: []envelope.Recipient{{Region: hierarchy.RegionID{ID: f.h.region}, Ciphertext: make([]byte, len(plaintext)+envelope.TagSize)}},
	}
	rand.Read(e.Recipients[0].Ciphertext)
	sealed, err := e.Marshal()
	if err != nil {
		return nil, 0, err
	}
	f.h.sealed[string(sealed)] = &fakeSealed{slices.Clone(plaintext), key, v.Version, ec}
	return sealed, v.Version, nil
}

// open finds what an envelope sealed. Its text is authorised by the key that it names.
func (f *fakeKeys) open(op hierarchy.Op, sealed []byte, entries []*kekdv1.ContextEntry, reason string) (*fakeSealed, *kekdv1.Key, error) {
	e, err := envelope.Parse(sealed)
	if err != nil {
		return nil, nil, err
	}
	var key hierarchy.KeyName
	var k *kekdv1.Key
	for name, candidate := range f.h.keys {
		if candidate.Id == e.Key.String() {
			key, k = name, candidate
		}
	}
	ec, err := f.authorise(op, key, entries, reason)
	if err != nil {
		return nil, nil, err
	}
	state := k.Versions[e.Version-1].State
	if state == "suspended" || state == "compromised" && op != hierarchy.OpRewrap || e.Version < k.MinUnwrapVersion {
		return nil, nil, fmt.Errorf("%w: %s@%d is %s", hierarchy.ErrVersionDisabled, key, e.Version, state)
	}
	binary, err := e.Marshal()
	if err != nil {
		return nil, nil, err
	}
	s := f.h.sealed[string(binary)]
	if s == nil || !slices.Equal(s.context, ec) {
		return nil, nil, hierarchy.ErrContextMismatch
	}
	return s, k, nil
}

func (f *fakeKeys) Wrap(_ context.Context, r *kekdv1.WrapRequest) (*kekdv1.WrapResponse, error) {
	f.h.mu.Lock()
	defer f.h.mu.Unlock()
	key, err := hierarchy.ParseKeyName(r.Key)
	if err != nil {
		return nil, err
	}
	ec, err := f.authorise(hierarchy.OpWrap, key, r.Context, r.Reason)
	if err != nil {
		return nil, err
	}
	sealed, version, err := f.seal(r.Key, r.Plaintext, ec)
	return &kekdv1.WrapResponse{Envelope: sealed, Key: r.Key, KeyVersion: version}, err
}

func (f *fakeKeys) Unwrap(_ context.Context, r *kekdv1.UnwrapRequest) (*kekdv1.UnwrapResponse, error) {
	f.h.mu.Lock()
	defer f.h.mu.Unlock()
	s, k, err := f.open(hierarchy.OpUnwrap, r.Envelope, r.Context, r.Reason)
	if err != nil {
		return nil, err
	}
	v, err := active(k)
	return &kekdv1.UnwrapResponse{Plaintext: s.plaintext, Key: s.key.String(), KeyVersion: s.version, NeedsRewrap: err == nil && v.Version > s.version}, nil
}

func (f *fakeKeys) Rewrap(_ context.Context, r *kekdv1.RewrapRequest) (*kekdv1.RewrapResponse, error) {
	f.h.mu.Lock()
	defer f.h.mu.Unlock()
	s, _, err := f.open(hierarchy.OpRewrap, r.Envelope, r.Context, r.Reason)
	if err != nil {
		return nil, err
	}
	sealed, version, err := f.seal(s.key.String(), s.plaintext, s.context)
	return &kekdv1.RewrapResponse{Envelope: sealed, Key: s.key.String(), KeyVersion: version}, err
}

func (f *fakeKeys) GenerateDataKey(_ context.Context, r *kekdv1.GenerateDataKeyRequest) (*kekdv1.GenerateDataKeyResponse, error) {
	f.h.mu.Lock()
	defer f.h.mu.Unlock()
	key, err := hierarchy.ParseKeyName(r.Key)
	if err != nil {
		return nil, err
	}
	ec, err := f.authorise(hierarchy.OpDataKey, key, r.Context, r.Reason)
	if err != nil {
		return nil, err
	}
	if r.Bytes < 16 || r.Bytes > envelope.MaxPlaintext {
		return nil, fmt.Errorf("%w: a data key of %d bytes: 16 to 4096 are allowed", hierarchy.ErrInvalidArgument, r.Bytes)
	}
	plaintext := make([]byte, r.Bytes)
	rand.Read(plaintext)
	sealed, version, err := f.seal(r.Key, plaintext, ec)
	out := &kekdv1.GenerateDataKeyResponse{Envelope: sealed, Key: r.Key, KeyVersion: version}
	if !r.WrappedOnly {
		out.Plaintext = bytes.Clone(plaintext)
	}
	return out, err
}
