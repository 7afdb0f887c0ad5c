package custody

import (
	"context"
	"fmt"
	"time"

	"github.com/kekd/kekd/hierarchy"
	"github.com/kekd/kekd/hierarchy/audit"
	"github.com/kekd/kekd/hierarchy/policy"
	"github.com/kekd/kekd/hierarchy/state"
	"github.com/kekd/kekd/hsm"
)

// Replica is this node's copy of the hierarchy.
type Replica interface {
	// View looks at it now.
	View() View
	// Renewed is closed when the lease is next renewed, and has that tried at once.
	Renewed() <-chan struct{}
}

// View is one look at the hierarchy.
type View struct {
	State *state.State
	// Age is an upper bound on how old State is: the time since the lease that covers it was
	// asked for.
	Age time.Duration
	// Fault says why nothing may be served from this state at all (no lease yet, a state that
	// is behind its lease, a node that is no member or has failed); nil if only Age counts.
	Fault error
	// Unwell says why Age only grows: the token or the journal could not serve, and the node takes no lease. What it
	// says is nil if the node renews its lease.
	Unwell func() error
	// Now is cluster time as this node knows it, for limits alone.
	Now time.Time
}

// Serves is the rule by which a node serves, and the only one: nil if State may be served from by
// somebody who allows it to be maxStaleness old, else a hierarchy.ErrStale, or what keeps the node from having a lease.
func (v View) Serves(maxStaleness time.Duration) error {
	switch {
	case v.Fault != nil:
		return fmt.Errorf("%w: %w", hierarchy.ErrStale, v.Fault)
	case v.Age > maxStaleness:
		if err := v.Unwell(); err != nil {
			return fmt.Errorf("%w; so this node's copy of the hierarchy was last proved current %v ago", err, v.Age.Round(time.Millisecond))
		}
		return fmt.Errorf("%w: it was last proved current %v ago, %v are allowed", hierarchy.ErrStale, v.Age.Round(time.Millisecond), maxStaleness)
	}
	return nil
}

// Token is the serving side of this region's token.
type Token interface {
	Do(ctx context.Context, ops []hsm.Operation)
}

// Journal is the audit log. A position is durable when Wait has returned nil for it.
type Journal interface {
	Append(ctx context.Context, records []audit.Record) (audit.Position, error)
	Wait(ctx context.Context, p audit.Position) error
}

// Quotas counts uses against the limits of rules and of tenants.
type Quotas interface {
	// Take allows up to n uses of a rule for a tenant, both of the state s, at cluster time now.
	// If it allows fewer, the error says why: over a limit it wraps a hierarchy.OverLimit.
	Take(ctx context.Context, s *state.State, now time.Time, t *state.Tenant, r *policy.Rule, n int) (allowed int, err error)
}

// Budget counts the seals under each key version, of which AES-GCM with random IVs allows
// 2^32 over all nodes together.
type Budget interface {
	// Take allows n seals, or wraps hierarchy.ErrCapacity when the version has none left.
	Take(ctx context.Context, tenant hierarchy.TenantID, key hierarchy.KeyID, version uint32, n int) error
}
