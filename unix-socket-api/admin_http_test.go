package socketapi_test

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	socketapi "github.com/kekd/kekd/unix-socket-api"
	"github.com/kekd/kekd/unix-socket-api/client"
	"github.com/kekd/kekd/unix-socket-api/kekdv1"
)

const someMetrics = "# TYPE kekd_unwrap_total counter\nkekd_unwrap_total 7\n"

var metricsHandler = http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, someMetrics) })

// adminWithMetrics hangs up on who says nothing for a tenth of a second.
func adminWithMetrics(t *testing.T, h http.Handler) (kekdv1.AdminServiceClient, *node, *running) {
	t.Helper()
	n := newNode(t)
	api, _, s := adminWith(t, n, func(a *socketapi.Admin) {
		a.Metrics = h
		a.Limits.HandshakeTimeout = 100 * time.Millisecond
		a.Limits.ConnsPerUID = 8
		a.Limits.ConnsPerSecond = 1000
	})
	return api, n, s
}

// over sends a request as curl does, and answers with the status.
func over(t *testing.T, path, method, target string) (status int, body string) {
	t.Helper()
	c := &http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", path)
	}}}
	req, err := http.NewRequestWithContext(soon(t), method, "http://localhost"+target, strings.NewReader(""))
	if err != nil {
		t.Fatal(err)
	}
	resp, err := c.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(b)
}

func TestMetricsBesideTheCalls(t *testing.T) {
	api, _, s := adminWithMetrics(t, metricsHandler)
	must[*kekdv1.Status](t)(api.GetStatus(soon(t), &kekdv1.GetStatusRequest{}))
	status, body := over(t, s.path, "GET", "/metrics")
	if diff := cmp.Diff(someMetrics, body); status != 200 || diff != "" {
		t.Errorf("status %d: %s", status, diff)
	}
	if text, err := client.Metrics(soon(t), s.path); err != nil || string(text) != someMetrics {
		t.Errorf("the client got %q, %v", text, err)
	}
	for _, other := range []string{"GET /", "GET /metrics/", "GET /metricsx", "POST /metrics", "HEAD /metrics", "DELETE /metrics", "PUT /metrics", "GET /debug/pprof/"} {
		method, target, _ := strings.Cut(other, " ")
		if status, body := over(t, s.path, method, target); status != 404 || strings.Contains(body, "kekd_") {
			t.Errorf("%s: status %d, %q", other, status, body)
		}
	}
	must[*kekdv1.Status](t)(api.GetStatus(soon(t), &kekdv1.GetStatusRequest{}))
}

func TestANodeWithoutMetrics(t *testing.T) {
	_, _, s := adminWithMetrics(t, nil)
	if status, _ := over(t, s.path, "GET", "/metrics"); status != 404 {
		t.Errorf("status %d", status)
	}
	if _, err := client.Metrics(soon(t), s.path); code(err) != "NOT_FOUND" {
		t.Errorf("the client got %v", err)
	}
	keys := startKeys(t, &fakeCustody{}, nil)
	if _, err := client.Metrics(soon(t), keys.path); code(err) != "UNAVAILABLE" {
		t.Errorf("of the socket for data keys the client got %v", err)
	}
}

// Metrics tell who uses what how often: they are for administrators.
func TestMetricsAreForAdministrators(t *testing.T) {
	asked := 0
	_, n, s := adminWithMetrics(t, http.HandlerFunc(func(http.ResponseWriter, *http.Request) { asked++ }))
	if _, result := callAs(t, "metrics", s.path, 54321, 54322); result != "PERMISSION_DENIED" || asked != 0 {
		t.Errorf("a stranger got %s, and they were gathered %d times", result, asked)
	}
	records := n.last()
	if len(records) != 1 || records[0].Outcome != socketapi.AdminDenied || records[0].Caller.UID != 54321 {
		t.Errorf("recorded: %+v", records)
	}
}

// Whoever sends nothing, too little, too much or nonsense is hung up on, and takes nothing from others.
func TestHostileConnections(t *testing.T) {
	api, _, s := adminWithMetrics(t, metricsHandler)
	begun := time.Now()
	hostile := map[string]struct{ sent, want string }{
		"nothing":             {"", ""},
		"one byte of HTTP/2":  {"P", ""},
		"most of its preface": {"PRI * HTTP/2.0\r", ""},
		"a preface and no more": {
			"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "\x00\x00"}, // its own settings, at most
		"half a request":  {"GET /metr", "HTTP/1.1 400"},
		"no end of head":  {"GET /metrics HTTP/1.1\r\nHost: localhost\r\n", ""},
		"a huge header":   {"GET /metrics HTTP/1.1\r\nHost: localhost\r\nX: " + strings.Repeat("x", 1<<20), "HTTP/1.1 431"},
		"a huge line":     {"GET /" + strings.Repeat("x", 1<<20), "HTTP/1.1 431"},
		"garbage":         {"\x16\x03\x01\x00\xff\x01\r\n\r\n", "HTTP/1.1 400"},
		"no host":         {"GET /metrics HTTP/1.1\r\n\r\n", "HTTP/1.1 400"},
		"a wrong version": {"GET /metrics HTTP/3.0\r\n\r\n", "HTTP/1.1 505"},
	}
	for name, h := range hostile {
		t.Run(name, func(t *testing.T) {
			c, err := net.Dial("unix", s.path)
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			c.SetDeadline(time.Now().Add(10 * time.Second))
			go io.Copy(c, strings.NewReader(h.sent)) // it may be hung up on before it has sent all
			got, _ := io.ReadAll(c)                  // ends when the daemon hangs up
			if !bytes.HasPrefix(got, []byte(h.want)) || h.want == "" && len(got) > 0 || bytes.Contains(got, []byte("kekd_")) {
				t.Errorf("got %.80q", got)
			}
			must[*kekdv1.Status](t)(api.GetStatus(soon(t), &kekdv1.GetStatusRequest{}))
		})
	}
	if d := time.Since(begun); d > 9*time.Second {
		t.Errorf("they were held for %v", d)
	}
	// Of the eight connections that one uid may have, none is lost.
	for range 20 {
		if status, _ := over(t, s.path, "GET", "/metrics"); status != 200 {
			t.Fatalf("status %d", status)
		}
	}
	if log := s.log.String(); strings.Contains(log, "panic") {
		t.Errorf("logged: %s", log)
	}
}

// All connections of a uid may be silent: then it waits, and not for long.
func TestSilentConnectionsAreNotKept(t *testing.T) {
	_, _, s := adminWithMetrics(t, metricsHandler)
	for range 8 {
		c, err := net.Dial("unix", s.path)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
	}
	eventually(t, "the silent ones are hung up on", func() bool {
		_, err := client.Metrics(soon(t), s.path)
		return err == nil
	})
}

func TestMetricsThatPanic(t *testing.T) {
	api, _, s := adminWithMetrics(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		io.WriteString(w, "half an answer")
		panic("secret")
	}))
	if _, err := client.Metrics(soon(t), s.path); code(err) != "UNAVAILABLE" {
		t.Errorf("got %v", err)
	}
	if log := s.log.String(); !strings.Contains(log, "panic") || strings.Contains(log, "secret") {
		t.Errorf("logged: %s", log)
	}
	must[*kekdv1.Status](t)(api.GetStatus(soon(t), &kekdv1.GetStatusRequest{}))
}

// A daemon that stops answers a scrape that is under way, and waits for nobody who is silent.
func TestStopWithMetricsUnderWay(t *testing.T) {
	arrived, release := make(chan struct{}), make(chan struct{})
	_, _, s := adminWithMetrics(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		close(arrived)
		<-release
		metricsHandler(w, r)
	}))
	silent, err := net.Dial("unix", s.path)
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	answer := make(chan string, 1)
	go func() {
		text, err := client.Metrics(context.Background(), s.path)
		answer <- fmt.Sprintf("%s%v", text, err)
	}()
	<-arrived
	stopped := make(chan error, 1)
	go func() { stopped <- s.Shutdown(soon(t)) }()
	eventually(t, "nobody connects any more", func() bool {
		c, err := net.Dial("unix", s.path)
		if err == nil {
			c.Close()
		}
		return err != nil
	})
	close(release)
	if got := <-answer; got != someMetrics+"<nil>" {
		t.Errorf("got %s", got)
	}
	if err := <-stopped; err != nil {
		t.Errorf("Shutdown: %v", err)
	}
	silent.SetDeadline(time.Now().Add(10 * time.Second))
	if _, err := bufio.NewReader(silent).ReadByte(); err != io.EOF {
		t.Errorf("the silent connection got %v", err)
	}
}

// A preface that comes byte by byte is one all the same.
func TestPrefaceInPieces(t *testing.T) {
	_, _, s := adminWithMetrics(t, metricsHandler)
	c, err := net.Dial("unix", s.path)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(10 * time.Second))
	for _, b := range []byte("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00") { // and empty settings
		if _, err := c.Write([]byte{b}); err != nil {
			t.Fatal(err)
		}
	}
	frame := make([]byte, 9)
	if _, err := io.ReadFull(c, frame); err != nil || frame[3] != 4 { // SETTINGS (RFC 9113, section 6.5)
		t.Errorf("got %x, %v", frame, err)
	}
}
