package policy_test

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/kekd/kekd/hierarchy"
	"github.com/kekd/kekd/hierarchy/policy"
)

func TestParseLimits(t *testing.T) {
	for _, c := range []struct {
		texts []string
		want  policy.Limits
		text  string
	}{
		{nil, policy.Limits{}, "none"},
		{[]string{"100/s"}, policy.Limits{Short: policy.Limit{Count: 100, Per: policy.Second}}, "100/s"},
		{[]string{"1/d"}, policy.Limits{Long: policy.Limit{Count: 1, Per: policy.Day}}, "1/d"},
		{[]string{"1000000000/h", "5/m"}, policy.Limits{Short: policy.Limit{Count: 5, Per: policy.Minute}, Long: policy.Limit{Count: policy.MaxLimit, Per: policy.Hour}}, "5/m 1000000000/h"},
	} {
		got, err := policy.ParseLimits(c.texts)
		if err != nil {
			t.Errorf("%q: %v", c.texts, err)
		}
		if diff := cmp.Diff(c.want, got); diff != "" {
			t.Errorf("%q (-want +got):\n%s", c.texts, diff)
		}
		if got.String() != c.text || got.None() != (c.texts == nil) {
			t.Errorf("%q reads as %q, none: %v", c.texts, got, got.None())
		}
	}
}

func TestParseLimitsRefuses(t *testing.T) {
	for texts, reason := range map[string]string{
		"":                          "COUNT/UNIT",
		"100":                       "COUNT/UNIT",
		"100/":                      "COUNT/UNIT",
		"/s":                        "COUNT/UNIT",
		"100/w":                     "COUNT/UNIT",
		"100/sec":                   "COUNT/UNIT",
		"100/s/":                    "COUNT/UNIT",
		"1 00/s":                    "COUNT/UNIT",
		"+5/s":                      "COUNT/UNIT",
		"-5/s":                      "COUNT/UNIT",
		"05/s":                      "COUNT/UNIT",
		"1e3/s":                     "COUNT/UNIT",
		"10k/s":                     "COUNT/UNIT",
		"١/s":                       "COUNT/UNIT",
		"0/s":                       "it would allow nothing",
		"1000000001/d":              "at most 1000000000",
		"9999999999999/d":           "at most 1000000000",
		"99999999999999999999999/d": "COUNT/UNIT",
		"100/s,5/m":                 "100/s and 5/m: give at most one with a short window, s or m",
		"100/h,5/d":                 "100/h and 5/d: give at most one with a long window, h or d",
		"100/s,100/s":               "short window",
		"100/s,5/d,1/h":             "long window",
	} {
		_, err := policy.ParseLimits(strings.Split(texts, ","))
		if !errors.Is(err, hierarchy.ErrInvalidArgument) || !strings.Contains(err.Error(), reason) {
			t.Errorf("%q: got %v, want an invalid argument that says %q", texts, err, reason)
		}
	}
}

// What comes from elsewhere than a text.
func TestRuleWithLimitsThatCannotBe(t *testing.T) {
	for reason, ls := range map[string]policy.Limits{
		"per second, minute":        {Long: policy.Limit{Count: 1, Per: 2 * time.Hour}},
		"limit 1/s stands":          {Long: policy.Limit{Count: 1, Per: policy.Second}},
		"limit 1/d stands":          {Short: policy.Limit{Count: 1, Per: policy.Day}},
		"limit 0/s: it would allow": {Short: policy.Limit{Per: policy.Second}},
		"a limit per 0s":            {Short: policy.Limit{Count: 3}},
		"at most":                   {Short: policy.Limit{Count: policy.MaxLimit + 1, Per: policy.Minute}},
	} {
		r := billing("acme/*")
		r.Limits = ls
		if err := policy.ValidateRule(r); !errors.Is(err, hierarchy.ErrInvalidArgument) || !strings.Contains(err.Error(), reason) {
			t.Errorf("%+v: got %v, want an invalid argument that says %q", ls, err, reason)
		}
	}
}

func TestWindows(t *testing.T) {
	at := time.Date(2031, 3, 4, 17, 42, 31, 999_999_999, time.UTC)
	for per, want := range map[time.Duration]time.Time{
		policy.Second: time.Date(2031, 3, 4, 17, 42, 31, 0, time.UTC),
		policy.Minute: time.Date(2031, 3, 4, 17, 42, 0, 0, time.UTC),
		policy.Hour:   time.Date(2031, 3, 4, 17, 0, 0, 0, time.UTC),
		policy.Day:    time.Date(2031, 3, 4, 0, 0, 0, 0, time.UTC),
	} {
		for _, in := range []time.Time{at, want, want.Add(per - 1), at.In(time.FixedZone("elsewhere", 5*3600+30*60))} {
			if got := policy.WindowOf(in, per); !got.Equal(want) {
				t.Errorf("%v of %v: got %v, want %v", per, in, got, want)
			}
		}
		if got := policy.WindowOf(want.Add(-1), per); !got.Equal(want.Add(-per)) {
			t.Errorf("%v: a moment before %v is in the window from %v", per, want, got)
		}
	}
	before := time.Unix(-1, 0)
	if got := policy.WindowOf(before, policy.Day); !got.Equal(time.Unix(-86400, 0)) {
		t.Errorf("before 1970: got %v", got)
	}
}

// Whatever order limits are given in, they are the same, and read back from their text.
func TestLimitsReadBack(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var list []policy.Limit
		for _, kind := range [][]time.Duration{{policy.Second, policy.Minute}, {policy.Hour, policy.Day}} {
			if rapid.Bool().Draw(t, "has") {
				list = append(list, policy.Limit{Count: rapid.Uint64Range(1, policy.MaxLimit).Draw(t, "count"), Per: rapid.SampledFrom(kind).Draw(t, "per")})
			}
		}
		want, err := policy.NewLimits(list...)
		if err != nil {
			t.Fatal(err)
		}
		got, err := policy.NewLimits(rapid.Permutation(list).Draw(t, "order")...)
		if err != nil || got != want {
			t.Fatalf("in another order: %v, %v, want %v", got, err, want)
		}
		if diff := cmp.Diff(list, want.List()); diff != "" {
			t.Fatalf("list (-want +got):\n%s", diff)
		}
		if want.None() {
			return
		}
		got, err = policy.ParseLimits(strings.Fields(want.String()))
		if err != nil || got != want {
			t.Fatalf("%q reads back as %v, %v", want, got, err)
		}
	})
}

func FuzzParseLimit(f *testing.F) {
	for _, s := range []string{"100/s", "10000/d", "5/m", "1/h", "0/s", "01/s", "1/", "/", "1/s/s", "18446744073709551616/d"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		l, err := policy.ParseLimit(s)
		if err != nil {
			if !errors.Is(err, hierarchy.ErrInvalidArgument) {
				t.Fatalf("%q: %v is no invalid argument", s, err)
			}
			return
		}
		if l.String() != s {
			t.Fatalf("%q reads back as %q", s, l)
		}
		ls, err := policy.NewLimits(l)
		if err != nil || len(ls.List()) != 1 {
			t.Fatalf("%q was read, and is not valid: %v", s, err)
		}
		rule := billing("acme/*")
		rule.Limits = ls
		if err := policy.ValidateRule(rule); err != nil {
			t.Fatalf("%q was read, and no rule may have it: %v", s, err)
		}
	})
}
