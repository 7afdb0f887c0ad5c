package lease

import "time"

// NewAgeReader is an age clock of other clocks: no test can put the machine to sleep.
func NewAgeReader(read func() (raw, low, high int64)) func() time.Duration {
	r := &ageReader{read: read}
	return r.now
}
