package client

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"

	"github.com/kekd/kekd/hierarchy"
	"github.com/kekd/kekd/unix-socket-api/apierr"
)

// maxMetrics bounds what is read of them, in bytes.
const maxMetrics = 64 << 20

// Metrics reads the metrics of the node behind an admin socket, in Prometheus' text format. The
// sockets are as for [DialAdmin].
func Metrics(ctx context.Context, sockets ...string) ([]byte, error) {
	var err error
	for _, path := range AdminSockets(sockets...) {
		var text []byte
		if text, err = metricsOf(ctx, path); err == nil || !errors.Is(err, ErrUnavailable) {
			return text, err
		}
	}
	return nil, err
}

func metricsOf(ctx context.Context, path string) ([]byte, error) {
	transport := &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			c, err := new(net.Dialer).DialContext(ctx, "unix", path)
			if err != nil {
				return nil, unreachable(path, err)
			}
			return c, nil
		},
	}
	defer transport.CloseIdleConnections()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://localhost/metrics", nil)
	if err != nil {
		return nil, err
	}
	resp, err := (&http.Client{Transport: transport}).Do(req)
	if err != nil {
		return nil, metricsError(ctx, path, err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(io.LimitReader(resp.Body, maxMetrics+1))
	switch {
	case err != nil:
		return nil, metricsError(ctx, path, err)
	case resp.StatusCode == http.StatusForbidden:
		return nil, apierr.From(apierr.WithHint(fmt.Errorf("%w: of the admin socket %s", hierarchy.ErrPermissionDenied, path),
			"call as root, as the daemon's user, or as a member of its admin group"))
	case resp.StatusCode == http.StatusNotFound:
		return nil, apierr.From(apierr.WithHint(fmt.Errorf("%w: there are no metrics at %s", hierarchy.ErrNotFound, path),
			"the node's version has none, or this is not its admin socket"))
	case resp.StatusCode != http.StatusOK:
		return nil, apierr.Unreachable(fmt.Sprintf("kekd at %s gave no metrics: %s", path, resp.Status), "try again; the daemon's log may have the cause")
	case len(text) > maxMetrics:
		return nil, errAnswer
	}
	return text, nil
}

func metricsError(ctx context.Context, path string, err error) error {
	if e, ok := errors.AsType[*Error](err); ok {
		return e
	}
	if ctx.Err() != nil {
		return apierr.From(ctx.Err())
	}
	return apierr.Unreachable(fmt.Sprintf("kekd at %s gave no metrics: %v", path, root(err)), "is this its admin socket?")
}
