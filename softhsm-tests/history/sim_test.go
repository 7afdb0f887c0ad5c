package history_test

import (
	"math/rand/v2"
	"os"
	"strconv"
	"testing"

	"github.com/kekd/kekd/softhsm-tests/history"
)

// sim is a toy of a cluster with clients: one log, nodes with copies that lag behind and start again,
// answers that get lost. It has its own idea of what a command does, and keeps every promise unless it is told
// to break one.
type sim struct {
	random *rand.Rand
	bug    string // "", "lose" or "twice"

	now     int64
	log     []simState // after each entry; the index is the place
	truth   []simState // the same without the bug
	nodes   []simNode
	waiting []*simOp
	done    []history.Operation
	values  uint64
	harmed  bool // the bug has struck
}

type simState struct {
	exists, enabled, allowed bool
	value                    uint64
}

type simNode struct{ applied, run int }

type simOp struct {
	history.Operation
	node      int
	committed int // its index; 0: not yet
}

var nodeNames = []string{"a", "b", "c"}

func newSim(random *rand.Rand, bug string) *sim {
	return &sim{random: random, bug: bug, log: make([]simState, 1), truth: make([]simState, 1), nodes: make([]simNode, len(nodeNames))}
}

func (s *sim) chance(percent int) bool { return s.random.IntN(100) < percent }

// apply is what one command makes of a state, and how it answers.
func (s simState) apply(o history.Operation) (simState, history.Outcome, string) {
	switch o.Kind {
	case history.Create:
		if s.exists {
			return s, refused, "ALREADY_EXISTS"
		}
		s.exists, s.enabled = true, true
	case history.Disable:
		s.enabled = false
	case history.Enable:
		s.enabled = true
	case history.Set:
		s.value = o.Value
	case history.Allow:
		s.allowed = true
	case history.Revoke:
		if !s.allowed {
			return s, refused, "NOT_FOUND"
		}
		s.allowed = false
	}
	return s, ok, ""
}

// commit appends a command to the log. Its answer is that of the state that it met.
func (s *sim) commit(o *simOp) {
	at, truth := s.log[len(s.log)-1], s.truth[len(s.truth)-1]
	next, outcome, code := at.apply(o.Operation)
	truth, _, _ = truth.apply(o.Operation)
	if s.bug == "lose" && o.Kind == history.Set && !s.harmed && s.chance(40) {
		next, s.harmed = at, true
	}
	s.log, s.truth = append(s.log, next), append(s.truth, truth)
	o.committed, o.Outcome, o.Code = len(s.log)-1, outcome, code
}

// step is one moment of the cluster.
func (s *sim) step(calm bool) {
	s.now += 1 + s.random.Int64N(3)
	node := s.random.IntN(len(s.nodes))
	n := &s.nodes[node]
	switch {
	case !calm && s.chance(2):
		n.run, n.applied = n.run+1, s.random.IntN(n.applied+1)
	case s.chance(30):
		n.applied += s.random.IntN(len(s.log) - n.applied)
	case !calm && len(s.waiting) < 5:
		s.begin(node)
	case len(s.waiting) > 0:
		i := s.random.IntN(len(s.waiting))
		if o := s.waiting[i]; s.goesOn(o) {
			s.waiting = append(s.waiting[:i], s.waiting[i+1:]...)
		}
	}
}

func (s *sim) begin(node int) {
	n := &s.nodes[node]
	mine := s.log[n.applied]
	o := &simOp{node: node, Operation: history.Operation{
		Tenant: "acme", Node: nodeNames[node], Run: n.run, Call: s.now, Client: len(s.done) % 7,
	}}
	commands := []history.Kind{history.Disable, history.Enable, history.Set, history.Set, history.Allow, history.Revoke}
	switch {
	case len(s.log) == 1 || s.chance(5):
		o.Kind = history.Create
	case s.chance(50):
		o.Kind = history.Read
		o.Outcome, o.Code, o.Return = refused, "NOT_FOUND", s.now
		if mine.exists {
			o.Outcome, o.Code, o.Index, o.Seen = ok, "", uint64(n.applied), mine.seen()
		}
	case s.chance(30):
		o.Kind = history.Unwrap
		switch {
		case !mine.exists:
			o.Outcome, o.Code = refused, "NOT_FOUND"
		case !mine.allowed:
			o.Outcome, o.Code = refused, "PERMISSION_DENIED"
		case !mine.enabled:
			o.Outcome, o.Code = refused, "TENANT_DISABLED"
		default:
			o.Outcome = ok
		}
		o.Return = s.now
	default:
		o.Kind = commands[s.random.IntN(len(commands))]
		if !mine.exists && o.Kind != history.Allow && o.Kind != history.Revoke {
			o.Outcome, o.Code, o.Return = refused, "NOT_FOUND", s.now
		}
		if o.Kind == history.Set {
			s.values++
			o.Value = s.values
		}
	}
	if o.Return == 0 {
		s.waiting = append(s.waiting, o)
		return
	}
	s.now++
	o.Return = s.now
	s.done = append(s.done, o.Operation)
}

func (s simState) seen() *history.Seen {
	state := "disabled"
	if s.enabled {
		state = "enabled"
	}
	return &history.Seen{State: state, Value: s.value, Allowed: &s.allowed}
}

// goesOn commits a command that waits, or answers it, or loses one of both.
func (s *sim) goesOn(o *simOp) bool {
	if o.committed == 0 {
		switch {
		case s.chance(3): // neither it nor an answer arrives
			s.lose(o)
			return true
		default:
			s.commit(o)
			return false
		}
	}
	n := &s.nodes[o.node]
	if s.chance(3) {
		s.lose(o)
		return true
	}
	n.applied = max(n.applied, o.committed)
	o.Run, o.Return = n.run, s.now
	if o.Outcome == ok && o.Kind != history.Allow && s.chance(90) {
		o.Index = uint64(o.committed)
	}
	s.done = append(s.done, o.Operation)
	if s.bug == "twice" && o.Kind == history.Set && !s.harmed && s.chance(40) {
		s.harmed = true
		again := *o
		s.commit(&again)
		s.truth[len(s.truth)-1] = s.truth[len(s.truth)-2]
	}
	return true
}

func (s *sim) lose(o *simOp) {
	o.Outcome, o.Code, o.Return = unknown, "OUTCOME_UNKNOWN", s.now
	s.done = append(s.done, o.Operation)
}

// run ends with reads on nodes that have caught up, and tells whether these show what they must not:
// a value of another command than the last one, whose own time is known.
func (s *sim) run(steps int) (ops []history.Operation, wrong bool) {
	for range steps {
		s.step(false)
	}
	for len(s.waiting) > 0 {
		s.step(true)
	}
	is, want := s.log[len(s.log)-1], s.truth[len(s.truth)-1]
	for i, name := range nodeNames {
		s.now += 2
		if is.exists {
			s.done = append(s.done, history.Operation{Kind: history.Read, Tenant: "acme", Node: name, Run: s.nodes[i].run, Call: s.now, Return: s.now + 1,
				Outcome: ok, Index: uint64(len(s.log) - 1), Fresh: true, Seen: is.seen()})
		}
	}
	if is.value == want.value {
		return s.done, false
	}
	// The value that should be there was acknowledged, and the one that is had its time before.
	byValue := map[uint64]history.Operation{}
	for _, o := range s.done {
		if o.Kind == history.Set {
			byValue[o.Value] = o
		}
	}
	should, other := byValue[want.value], byValue[is.value]
	wrong = should.Index != 0 && should.Outcome == ok && (is.value == 0 || other.Index != 0 && other.Outcome == ok)
	return s.done, wrong
}

func seeds(t *testing.T, n int, f func(t *testing.T, random *rand.Rand)) {
	t.Helper()
	first := rand.Uint64()
	if s := os.Getenv("KEKD_SEED"); s != "" {
		var err error
		if first, err = strconv.ParseUint(s, 10, 64); err != nil {
			t.Fatal(err)
		}
		n = 1
	}
	for i := range uint64(n) {
		f(t, rand.New(rand.NewPCG(first+i, 0)))
		if t.Failed() {
			t.Fatalf("KEKD_SEED=%d", first+i)
		}
	}
}

func TestAnHonestClusterPasses(t *testing.T) {
	total := 0
	seeds(t, 300, func(t *testing.T, random *rand.Rand) {
		ops, _ := newSim(random, "").run(400)
		total += len(ops)
		passes(t, none, ops...)
	})
	if total < 300*30 && os.Getenv("KEKD_SEED") == "" {
		t.Errorf("only %d operations in all", total)
	}
}

func TestADishonestClusterIsFound(t *testing.T) {
	for _, bug := range []string{"lose", "twice"} {
		t.Run(bug, func(t *testing.T) {
			wrong := 0
			seeds(t, 300, func(t *testing.T, random *rand.Rand) {
				ops, seen := newSim(random, bug).run(80)
				if seen {
					wrong++
					fails(t, none, "linearizable", nil, ops...)
				}
			})
			if wrong < 5 && os.Getenv("KEKD_SEED") == "" {
				t.Errorf("only %d of 300 clusters did wrong where it can be seen", wrong)
			}
		})
	}
}
