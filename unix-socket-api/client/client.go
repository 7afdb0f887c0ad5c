package client

import (
	"context"

	"github.com/kekd/kekd/hierarchy"
	"github.com/kekd/kekd/unix-socket-api/kekdv1"
	"google.golang.org/grpc"
)

// Client uses data keys. Its methods may be called by many goroutines at once.
type Client struct {
	conn  *grpc.ClientConn
	api   kekdv1.KeyServiceClient
	calls *coalescer
}

// Dial makes a client of kekd.sock. It connects at the first call, to the first of the sockets
// that takes the connection, and connects again when that breaks. Without a socket it takes
// $KEKD_SOCKET, or else [DefaultSocket].
func Dial(sockets ...string) (*Client, error) {
	conn, err := dial(keySockets(sockets))
	if err != nil {
		return nil, err
	}
	api := kekdv1.NewKeyServiceClient(conn)
	return &Client{conn: conn, api: api, calls: newCoalescer(api)}, nil
}

// Close ends the client. Calls that are under way fail.
func (c *Client) Close() error {
	c.calls.close()
	return c.conn.Close()
}

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
// the caller's again as soon as Do returns, also then. If the connection breaks, it is tried once
// more: no operation does harm twice.
func (c *Client) Do(ctx context.Context, op Operation) (Result, error) {
	m, err := op.message()
	if err != nil {
		return Result{}, err
	}
	r := c.calls.do(ctx, m)
	return r, r.Err
}

// Batch does 1 to [MaxBatch] operations, each with its own result. The error is that of the
// batch as a whole.
func (c *Client) Batch(ctx context.Context, ops []Operation) ([]Result, error) {
	m, err := messages(ops)
	if err != nil {
		return nil, err
	}
	resp, err := c.api.Batch(ctx, &kekdv1.BatchRequest{Operations: m})
	if err != nil {
		return nil, err
	}
	return results(resp, len(ops))
}
