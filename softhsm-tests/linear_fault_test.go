package softhsmtests

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"syscall"
	"time"
)

// disturb brings one fault after the other over the cluster, in rounds of each once, as the seed has it, and
// leaves it in order. What it did stands in the output of a test that fails.
func (a *members) disturb(ctx context.Context, random *rand.Rand) (done map[string]int) {
	done = map[string]int{}
	begun := time.Now()
	var round []fault
	for time.Since(begun) < disturbed || len(done) < len(faults) {
		if pause(ctx, between(random, 100, 500)); ctx.Err() != nil {
			break
		}
		if len(round) == 0 {
			round = slices.Clone(faults)
			random.Shuffle(len(round), func(i, j int) { round[i], round[j] = round[j], round[i] })
		}
		f := round[0]
		round = round[1:]
		m := a.pick(random, f.leader)
		lasts := between(random, 200, f.longest)
		a.t.Logf("%6.2f s: %s %s for %v", time.Since(begun).Seconds(), f.name, m.Name, lasts)
		end := f.begin(a, m, random)
		pause(ctx, lasts)
		a.network.Heal()
		if end != nil {
			end()
		}
		done[f.name]++
	}
	return done
}

// fault is begun, and what it returns ends what healing the network does not.
type fault struct {
	name    string
	leader  bool // half of the time it hits the leader
	longest int  // milliseconds
	begin   func(a *members, m *member, random *rand.Rand) (end func())
}

var faults = []fault{
	{"isolate", true, 1500, func(a *members, m *member, _ *rand.Rand) func() {
		a.network.Isolate(m.Name)
		return nil
	}},
	{"divide at", true, 1500, func(a *members, m *member, random *rand.Rand) func() {
		// The node and another one on one side, the rest on the other.
		with := a.other(m, random)
		for _, o := range a.nodes {
			if o != m && o != with {
				a.network.Cut(m.Name, o.Name)
				a.network.Cut(with.Name, o.Name)
			}
		}
		return nil
	}},
	{"make deaf", true, 1500, func(a *members, m *member, random *rand.Rand) func() {
		for _, o := range a.some(m, random) {
			a.network.CutOneWay(o.Name, m.Name)
		}
		return nil
	}},
	{"make mute", true, 1500, func(a *members, m *member, random *rand.Rand) func() {
		for _, o := range a.some(m, random) {
			a.network.CutOneWay(m.Name, o.Name)
		}
		return nil
	}},
	{"hold back what is sent to", true, 1000, func(a *members, m *member, random *rand.Rand) func() {
		for _, o := range a.some(m, random) {
			a.network.Hold(o.Name, m.Name)
		}
		return nil
	}},
	{"delay", false, 1500, func(a *members, m *member, random *rand.Rand) func() {
		for _, o := range a.some(m, random) {
			a.network.Delay(m.Name, o.Name, between(random, 5, 150))
			a.network.Delay(o.Name, m.Name, between(random, 5, 150))
		}
		return nil
	}},
	{"refuse", false, 1000, func(a *members, m *member, random *rand.Rand) func() {
		for _, o := range a.some(m, random) {
			a.network.Refuse(o.Name, m.Name)
		}
		return nil
	}},
	{"pause", true, 1500, func(_ *members, m *member, _ *rand.Rand) func() {
		m.signal(syscall.SIGSTOP)
		return func() { m.signal(syscall.SIGCONT) }
	}},
	{"kill", true, 800, func(_ *members, m *member, _ *rand.Rand) func() {
		m.kill()
		return m.restart
	}},
}

// pick is a node at random, or half of the time the leader if it is to be that.
func (a *members) pick(random *rand.Rand, leader bool) *member {
	m := a.nodes[random.IntN(len(a.nodes))]
	if leader && random.IntN(2) == 0 {
		return a.leader()
	}
	return m
}

func (a *members) other(m *member, random *rand.Rand) *member {
	for {
		if o := a.nodes[random.IntN(len(a.nodes))]; o != m {
			return o
		}
	}
}

// some are one or more of the others.
func (a *members) some(m *member, random *rand.Rand) []*member {
	others := slices.DeleteFunc(slices.Clone(a.nodes), func(o *member) bool { return o == m })
	random.Shuffle(len(others), func(i, j int) { others[i], others[j] = others[j], others[i] })
	return others[:1+random.IntN(len(others))]
}

// between is a time at random, its bounds in milliseconds.
func between(random *rand.Rand, from, to int) time.Duration {
	return time.Duration(from+random.IntN(to-from)) * time.Millisecond
}

func pause(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

func counts(m map[string]int) string {
	var words []string
	for name, n := range m {
		words = append(words, fmt.Sprintf("%s: %d", name, n))
	}
	slices.Sort(words)
	return strings.Join(words, ", ")
}
