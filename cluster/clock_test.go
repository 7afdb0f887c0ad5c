package cluster_test

import (
	"bytes"
	"log/slog"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/kekd/kekd/cluster"
	"github.com/kekd/kekd/hierarchy"
)

func TestClusterClock(t *testing.T) {
	day := time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)
	type reading struct {
		age   time.Duration // since the last one
		wall  time.Duration // since day
		want  time.Duration // since day
		warns bool
	}
	for _, c := range []struct {
		name     string
		floor    time.Time
		readings []reading
	}{
		{"follows a wall clock that agrees", time.Time{}, []reading{{0, 0, 0, false}, {time.Second, time.Second, time.Second, false}}},
		{"follows one that is somewhat ahead", time.Time{}, []reading{{0, 0, 0, false}, {time.Second, time.Minute, time.Minute, false}}},
		{"goes at half speed while it is ahead", time.Time{}, []reading{
			{0, 0, 0, false},
			{10 * time.Second, -time.Minute, 5 * time.Second, false},
			{10 * time.Second, -50 * time.Second, 10 * time.Second, false},
			{10 * time.Second, 12 * time.Second, 15 * time.Second, false},
			{10 * time.Second, 22 * time.Second, 22 * time.Second, false}, // they meet
		}},
		{"does not follow a jump ahead", time.Time{}, []reading{
			{0, 0, 0, false},
			{time.Second, 365 * 24 * time.Hour, time.Second, true},
			{time.Second, 365*24*time.Hour + time.Second, 2 * time.Second, false}, // said once
			{time.Second, 3 * time.Second, 3 * time.Second, false},                // set right
			{time.Second, 2 * time.Hour, 4 * time.Second, true},                   // and wrong again
		}},
		{"does not follow a jump back", time.Time{}, []reading{
			{0, 0, 0, false}, {time.Second, -24 * time.Hour, time.Second, true},
		}},
		{"believes the wall clock at the start", day.Add(-72 * time.Hour), []reading{{0, 0, 0, true}, {time.Second, time.Second, time.Second, false}}},
		{"is not before the state at the start", day.Add(time.Minute), []reading{{0, 0, time.Minute, false}, {2 * time.Second, 2 * time.Second, time.Minute + time.Second, false}}},
		{"is not before the state when the battery is dead", day, []reading{
			{0, -60 * 365 * 24 * time.Hour, 0, false},
			{time.Second, -60 * 365 * 24 * time.Hour, time.Second, true},
			{time.Second, 2 * time.Second, 2 * time.Second, false},
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			age := new(setClock)
			var wall time.Time
			var logged bytes.Buffer
			stamp := cluster.NewClusterClock(age, func() time.Time { return wall }, slog.New(slog.NewTextHandler(&logged, nil)))
			for i, r := range c.readings {
				age.advance(r.age)
				wall = day.Add(r.wall)
				logged.Reset()
				if got, want := stamp(c.floor), day.Add(r.want); !got.Equal(want) {
					t.Errorf("reading %d: got %v, want %v", i, got, want)
				}
				if got := strings.Contains(logged.String(), "clock"); got != r.warns {
					t.Errorf("reading %d: logged %q, want something: %v", i, logged.String(), r.warns)
				}
			}
		})
	}
}

// Whatever the wall clock does, a stamp is never before the last, and in a running process it goes
// ahead of its own elapsed time by no more than a jump that is believed.
func TestClusterClockNeverGoesBack(t *testing.T) {
	day := time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)
	rapid.Check(t, func(t *rapid.T) {
		age := new(setClock)
		wall := day
		stamp := cluster.NewClusterClock(age, func() time.Time { return wall }, slog.New(slog.DiscardHandler))
		last := stamp(time.Time{})
		for range rapid.IntRange(1, 30).Draw(t, "readings") {
			passed := time.Duration(rapid.Int64Range(0, int64(time.Hour)).Draw(t, "passed"))
			age.advance(passed)
			wall = wall.Add(time.Duration(rapid.Int64Range(-int64(72*time.Hour), int64(72*time.Hour)).Draw(t, "jump")))
			next := stamp(last)
			if next.Before(last) {
				t.Fatalf("from %v back to %v", last, next)
			}
			if next.Sub(last) > passed+5*time.Minute {
				t.Fatalf("%v passed, and cluster time went on by %v", passed, next.Sub(last))
			}
			last = next
		}
	})
}

// Several voters: one clock that is wrong moves nothing, whoever's it is, and nothing is followed
// that no majority has told.
func TestClusterClockFollowsTheMedian(t *testing.T) {
	day := time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)
	self, b, c := hierarchy.NodeID{ID: hierarchy.ID{1}}, hierarchy.NodeID{ID: hierarchy.ID{2}}, hierarchy.NodeID{ID: hierarchy.ID{3}}
	const year = 365 * 24 * time.Hour
	type told struct{ own, b, c time.Duration } // since day; of b and c: 0 is nothing
	for _, tc := range []struct {
		name string
		told []told        // a second apart
		want time.Duration // since day, after the last
	}{
		{"all agree", []told{{time.Second, time.Second, time.Second}, {2 * time.Second, 2 * time.Second, 2 * time.Second}}, 2 * time.Second},
		{"the leader's jumps an hour", []told{{0, time.Second, time.Second}, {time.Hour, 2 * time.Second, 2 * time.Second}}, 2 * time.Second},
		{"the leader's jumps a year back", []told{{0, time.Second, time.Second}, {-year, 2 * time.Second, 2 * time.Second}}, 2 * time.Second},
		{"the leader's is a year ahead from the start", []told{{year, time.Second, time.Second}, {year + time.Second, 2 * time.Second, 2 * time.Second}}, 2 * time.Second},
		{"another's is a minute ahead", []told{{0, time.Minute, time.Second}, {time.Second, time.Minute + time.Second, 2 * time.Second}}, 2 * time.Second},
		{"a majority is somewhat ahead", []told{{0, time.Minute, time.Minute}, {time.Second, time.Minute + time.Second, time.Minute + time.Second}}, time.Minute + time.Second},
		{"a majority jumps an hour", []told{{time.Second, time.Second, time.Second}, {2 * time.Second, time.Hour, time.Hour}}, 2 * time.Second},
		{"two have told, and one of them is wrong", []told{{0, time.Minute, 0}, {time.Second, time.Minute + time.Second, 0}}, time.Second},
		// Nothing is measured before there is a majority's word: the floor stands.
		{"nobody but the leader has told", []told{{time.Minute, 0, 0}, {time.Minute + time.Second, 0, 0}}, 0},
	} {
		t.Run(tc.name, func(t *testing.T) {
			age := new(setClock)
			var wall time.Time
			clock := cluster.NewVotedClock(self, age, func() time.Time { return wall }, slog.New(slog.DiscardHandler))
			var got time.Time
			for i, is := range tc.told {
				if i > 0 {
					age.advance(time.Second)
				}
				wall = day.Add(is.own)
				if is.b != 0 {
					clock.Report(b, day.Add(is.b))
				}
				if is.c != 0 {
					clock.Report(c, day.Add(is.c))
				}
				got = clock.Stamp(day, self, b, c)
			}
			if want := day.Add(tc.want); !got.Equal(want) {
				t.Errorf("got %v, want %v", got, want)
			}
		})
	}
}

func TestClusterClockForgetsWhoIsSilent(t *testing.T) {
	day := time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)
	self, b, c := hierarchy.NodeID{ID: hierarchy.ID{1}}, hierarchy.NodeID{ID: hierarchy.ID{2}}, hierarchy.NodeID{ID: hierarchy.ID{3}}
	age := new(setClock)
	wall := day
	clock := cluster.NewVotedClock(self, age, func() time.Time { return wall }, slog.New(slog.DiscardHandler))
	clock.Report(b, day)
	clock.Report(c, day)
	clock.Stamp(day, self, b, c)
	age.advance(time.Hour) // and the others have said nothing since
	wall = day.Add(time.Hour + time.Minute)
	if got, want := clock.Stamp(day, self, b, c), day.Add(time.Hour); !got.Equal(want) {
		t.Errorf("got %v, want %v: a minority's clock is followed", got, want)
	}
}
