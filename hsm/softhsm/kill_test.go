package softhsm_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/kekd/kekd/hsm/softhsm"
)

func nightly() bool { return os.Getenv("KEKD_NIGHTLY") == "1" }

// kills is how often each kind of change is killed.
func kills() int {
	if nightly() {
		return 300
	}
	return 20
}

// rng seeds what is random; the seed is printed, and SOFTHSM_SEED replays it as far as the
// scheduler allows.
func rng(t *testing.T) *rand.Rand {
	seed := uint64(time.Now().UnixNano())
	if s := os.Getenv("SOFTHSM_SEED"); s != "" {
		if _, err := fmt.Sscan(s, &seed); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("SOFTHSM_SEED=%d", seed)
	return rand.New(rand.NewPCG(seed, 0))
}

type key struct {
	check  string
	usable bool
}

// model is what was acknowledged, and what was under way and may or may not have happened.
type model struct {
	keys  map[string]key
	pairs map[string]bool
	marks map[string]int
	open  []string // the command
	hits  int      // how often something was under way
	fails int      // how often a command failed without a kill
}

func newModel() *model {
	return &model{keys: map[string]key{}, pairs: map[string]bool{}, marks: map[string]int{}}
}

// learn takes the answers of a driver that was killed, or not.
func (m *model) learn(answers []string) {
	var begun string
	for _, a := range answers {
		verdict, command, _ := strings.Cut(a, " ")
		switch verdict {
		case "begin":
			begun = command
		case "error":
			m.fails++
			m.open = append(m.open, begun)
			begun = ""
		case "ok":
			begun = ""
			switch f := strings.Fields(command); f[0] {
			case "mint":
				m.keys[f[1]] = key{f[2], true}
			case "latch":
				k := m.keys[f[1]]
				k.usable = f[2] == "true"
				m.keys[f[1]] = k
			case "destroy":
				delete(m.keys, f[1])
			case "pair":
				m.pairs[f[1]] = true
			case "raise":
				m.marks[f[1]], _ = strconv.Atoi(f[2])
			}
		}
	}
	if begun != "" {
		m.hits++
		m.open = append(m.open, begun)
	}
}

// listed is one object as the driver lists it.
type listed struct {
	Class         uint
	ID, Check     string
	Mark          string
	Local, Usable bool
	Works         bool
}

const (
	data       = 0
	publicKey  = 2
	privateKey = 3
	secretKeys = 4
)

// verify compares the token with what was acknowledged, and settles what was open. It returns
// what is wrong.
func (m *model) verify(answer string) (wrong []string) {
	_, text, _ := strings.Cut(answer, "ok list ")
	var objects []listed
	if err := json.Unmarshal([]byte(text), &objects); err != nil {
		return []string{fmt.Sprintf("no list: %v: %q", err, answer)}
	}
	uncertain := map[string]string{} // ID to command
	for _, c := range m.open {
		if f := strings.Fields(c); len(f) > 1 {
			uncertain[f[1]] = f[0]
		}
	}
	m.open = nil

	secret, halves := map[string]listed{}, map[uint][]string{}
	marks := map[string]int{}
	for _, o := range objects {
		if o.Class == data {
			n, err := strconv.Atoi(o.Mark)
			if err != nil {
				wrong = append(wrong, fmt.Sprintf("half-made: %+v", o))
			}
			marks[o.ID] = max(marks[o.ID], n)
			continue
		}
		if !o.Local {
			wrong = append(wrong, fmt.Sprintf("half-made: %+v", o))
		}
		if o.Class != secretKeys {
			halves[o.Class] = append(halves[o.Class], o.ID)
			continue
		}
		if _, twice := secret[o.ID]; twice || o.Check == "" || o.Usable && !o.Works {
			wrong = append(wrong, fmt.Sprintf("half-made, or there twice: %+v", o))
		}
		secret[o.ID] = o
	}
	for id, k := range m.keys {
		o, there := secret[id]
		switch {
		case !there && uncertain[id] != "destroy":
			wrong = append(wrong, "lost: key "+id)
		case there && o.Check != k.check:
			wrong = append(wrong, "another key under the name of "+id)
		case there && o.Usable != k.usable && uncertain[id] != "latch":
			wrong = append(wrong, fmt.Sprintf("latch of %s is %v", id, o.Usable))
		}
	}
	for id := range secret {
		if _, known := m.keys[id]; !known && uncertain[id] != "mint" {
			wrong = append(wrong, "came back, or from nowhere: key "+id)
		}
	}
	slices.Sort(halves[publicKey])
	slices.Sort(halves[privateKey])
	if !slices.Equal(halves[publicKey], halves[privateKey]) {
		wrong = append(wrong, fmt.Sprintf("half a pair: public %v, private %v", halves[publicKey], halves[privateKey]))
	}
	for id, n := range m.marks {
		if marks[id] != n && !(uncertain[id] == "raise" && marks[id] == n+1) {
			wrong = append(wrong, fmt.Sprintf("mark %s is %d, was acknowledged at %d", id, marks[id], n))
		}
	}
	for id := range m.pairs {
		if !slices.Contains(halves[privateKey], id) {
			wrong = append(wrong, "lost: pair "+id)
		}
	}
	// What was uncertain is now seen.
	m.keys = map[string]key{}
	for id, o := range secret {
		m.keys[id] = key{o.Check, o.Usable}
	}
	m.marks, m.pairs = marks, map[string]bool{}
	for _, id := range halves[privateKey] {
		m.pairs[id] = true
	}
	return wrong
}

// victim is a kind of change to be killed in.
type victim struct {
	name string
	// commands of round n; those to be killed in begin with name.
	commands func(n int) []string
}

func repeat(count int, f func(i int) string) (commands []string) {
	for i := range count {
		commands = append(commands, f(i))
	}
	return commands
}

var victims = []victim{
	{"relogin", func(int) []string {
		return repeat(5, func(int) string { return "relogin 20" })
	}},
	{"latch", func(n int) []string {
		return append([]string{fmt.Sprintf("mint l%d", n)}, repeat(5, func(i int) string {
			return fmt.Sprintf("latch l%d %v 20", n, i%2 == 0)
		})...)
	}},
	{"mint", func(n int) []string {
		return repeat(5, func(i int) string { return fmt.Sprintf("mint m%d-%d", n, i) })
	}},
	{"pair", func(n int) []string {
		return repeat(3, func(i int) string { return fmt.Sprintf("pair p%d-%d", n, i) })
	}},
	{"raise", func(n int) []string {
		return repeat(6, func(i int) string { return fmt.Sprintf("raise w%d %d", n, i+1) })
	}},
	{"destroy", func(n int) []string {
		return append(
			repeat(3, func(i int) string { return fmt.Sprintf("mint d%d-%d", n, i) }),
			repeat(3, func(i int) string { return fmt.Sprintf("destroy d%d-%d", n, i) })...)
	}},
}

// newVictim makes a token on a disk: there, a file stays empty for longer between ftruncate and
// write than in memory.
func newVictim(t *testing.T) (*softhsm.Dir, string) {
	d, path := newDirIn(t, t.TempDir())
	initToken(t, path)
	return d, path
}

// takes measures how long a change of the kind takes here and now.
func (v victim) takes(t *testing.T) time.Duration {
	_, path := newVictim(t)
	p := start(t, driverBinary, path, nil)
	commands := v.commands(0)
	p.send(append([]string{"open"}, with(commands...)...)...)
	var took []time.Duration
	for _, c := range commands {
		if strings.HasPrefix(c, v.name) {
			p.until("begin " + v.name)
			began := time.Now()
			p.until("ok " + v.name)
			took = append(took, time.Since(began))
		}
	}
	p.finish()
	slices.Sort(took)
	return took[len(took)/2]
}

// round kills a driver in a random change of its kind, at a random moment of it.
func (v victim) round(t *testing.T, r *rand.Rand, takes time.Duration, binary func() (string, error), env []string, dir string, n int, m *model) {
	p := start(t, binary, dir, env)
	commands := v.commands(n)
	p.send(append([]string{"open"}, with(commands...)...)...)
	targets := 0
	for _, c := range commands {
		if strings.HasPrefix(c, v.name) {
			targets++
		}
	}
	nth := r.IntN(targets)
	var answers []string
	for range nth + 1 {
		answers = append(answers, p.until("begin "+v.name)...)
	}
	time.Sleep(time.Duration(r.Int64N(int64(takes))))
	m.learn(append(answers, p.kill()...))
}

// survey repairs and looks, as the next start would.
func survey(t *testing.T, d *softhsm.Dir, dir string, m *model) []string {
	if _, err := d.Repair(soon(t)); err != nil {
		return []string{err.Error()}
	}
	p := start(t, driverBinary, dir, nil)
	p.send(append([]string{"open"}, with("list")...)...)
	answers := p.finish()
	for _, a := range answers {
		if strings.HasPrefix(a, "error") {
			return []string{a}
		}
	}
	return m.verify(answers[len(answers)-1])
}

func TestKill(t *testing.T) {
	for _, v := range victims {
		t.Run(v.name, func(t *testing.T) {
			t.Parallel()
			r, takes := rng(t), v.takes(t)
			d, path := newVictim(t)
			m := newModel()
			n := 0
			for ; m.hits < kills() && n < 5*kills(); n++ {
				v.round(t, r, takes, driverBinary, nil, path, n, m)
				if wrong := survey(t, d, path, m); wrong != nil {
					t.Fatalf("after kill %d: %q", n+1, wrong)
				}
			}
			t.Logf("%d kills, %d in the middle of a change", n, m.hits)
			if m.hits < kills() {
				t.Error("too few to show anything")
			}
			if m.fails > 0 {
				t.Errorf("%d commands failed by themselves", m.fails)
			}
		})
	}
}

// Two processes use the directory; they are killed in turns, while the other goes on. Nobody can
// repair alone: whoever comes next puts right what the dead one left.
func TestKillOneOfTwo(t *testing.T) {
	t.Parallel()
	r := rng(t)
	d, path := newVictim(t)
	m := newModel()
	begin := func(who string, n int) *process {
		p := start(t, driverBinary, path, nil)
		id := func(i int) string { return fmt.Sprintf("%s%d-%d", who, n, i) }
		commands := with()
		for i := range 40 {
			commands = append(commands, "mint "+id(i), "relogin 1", fmt.Sprintf("latch %s false 1", id(i)))
			if i%3 == 2 {
				commands = append(commands, "destroy "+id(i-1), "pair "+id(i))
			}
		}
		p.send(append([]string{"open"}, commands...)...)
		return p
	}
	running := map[string]*process{"a": begin("a", 0), "b": begin("b", 0)}
	seen := map[string][]string{}
	rounds := kills() / 2
	for n := range rounds {
		for _, who := range []string{"a", "b"} {
			seen[who] = running[who].until("ok mint")
			time.Sleep(time.Duration(r.Int64N(int64(60 * time.Millisecond))))
			m.learn(append(seen[who], running[who].kill()...))
			running[who] = begin(who, n+1)
		}
	}
	for _, who := range []string{"a", "b"} {
		m.learn(running[who].kill())
	}
	acknowledged := len(m.keys)
	if wrong := survey(t, d, path, m); wrong != nil {
		t.Errorf("%d faults, the first: %q", len(wrong), wrong[:min(len(wrong), 10)])
	}
	t.Logf("%d kills, %d in the middle of a change; %d keys acknowledged, %d commands failed by themselves",
		2*rounds+2, m.hits, acknowledged, m.fails)
	if m.fails > acknowledged/4 || acknowledged < rounds {
		t.Errorf("%d commands failed, %d keys were acknowledged", m.fails, acknowledged)
	}
}

// Without the copies, the same kills lose a token or a key: in every run it is tried until one
// does, in the nightly one they are counted.
func TestKillFindsMissingShadow(t *testing.T) {
	t.Parallel()
	const most = 300
	for _, v := range victims[:2] { // a login, a latch
		t.Run(v.name, func(t *testing.T) {
			r, takes := rng(t), v.takes(t)
			lost, n := 0, 0
			for ; n < most && (nightly() || lost == 0); n++ {
				d, path := newVictim(t)
				for _, place := range []string{"shadow", "quarantine"} { // what newToken had copied
					if err := errors.Join(os.RemoveAll(filepath.Join(path, place)), os.Mkdir(filepath.Join(path, place), 0o700)); err != nil {
						t.Fatal(err)
					}
				}
				m := newModel()
				v.round(t, r, takes, mutantBinary, []string{"SOFTHSM_MUTANT=copy"}, path, n, m)
				if survey(t, d, path, m) != nil {
					lost++
				}
			}
			t.Logf("%d of %d kills lost something", lost, n)
			if lost == 0 {
				t.Errorf("%d kills without a shadow lost nothing: the test finds no fault", n)
			}
		})
	}
}
