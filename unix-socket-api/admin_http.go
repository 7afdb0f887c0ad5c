package socketapi

import (
	"context"
	"io"
	"log"
	"net"
	"net/http"
	"time"

	"github.com/kekd/kekd/unix-socket-api/apierr"
)

// What speaks HTTP/1.1 to admin.sock is a scraper, or somebody with curl.
const (
	metricsPath     = "/metrics"
	metricsTimeout  = 10 * time.Second // to gather them
	httpReadTimeout = 10 * time.Second // for a whole request
	httpSendTimeout = 30 * time.Second // from the end of a request's header to that of its answer
	httpIdleTimeout = 60 * time.Second
	httpMaxHeader   = 16 << 10
)

type connKey struct{}

// httpServer serves GET /metrics, to whom administration is allowed, within the same limits.
func (a *adminService) httpServer() *http.Server {
	return &http.Server{
		Handler:           http.HandlerFunc(a.serveHTTP),
		ReadHeaderTimeout: a.gate.limits.HandshakeTimeout,
		ReadTimeout:       httpReadTimeout,
		WriteTimeout:      httpSendTimeout,
		IdleTimeout:       httpIdleTimeout,
		MaxHeaderBytes:    httpMaxHeader,
		ErrorLog:          log.New(io.Discard, "", 0), // what callers do wrong; a panic is logged below
		ConnContext: func(ctx context.Context, c net.Conn) context.Context {
			return context.WithValue(ctx, connKey{}, c)
		},
	}
}

func (a *adminService) serveHTTP(w http.ResponseWriter, r *http.Request) {
	method := r.Method + " " + r.URL.Path
	defer func() {
		if what := recover(); what != nil {
			a.panicked("HTTP", what)
			panic(http.ErrAbortHandler) // hangs up, so that half an answer is not taken for a whole one
		}
	}()
	c := r.Context().Value(connKey{}).(*conn)
	if err := c.enter(); err != nil {
		http.Error(w, err.Error(), http.StatusTooManyRequests)
		return
	}
	defer c.leave(r.Context())
	if err := a.authoriseCall(r.Context(), c, "http-request"); err != nil {
		http.Error(w, apierr.From(err).Message, http.StatusForbidden)
		return
	}
	if a.Metrics == nil || method != http.MethodGet+" "+metricsPath {
		http.NotFound(w, r)
		return
	}
	ctx, cancel := context.WithTimeout(r.Context(), metricsTimeout)
	defer cancel()
	a.Metrics.ServeHTTP(w, r.WithContext(ctx))
}
