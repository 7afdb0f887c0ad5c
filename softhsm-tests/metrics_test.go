package softhsmtests

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil/promlint"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"

	"github.com/kekd/kekd/unix-socket-api/client"
	"github.com/kekd/kekd/unix-socket-api/kekdv1"
)

// samples are values by their series, as in kekd_unwrap_total{outcome="OK"}. A histogram has its count alone.
type samples map[string]float64

// scraper asks for metrics as Prometheus does.
type scraper struct {
	t    *testing.T
	url  string
	http http.Client
}

// overSocket scrapes an admin socket.
func overSocket(t *testing.T, path string) *scraper {
	dialer := net.Dialer{}
	return &scraper{t, "http://localhost/metrics", http.Client{Timeout: 20 * time.Second, Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) { return dialer.DialContext(ctx, "unix", path) },
	}}}
}

// overTCP scrapes a port.
func overTCP(t *testing.T, address string) *scraper {
	return &scraper{t, "http://" + address + "/metrics", http.Client{Timeout: 20 * time.Second, Transport: &http.Transport{}}}
}

func (s *scraper) text() []byte {
	s.t.Helper()
	resp, err := s.http.Get(s.url)
	if err != nil {
		s.t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusOK {
		s.t.Fatalf("%s: %s, %v\n%.300s", s.url, resp.Status, err, b)
	}
	return b
}

func (s *scraper) scrape() samples {
	s.t.Helper()
	parser := expfmt.NewTextParser(model.LegacyValidation)
	families, err := parser.TextToMetricFamilies(bytes.NewReader(s.text()))
	if err != nil {
		s.t.Fatal(err)
	}
	all := samples{}
	for name, f := range families {
		for _, m := range f.Metric {
			var labels []string
			for _, l := range m.Label {
				labels = append(labels, fmt.Sprintf("%s=%q", l.GetName(), l.GetValue()))
			}
			series := name
			if labels != nil {
				series += "{" + strings.Join(labels, ",") + "}"
			}
			all[series] = m.GetCounter().GetValue() + m.GetGauge().GetValue() + float64(m.GetHistogram().GetSampleCount())
		}
	}
	return all
}

// moved checks by how much series have changed.
func (s samples) moved(t *testing.T, before samples, want samples) {
	t.Helper()
	for series, by := range want {
		now, there := s[series]
		if _, was := before[series]; !there || !was {
			t.Errorf("there is no %s", series)
		} else if now-before[series] != by {
			t.Errorf("%s has gone from %v to %v, want %v more", series, before[series], now, by)
		}
	}
}

// freePort is one that nobody listens on, for now.
func freePort(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// What services and operators do is seen by who scrapes, on the socket and on the port, and says nothing of whom it is
// about.
func TestMetrics(t *testing.T) {
	t.Parallel()
	n := initialised(t)
	address := freePort(t)
	n.Extra = fmt.Sprintf("[metrics]\nlisten = %q\n", address)
	d := n.serve()
	setUp(t, n.Node, "acme-inc", "globex-inc")
	socket, port := overSocket(t, n.AdminSocket), overTCP(t, address)
	documented(t, socket.text())

	k, a, ctx := keys(t, n.Node), admin(t, n.Node), within(t, time.Minute)
	before := socket.scrape()
	sealed, err := k.GenerateDataKey(ctx, "acme-inc/orders", 32, client.Options{})
	if err != nil {
		t.Fatal(err)
	}
	for range 5 {
		if _, err := k.Unwrap(ctx, sealed.Envelope, client.Options{}); err != nil {
			t.Fatal(err)
		}
	}
	for range 2 {
		if _, err := k.Wrap(ctx, "globex-inc/orders", canary(), client.Options{}); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := k.Rewrap(ctx, sealed.Envelope, client.Options{}); err != nil {
		t.Fatal(err)
	}
	wrong := client.Options{Context: map[string]string{"not": "this"}}
	if _, err := k.Unwrap(ctx, sealed.Envelope, wrong); codeOf(err) != "CONTEXT_MISMATCH" {
		t.Errorf("another context: %v", err)
	}
	used := socket.scrape()
	used.moved(t, before, samples{
		`kekd_datakey_total{outcome="OK"}`: 1, `kekd_wrap_total{outcome="OK"}`: 2, `kekd_rewrap_total{outcome="OK"}`: 1,
		`kekd_unwrap_total{outcome="OK"}`: 5, `kekd_unwrap_total{outcome="CONTEXT_MISMATCH"}`: 1, `kekd_unwrap_total{outcome="INTERNAL"}`: 0,
		`kekd_hsm_operation_duration_seconds{operation="unwrap"}`: 6, `kekd_hsm_operation_duration_seconds{operation="wrap"}`: 2,
		`kekd_hsm_operation_duration_seconds{operation="datakey"}`: 1, `kekd_hsm_operation_duration_seconds{operation="rewrap"}`: 1,
		`kekd_tenants{tenant_state="enabled"}`: 0, "kekd_withheld_total": 0, "kekd_fences_unfinished_total": 0,
	})
	if by := used["kekd_audit_records_total"] - before["kekd_audit_records_total"]; by < 10 {
		t.Errorf("%v records of ten requests", by)
	}
	is := samples{
		"kekd_started": 1, "kekd_fresh": 1, "kekd_leader": 1, "kekd_leader_known": 1, "kekd_hsm_healthy": 1, "kekd_audit_healthy": 1,
		`kekd_tenants{tenant_state="enabled"}`: 2, `kekd_key_versions{version_state="active"}`: 2, `kekd_members{votes="yes"}`: 1,
		"kekd_min_staleness_seconds": 2, `kekd_socket_connections{socket="keys"}`: 1, "kekd_hsm_versions_missing": 0,
	}
	for series, want := range is {
		if used[series] != want {
			t.Errorf("%s is %v, want %v", series, used[series], want)
		}
	}
	if age, there := used["kekd_lease_age_seconds"]; !there || age < 0 || age > 2 {
		t.Errorf("the lease is %v s old", age)
	}

	if _, err := a.DisableTenant(ctx, &kekdv1.DisableTenantRequest{Name: "acme-inc", Reason: "test"}); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		if _, err := k.Unwrap(ctx, sealed.Envelope, client.Options{}); codeOf(err) != "TENANT_DISABLED" {
			t.Errorf("after the disable: %v", err)
		}
	}
	disabled := socket.scrape()
	disabled.moved(t, used, samples{
		`kekd_unwrap_total{outcome="TENANT_DISABLED"}`: 3, `kekd_unwrap_total{outcome="OK"}`: 0, "kekd_fence_seconds": 1,
		`kekd_tenants{tenant_state="enabled"}`: -1, `kekd_tenants{tenant_state="disabled"}`: 1,
		`kekd_hsm_operation_duration_seconds{operation="unwrap"}`: 0,
	})

	// On the port it is the same, a second later at most.
	eventually(t, 20*time.Second, "the port has what the socket has", func() bool {
		return port.scrape()[`kekd_unwrap_total{outcome="TENANT_DISABLED"}`] == 3
	})
	namesNobody(t, n, socket.text())
	namesNobody(t, n, port.text())
	d.stop()
	if _, err := net.Dial("tcp", address); err == nil {
		t.Error("the port is open, and nobody behind it")
	}
}

// documented checks that docs/METRICS.md lists all that a node exposes, Go's and the process's metrics too, and that
// nothing is against Prometheus' rules.
func documented(t *testing.T, text []byte) {
	t.Helper()
	page, err := os.ReadFile("../docs/METRICS.md")
	if err != nil {
		t.Fatal(err)
	}
	exposed := map[string]bool{}
	for _, m := range regexp.MustCompile(`(?m)^# TYPE (\S+) `).FindAllSubmatch(text, -1) {
		exposed[string(m[1])] = true
		if !bytes.Contains(page, append(append([]byte("`"), m[1]...), '`')) {
			t.Errorf("%s is not in docs/METRICS.md", m[1])
		}
	}
	if len(exposed) < 80 {
		t.Errorf("%d metrics are exposed", len(exposed))
	}
	// kekd's own are held to the page where they are made; without a certificate and a snapshot some have no value here.
	for _, m := range regexp.MustCompile("`((?:go|process)_[a-z_]+)`").FindAllSubmatch(page, -1) {
		if !exposed[string(m[1])] {
			t.Errorf("%s is in docs/METRICS.md, and not exposed", m[1])
		}
	}
	problems, err := promlint.New(bytes.NewReader(text)).Lint()
	if err != nil {
		t.Error(err)
	}
	for _, p := range problems {
		t.Errorf("%s: %s", p.Metric, p.Text)
	}
}

// namesNobody checks that metrics tell no name, identifier, path or secret.
func namesNobody(t *testing.T, n *node, text []byte) {
	t.Helper()
	pin, err := os.ReadFile(n.PINFile)
	if err != nil {
		t.Fatal(err)
	}
	s, err := admin(t, n.Node).GetStatus(within(t, 10*time.Second), &kekdv1.GetStatusRequest{})
	if err != nil {
		t.Fatal(err)
	}
	for what, secret := range map[string]string{
		"a tenant": "acme", "another tenant": "globex", "a key": "orders", "the PIN": strings.TrimSpace(string(pin)), "its directory": filepath.Base(n.Dir),
		"the cluster": s.ClusterId, "the node": s.NodeId, "the token": s.GetHsm().GetSerial(),
	} {
		if secret == "" || bytes.Contains(text, []byte(secret)) {
			t.Errorf("metrics name %s", what)
		}
	}
}

// Whoever is on the machine may ask the port as often as he likes and read nothing: services are served all the same, and
// so is who scrapes the admin socket.
func TestHostileScrapers(t *testing.T) {
	t.Parallel()
	n := initialised(t)
	address := freePort(t)
	n.Extra = fmt.Sprintf("[metrics]\nlisten = %q\n", address)
	d := n.serve()
	setUp(t, n.Node, "acme")
	victim := probe(t, n, "acme/orders")
	request := []byte("GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n")
	for range 200 {
		c, err := net.Dial("tcp", address)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		c.SetDeadline(time.Now().Add(20 * time.Millisecond))
		_, _ = c.Write(bytes.Repeat(request, 1000)) // it may be full, or closed
	}
	eventually(t, 5*time.Second, "most of them are closed at once", func() bool { return len(descriptors(t, n.PID)) < 100 })
	socket := overSocket(t, n.AdminSocket)
	for range 5 {
		if s := socket.scrape(); s["kekd_started"] != 1 {
			t.Error("the admin socket says that the node has not started")
		}
	}
	// Those who do not read are hung up on.
	port := overTCP(t, address)
	eventually(t, 30*time.Second, "a scraper that reads is served again", func() bool {
		resp, err := port.http.Get(port.url)
		if err != nil {
			return false
		}
		defer resp.Body.Close()
		_, err = io.Copy(io.Discard, resp.Body)
		return err == nil && resp.StatusCode == http.StatusOK
	})
	if mib := residentMiB(t, n.PID); mib > 800 {
		t.Errorf("the daemon takes %d MiB", mib)
	}
	victim.stop()
	d.stop()
	if strings.Contains(d.says(), "panic") {
		t.Error("a scrape panicked")
	}
}

// A port that others than this machine reach is refused, and so is one that somebody has.
func TestMetricsPortIsRefused(t *testing.T) {
	t.Parallel()
	n := initialised(t)
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	for listen, says := range map[string]string{
		"0.0.0.0:9617": "is not a loopback address", "[::]:9617": "is not a loopback address", "10.0.0.1:9617": "such as 127.0.0.1:9617",
		"localhost:9617": "is not an IP address and a port", taken.Addr().String(): "address already in use",
	} {
		n.Extra = fmt.Sprintf("[metrics]\nlisten = %q\n", listen)
		n.refused(1, []string{"metrics.listen", says}, "serve")
	}
}
