package peer

import (
	"errors"
	"log/slog"
	"sync"
	"time"
)

// onceLog says what goes on for a while once: peers try again and again.
type onceLog struct {
	log *slog.Logger

	mu   sync.Mutex
	said map[Peer]map[string]time.Time
}

const (
	// sayAgain is when the same is worth a line again.
	sayAgain = 10 * time.Minute
	// maxSaid bounds what is kept, of peers, and of what is said of one. What is forgotten is said again.
	maxSaid = 256
)

func (o *onceLog) warn(of Peer, what string, err error, args ...any) {
	if !o.first(of, what+kind(err)) {
		return
	}
	args = append([]any{"peer", of.Name, "error", err}, args...)
	if !of.ID.IsZero() {
		args = append(args, "id", of.ID)
	}
	if of.Service != "" {
		args = append(args, "service", of.Service)
	}
	o.log.Warn(what, args...)
}

// kind is what two errors have in common of which one line is enough. The words may differ each time:
// that of a certificate that has expired has the time of day in it.
func kind(err error) string {
	for _, said := range refusals {
		if errors.Is(err, said) {
			return said.Error()
		}
	}
	return err.Error()
}

func (o *onceLog) first(of Peer, text string) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	if last, ok := o.said[of][text]; ok && time.Since(last) < sayAgain {
		return false
	}
	if o.said == nil || len(o.said) >= maxSaid {
		o.said = map[Peer]map[string]time.Time{}
	}
	if o.said[of] == nil || len(o.said[of]) >= maxSaid {
		o.said[of] = map[string]time.Time{}
	}
	o.said[of][text] = time.Now()
	return true
}

// forget is for a peer that it has gone well with.
func (o *onceLog) forget(of Peer) {
	o.mu.Lock()
	defer o.mu.Unlock()
	delete(o.said, of)
}
