package metrics

import (
	"bytes"
	"net/http"
	"strconv"
	"sync"
	"time"

	"github.com/prometheus/common/expfmt"
)

// Handler serves the metrics in Prometheus' text format, whatever is asked of it. One scrape is gathered at a time,
// and is complete before its first byte is sent: who does not read holds up nobody.
//
// What was gathered is served for maxAge to whoever asks. 0 is for those who may have the daemon work for each of their
// requests.
func (r *Registry) Handler(maxAge time.Duration) http.Handler {
	return &handler{registry: r, maxAge: maxAge}
}

// A handler serves text that is never changed once it is there, so that any number of readers cost one text.
type handler struct {
	registry *Registry
	maxAge   time.Duration

	mu   sync.Mutex
	text []byte
	at   time.Time // when text was gathered
}

func (h *handler) ServeHTTP(w http.ResponseWriter, _ *http.Request) {
	text, err := h.gathered()
	if err != nil {
		http.Error(w, "the metrics could not be gathered: "+err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", string(format))
	w.Header().Set("Content-Length", strconv.Itoa(len(text)))
	w.Write(text) // an error is the reader's, who has left
}

var format = expfmt.NewFormat(expfmt.TypeTextPlain)

func (h *handler) gathered() ([]byte, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.text != nil && time.Since(h.at) < h.maxAge {
		return h.text, nil
	}
	families, err := h.registry.gatherer.Gather()
	if err != nil {
		return nil, err // some of it may be right, and would look like all
	}
	var b bytes.Buffer
	encoder := expfmt.NewEncoder(&b, format)
	for _, f := range families {
		if err := encoder.Encode(f); err != nil {
			return nil, err
		}
	}
	h.text, h.at = b.Bytes(), time.Now()
	return h.text, nil
}
