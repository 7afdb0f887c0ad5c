package lease_test

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"runtime"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/kekd/kekd/cluster/lease"
)

func TestAge(t *testing.T) {
	const s = time.Second
	l := lease.Lease{T0: 100 * s, Index: 7}
	for _, c := range []struct {
		name  string
		lease lease.Lease
		now   time.Duration
		index uint64
		want  time.Duration
		err   error
	}{
		{"new", l, 100 * s, 7, 0, nil},
		{"later state", l, 101 * s, 9, s, nil},
		{"to the nanosecond", l, 102*s + 1, 7, 2*s + 1, nil},
		{"state behind the lease", l, 100 * s, 6, 0, lease.ErrBehind},
		{"no lease", lease.Lease{}, 0, 7, 0, lease.ErrNone},
		{"no lease, empty state", lease.Lease{}, 0, 0, 0, lease.ErrNone},
		{"clock gone back", l, 100*s - 1, 7, 0, lease.ErrClock},
	} {
		if got, err := c.lease.Age(c.now, c.index); got != c.want || !errors.Is(err, c.err) {
			t.Errorf("%s: got %v, %v, want %v, %v", c.name, got, err, c.want, c.err)
		}
	}
}

func TestInterval(t *testing.T) {
	for max, want := range map[time.Duration]time.Duration{
		time.Second: 125 * time.Millisecond, 2 * time.Second: 250 * time.Millisecond, 24 * time.Hour: 250 * time.Millisecond,
	} {
		if got := lease.Interval(max); got != want {
			t.Errorf("%v: got %v, want %v", max, got, want)
		}
	}
}

func TestAgeClock(t *testing.T) {
	var clock lease.AgeClock
	wall, age := time.Now(), clock.Now()
	var wg sync.WaitGroup
	for range 2 * runtime.NumCPU() {
		wg.Go(func() {
			last := clock.Now()
			for range 50_000 {
				now := clock.Now()
				if now < last {
					t.Errorf("went from %v back to %v", last, now)
					return
				}
				last = now
			}
		})
	}
	wg.Wait()
	passed, aged := time.Since(wall), clock.Now()-age
	if diff := (passed - aged).Abs(); diff > passed/10+10*time.Millisecond {
		t.Errorf("%v passed by the process's clock, %v by the age clock", passed, aged)
	}
}

// The machine sleeps, and the process is stopped in the middle of a reading: the first counts, the
// second does not, and neither takes the clock back.
func TestAgeClockCountsSleep(t *testing.T) {
	const width = 100 // of a good measurement
	var raw, slept, blur int64
	now := lease.NewAgeReader(func() (int64, int64, int64) {
		defer func() { blur = 0 }()
		return raw, slept - width/2 - blur, slept + width/2 + blur
	})
	hour := int64(time.Hour)
	last := time.Duration(-1 << 62)
	for i, step := range []struct{ raw, slept, blur, want int64 }{
		{10, 0, 0, 10},
		{20, 0, 0, 20},
		{30, 0, hour, 30},                      // stopped for an hour, and no sleep
		{40, hour, 0, hour + 40},               // slept
		{50, hour, hour, hour + 50},            // stopped, after the sleep
		{60, 2 * hour, 10 * hour, 2*hour + 60}, // slept, and stopped longer than that while it was measured
		{70, 2 * hour, 0, 2*hour + 70},
	} {
		raw, slept, blur = step.raw, step.slept, step.blur
		got := now()
		if got < last {
			t.Errorf("step %d: went from %v back to %v", i, last, got)
		}
		last = got
		if (got - time.Duration(step.want)).Abs() > width {
			t.Errorf("step %d: got %v, want %v", i, got, time.Duration(step.want))
		}
	}
}

// BenchmarkAgeClock is what every request pays twice.
func BenchmarkAgeClock(b *testing.B) {
	var clock lease.AgeClock
	for b.Loop() {
		clock.Now()
	}
}

// fake is a clock and a leader, in the time of a synctest bubble.
type fake struct {
	start time.Time
	took  time.Duration
	fails int             // from this renewal on; 0: never
	mends time.Duration   // when it does no longer; 0: never
	asked []time.Duration // when
}

func (f *fake) Now() time.Duration { return time.Since(f.start) }

func (f *fake) Renew(ctx context.Context) (uint64, error) {
	f.asked = append(f.asked, f.Now())
	select {
	case <-time.After(f.took):
		if f.fails > 0 && len(f.asked) >= f.fails && (f.mends == 0 || f.Now() < f.mends) {
			return 99, errors.New("no leader")
		}
		return uint64(len(f.asked)), nil
	case <-ctx.Done():
		return 0, ctx.Err()
	}
}

func keep(t *testing.T, f *fake) (*lease.Keeper, context.CancelFunc) {
	f.start = time.Now()
	k := lease.NewKeeper(f, f, func() time.Duration { return 250 * time.Millisecond }, slog.New(slog.DiscardHandler))
	ctx, cancel := context.WithCancel(t.Context())
	go k.Run(ctx)
	return k, cancel
}

func TestKeeper(t *testing.T) {
	const ms = time.Millisecond
	t.Run("counts from before it asked", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			k, stop := keep(t, &fake{took: 100 * ms})
			defer stop()
			if got := k.Current(); got != (lease.Lease{}) {
				t.Errorf("before the first renewal the lease is %+v", got)
			}
			<-k.Renewed()
			if got, want := k.Current(), (lease.Lease{T0: 0, Index: 1}); got != want {
				t.Errorf("got %+v, want %+v", got, want)
			}
			<-k.Renewed()
			if got, want := k.Current(), (lease.Lease{T0: 350 * ms, Index: 2}); got != want {
				t.Errorf("got %+v, want %+v", got, want)
			}
		})
	})
	t.Run("a failure renews nothing", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			f := &fake{took: 10 * ms, fails: 2}
			k, stop := keep(t, f)
			defer stop()
			<-k.Renewed()
			had := k.Current()
			time.Sleep(time.Second)
			synctest.Wait()
			if got := k.Current(); got != had {
				t.Errorf("the lease became %+v", got)
			}
			if len(f.asked) < 4 {
				t.Errorf("asked at %v only", f.asked)
			}
			if done, failed := k.Renewals(); done != 1 || int(failed) != len(f.asked)-1 && int(failed) != len(f.asked)-2 { // one may be under way
				t.Errorf("%d renewals and %d failures of %d tries", done, failed, len(f.asked))
			}
		})
	})
	t.Run("asks again when nobody answers", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			f := &fake{took: time.Hour}
			_, stop := keep(t, f)
			defer stop()
			time.Sleep(3 * time.Second)
			synctest.Wait()
			if len(f.asked) != 3 {
				t.Errorf("asked at %v, want three times", f.asked)
			}
		})
	})
	t.Run("at once when kicked", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			f := &fake{took: 10 * ms}
			k, stop := keep(t, f)
			defer stop()
			<-k.Renewed()
			time.Sleep(20 * ms)
			k.Kick()
			<-k.Renewed()
			if got := f.asked[1]; got != 30*ms {
				t.Errorf("asked again at %v, want 30ms", got)
			}
		})
	})
}

// That renewals fail is said at once, and each minute; and once that they do no longer.
func TestKeeperSaysHowItGoes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log bytes.Buffer
		f := &fake{start: time.Now(), took: 10 * time.Millisecond, fails: 2, mends: 2*time.Minute + 30*time.Second}
		k := lease.NewKeeper(f, f, func() time.Duration { return 250 * time.Millisecond }, slog.New(slog.NewTextHandler(&log, nil)))
		ctx, stop := context.WithCancel(t.Context())
		ended := make(chan struct{})
		go func() { k.Run(ctx); close(ended) }()
		<-k.Renewed()
		<-k.Renewed()
		stop()
		<-ended
		var said []string
		for line := range strings.Lines(log.String()) {
			_, text, _ := strings.Cut(line, "level=")
			text, _, _ = strings.Cut(text, " error=")
			said = append(said, strings.TrimSpace(text))
		}
		want := []string{
			`WARN msg="the lease is not renewed; this node serves until it runs out"`,
			`WARN msg="the lease is not renewed still: this node serves no tenant that wants a newer copy" for=1m0s`,
			`WARN msg="the lease is not renewed still: this node serves no tenant that wants a newer copy" for=2m0s`,
			`INFO msg="the lease is renewed again" after=2m`,
		}
		if len(said) != len(want) {
			t.Fatalf("it says\n%s", log.String())
		}
		for i := range want {
			if !strings.HasPrefix(said[i], want[i]) {
				t.Errorf("it says %s, want %s", said[i], want[i])
			}
		}
	})
}
