package client

import "github.com/kekd/kekd/unix-socket-api/kekdv1"

// Over makes a client of what a test says that the daemon is.
func Over(api kekdv1.KeyServiceClient) *Client {
	return &Client{&Conn{targets: []*target{{api: api, calls: newCoalescer(api)}}}}
}

// End ends it.
func (c *Client) End() { c.conn.targets[0].calls.close() }
