package main

import (
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"

	"github.com/kekd/kekd/hierarchy"
)

const day = 24 * time.Hour

// duration is a flag: what Go writes, and whole days before it, as in 90d or 1d12h. A day has 24 hours.
type duration time.Duration

// String is empty where nothing was set: each flag says in its own words what that means.
func (d *duration) String() string {
	if *d == 0 {
		return ""
	}
	return formatDuration(time.Duration(*d))
}

func (d *duration) Type() string { return "duration" }

func (d *duration) Set(s string) error {
	v, err := parseDuration(s)
	*d = duration(v)
	return err
}

func parseDuration(s string) (time.Duration, error) {
	bad := func() (time.Duration, error) {
		return 0, fmt.Errorf("%w: duration %q: write it as in 90d, 36h or 2s", hierarchy.ErrInvalidArgument, s)
	}
	var total time.Duration
	rest := s
	if days, after, found := strings.Cut(s, "d"); found {
		n, err := strconv.ParseUint(days, 10, 32)
		if err != nil || n > uint64(math.MaxInt64/day) {
			return bad()
		}
		total, rest = time.Duration(n)*day, after
		if rest == "" {
			return total, nil
		}
	}
	v, err := time.ParseDuration(rest)
	if err != nil || strings.HasPrefix(rest, "-") || strings.HasPrefix(rest, "+") || v > math.MaxInt64-total {
		return bad()
	}
	return total + v, nil
}

// formatDuration writes what parseDuration reads, without units that are nought.
func formatDuration(d time.Duration) string {
	days, rest := d/day, d%day
	if days == 0 {
		return trimZeroUnits(rest.String())
	}
	out := strconv.FormatInt(int64(days), 10) + "d"
	if rest != 0 {
		out += trimZeroUnits(rest.String())
	}
	return out
}

// trimZeroUnits makes 1h0m0s into 1h.
func trimZeroUnits(s string) string {
	if strings.HasSuffix(s, "m0s") {
		s = strings.TrimSuffix(s, "0s")
	}
	if strings.HasSuffix(s, "h0m") {
		s = strings.TrimSuffix(s, "0m")
	}
	return s
}
