package cluster_test

import (
	"context"
	"fmt"
	"time"

	"github.com/kekd/kekd/hierarchy"
	"github.com/kekd/kekd/hierarchy/commandpb"
	"github.com/kekd/kekd/hierarchy/state"
)

// A fault is brought about, lasts, and is undone before the next one; some last on into the next ones.
type simFault func(w *simWorld)

// simFaultKinds are drawn from. Which and how long is drawn from the seed; what happens meanwhile is raft's too.
var simFaultKinds = []simFault{
	(*simWorld).cutOne, (*simWorld).cutOne, (*simWorld).cutOneWay, (*simWorld).split, (*simWorld).badLinks, (*simWorld).badLinks,
	(*simWorld).pauseOne, (*simWorld).pauseOne, (*simWorld).killOne, (*simWorld).killOne, (*simWorld).leaveGhost,
	(*simWorld).snapshot, (*simWorld).transfer, (*simWorld).suffrage, (*simWorld).replace, (*simWorld).putBackOne, (*simWorld).keepImage,
}

func (w *simWorld) disturb(ctx context.Context, kinds []simFault) {
	w.keepImage()
	for ctx.Err() == nil {
		w.plan.perhaps(1, time.Second)
		if ctx.Err() == nil {
			kinds[w.plan.draw(len(kinds))](w)
		}
		if w.plan.chance(0.5) {
			w.net.heal()
		}
	}
	w.net.heal()
}

// lasting is how long a fault lasts: around max_staleness, for that is where it matters.
func (w *simWorld) lasting() {
	time.Sleep(w.plan.between(100*time.Millisecond, 4*time.Second))
}

func (w *simWorld) cutOne() {
	if r := w.any(w.plan); r != nil {
		w.note("cut off %s", r.machine.name)
		for _, o := range w.alive() {
			w.net.set(simLink{r.id, o.id}, simFaults{cut: true})
			w.net.set(simLink{o.id, r.id}, simFaults{cut: true})
		}
		w.lasting()
	}
}

func (w *simWorld) cutOneWay() {
	r, o := w.any(w.plan), w.any(w.plan)
	if r != nil && r != o {
		w.note("cut %s to %s", r.machine.name, o.machine.name)
		w.net.set(simLink{r.id, o.id}, simFaults{cut: true})
		w.lasting()
	}
}

func (w *simWorld) split() {
	side := map[*simRun]bool{}
	runs := w.alive()
	for _, r := range runs {
		side[r] = w.plan.chance(0.5)
	}
	for _, r := range runs {
		w.note("%s is on side %v", r.machine.name, side[r])
		for _, o := range runs {
			if side[r] != side[o] {
				w.net.set(simLink{r.id, o.id}, simFaults{cut: true})
			}
		}
	}
	w.lasting()
}

func (w *simWorld) badLinks() {
	f := simFaults{delay: w.plan.between(time.Millisecond, 400*time.Millisecond), lose: float64(w.plan.draw(30)) / 100, repeat: float64(w.plan.draw(30)) / 100}
	w.note("bad links: %+v", f)
	runs := w.alive()
	for _, r := range runs {
		for _, o := range runs {
			if w.plan.chance(0.5) {
				w.net.set(simLink{r.id, o.id}, f)
			}
		}
	}
	w.lasting()
}

func (w *simWorld) pauseOne() {
	if r := w.any(w.plan); r != nil {
		w.note("pause %s", r.machine.name)
		resume := r.pause()
		w.lasting()
		resume()
		w.note("resume %s", r.machine.name)
	}
}

func (w *simWorld) killOne() {
	if r := w.any(w.plan); r != nil {
		w.kill(r.machine, 0)
		w.plan.perhaps(0.7, 2*time.Second)
		w.start(r.machine)
	}
}

func (w *simWorld) leaveGhost() {
	if r := w.any(w.plan); r != nil {
		w.kill(r.machine, w.plan.between(100*time.Millisecond, 6*time.Second))
		w.plan.perhaps(0.3, 2*time.Second)
		w.start(r.machine)
	}
}

func (w *simWorld) snapshot() {
	if r := w.any(w.plan); r != nil {
		w.note("snapshot at %s", r.machine.name)
		ctx, cancel := context.WithTimeout(w.ctx, time.Second)
		defer cancel()
		_ = r.node.Load().Snapshot(ctx)
	}
}

func (w *simWorld) transfer() {
	if r := w.any(w.plan); r != nil {
		w.note("transfer, asked of %s", r.machine.name)
		ctx, cancel := context.WithTimeout(w.ctx, time.Second)
		defer cancel()
		_ = r.node.Load().TransferLeadership(ctx, hierarchy.NodeID{})
	}
}

func (w *simWorld) command(c *commandpb.Command) error {
	r := w.any(w.plan)
	if r == nil {
		return errSimGone
	}
	ctx, cancel := context.WithTimeout(w.ctx, time.Second)
	defer cancel()
	_, err := r.node.Load().Propose(ctx, c)
	return err
}

// suffrage gives a vote, or takes one. Three vote at least, so that one may be lost.
func (w *simWorld) suffrage() {
	r := w.any(w.plan)
	if r == nil {
		return
	}
	s := r.node.Load().State()
	n, ok := s.Node(r.id)
	voters := 0
	for n := range s.Nodes() {
		if n.Voter {
			voters++
		}
	}
	if !ok || n.Voter && voters <= 3 {
		return
	}
	vote := !n.Voter
	w.note("%s votes: %v, %v", r.machine.name, vote, w.command(setVote(r.id, vote)))
}

func setVote(of hierarchy.NodeID, vote bool) *commandpb.Command {
	return &commandpb.Command{Body: &commandpb.Command_SetNode{SetNode: &commandpb.SetNode{NodeId: of.ID[:], Voter: &vote}}}
}

// replace removes a node, which may not hear of it, and has another one join.
func (w *simWorld) replace() {
	if r := w.any(w.plan); r != nil && w.whole() {
		w.replaceIt(r.machine)
	}
}

// newest is the state of the node that is furthest; nil if none runs.
func (w *simWorld) newest() (newest *state.State) {
	for _, r := range w.alive() {
		if s := r.node.Load().State(); newest == nil || s.Index() > newest.Index() {
			newest = s
		}
	}
	return newest
}

// whole tells whether one voter may be lost for good: whichever node is asked, three vote at least, all of them run, and who
// votes is not about to change.
func (w *simWorld) whole() bool {
	newest, runs := w.newest(), w.alive()
	up := map[hierarchy.NodeID]bool{}
	for _, r := range runs {
		up[r.id] = !r.cutOff()
	}
	w.mu.Lock()
	for _, m := range w.machines {
		if m.leaves && !m.gone {
			w.mu.Unlock()
			return false
		}
	}
	w.mu.Unlock()
	for _, r := range runs {
		voters, votes := 0, r.node.Load().Votes()
		for id, is := range votes {
			n, member := newest.Node(id)
			if is && (!up[id] || !member) || member && n.Voter != is {
				return false
			}
			if is {
				voters++
			}
		}
		for n := range newest.Nodes() {
			if n.Voter && !votes[n.ID] {
				return false
			}
		}
		if voters < 3 {
			return false
		}
	}
	return newest != nil
}

func (w *simWorld) replaceIt(m *simMachine) {
	voter := false
	if s := w.newest(); s != nil {
		if n, ok := s.Node(m.id); ok {
			voter = n.Voter
		}
	}
	w.mu.Lock()
	m.leaves = true
	w.mu.Unlock()
	err := w.command(&commandpb.Command{Body: &commandpb.Command_RemoveNode{RemoveNode: &commandpb.RemoveNode{NodeId: m.id.ID[:]}}})
	w.note("remove %s: %v", m.name, err)
	if err != nil {
		return
	}
	w.mu.Lock()
	m.gone = true
	w.joined++
	name := fmt.Sprintf("n%d", w.joined)
	w.mu.Unlock()
	if r := m.run; r != nil {
		lasts := w.plan.between(0, 6*time.Second)
		w.running.Go(func() {
			time.Sleep(lasts)
			r.apart.Store(true)
			r.end()
		})
	}
	if by := w.any(w.plan); by != nil {
		ctx, cancel := context.WithTimeout(w.ctx, 3*time.Second)
		defer cancel()
		_, err := w.join(ctx, by, name, voter)
		w.note("join %s by %s: %v", name, by.machine.name, err)
	}
}

// keepImage copies a directory, to be put back later.
func (w *simWorld) keepImage() {
	if r := w.any(w.plan); r != nil {
		r.machine.backups = append(r.machine.backups, w.image(r.machine))
	}
}

// putBackOne puts back an older directory of a node. One that had answered for more does not start, and is replaced.
func (w *simWorld) putBackOne() {
	for _, r := range w.alive() {
		if m := r.machine; len(m.backups) > 0 && w.whole() {
			image := m.backups[0]
			m.backups = m.backups[1:]
			if !w.putBack(m, image) {
				w.replaceIt(m)
			}
			return
		}
	}
}

// recover has all that is wrong set right, and sees that the cluster is as good as new.
func (w *simWorld) recover() {
	w.net.heal()
	w.mu.Lock()
	machines := w.machines
	w.mu.Unlock()
	for _, m := range machines {
		if m.run == nil && !m.gone && !w.start(m) {
			w.replaceIt(m)
		}
	}
	w.until("every node has a fresh lease", func() bool {
		newest := w.newest()
		for _, r := range w.alive() {
			if _, member := newest.Node(r.id); !member || r.cutOff() {
				continue // removed, and its operator was not told
			}
			if v := r.View(); v.Fault != nil || v.Age > time.Second {
				return false
			}
		}
		return true
	})
}
