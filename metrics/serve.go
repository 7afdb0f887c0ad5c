package metrics

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"time"
)

// What a port without credentials gives to whoever is on the machine. Beyond maxConns, connections are closed at once;
// the timeouts see to it that one is free again for who reads.
const (
	maxConns = 32
	// portMaxAge is how often the daemon gathers its metrics for such a port, however many ask.
	portMaxAge = time.Second

	readTimeout  = 5 * time.Second
	writeTimeout = 10 * time.Second
	idleTimeout  = 90 * time.Second // more than the longest usual time between two scrapes, a minute
	maxHeader    = 8 << 10
)

// ErrNotLoopback means that an address is not this machine's alone.
var ErrNotLoopback = errors.New("is not a loopback address")

// CheckLoopback tells whether an address is host:port with a host that only this machine reaches. A name is none: what it
// stands for is decided elsewhere, and may change.
func CheckLoopback(address string) error {
	a, err := netip.ParseAddrPort(address)
	switch {
	case err != nil:
		return fmt.Errorf("%q is not an IP address and a port, such as 127.0.0.1:9617 or [::1]:9617", address)
	case !a.Addr().Unmap().IsLoopback():
		return fmt.Errorf("%q %w: whoever reaches it needs no credentials, so it has to be of this machine, such as 127.0.0.1:%d", address, ErrNotLoopback, a.Port())
	case a.Port() == 0:
		return fmt.Errorf("%q has no port between 1 and 65535", address)
	}
	return nil
}

// Port serves the metrics over HTTP/1.1, at GET /metrics, to who is on this machine.
type Port struct {
	http   *http.Server
	served chan error
}

// Listen opens a port at an address that [CheckLoopback] accepts.
func (r *Registry) Listen(address string) (*Port, error) {
	if err := CheckLoopback(address); err != nil {
		return nil, err
	}
	l, err := net.Listen("tcp", address)
	if err != nil {
		return nil, err
	}
	p := &Port{served: make(chan error, 1), http: &http.Server{
		Handler:     onlyMetrics(r.Handler(portMaxAge)),
		ReadTimeout: readTimeout, WriteTimeout: writeTimeout, IdleTimeout: idleTimeout, MaxHeaderBytes: maxHeader,
		ErrorLog: log.New(io.Discard, "", 0), // what callers do wrong
	}}
	go func() {
		if err := p.http.Serve(&limited{Listener: l, free: make(chan struct{}, maxConns)}); !errors.Is(err, http.ErrServerClosed) {
			p.served <- err
		}
		close(p.served)
	}()
	return p, nil
}

// Ended gives why the port is not served any more, and is closed when it is not.
func (p *Port) Ended() <-chan error { return p.served }

// Close lets what is being answered be read until ctx ends.
func (p *Port) Close(ctx context.Context) error {
	if err := p.http.Shutdown(ctx); err == nil {
		return nil
	}
	return p.http.Close()
}

// onlyMetrics answers nothing else. The name that is asked for has to be this machine's: a web page can have a browser
// that runs here ask for any name that its owner has point here, and read the answer.
func onlyMetrics(metrics http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case !isThisMachine(r.Host):
			http.Error(w, "ask for localhost, or for an address of it", http.StatusForbidden)
		case r.URL.Path != "/metrics":
			http.NotFound(w, r)
		case r.Method != http.MethodGet:
			w.Header().Set("Allow", http.MethodGet)
			http.Error(w, "GET only", http.StatusMethodNotAllowed)
		default:
			metrics.ServeHTTP(w, r)
		}
	})
}

func isThisMachine(host string) bool {
	name, _, err := net.SplitHostPort(host)
	if err != nil {
		name = host
	}
	a, err := netip.ParseAddr(name)
	return name == "localhost" || err == nil && a.Unmap().IsLoopback()
}

// limited closes connections beyond as many as free holds.
type limited struct {
	net.Listener
	free chan struct{}
}

func (l *limited) Accept() (net.Conn, error) {
	for {
		c, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		select {
		case l.free <- struct{}{}:
			return &counted{Conn: c, done: sync.OnceFunc(func() { <-l.free })}, nil
		default:
			c.Close()
		}
	}
}

type counted struct {
	net.Conn
	done func()
}

func (c *counted) Close() error {
	defer c.done()
	return c.Conn.Close()
}
