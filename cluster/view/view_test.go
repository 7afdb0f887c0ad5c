package view_test

import (
	"errors"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/kekd/kekd/cluster/lease"
	"github.com/kekd/kekd/cluster/view"
	"github.com/kekd/kekd/hierarchy"
	"github.com/kekd/kekd/hierarchy/commandpb"
	"github.com/kekd/kekd/hierarchy/state"
)

var (
	self     = hierarchy.NodeID{ID: hierarchy.ID{1}}
	stranger = hierarchy.NodeID{ID: hierarchy.ID{2}}
	start    = time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)
)

// states are those of a cluster by their index. They differ in it alone.
var states = func() []*state.State {
	const most = 100
	list := []*state.State{state.New()}
	apply := func(c *commandpb.Command) {
		i := uint64(len(list))
		id := hierarchy.ID{15: byte(i)}
		c.Format, c.Id, c.Stamp = state.Format, id[:], start.Add(time.Duration(i)*time.Millisecond).UnixNano()
		next, res := state.Apply(list[i-1], state.Meta{Index: i}, c)
		if res.Err != nil {
			panic(res.Err)
		}
		list = append(list, next)
	}
	region := hierarchy.ID{3}
	apply(&commandpb.Command{Body: &commandpb.Command_InitCluster{InitCluster: &commandpb.InitCluster{
		ClusterId: region[:],
		Region:    &commandpb.Region{Id: region[:], Name: "eu", Role: commandpb.RegionRole_REGION_ROLE_VOTING, Identity: []byte("not looked at here"), MintingNode: self.ID[:]},
		Node:      &commandpb.Node{Id: self.ID[:], Name: "eu-1", RegionId: region[:], Voter: true},
	}}})
	for len(list) <= most {
		apply(&commandpb.Command{Body: &commandpb.Command_Tick{Tick: &commandpb.Tick{}}})
	}
	return list
}()

// world is a cluster as one node meets it. Anything may happen between two reads of a look.
type world struct {
	now       time.Duration
	committed []time.Duration // when; the first is index 0, which nobody has to commit
	applied   uint64          // by the node
	lease     lease.Lease
	asked     lease.Lease // a renewal under way; without an index: its tick is not proposed yet
	fault     error
	acked     uint64       // the index of a closing that was acknowledged
	run       hierarchy.ID // zero: the one that is registered

	restored bool       // its state machine went back
	script   [][]string // what happens before each read to come
}

// newWorld is a node that has just got its first lease.
func newWorld(script ...[]string) *world {
	return &world{now: 2, committed: make([]time.Duration, 3), applied: 2, lease: lease.Lease{T0: 1, Index: 2}, script: script}
}

func (w *world) commit() {
	if len(w.committed) < len(states) {
		w.committed = append(w.committed, w.now)
	}
}

func (w *world) last() uint64 { return uint64(len(w.committed) - 1) }

var events = map[string]func(*world){
	"time passes": func(w *world) { w.now++ },
	"a commit":    (*world).commit,
	"an apply":    func(w *world) { w.applied = min(w.applied+1, w.last()) },
	"all applied": func(w *world) { w.applied = w.last() },
	"a closing is acknowledged": func(w *world) {
		w.commit()
		w.applied = w.last()
		w.acked = w.applied
	},
	"a snapshot that comes late": func(w *world) {
		w.applied, w.restored = max(w.applied-1, 1), true
	},
	"a renewal is asked for": func(w *world) { w.asked = lease.Lease{T0: w.now} },
	"its tick": func(w *world) {
		if w.asked.T0 > 0 && w.asked.Index == 0 {
			w.commit()
			w.asked.Index = w.last()
		}
	},
	"its end": func(w *world) {
		if w.asked.Index > 0 && w.applied >= w.asked.Index {
			w.lease, w.asked = w.asked, lease.Lease{}
		}
	},
}

func (w *world) happen() {
	if len(w.script) > 0 {
		for _, e := range w.script[0] {
			events[e](w)
		}
		w.script = w.script[1:]
	}
}

func (w *world) Lease() lease.Lease  { w.happen(); return w.lease }
func (w *world) State() *state.State { w.happen(); return states[w.applied] }
func (w *world) Now() time.Duration  { w.happen(); return w.now }
func (w *world) Fault() error        { return w.fault }
func (w *world) Unwell() error       { return nil }

func (w *world) Acknowledged() uint64 { return w.acked }

// Incarnation is the one that the states have: none.
func (w *world) Incarnation() hierarchy.ID { return w.run }

// Whatever happens between the reads of a look, what it grants is safe, and it refuses nothing that
// could be granted.
func TestLookAmongEvents(t *testing.T) {
	var names []string
	for name := range events {
		names = append(names, name)
	}
	slices.Sort(names)
	rapid.Check(t, func(t *rapid.T) {
		w := newWorld(rapid.SliceOfN(rapid.SliceOfN(rapid.SampledFrom(names), 0, 12), 3, 3).Draw(t, "script")...)
		v := view.New(w, self).Look()
		if v.Fault != nil {
			if !w.restored {
				t.Fatalf("a copy that is current is refused: %v", v.Fault)
			}
			return
		}
		for i, at := range w.committed {
			if at < w.now-v.Age && uint64(i) > v.State.Index() {
				t.Fatalf("at %d the state is said to be %d old, and what was committed at %d, before that, is not in it: index %d, the state is at %d", w.now, v.Age, at, i, v.State.Index())
			}
		}
	})
}

// The three orders that matter, each with the one thing that shows it.
func TestLookReadsInOrder(t *testing.T) {
	renewal := []string{"time passes", "a renewal is asked for", "its tick", "all applied", "its end"}
	for name, c := range map[string]struct {
		script [][]string
		index  uint64
		age    time.Duration
		fault  error
	}{
		"a renewal between the first two reads":       {[][]string{nil, renewal}, 3, 2, nil},
		"a pause between the last two reads":          {[][]string{nil, nil, {"time passes", "time passes"}}, 2, 3, nil},
		"a late snapshot between the first two reads": {[][]string{nil, {"a snapshot that comes late"}}, 1, 0, lease.ErrBehind},
	} {
		v := view.New(newWorld(c.script...), self).Look()
		if v.State.Index() != c.index || v.Age != c.age || !errors.Is(v.Fault, c.fault) {
			t.Errorf("%s: index %d, age %d, fault %v; want %d, %d, %v", name, v.State.Index(), v.Age, v.Fault, c.index, c.age, c.fault)
		}
	}
}

func TestLookOfNoMember(t *testing.T) {
	if v := view.New(newWorld(), stranger).Look(); !errors.Is(v.Fault, view.ErrNoMember) {
		t.Fatalf("a node that the state does not know: fault %v", v.Fault)
	}
}

// A node that has failed serves nothing from that moment on, though its lease has long to go.
func TestLookOfAFailedNode(t *testing.T) {
	w := newWorld()
	r := view.New(w, self)
	if v := r.Look(); v.Fault != nil {
		t.Fatal(v.Fault)
	}
	w.fault = errors.New("input/output error")
	if v := r.Look(); v.Fault != w.fault {
		t.Fatalf("got fault %v", v.Fault)
	}
}

// What was acknowledged to a fence is never served from before it again, though the lease would allow it.
func TestLookBehindAnAcknowledgement(t *testing.T) {
	w := newWorld()
	w.acked = 2
	if v := view.New(w, self).Look(); v.Fault != nil {
		t.Fatalf("at the closing: %v", v.Fault)
	}
	w.acked = 3
	if v := view.New(w, self).Look(); !errors.Is(v.Fault, view.ErrAcknowledged) {
		t.Fatalf("before the closing: fault %v", v.Fault)
	}
}

func TestLookOfAnotherRun(t *testing.T) {
	w := newWorld()
	w.run = hierarchy.ID{7}
	if v := view.New(w, self).Look(); !errors.Is(v.Fault, view.ErrNotRegistered) {
		t.Fatalf("a run that is not registered: fault %v", v.Fault)
	}
}

func TestLookWithoutALease(t *testing.T) {
	w := newWorld()
	w.lease = lease.Lease{}
	if v := view.New(w, self).Look(); !errors.Is(v.Fault, lease.ErrNone) {
		t.Fatalf("got fault %v", v.Fault)
	}
}
