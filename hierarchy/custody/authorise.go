package custody

import (
	"fmt"

	"github.com/kekd/kekd/hierarchy"
	"github.com/kekd/kekd/hierarchy/audit"
	"github.com/kekd/kekd/hierarchy/envelope"
	"github.com/kekd/kekd/hierarchy/policy"
	"github.com/kekd/kekd/hierarchy/state"
)

// item is one request on its way: parsed once, authorised as often as needed.
type item struct {
	op       hierarchy.Op
	name     hierarchy.KeyName  // wrap, data key: as asked; unwrap, rewrap: as looked up
	envelope *envelope.Envelope // unwrap, rewrap
	hash     audit.Hash         // of the envelope that came in, or went out
	context  hierarchy.Context
	reason   string
	bytes    int

	known  bool // parsed: it is about some key, and goes into the audit
	grant  grant
	detail string // for the audit
	record uint64 // the sequence of its record; 0: none yet
	asked  int    // position in the batch for the token plus one; 0: not asked
	err    error
}

// grant is what an authorisation found: everything that the token has to be asked with. Its
// pointers are into an immutable state.
type grant struct {
	service string
	rule    *policy.Rule // that allows it
	tenant  *state.Tenant
	key     *state.Key
	open    *state.Version // unwrap, rewrap
	seal    *state.Version // wrap, data key, rewrap
}

// authorise decides one item from one view, and says with what. It depends on its arguments
// alone, so deciding again before the reply needs no memory of the first time.
//
// Permission is decided first and from names only, so that to a caller without it a key that
// exists and one that does not look the same.
func authorise(v View, who hierarchy.Principal, it *item) (grant, error) {
	var g grant
	name := it.name
	if it.envelope != nil {
		h := it.envelope.Header
		t, ok := v.State.Tenant(h.Tenant)
		if !ok {
			return g, errDenied(it.op)
		}
		k, ok := v.State.Key(h.Tenant, h.Key)
		if !ok {
			return g, errDenied(it.op)
		}
		name = hierarchy.KeyName{Tenant: t.Name, Key: k.Name}
		g.tenant, g.key = t, k
	}

	service, rule := permitted(v.State, who, policy.Request{Op: it.op, Key: name, Context: it.context, Reason: it.reason})
	if it.envelope == nil {
		// For the audit: a denial belongs to the tenant that it is about, if there is one.
		if t, found := v.State.TenantByName(name.Tenant); found {
			g.tenant = t
			g.key, _ = v.State.KeyByName(t.ID, name.Key)
		}
	}
	if rule == nil {
		return g, errDenied(it.op)
	}
	g.service, g.rule = service, rule
	if g.tenant == nil {
		return g, fmt.Errorf("%w: tenant %q", hierarchy.ErrNotFound, name.Tenant)
	}
	if g.key == nil {
		return g, fmt.Errorf("%w: key %q", hierarchy.ErrNotFound, name)
	}

	if err := fresh(v, g.tenant); err != nil {
		return g, err
	}
	if err := tenantServes(g.tenant); err != nil {
		return g, err
	}
	var err error
	if it.envelope != nil {
		if g.open, err = versionToOpen(g.key, name, it.envelope.Version, it.op); err != nil {
			return g, err
		}
	}
	if it.op != hierarchy.OpUnwrap {
		var ok bool
		if g.seal, ok = g.key.Active(); !ok {
			return g, fmt.Errorf("%w: %s has no active version, its newest is %s: `kekctl key rotate %s` makes one", hierarchy.ErrVersionDisabled, name, g.key.Newest().State, name)
		}
	}
	return g, nil
}

func errDenied(op hierarchy.Op) error {
	return fmt.Errorf("%w: no rule allows this caller to %s this key with this context", hierarchy.ErrPermissionDenied, op)
}

// permitted asks every service that the caller is, the most specific first, for a rule.
func permitted(s *state.State, who hierarchy.Principal, req policy.Request) (service string, rule *policy.Rule) {
	for _, svc := range s.ServicesFor(who.UID, who.GID) {
		if d := s.PolicySet(svc.Name).Decide(req); d.Allowed {
			return svc.Name, d.Rule
		}
	}
	return "", nil
}

func fresh(v View, t *state.Tenant) error {
	if err := v.Serves(t.MaxStaleness); err != nil {
		return fmt.Errorf("tenant %s: %w", t.Name, err)
	}
	return nil
}

func tenantServes(t *state.Tenant) error {
	switch t.State {
	case hierarchy.TenantEnabled:
		return nil
	case hierarchy.TenantSuspended:
		return fmt.Errorf("%w: %s", hierarchy.ErrTenantSuspended, t.Name)
	default:
		return fmt.Errorf("%w: %s is %s", hierarchy.ErrTenantDisabled, t.Name, t.State)
	}
}

func versionToOpen(k *state.Key, name hierarchy.KeyName, number uint32, op hierarchy.Op) (*state.Version, error) {
	vn := hierarchy.VersionName{KeyName: name, Version: number}
	ver, ok := k.Version(number)
	if !ok {
		return nil, fmt.Errorf("%w: there is no %s", hierarchy.ErrEnvelopeInvalid, vn)
	}
	if number < k.MinUnwrapVersion {
		return nil, fmt.Errorf("%w: %s is below the key's min_unwrap_version %d, for rewrap too: `kekctl key set %s --min-unwrap-version` lowers it", hierarchy.ErrVersionDisabled, vn, k.MinUnwrapVersion, name)
	}
	switch ver.State {
	case hierarchy.Active, hierarchy.Deactivated:
		return ver, nil
	case hierarchy.Compromised:
		if op == hierarchy.OpRewrap {
			return ver, nil
		}
		return nil, fmt.Errorf("%w: %s is compromised: it opens for rewrap only", hierarchy.ErrVersionDisabled, vn)
	case hierarchy.Suspended:
		return nil, fmt.Errorf("%w: %s is suspended: `kekctl key version resume %s` ends it", hierarchy.ErrVersionDisabled, vn, vn)
	default:
		return nil, fmt.Errorf("%w: %s is %s", hierarchy.ErrVersionDisabled, vn, ver.State)
	}
}
