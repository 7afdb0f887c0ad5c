package metrics_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/kekd/kekd/metrics"
)

func TestLoopbackOnly(t *testing.T) {
	for address, want := range map[string]error{
		"127.0.0.1:9617": nil, "127.1.2.3:1": nil, "[::1]:65535": nil, "[::ffff:127.0.0.1]:9617": nil,
		"0.0.0.0:9617": metrics.ErrNotLoopback, "[::]:9617": metrics.ErrNotLoopback, "10.0.0.1:9617": metrics.ErrNotLoopback,
		"192.168.1.1:9617": metrics.ErrNotLoopback, "[fe80::1]:9617": metrics.ErrNotLoopback, "[::ffff:10.0.0.1]:9617": metrics.ErrNotLoopback,
		"128.0.0.1:9617": metrics.ErrNotLoopback,
	} {
		if err := metrics.CheckLoopback(address); !errors.Is(err, want) || (err == nil) != (want == nil) {
			t.Errorf("%s: %v", address, err)
		}
	}
	for _, address := range []string{"", ":9617", "localhost:9617", "127.0.0.1", "127.0.0.1:0", "127.0.0.1:65536", "127.0.0.1:http", "::1:9617", "0x7f000001:9617", "127.1:9617"} {
		if err := metrics.CheckLoopback(address); err == nil {
			t.Errorf("%q is accepted", address)
		}
		if _, err := registry(t).Listen(address); err == nil {
			t.Errorf("%q is listened on", address)
		}
	}
}

// listen opens a port, and closes it when the test ends.
func listen(t *testing.T, r *metrics.Registry) (address string) {
	t.Helper()
	free, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address = free.Addr().String()
	free.Close()
	p, err := r.Listen(address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Millisecond)
		defer cancel()
		p.Close(ctx)
		if err := <-p.Ended(); err != nil {
			t.Errorf("it ended: %v", err)
		}
	})
	return address
}

// request sends a request as it is, and returns the answer's status and body.
func request(t *testing.T, address, text string) (status int, body string) {
	t.Helper()
	c, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(20 * time.Second))
	io.WriteString(c, text)
	answer, _ := io.ReadAll(c) // it may be cut off, and is then not what was wanted
	head, body, _ := strings.Cut(string(answer), "\r\n\r\n")
	fmt.Sscanf(head, "HTTP/1.1 %d", &status)
	return status, body
}

func TestPort(t *testing.T) {
	r := registry(t, metrics.Family{Name: "kekd_test", Kind: metrics.Gauge, Help: "Test", Read: func(r metrics.Reading) { r.Value(7) }})
	address := listen(t, r)
	get := func(line, host string) string {
		return line + " HTTP/1.1\r\nHost: " + host + "\r\nConnection: close\r\n\r\n"
	}
	for text, want := range map[string]int{
		get("GET /metrics", address):          http.StatusOK,
		get("GET /metrics", "localhost:9617"): http.StatusOK,
		get("GET /metrics", "[::1]:9617"):     http.StatusOK,
		get("GET /metrics", "localhost"):      http.StatusOK,

		get("GET /metrics", "evil.example"):              http.StatusForbidden, // a name that was made to point here
		get("GET /metrics", "localhost.evil.example:80"): http.StatusForbidden,
		get("GET /metrics", "10.0.0.1"):                  http.StatusForbidden,
		get("GET /metrics", ""):                          http.StatusForbidden,
		get("GET /", address):                            http.StatusNotFound,
		get("GET /metrics/", address):                    http.StatusNotFound,
		get("GET /debug/pprof/", address):                http.StatusNotFound,
		get("POST /metrics", address):                    http.StatusMethodNotAllowed,
		get("DELETE /metrics", address):                  http.StatusMethodNotAllowed,
		"GET /metrics HTTP/1.1\r\n\r\n":                  http.StatusBadRequest,
		"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n":               http.StatusForbidden,  // HTTP/2, without a host
		"\x16\x03\x01\x00\x05hello\r\n\r\n":              http.StatusBadRequest, // TLS
	} {
		status, body := request(t, address, text)
		if status != want || (want == http.StatusOK) != strings.Contains(body, "kekd_test 7\n") {
			t.Errorf("%.60q: status %d, want %d", text, status, want)
		}
	}
	// The connection may be reset before the answer is read.
	if status, _ := request(t, address, "GET /metrics HTTP/1.1\r\nHost: localhost\r\nX: "+strings.Repeat("x", 64<<10)+"\r\n\r\n"); status != 0 && status != http.StatusRequestHeaderFieldsTooLarge {
		t.Errorf("a huge header: status %d", status)
	}
}

// Whoever fills the port and says nothing, or does not read, is hung up on in the end. Meanwhile further ones are
// closed at once, and cost nothing.
func TestPortThatIsFull(t *testing.T) {
	t.Parallel()
	address := listen(t, registry(t))
	var held []net.Conn
	dial := func() net.Conn {
		c, err := net.Dial("tcp", address)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		return c
	}
	hungUp := func(c net.Conn, within time.Duration) bool {
		c.SetReadDeadline(time.Now().Add(within))
		_, err := c.Read(make([]byte, 1))
		timeout, ok := errors.AsType[net.Error](err)
		return err != nil && !(ok && timeout.Timeout())
	}
	for range metrics.MaxConns {
		held = append(held, dial())
	}
	for range 3 {
		if !hungUp(dial(), 20*time.Second) {
			t.Fatal("one more is let in")
		}
	}
	if hungUp(held[0], time.Millisecond) {
		t.Error("one that was let in is hung up on")
	}
	held[0].Close()
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(time.Millisecond) {
		c, err := net.Dial("tcp", address)
		if err != nil {
			t.Fatal(err)
		}
		c.SetDeadline(time.Now().Add(20 * time.Second))
		io.WriteString(c, "GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
		b, _ := io.ReadAll(c)
		c.Close()
		if strings.HasPrefix(string(b), "HTTP/1.1 200 OK") {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("there is room again, and nobody is served")
		}
	}
	if !hungUp(held[1], 20*time.Second) {
		t.Error("who says nothing stays for ever")
	}
}
