package main

import (
	"context"
	"fmt"
	"sync"

	"github.com/kekd/kekd/unix-socket-api/kekdv1"
)

// makers is how many tenants are made at once. The manager makes one key after the other; this
// keeps it busy.
const makers = 16

// populate makes tenants from one number to before another, with a key each, and gives an
// envelope of each.
func populate(ctx context.Context, admin kekdv1.AdminServiceClient, keys kekdv1.KeyServiceClient, from, to int) ([][]byte, error) {
	envelopes := make([][]byte, to-from)
	one := func(i int) error {
		tenant := fmt.Sprintf("t%d", i)
		if _, err := admin.CreateTenant(ctx, &kekdv1.CreateTenantRequest{Name: tenant}); err != nil {
			return err
		}
		if _, err := admin.CreateKey(ctx, &kekdv1.CreateKeyRequest{Key: tenant + "/data"}); err != nil {
			return err
		}
		made, err := keys.GenerateDataKey(ctx, &kekdv1.GenerateDataKeyRequest{Key: tenant + "/data"})
		if err != nil {
			return err
		}
		envelopes[i-from] = made.Envelope
		return nil
	}
	var wg sync.WaitGroup
	errs := make([]error, makers)
	for m := range makers {
		wg.Go(func() {
			for i := from + m; i < to && errs[m] == nil; i += makers {
				if err := one(i); err != nil {
					errs[m] = fmt.Errorf("tenant %d: %w", i, err)
				}
			}
		})
	}
	wg.Wait()
	for _, err := range errs {
		if err != nil {
			return nil, err
		}
	}
	return envelopes, nil
}
