package pkcs11

import (
	"context"
	"fmt"

	"github.com/kekd/kekd/hsm"
)

// Guard brackets whatever makes a token rewrite its files. A bracket calls f at most once, and
// returns nil only when what f changed is durable. Package softhsm has one.
type Guard interface {
	// Change brackets a login and changes that make no object go away.
	Change(ctx context.Context, f func() error) error
	// Destroy brackets changes that do.
	Destroy(ctx context.Context, f func() error) error
}

// unguarded is for tokens that see to their own durability.
type unguarded struct{}

func (unguarded) Change(_ context.Context, f func() error) error  { return f() }
func (unguarded) Destroy(_ context.Context, f func() error) error { return f() }

// guarded runs a change in a bracket. The change's own error comes back as it is, since its
// code decides what becomes of the session.
func guarded[T any](ctx context.Context, bracket func(context.Context, func() error) error, change func() (T, error)) (T, error) {
	var (
		value T
		own   error
	)
	err := bracket(ctx, func() error {
		value, own = change()
		return own
	})
	if own != nil {
		return value, own
	}
	if err != nil {
		return value, fmt.Errorf("%w: the change is not known to be on disk: %w", hsm.ErrUnavailable, err)
	}
	return value, nil
}
