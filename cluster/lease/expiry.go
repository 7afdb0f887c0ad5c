package lease

import "time"

// expiryMargin is added to each wait: for the time between two readings of a clock, and their grain.
const expiryMargin = 50 * time.Millisecond

// Expiry is how long to wait, on one's own age clock and from when a closing was seen to be committed, until
// no lease from before it serves anybody who allows maxStaleness. Clocks of two machines differ in their
// rates by less than 1 % (CLOCK_MONOTONIC_RAW is a quartz's own, some 100 ppm off).
//
// A lease whose Tick stands before the closing was asked for before the closing was committed, so it is
// older than the wait, whoever led.
func Expiry(maxStaleness time.Duration) time.Duration {
	return maxStaleness + (maxStaleness+99)/100 + expiryMargin
}
