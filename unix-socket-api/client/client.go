package client

import (
	"context"

	"github.com/kekd/kekd/hierarchy"
	"github.com/kekd/kekd/unix-socket-api/kekdv1"
)

// Client uses data keys. Its methods may be called by many goroutines at once.
type Client struct{ conn *Conn }

// Dial makes a client of kekd.sock. Each socket is one argument, or several with commas between them;
// without any it takes those of $KEKD_SOCKET, or else [DefaultSocket]. It connects at the first call,
// to the first that has a daemon which works, and goes on to the next when that is gone, stops, or
// says that it cannot serve: so with the sockets of two nodes, one of them may be started again
// without a failed call.
func Dial(sockets ...string) (*Client, error) {
	conn, err := dial(KeySockets(sockets...))
	if err != nil {
		return nil, err
	}
	return &Client{conn}, nil
}

// Close ends the client. Calls that are under way fail.
func (c *Client) Close() error { return c.conn.Close() }

// Wrap seals a data key of the caller's, of 1 to 4,096 bytes.
func (c *Client) Wrap(ctx context.Context, key string, plaintext []byte, o Options) (Result, error) {
	return c.Do(ctx, Operation{Op: hierarchy.OpWrap, Key: key, Plaintext: plaintext, Options: o})
}

// Unwrap opens an envelope, in binary or text form.
func (c *Client) Unwrap(ctx context.Context, envelope []byte, o Options) (Result, error) {
	return c.Do(ctx, Operation{Op: hierarchy.OpUnwrap, Envelope: envelope, Options: o})
}

// GenerateDataKey makes a data key of 16 to 4,096 bytes in the token and seals it; 0 means 32.
func (c *Client) GenerateDataKey(ctx context.Context, key string, bytes uint32, o Options) (Result, error) {
	return c.Do(ctx, Operation{Op: hierarchy.OpDataKey, Key: key, Bytes: bytes, Options: o})
}

// Rewrap seals an envelope's data key again under the active version.
func (c *Client) Rewrap(ctx context.Context, envelope []byte, o Options) (Result, error) {
	return c.Do(ctx, Operation{Op: hierarchy.OpRewrap, Envelope: envelope, Options: o})
}

// Do does one operation, together with those of other goroutines. If the context ends first,
// the operation may still be done, and be in the audit; its result is wiped. What op refers to is
// the caller's again as soon as Do returns, also then. Where a daemon does not answer, or cannot serve,
// it is tried elsewhere, or once more: no operation does harm twice.
func (c *Client) Do(ctx context.Context, op Operation) (r Result, err error) {
	err = c.conn.each(ctx, keysElsewhere, func(t *target) error {
		m, err := op.message()
		if err != nil {
			return err
		}
		r = t.calls.do(ctx, m)
		return r.Err
	})
	return r, err
}

// Batch does 1 to [MaxBatch] operations, each with its own result. The error is that of the
// batch as a whole. What one daemon cannot serve is asked of the next.
func (c *Client) Batch(ctx context.Context, ops []Operation) ([]Result, error) {
	all := make([]Result, len(ops))
	left := make([]int, len(ops)) // where in ops what is not done yet stands
	for i := range left {
		left[i] = i
	}
	answered := false
	err := c.conn.each(ctx, keysElsewhere, func(t *target) error {
		some := make([]Operation, len(left))
		for i, at := range left {
			some[i] = ops[at]
		}
		m, err := messages(some)
		if err != nil {
			return err
		}
		resp, err := t.api.Batch(ctx, &kekdv1.BatchRequest{Operations: m})
		if err != nil {
			return err
		}
		rs, err := results(resp, len(some))
		if err != nil {
			return err
		}
		answered = true
		var again []int
		for i, at := range left {
			all[at] = rs[i]
			if rs[i].Err != nil && keysElsewhere(rs[i].Err) {
				again = append(again, at)
			}
		}
		if left = again; len(left) > 0 {
			return all[left[0]].Err
		}
		return nil
	})
	if err != nil && !answered {
		return nil, err
	}
	return all, nil
}
