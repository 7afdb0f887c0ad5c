package main

import (
	"context"
	"errors"

	"github.com/kekd/kekd/hierarchy/custody"
	"github.com/kekd/kekd/hsm"
)

// doubting is the token for those who use keys. What they are told is the first that anybody hears of a
// key that was taken out of the token behind this node's back.
type doubting struct {
	custody.Token
	doubt func()
}

func (d doubting) Do(ctx context.Context, ops []hsm.Operation) {
	d.Token.Do(ctx, ops)
	for i := range ops {
		if ops[i].Err != nil && errors.Is(ops[i].Err, hsm.ErrKeyNotFound) {
			d.doubt()
			return
		}
	}
}
