package metrics_test

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/kekd/kekd/metrics"
	"github.com/kekd/kekd/stats"
)

func registry(t *testing.T, families ...metrics.Family) *metrics.Registry {
	t.Helper()
	r, err := metrics.New("v1", families...)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func ask(h http.Handler) *httptest.ResponseRecorder {
	w := httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/metrics", nil))
	return w
}

func TestFamilies(t *testing.T) {
	var took stats.Histogram
	took.Observe(time.Millisecond)
	took.Observe(time.Minute)
	outcomes := []metrics.Label{{Name: "outcome", Values: []string{"OK", "STALE"}}}
	w := ask(registry(t,
		metrics.Family{Name: "kekd_test_total", Kind: metrics.Counter, Labels: outcomes, Help: "Tests", Read: func(r metrics.Reading) {
			r.Value(3, "OK")
			r.Value(0, "STALE")
		}},
		metrics.Family{Name: "kekd_test_is", Kind: metrics.Gauge, Help: "Whether it is", Read: func(r metrics.Reading) { r.Truth(true) }},
		metrics.Family{Name: "kekd_test_seconds", Kind: metrics.Histogram, Help: "How long", Read: func(r metrics.Reading) { r.Distribution(took.Read()) }},
		metrics.Family{Name: "kekd_test_nothing", Kind: metrics.Gauge, Help: "Not known yet", Read: func(metrics.Reading) {}},
	).Handler(0))
	got := w.Body.String()
	for _, want := range []string{
		"# HELP kekd_test_is Whether it is.", "# TYPE kekd_test_is gauge", "kekd_test_is 1",
		"# HELP kekd_test_seconds How long.", "# TYPE kekd_test_seconds histogram",
		`kekd_test_seconds_bucket{le="0.0005"} 0`, `kekd_test_seconds_bucket{le="0.001"} 1`, `kekd_test_seconds_bucket{le="10"} 1`,
		`kekd_test_seconds_bucket{le="+Inf"} 2`, "kekd_test_seconds_sum 60.001", "kekd_test_seconds_count 2",
		"# TYPE kekd_test_total counter", `kekd_test_total{outcome="OK"} 3`, `kekd_test_total{outcome="STALE"} 0`,
		`kekd_build_info{goversion="go`, `version="v1"} 1`,
	} {
		if !strings.Contains(got, want) {
			t.Errorf("%q is not in\n%s", want, got)
		}
	}
	if kind := w.Header().Get("Content-Type"); w.Code != http.StatusOK || !strings.HasPrefix(kind, "text/plain; version=0.0.4") {
		t.Errorf("status %d, %q", w.Code, kind)
	}
	if strings.Contains(got, "kekd_test_nothing") {
		t.Error("what is not known has a value")
	}
}

// A family that is wrong makes the scrape fail, and never the daemon.
func TestAFamilyThatIsWrong(t *testing.T) {
	for name, read := range map[string]func(metrics.Reading){
		"panics":               func(metrics.Reading) { panic("a secret") },
		"lacks a label":        func(r metrics.Reading) { r.Value(1) },
		"has one too many":     func(r metrics.Reading) { r.Value(1, "a", "b") },
		"says one thing twice": func(r metrics.Reading) { r.Value(1, "a"); r.Value(2, "a") },
		"has a label's value that was not declared": func(r metrics.Reading) { r.Value(1, "a secret") },
	} {
		w := ask(registry(t, metrics.Family{
			Name: "kekd_test", Kind: metrics.Gauge, Labels: []metrics.Label{{Name: "x", Values: []string{"a"}}}, Help: "Test", Read: read,
		}).Handler(0))
		if body := w.Body.String(); w.Code != http.StatusInternalServerError || strings.Contains(body, "secret") || strings.Contains(body, "go_") {
			t.Errorf("%s: status %d, %q", name, w.Code, body)
		}
	}
	one := metrics.Family{Name: "kekd_test", Kind: metrics.Gauge, Help: "Test", Read: func(metrics.Reading) {}}
	if _, err := metrics.New("v1", one, one); err == nil {
		t.Error("two of one name are taken")
	}
}

// counted is a family that has been read so many times.
func counted(reads *atomic.Int64) metrics.Family {
	return metrics.Family{Name: "kekd_test_reads", Kind: metrics.Gauge, Help: "Reads", Read: func(r metrics.Reading) { r.Value(float64(reads.Add(1))) }}
}

func TestMaxAge(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var reads atomic.Int64
		r := registry(t, counted(&reads))
		fresh, kept := r.Handler(0), r.Handler(time.Second)
		first := ask(kept).Body.String()
		if again := ask(kept).Body.String(); again != first || reads.Load() != 1 {
			t.Errorf("it was read %d times within its age", reads.Load())
		}
		if ask(fresh); reads.Load() != 2 {
			t.Error("one that keeps nothing has read nothing")
		}
		time.Sleep(time.Second)
		if ask(kept); reads.Load() != 3 {
			t.Errorf("it was read %d times, once after its age", reads.Load())
		}
	})
}

// stuck is a reader that takes nothing.
type stuck struct {
	*httptest.ResponseRecorder
	came chan struct{}
	end  chan struct{}
}

func (s *stuck) Write(b []byte) (int, error) {
	s.came <- struct{}{}
	<-s.end
	return len(b), nil
}

// Those who do not read hold up nobody, however many there are.
func TestReadersThatDoNotRead(t *testing.T) {
	var reads atomic.Int64
	h := registry(t, counted(&reads)).Handler(0)
	const many = 50
	w := &stuck{httptest.NewRecorder(), make(chan struct{}), make(chan struct{})}
	ended := make(chan struct{})
	for range many {
		go func() {
			h.ServeHTTP(&stuck{httptest.NewRecorder(), w.came, w.end}, httptest.NewRequest(http.MethodGet, "/metrics", nil))
			ended <- struct{}{}
		}()
	}
	for range many {
		<-w.came
	}
	if got := ask(h); got.Code != http.StatusOK || reads.Load() != many+1 {
		t.Errorf("status %d after %d reads", got.Code, reads.Load())
	}
	close(w.end)
	for range many {
		<-ended
	}
}
