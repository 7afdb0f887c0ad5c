package main

import (
	"errors"
	"math"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/kekd/kekd/hierarchy"
)

func TestParseDuration(t *testing.T) {
	for text, want := range map[string]time.Duration{
		"2s":         2 * time.Second,
		"0":          0,
		"0d":         0,
		"90d":        90 * 24 * time.Hour,
		"1d12h":      36 * time.Hour,
		"1d1h1m1.5s": 25*time.Hour + time.Minute + 1500*time.Millisecond,
		"106751d":    106751 * 24 * time.Hour,
	} {
		got, err := parseDuration(text)
		if err != nil || got != want {
			t.Errorf("parseDuration(%q) = %v, %v; want %v", text, got, err, want)
		}
	}
	for _, text := range []string{"", "d", "90", "-1s", "-1d", "+1d", "+1s", "1d-1h", "1d+1h", "1.5d", "1h1d", "1dd", "1d d", " 1d", "1w", "106752d", "106751d24h", "9223372036854775807d", "99999999999999999999d"} {
		if got, err := parseDuration(text); !errors.Is(err, hierarchy.ErrInvalidArgument) {
			t.Errorf("parseDuration(%q) = %v, %v; want an invalid argument", text, got, err)
		}
	}
}

func TestFormatDuration(t *testing.T) {
	for d, want := range map[time.Duration]string{
		0:                              "0s",
		2 * time.Second:                "2s",
		10 * time.Minute:               "10m",
		time.Hour:                      "1h",
		90 * time.Second:               "1m30s",
		24 * time.Hour:                 "1d",
		36 * time.Hour:                 "1d12h",
		24*time.Hour + 1:               "1d1ns",
		250 * time.Millisecond:         "250ms",
		100*time.Hour + 10*time.Second: "4d4h0m10s",
	} {
		if got := formatDuration(d); got != want {
			t.Errorf("formatDuration(%d) = %q, want %q", d, got, want)
		}
	}
}

// What is printed can be typed again.
func TestDurationRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		d := time.Duration(rapid.Int64Range(0, math.MaxInt64).Draw(t, "d"))
		got, err := parseDuration(formatDuration(d))
		if err != nil || got != d {
			t.Fatalf("%d is written %q, and read as %d, %v", d, formatDuration(d), got, err)
		}
	})
}

func FuzzParseDuration(f *testing.F) {
	for _, text := range []string{"90d", "1d12h", "2s", "-1d", "106752d"} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		d, err := parseDuration(text)
		if err != nil {
			return
		}
		if d < 0 {
			t.Fatalf("parseDuration(%q) = %d", text, d)
		}
		if again, err := parseDuration(formatDuration(d)); err != nil || again != d {
			t.Fatalf("%q is %d, is written %q, and read as %d, %v", text, d, formatDuration(d), again, err)
		}
	})
}
